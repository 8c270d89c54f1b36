"""The evidence: what each method learns of a subject, and what it costs the prior.

`python dev.py bench quality` trains, samples and measures a fixed grid of (subject, seed, method); see grid.py.
"""
