"""What a run shows in a terminal, and how it is asked to end there."""
