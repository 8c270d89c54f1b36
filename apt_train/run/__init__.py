"""A run on disk: one reader and one writer for each of its files."""
