"""A picture as the host's IMAGE wires carry it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def image_tensor(picture: Image.Image) -> Tensor:
    """Float32 (1, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]
