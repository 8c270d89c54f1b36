"""A picture as the host's IMAGE wires carry it, and back; and as a node shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import ui
from PIL import Image
from torch import Tensor


def image_tensor(picture: Image.Image) -> Tensor:
    """Float32 (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def shown_on_node(picture: Image.Image, cls: Any, **beside: Any) -> tuple[Tensor, dict[str, Any]]:
    """A picture for a wire, and for the node of class `cls` to show: with its size, for which the editor makes room."""
    tensor = image_tensor(picture)
    return tensor, {**ui.PreviewImage(tensor, cls=cls).as_dict(), "sheet_size": list(picture.size), **beside}


def pil_image(pixels: Tensor) -> Image.Image:
    """Float (H, W, 3 or more channels) in [0, 1] -> RGB; values outside are clamped."""
    return Image.fromarray((pixels[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
