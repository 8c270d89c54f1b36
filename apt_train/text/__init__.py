"""From captions to what the UNet reads."""
