"""APT Train: adaptive personalized training of diffusion models from a few pictures.

The public names load on first use (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import AdapterConfig, AptConfig, DataConfig, OptimizerConfig, OutputConfig, TrainConfig
    from .data.dataset import ImageSet, load_images
    from .errors import InputError
    from .events import BusyEvent, NoticeEvent, PlanEvent, PreviewEvent, StepEvent, StopTraining, TrainResult
    from .families.components import Components
    from .families.load import load_checkpoint
    from .training.train import train

__version__ = "0.1.0"

_HOME = {
    "families.load": ("load_checkpoint",),
    "families.components": ("Components",),
    "config": ("AdapterConfig", "AptConfig", "DataConfig", "OptimizerConfig", "OutputConfig", "TrainConfig"),
    "data.dataset": ("ImageSet", "load_images"),
    "errors": ("InputError",),
    "events": ("BusyEvent", "NoticeEvent", "PlanEvent", "PreviewEvent", "StepEvent", "StopTraining", "TrainResult"),
    "training.train": ("train",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AdapterConfig", "AptConfig", "BusyEvent", "Components", "DataConfig", "ImageSet", "InputError", "NoticeEvent",
    "OptimizerConfig", "OutputConfig", "PlanEvent", "PreviewEvent", "StepEvent", "StopTraining", "TrainConfig",
    "TrainResult", "load_checkpoint", "load_images", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
