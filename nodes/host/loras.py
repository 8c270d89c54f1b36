"""The host's LoRA files and learned words by name, and its own loader: a LoRA on a MODEL, and how much of it is used.

In: the host's own lists. Not in: what a LoRA does (`apt_train.lora_check`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd
import folder_paths
import torch
from torch import Tensor

from ...apt_train.errors import InputError

HOST_FAILS = (
    "ComfyUI's own loader fails on this LoRA, because one of its layers lacks a part: use a complete copy of the file."
)


def lora_names() -> list[str]:
    """The files in the host's LoRA folders, as its own loaders list them."""
    return list(folder_paths.get_filename_list("loras"))


def lora_path(name: str) -> Path:
    """The path of a listed file. InputError: it no longer exists."""
    path = folder_paths.get_full_path("loras", name) if name in lora_names() else None
    if path is None:
        raise InputError(f"There is no LoRA {name} in the LoRA folders: choose another, or refresh the editor (R).")
    return Path(path)


def embedding_rows(trigger: str, beside: Path | None) -> dict[str, Tensor] | None:
    """The rows of `embedding:NAME`, from the host's folders or a file of that name beside the LoRA.

    None: not such a trigger, or no such file.
    """
    from ...apt_train.disk.tensor_file import read_tensors
    from ...apt_train.text.captions import learned_name

    wanted = learned_name(trigger)
    if wanted is None:
        return None
    # Different case only if no name matches exactly, because some file systems ignore case.
    for name in sorted(folder_paths.get_filename_list("embeddings"), key=lambda name: Path(name).stem != wanted):
        if Path(name).stem.lower() == wanted.lower() and name.endswith(".safetensors"):
            path = folder_paths.get_full_path("embeddings", name)
            return None if path is None else read_tensors(Path(path))[0]
    return read_tensors(beside)[0] if beside is not None and beside.stem.lower() == wanted.lower() else None


def taken_by_host(model: Any, clip: Any, lora: Mapping[str, Tensor]) -> int | None:
    """The number of layers that the host's own loader would change; None: it fails on this LoRA."""
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    try:
        loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), known, log_missing=False)
    except (KeyError, RuntimeError):  # a layer lacks a part, or an alpha is not one number
        return None
    keys = (key if isinstance(key, str) else key[0] for key in loaded)
    return len({key.rpartition(".")[0] for key in keys})


def with_any_lora(model: Any, clip: Any, lora: Mapping[str, Tensor], strength: float = 1.0) -> tuple[Any, Any, int]:
    """Clones of MODEL and CLIP (None: without) with a LoRA of any origin, and the number of weights it changes.

    InputError: the host's loader fails on it.
    """
    try:
        tuned, tuned_clip = comfy.sd.load_lora_for_models(model, clip, dict(lora), strength, strength)
    except (KeyError, RuntimeError):  # as above
        raise InputError(HOST_FAILS) from None
    wires = [(model, tuned), *([] if clip is None else [(clip.patcher, tuned_clip.patcher)])]
    return tuned, tuned_clip, sum(_patch_count(after) - _patch_count(before) for before, after in wires)


def require_without(model: Any, loras: Iterable[Mapping[str, Tensor]]) -> None:
    """InputError: one of these very LoRAs is on the MODEL already, at whatever strength, so it would act twice."""
    if model.patches and any(_carries(model, lora) for lora in loras):
        raise InputError(
            "The MODEL carries this LoRA already, so it would act twice: wire the model as it is without it, for "
            "example the checkpoint's."
        )


def _carries(model: Any, lora: Mapping[str, Tensor]) -> bool:
    try:
        tuned, _, _ = with_any_lora(model, None, lora)
    except InputError:  # nor has the host's loader put it there, then
        return False
    for key, patches in tuned.patches.items():
        before = model.patches.get(key, [])
        if any(_is_same(old[1], new[1]) for new in patches[len(before) :] for old in before):
            return True
    return False


def _is_same(one: Any, other: Any) -> bool:
    """Whether two patches hold the same tensors, but for the rounding of a file in half precision."""
    pairs = list(zip(_tensors(one), _tensors(other), strict=False))
    return bool(pairs) and all(
        a.shape == b.shape and torch.allclose(a.cpu().float(), b.cpu().float(), rtol=1e-2, atol=1e-5) for a, b in pairs
    )


def _tensors(patch: Any) -> list[Tensor]:
    parts = getattr(patch, "weights", patch)
    return [part for part in parts if isinstance(part, Tensor)] if isinstance(parts, (list, tuple)) else []


def _patch_count(patcher: Any) -> int:
    return sum(map(len, patcher.patches.values()))
