"""Hostile input, made by hypothesis: every outcome is success or one sentence, within time and memory.

`python -m tests.fuzz` (or `python dev.py fuzz`) hunts for minutes; `tests/test_fuzz.py` runs a short form of it.
"""
