"""Finds problems in a set of pictures before it is trained on."""
