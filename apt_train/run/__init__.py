"""A run on disk: one reader and one writer each for its settings, its log, its state and its snapshots."""
