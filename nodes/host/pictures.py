"""A picture as the host's IMAGE wires carry it, and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_tensor(picture: Image.Image) -> Tensor:
    """Float32 (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def pil_image(pixels: Tensor) -> Image.Image:
    """Float (H, W, 3 or more channels) in [0, 1] -> RGB; values outside are clamped."""
    return Image.fromarray((pixels[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
