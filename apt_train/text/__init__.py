"""Captions become what the UNet reads."""
