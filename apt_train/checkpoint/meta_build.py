"""A module built without memory, then given its tensors: no second copy of the weights at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from .tensor_file import common_dtype

Module = TypeVar("Module", bound=nn.Module)


def build(make: Callable[[], Module], tensors: Mapping[str, Tensor], *, what: str, dtype: torch.dtype | None) -> Module:
    """Make the module on the meta device and put the tensors in place; in eval mode, nothing requiring a gradient.

    `tensors`: every name of the module's state dict, no other. `dtype` None: the type most of the tensors have.
    `what` names the part and its file in the InputError raised for missing, unexpected or misshapen tensors.
    """
    with torch.device("meta"):
        model = make()
    _check_names(model.state_dict(), tensors, what)
    dtype = dtype or common_dtype(tensors.values())
    ready = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(ready, assign=True)
    _fill_position_ids(model)
    return model.eval().requires_grad_(False)


def _check_names(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    missing = [name for name in own if name not in given]
    foreign = [name for name in given if name not in own]
    misshapen = [name for name in own if name in given and own[name].shape != given[name].shape]
    for problem, names in (("lacks", missing), ("holds unexpected", foreign), ("has other shapes in", misshapen)):
        if names:
            raise InputError(
                f"{what} {problem} {len(names)} tensor{'s'[: len(names) - 1]} ({first_few(names)}): it is damaged "
                "or of a kind not supported, so use another checkpoint of SD1.5 or SDXL."
            )


def first_few(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _fill_position_ids(model: nn.Module) -> None:
    """CLIP's position ids are a buffer outside the state dict: after a build on meta they have no values."""
    for module in model.modules():
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, Tensor) and ids.is_meta:
            module.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)
    assert not any(buffer.is_meta for buffer in model.buffers())
