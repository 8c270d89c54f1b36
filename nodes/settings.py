"""Widgets out of the trainer's settings, and settings out of widgets: defaults and tooltips stand in the dataclasses.

In: one widget per field, and what an empty field is called on a node. Not in: which node shows which (`train`,
`options`).
"""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any, get_args, get_origin, get_type_hints

from comfy_api.latest import io

from ..apt_train.config import AugmentKind, TrainConfig, choices_of
from ..apt_train.errors import InputError
from .wires import AptOptions

METHODS = {"APT": "apt", "DreamBooth": "dreambooth", "DCO": "dco", "T-LoRA": "tlora"}
PREVIEW_EVERY = 250  # a node is watched, a command line often is not: there previews are off
GROUPS = ("apt", "adapter", "optimizer", "data", "output")

# A number's widget: least, most, step. Everything is checked again, in words, by the dataclasses.
_RANGES: dict[str, tuple[float, float, float]] = {
    "steps": (1, 1_000_000, 1), "rank": (1, 1024, 1), "batch_size": (1, 256, 1), "accumulation": (1, 1024, 1),
    "resolution": (0, 4096, 64), "bucket_multiple": (0, 512, 8), "seed": (0, 0xFFFFFFFFFFFFFFFF, 1),
    "learning_rate": (1e-7, 1, 1e-7), "embedding_learning_rate": (0, 1, 1e-7), "epsilon": (1e-12, 1, 1e-12),
    "beta1": (0, 0.9999, 1e-4), "beta2": (0, 0.99999, 1e-5), "weight_decay": (0, 10, 1e-5),
    "max_grad_norm": (0, 1000, 0.1), "warmup_steps": (0, 1_000_000, 1), "dropout": (0, 0.99, 0.01),
    "alpha": (0, 4096, 0.5), "min_rank": (0, 1024, 1), "bins": (1, 1000, 1), "ema": (0.001, 1, 0.001),
    "p_max": (0, 1, 0.01), "max_zoom": (0, 10, 0.05), "max_degrees": (0, 180, 0.5),
    "augment_variants": (1, 1024, 1), "dist_weight": (0, 1e4, 0.001), "attn_weight": (0, 1e4, 0.001),
    "lazy_prior": (1, 64, 1), "balance_every": (0, 100_000, 1), "dco_beta": (0.001, 1e6, 1),
    "prior_preservation_weight": (0, 100, 0.05), "snapshot_every": (0, 1_000_000, 1),
    "preview_every": (0, 1_000_000, 1), "preview_steps": (1, 1000, 1), "preview_guidance": (0, 100, 0.1),
    "preview_seed": (0, 0x7FFFFFFF, 1),
}  # fmt: skip
_ON_NODES = {
    "class_word": " Required.",
    "preview_prompts": " One per line; the first is shown while training.",
    "drift_prompts": " One per line.",
    "preview_every": " The samples of prior and tuned model appear on the training node.",
}
_CHECKPOINTING = {"auto": None, "on": True, "off": False}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of the settings: `group` is its dataclass's name in TrainConfig, empty for TrainConfig's own."""

    group: str
    name: str

    @property
    def field(self) -> dataclasses.Field[Any]:
        return {item.name: item for item in dataclasses.fields(self._home)}[self.name]

    @property
    def kind(self) -> Any:
        return get_type_hints(self._home)[self.name]

    @property
    def _home(self) -> Any:
        return get_type_hints(TrainConfig)[self.group] if self.group else TrainConfig


def widget(setting: Setting, *, label: str | None = None, **more: Any) -> io.Input:
    """The widget of a setting, with the dataclass's default and help. `label`: in place of its name."""
    kind, name = setting.kind, setting.name
    default = PREVIEW_EVERY if name == "preview_every" else setting.field.default
    shared = {"display_name": label, "tooltip": _help(setting), **more}
    if name == "gradient_checkpointing":
        return io.Combo.Input(name, options=list(_CHECKPOINTING), default="auto", **shared)
    if name == "temperature":
        return io.String.Input(name, default=f"{default:g}", **shared)
    if name == "augment_kinds":
        return io.Combo.Input(name, options=_combined(get_args(AugmentKind)), default="+".join(default), **shared)
    if get_origin(kind) is tuple:
        return io.String.Input(name, default="\n".join(default), multiline=True, **shared)
    if choices := choices_of(setting.field, kind):
        return io.Combo.Input(name, options=list(choices), default=default, **shared)
    if kind is bool:
        return io.Boolean.Input(name, default=default, **shared)
    if kind is str:
        return io.String.Input(name, default="" if default is dataclasses.MISSING else default, **shared)
    low, high, step = _RANGES[name]
    default = 0 if default in (None, "auto") else default
    if float in (kind, *get_args(kind)):
        return io.Float.Input(name, default=float(default), min=low, max=high, step=step, round=False, **shared)
    return io.Int.Input(name, default=int(default), min=int(low), max=int(high), step=int(step), **shared)


def _combined(kinds: tuple[str, ...]) -> list[str]:
    """Every choice of one or more, `affine+flip` say. The editor's own list of several starts empty, and in its newer
    renderer cannot be seen."""
    chosen = [some for count in range(1, len(kinds) + 1) for some in combinations(kinds, count)]
    return ["+".join(some) for some in chosen]


def _help(setting: Setting) -> str:
    """The field's help, where an empty field is a 0 (or `auto`) on a node; and what is true of nodes alone."""
    text = setting.field.metadata["help"] + _ON_NODES.get(setting.name, "")
    text = text.replace("auto:", "0:") if setting.name == "max_zoom" else text
    return text.replace("Empty:", "auto:" if setting.name == "gradient_checkpointing" else "0:")


def value_of(setting: Setting, shown: Any) -> Any:
    """A widget's value as the dataclass takes it."""
    if setting.name == "gradient_checkpointing":
        return _CHECKPOINTING[shown]
    if setting.name == "temperature":
        return _temperature(shown)
    if setting.name == "max_zoom":
        return shown or "auto"  # a widget for numbers since before there was a word for it
    if setting.name == "augment_kinds":
        return _kinds(shown) or setting.field.default
    if get_origin(setting.kind) is tuple:
        lines = shown.splitlines() if isinstance(shown, str) else shown
        return tuple(line.strip() for line in lines if line.strip())
    if type(None) in get_args(setting.kind):
        return shown or None
    return shown


def _kinds(shown: Any) -> tuple[str, ...]:
    """Of `affine+flip`, or of a list as older workflows hold it; of an empty one, none."""
    parts = shown if isinstance(shown, (list, tuple)) else str(shown).split("+")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _temperature(text: str) -> float | str:
    try:
        return "auto" if text.strip().lower() == "auto" else float(text)
    except ValueError:
        raise InputError(f"temperature is {text!r}: give a number above 0, or auto.") from None


def train_config(main: dict[Setting, Any], options: AptOptions | None, *, subject: str, method: str) -> TrainConfig:
    """The run's settings: the options node's, and over them the training node's own.

    InputError: a value that does not fit, named as the widgets are.
    """
    values: dict[str, Any] = {group: {} for group in GROUPS}
    values["output"]["preview_every"] = PREVIEW_EVERY
    for group, settings in (options.settings if options else {}).items():
        values.update(settings) if not group else values[group].update(settings)
    for setting, shown in main.items():
        home = values[setting.group] if setting.group else values
        home[setting.name] = value_of(setting, shown)
    name = "_".join(subject.split())
    try:
        return TrainConfig.from_dict({**values, "identifier": name, "method": METHODS[method]})
    except InputError as error:
        raise InputError(str(error).replace("identifier is", "subject is", 1)) from None
