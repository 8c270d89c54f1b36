"""Sampling pictures from a model, and measuring how far it has moved from the prior."""
