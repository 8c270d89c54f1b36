"""Checks any LoRA on its checkpoint: what it does, what it costs, and the strength to use it at."""
