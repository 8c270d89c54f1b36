"""Measures what each method learns about a subject, and what that costs the prior.

`python dev.py bench quality` trains, samples and measures a fixed grid of (subject, seed, method); see grid.py.
"""
