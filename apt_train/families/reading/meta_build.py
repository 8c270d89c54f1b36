"""Builds a module on the meta device and assigns its tensors, so that no second copy of the weights ever exists."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...disk.json_file import short_name
from ...disk.tensor_file import common_dtype
from ...errors import InputError
from ...wording import counted
from .config_check import libraries_answer

Module = TypeVar("Module", bound=nn.Module)

_QUANTISED = (  # the kind, and tensor names that only its files have
    ("scaled fp8", re.compile(r"(^|\.)(scaled_fp8|scale_weight|scale_input|weight_scale|input_scale|comfy_quant)$")),
    ("bitsandbytes", re.compile(r"\.(SCB|absmax|nested_absmax|quant_map|quant_state\.bitsandbytes__\w+)$")),
    ("GPTQ or AWQ", re.compile(r"\.(qweight|qzeros)$")),
)


def build(
    make: Callable[[], Module],
    tensors: Mapping[str, Tensor],
    *,
    what: str,
    dtype: torch.dtype | None,
    called: Callable[[Module], Mapping[str, str]] = lambda module: {},
) -> Module:
    """Build the module on the meta device and assign the tensors; in eval mode, with gradients disabled.

    `tensors`: exactly the names of the module's state dict. `dtype` None: that of most tensors. `what` names the part
    and its file in the InputError for missing, unexpected or misshapen tensors. `called`: the module -> its layers by
    their paths in `tensors`, if those are others.
    """
    refuse_quantised(tensors, what)
    with libraries_answer(what, "use another checkpoint"), torch.device("meta"):
        model = make()
    own = called(model)
    tensors = {renamed(name, own): tensor for name, tensor in tensors.items()}
    _check_names(model.state_dict(), tensors, what)
    dtype = dtype or common_dtype(tensors.values())
    ready = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    _check_finite(ready, tensors, what, dtype)
    model.load_state_dict(ready, assign=True)
    _fill_position_ids(model)
    return model.eval().requires_grad_(False)


def renamed(name: str, layers: Mapping[str, str]) -> str:
    """A tensor's name if its layer is called as `layers` say. Unknown layers keep their name."""
    layer, dot, of = name.rpartition(".")
    return f"{layers.get(layer, layer)}{dot}{of}"


def _check_names(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    missing = [name for name in own if name not in given]
    foreign = [name for name in given if name not in own]
    shared = [name for name in own if name in given]
    misshapen = [name for name in shared if own[name].shape != given[name].shape]
    untyped = [name for name in shared if own[name].is_floating_point() != given[name].is_floating_point()]
    for problem, names in (
        ("lacks", missing),
        ("holds unexpected", foreign),
        ("has other shapes in", misshapen),
        ("has another type of number in", untyped),
    ):
        if names:
            raise InputError(
                f"{what} {problem} {counted(len(names), 'tensor')} ({_first_few(names)}): it is damaged or of a kind "
                "not supported, so use another checkpoint."
            )


def refuse_quantised(names: Iterable[str], what: str) -> None:
    """Refuse weights that are meaningless without their own scales."""
    for kind, pattern in _QUANTISED:
        if any(pattern.search(name) for name in names):
            raise InputError(f"{what} is quantised ({kind}), which cannot be trained: use its float16 file.")


def refuse_quantised_config(values: Mapping[str, Any], what: str) -> None:
    """Refuse a config.json whose weights a library would have to unpack, in some formats with code that it fetches."""
    if values.get("quantization_config") is not None:
        raise InputError(f"{what} is quantised (its config.json has a quantization_config): use the model in float16.")


def _check_finite(ready: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str, dtype: torch.dtype) -> None:
    """Weights that are not finite would end a run at its first step, in any precision."""
    bad = [name for name, tensor in ready.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if not bad:
        return
    if all(_is_finite(given[name].to(torch.float32)) for name in bad):
        raise InputError(f"{what} has weights too large for {dtype} ({_first_few(bad)}): load it in another precision.")
    raise InputError(
        f"{what} holds NaN or infinite weights in {counted(len(bad), 'tensor')} ({_first_few(bad)}): it is damaged, so "
        "download it again or use another."
    )


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())  # aminmax passes NaN on


def _first_few(names: list[str]) -> str:
    return ", ".join(map(short_name, names[:3])) + (", ..." if len(names) > 3 else "")


def _fill_position_ids(model: nn.Module) -> None:
    """CLIP's position ids are a buffer outside the state dict, so a meta build leaves them without values."""
    for module in model.modules():
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, Tensor) and ids.is_meta:
            module.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)
    assert not any(buffer.is_meta for buffer in model.buffers())
