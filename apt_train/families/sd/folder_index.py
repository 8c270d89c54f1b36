"""Reads the JSON files of a diffusers folder: which parts it has, and its noise schedule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...disk.json_file import place, read_json_object, short_name
from ...errors import InputError
from ..components import Choices
from ..noise import NoiseSchedule
from ..reading.config_check import checked
from ..reading.weight_files import visible
from .config_tables import INDEX, PARTS, checked_scheduler
from .schedule_config import schedule_from_config


def read_index(folder: Path, needs_vae: bool) -> dict[str, Any]:
    """model_index.json, checked to name every part of a Stable Diffusion pipeline."""
    path = folder / "model_index.json"
    if not path.is_file():
        raise InputError(
            f"The folder {folder} has no model_index.json, so it is no diffusers model: {_advice(folder)}."
        )
    index = checked(read_json_object(path), INDEX, place(path))
    optional = () if needs_vae else ("vae",)
    lacking = [part for part in PARTS if not (is_given(index, part) or part in optional or part.endswith("_2"))]
    if lacking:
        title = short_name(index.get("_class_name", "pipeline"))
        raise InputError(f"{folder.name} is a {title} without {lacking[0]}: give a diffusers folder of SD1.5 or SDXL.")
    if (kind := index["unet"][1]) != "UNet2DConditionModel":
        raise InputError(
            f"{folder.name} has a UNet of the kind {short_name(kind)}: give a diffusers folder of SD1.5 or SDXL."
        )
    return index


def _advice(folder: Path) -> str:
    if (folder.parent / "model_index.json").is_file():
        return f"it is one part of a model, give {folder.parent}"
    files = visible(folder, "*.safetensors")
    return f"give a file in it, {files[0]} say" if files else "give a diffusers folder or a .safetensors checkpoint"


def is_given(index: Mapping[str, Any], part: str) -> bool:
    return bool((index.get(part) or [None, None])[1])


def folder_schedule(folder: Path, choices: Choices) -> NoiseSchedule:
    path = folder / "scheduler" / "scheduler_config.json"
    config = checked_scheduler(read_json_object(path), place(path))
    if (name := config.get("_class_name")) in ("LCMScheduler", "TCDScheduler"):
        raise lcm_refusal(folder, f"scheduler is {name}")
    return schedule_from_config(config, choices.prediction_type, choices.zero_terminal_snr)


def lcm_refusal(folder: Path, why: str) -> InputError:
    return InputError(
        f"{folder.name} is an LCM (its {why}), a model distilled to few steps: give the model it was made from."
    )


def title_of(part: Path) -> str:
    return f"The {part.name} in {part.parent.name}"
