"""The drawn world: a procedural, captioned picture source and the scripts that train the embedded model on it."""
