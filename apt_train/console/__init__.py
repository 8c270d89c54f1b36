"""How a run appears in a terminal, and how it is stopped there."""
