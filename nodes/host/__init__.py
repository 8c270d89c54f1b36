"""Everything that knows ComfyUI's internals: models, text encoders, VAE, folders, progress, memory."""
