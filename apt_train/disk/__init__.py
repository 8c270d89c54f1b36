"""Files read defensively and written atomically."""
