"""The demo on the embedded model, and the judge of its pictures."""
