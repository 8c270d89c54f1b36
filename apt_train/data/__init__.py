"""A folder of pictures becomes latents."""
