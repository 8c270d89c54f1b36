"""Stable Diffusion 1.x, 2.x and XL: a file or a folder becomes `Components`."""
