"""From a folder of pictures to latents."""
