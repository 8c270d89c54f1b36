"""Every setting of a training run, as frozen dataclasses that check themselves.

In: names, ranges, defaults and one help sentence each, with its standing (paper / reported / ours): the command line
and the nodes read them from here. Not in: anything heavy; this module imports the standard library alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import InputError

Method = Literal["apt", "dreambooth", "dco", "tlora"]
IdentifierMode = Literal["learned", "word"]
AdapterTargets = Literal["attention", "attention+ff"]
Layers = Literal["up", "mid+up", "all"]
StabilizationMode = Literal["relative", "raw"]
AttnSchedule = Literal["constant", "linear", "indicator"]
AugmentKind = Literal["affine", "flip", "color"]
LrSchedule = Literal["constant", "constant_with_warmup", "linear", "cosine"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
_PLACEHOLDER = re.compile(r"[{}]|embedding:", re.IGNORECASE)  # stands for the subject in captions, not for its kind


def _set(default: Any, help: str) -> Any:
    """A setting with its default and the sentence that tooltips and `--help` show."""
    return field(default=default, metadata={"help": help})


def _group(cls: type) -> Any:
    return field(default_factory=cls)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The LoRA: its size and where it sits. Defaults are DCO's published recipe."""

    rank: int = _set(32, "Rank of the LoRA: how much it can hold; its file grows with it.")
    alpha: float | None = _set(
        None, "Scale of the LoRA: the update is multiplied by alpha / rank. Empty: equal to rank."
    )
    dropout: float = _set(0.0, "Share of the LoRA's inputs dropped while training.")
    targets: AdapterTargets = _set(
        "attention",
        "Layers that get a LoRA: q, k, v and out of self- and cross-attention, or the feed-forward layers too.",
    )
    min_rank: int | None = _set(None, "T-LoRA only: the rank left at the noisiest timestep. Empty: half of rank.")

    def __post_init__(self) -> None:
        _check_values(self)
        _require(self.rank >= 1, "rank", self.rank, "give a whole number of at least 1")
        _require(self.alpha is None or _positive(self.alpha), "alpha", self.alpha, "give a number above 0")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "give a number from 0 up to, not including, 1")
        _require(
            self.min_rank is None or 1 <= self.min_rank <= self.rank,
            "min_rank",
            self.min_rank,
            f"give a whole number from 1 to rank ({self.rank})",
        )

    @property
    def resolved_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def resolved_min_rank(self) -> int:
        return max(1, self.rank // 2) if self.min_rank is None else self.min_rank


@dataclass(frozen=True, kw_only=True)
class AptConfig:
    """The three parts of APT, each with its switch. They act when `method` is `apt`."""

    # Adaptive Training Adjustment
    adaptive_augmentation: bool = _set(True, "Augment pictures with probability min(gamma, p_max) (reported).")
    adaptive_loss_weight: bool = _set(True, "Weigh the denoising loss by 1 - gamma (reported).")
    bins: int = _set(10, "Timestep bins of the overfitting indicator (paper: 10).")
    ema: float = _set(0.1, "Weight of the new value in the indicator's moving averages (reported: 0.1).")
    temperature: float | Literal["auto"] = _set(
        1000.0,
        "T in gamma = 1 - exp(-T * gap) (reported: 1000, the steps of the schedule), or auto: the gap is measured "
        "relative to the prior's own loss (ours).",
    )
    p_max: float = _set(0.8, "Highest probability of augmentation (reported: 0.8).")
    max_zoom: float = _set(3.0, "Augmentation zooms out by 1 to this factor (reported: 3).")
    max_degrees: float = _set(15.0, "Augmentation rotates by up to this many degrees either way (reported: 15).")
    augment_kinds: tuple[AugmentKind, ...] = _set(
        ("affine",), "Kinds of augmentation: affine is the paper's; flip (mirror) and color are ours."
    )
    augment_variants: int = _set(32, "Most augmented variants encoded per picture (ours).")
    mask_fill: bool = _set(
        False, "Leave the black fill of augmented pictures out of the denoising loss (ours; the paper trains on it)."
    )

    # Representation Stabilization
    stabilization: bool = _set(
        True, "Keep mean and deviation of self-attention features near the prior's (paper; their distance is ours)."
    )
    dist_weight: float = _set(
        0.01, "Weight of the stabilization term (unpublished; ours, settled by docs/benchmark.md)."
    )
    dist_layers: Layers = _set("up", "Part of the UNet whose features are stabilized (ours: the decoder).")
    dist_mode: StabilizationMode = _set(
        "relative", "Divide the shift by the prior's variance, or take it raw (ours: relative)."
    )

    # Attention Alignment
    alignment: bool = _set(True, "Keep cross-attention maps near the prior's (paper; their distance is ours).")
    attn_weight: float = _set(
        0.01, "Weight of the attention alignment term (unpublished; ours, settled by docs/benchmark.md)."
    )
    attn_layers: Layers = _set("up", "Part of the UNet whose cross-attention is aligned (ours: the decoder).")
    attn_schedule: AttnSchedule = _set(
        "constant",
        "How attn_weight runs: constant; or, ours, linear from 0 at the first step to full at the last, or indicator, "
        "times gamma of each sample's bin.",
    )

    lazy_prior: int = _set(
        1,
        "Run the prior pass and its losses every k-th step, the regularisers scaled by k; 1 is the paper's way, more "
        "is faster (ours).",
    )
    watch_indicator: bool = _set(
        False, "Measure the indicator also where the method does not use it: costs the prior pass, changes no weight."
    )
    balance_every: int = _set(50, "Log the gradient norm of each term every so many steps; 0: never.")

    def __post_init__(self) -> None:
        _check_values(self)
        _require(self.bins >= 1, "bins", self.bins, "give a whole number of at least 1")
        _require(0 < self.ema <= 1, "ema", self.ema, "give a number above 0 and at most 1")
        _require(
            self.temperature == "auto" or _positive(self.temperature),
            "temperature",
            self.temperature,
            "give a number above 0, or auto",
        )
        _require(0 <= self.p_max <= 1, "p_max", self.p_max, "give a probability from 0 to 1")
        _require(
            _finite(self.max_zoom) and self.max_zoom >= 1, "max_zoom", self.max_zoom, "give a number of at least 1"
        )
        _require(0 <= self.max_degrees <= 180, "max_degrees", self.max_degrees, "give an angle from 0 to 180")
        _require(
            len(self.augment_kinds) > 0,
            "augment_kinds",
            "()",
            "name at least one, or set adaptive_augmentation to false",
        )
        _require(
            self.augment_variants >= 1, "augment_variants", self.augment_variants, "give a whole number of at least 1"
        )
        for name in ("dist_weight", "attn_weight"):
            value = getattr(self, name)
            _require(_finite(value) and value >= 0, name, value, "give a number of at least 0")
        _require(self.lazy_prior >= 1, "lazy_prior", self.lazy_prior, "give a whole number of at least 1")
        _require(self.balance_every >= 0, "balance_every", self.balance_every, "give a whole number of at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the batch. Defaults are DCO's published recipe."""

    learning_rate: float = _set(5e-5, "Learning rate of the LoRA.")
    embedding_learning_rate: float = _set(5e-6, "Learning rate of the learned identifier.")
    beta1: float = _set(0.9, "AdamW: decay of the mean of gradients.")
    beta2: float = _set(0.999, "AdamW: decay of the mean of squared gradients.")
    epsilon: float = _set(1e-8, "AdamW: added to the denominator.")
    weight_decay: float = _set(1e-4, "AdamW: weight decay of the LoRA; the identifier has none.")
    max_grad_norm: float = _set(1.0, "Gradients are scaled down to this norm; 0: no clipping.")
    lr_schedule: LrSchedule = _set("constant", "Course of the learning rate over the steps.")
    warmup_steps: int = _set(0, "Steps over which the learning rate rises from 0 (every schedule but constant).")
    batch_size: int = _set(1, "Pictures in one pass; memory grows with it.")
    accumulation: int = _set(1, "Passes summed into one optimizer step.")

    def __post_init__(self) -> None:
        _check_values(self)
        _require(_positive(self.learning_rate), "learning_rate", self.learning_rate, "give a number above 0")
        for name in ("embedding_learning_rate", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            _require(_finite(value) and value >= 0, name, value, "give a number of at least 0")
        for name in ("beta1", "beta2"):
            _require(
                0 <= getattr(self, name) < 1, name, getattr(self, name), "give a number from 0 up to, not including, 1"
            )
        _require(_positive(self.epsilon), "epsilon", self.epsilon, "give a number above 0")
        for name in ("batch_size", "accumulation"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "give a whole number of at least 1")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "give a whole number of at least 0")
        idle = self.warmup_steps and self.lr_schedule == "constant"
        _require(not idle, "warmup_steps", self.warmup_steps, "set lr_schedule to constant_with_warmup, or this to 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How pictures and captions become training samples."""

    resolution: int = _set(0, "Side of a square picture in pixels; other aspects keep its area. 0: the model's own.")
    bucket_multiple: int = _set(
        0, "Sides are multiples of this many pixels. 0: 64, or the model's own factor below a resolution of 512."
    )
    caption_template: str = _set(
        "a photo of {subject}", "Caption of a picture that has none; {subject} is the subject."
    )
    class_caption: str = _set(
        "a photo of {class_word}",
        "Caption of a prior-preservation picture that has none; {class_word} is the class word.",
    )
    prior_preservation_weight: float = _set(1.0, "Weight of the loss on prior-preservation pictures, where given.")

    def __post_init__(self) -> None:
        _check_values(self)
        _require(
            self.resolution >= 0, "resolution", self.resolution, "give a number of pixels, or 0 for the model's own"
        )
        _require(self.bucket_multiple >= 0, "bucket_multiple", self.bucket_multiple, "give a number of pixels, or 0")
        _require(
            "{subject}" in self.caption_template,
            "caption_template",
            repr(self.caption_template),
            "write {subject} where the subject belongs",
        )
        value = self.prior_preservation_weight
        _require(_finite(value) and value >= 0, "prior_preservation_weight", value, "give a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Snapshots, preview samples, drift. Nothing here changes the trained weights."""

    snapshot_every: int = _set(
        250, "Steps between snapshots (LoRA and embedding kept; the full state of the last two); 0: only at the end."
    )
    preview_every: int = _set(0, "Steps between preview samples; 0: none.")
    preview_prompts: tuple[str, ...] = _set((), "Prompts of the previews, with {subject}; none: the caption template.")
    preview_steps: int = _set(25, "Denoising steps of a preview.")
    preview_guidance: float = _set(5.0, "Classifier-free guidance scale of a preview.")
    preview_seed: int = _set(0, "Seed of the previews.")
    watch_drift: bool = _set(
        True,
        "At every snapshot, measure how far the model has left the prior on drift_prompts and on its captions (ours).",
    )
    drift_prompts: tuple[str, ...] = _set(
        (
            "a bowl of fruit on a table",
            "a wooden chair beside a window",
            "a city street at night",
            "a landscape with mountains and a lake",
        ),
        "Prompts without the subject, for watch_drift (ours); those that name the class word are left out.",
    )

    def __post_init__(self) -> None:
        _check_values(self)
        for name in ("snapshot_every", "preview_every", "preview_seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "give a whole number of at least 0")
        _require(self.preview_steps >= 1, "preview_steps", self.preview_steps, "give a whole number of at least 1")
        _require(
            _finite(self.preview_guidance) and self.preview_guidance >= 0,
            "preview_guidance",
            self.preview_guidance,
            "give a number of at least 0",
        )
        for prompt in self.drift_prompts:
            names = "{subject}" in prompt or "embedding:" in prompt.lower()
            _require(not names, "drift_prompts", repr(prompt), "leave the subject out of it")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    class_word: str = field(
        metadata={
            "help": "What the subject is, in words the model knows (toy, teddy bear); the prior reads it where the "
            "tuned model reads the subject."
        }
    )
    identifier: str = _set("", "Name of the subject, the embedding and the LoRA file; empty: <class-word>_subject.")
    identifier_mode: IdentifierMode = _set(
        "learned",
        "learned: a new word for the subject is trained too; word: a plain trigger word before the class word.",
    )
    init_word: str = _set("", "The learned identifier starts as this word or these words; empty: the class word.")
    method: Method = _set(
        "apt", "What is trained: APT, plain DreamBooth, DCO, or T-LoRA (DreamBooth with rank by timestep)."
    )
    steps: int = _set(2000, "Optimizer steps of the whole run.")
    seed: int = _set(0, "Seed of every random draw.")
    dco_beta: float = _set(1000.0, "DCO only: sharpness of the preference over the prior.")
    precision: Precision = _set(
        "auto",
        "Of base weights and passes; the LoRA stays fp32. auto: bf16 on CUDA (fp16 where it lacks bf16), else fp32.",
    )
    gradient_checkpointing: bool | None = _set(
        None, "Recompute activations in the backward pass to save memory. Empty: on for SDXL on a GPU, else off."
    )
    adapter: AdapterConfig = _group(AdapterConfig)
    apt: AptConfig = _group(AptConfig)
    optimizer: OptimizerConfig = _group(OptimizerConfig)
    data: DataConfig = _group(DataConfig)
    output: OutputConfig = _group(OutputConfig)

    def __post_init__(self) -> None:
        _check_values(self)
        _require(
            bool(self.class_word.strip()), "class_word", "empty", "say what the subject is, for example toy or dog"
        )
        for name in ("class_word", "init_word"):
            word = getattr(self, name)
            _require(not _PLACEHOLDER.search(word), name, repr(word), "write plain words the model knows, such as toy")
        letters = "letters, digits, _ and -"
        _require(
            not self.identifier or NAME_PATTERN.fullmatch(self.identifier) is not None,
            "identifier",
            repr(self.identifier),
            f"use only {letters}",
        )
        _require(
            NAME_PATTERN.fullmatch(self.name) is not None,
            "identifier",
            f"empty and class_word is {self.class_word!r}, which cannot name files",
            f"give a name of {letters}",
        )
        _require(self.steps >= 1, "steps", self.steps, "give a whole number of at least 1")
        _require(self.seed >= 0, "seed", self.seed, "give a whole number of at least 0")
        _require(_positive(self.dco_beta), "dco_beta", self.dco_beta, "give a number above 0")
        _require(
            self.method != "dco" or self.apt.lazy_prior == 1,
            "lazy_prior",
            self.apt.lazy_prior,
            "DCO's loss needs the prior at every step, so set it to 1",
        )

    @property
    def name(self) -> str:
        """The subject's name, also the stem of every file written for it."""
        return self.identifier or "_".join(self.class_word.split()) + "_subject"

    @property
    def resolved_init_word(self) -> str:
        return self.init_word.strip() or self.class_word.strip()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to `config.json`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; an unknown name is an InputError."""
        return _build(TrainConfig, values)

    def identity(self) -> dict[str, Any]:
        """The settings that change the trained weights: what a run's content hash is made of.

        `steps` counts only under a learning-rate or attention schedule that reads the total.
        """
        values = self.to_dict()
        del values["output"], values["identifier"], values["gradient_checkpointing"]
        if self.method == "apt":
            del values["apt"]["balance_every"], values["apt"]["watch_indicator"]
        else:  # what the indicator's own state and log depend on
            values["apt"] = {name: values["apt"][name] for name in ("bins", "ema", "temperature", "lazy_prior")}
        if self.method != "dco":
            del values["dco_beta"]
        if self.method != "tlora":
            del values["adapter"]["min_rank"]
        if not self.reads_total_steps:
            del values["steps"]
        values["adapter"]["alpha"] = self.adapter.resolved_alpha
        values["init_word"] = self.resolved_init_word if self.identifier_mode == "learned" else ""
        if self.identifier_mode == "word":
            values["identifier"] = self.name  # the trigger word is read by the text encoder
        return values

    @property
    def reads_total_steps(self) -> bool:
        """Whether the weights at step n depend on how many steps are to come."""
        constant = ("constant", "constant_with_warmup")
        linear_attn = self.method == "apt" and self.apt.alignment and self.apt.attn_schedule == "linear"
        return self.optimizer.lr_schedule not in constant or linear_attn


def _require(ok: bool, name: str, value: object, remedy: str) -> None:
    if not ok:
        raise InputError(f"{name} is {value}: {remedy}.")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _finite(value) and value > 0


def _check_types(config: Any) -> None:
    """Refuse a value of another type than its field's, in words: settings also come from JSON and from wires."""
    hints = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, hint = getattr(config, item.name), hints[item.name]
        if get_origin(hint) is tuple:
            ok = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
            _require(ok, item.name, repr(value), "give a list of texts")
            continue
        allowed = [_plain_type(part) for part in get_args(hint) if get_origin(hint) is not Literal] or [
            _plain_type(hint)
        ]
        _require(any(_is_a(value, kind) for kind in allowed), item.name, repr(value), f"give {_named(allowed)}")


def _plain_type(hint: Any) -> type:
    return str if get_origin(hint) is Literal else hint


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def _named(kinds: list[type]) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "nothing"}
    return " or ".join(words.get(kind, "its own group of settings") for kind in kinds)


def _check_values(config: Any) -> None:
    """Refuse a value of the wrong type, or outside a Literal field's choices."""
    _check_types(config)
    hints = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        choices = get_args(hints[item.name])
        if choices and all(isinstance(choice, str) for choice in choices):
            value = getattr(config, item.name)
            _require(value in choices, item.name, repr(value), "choose one of " + ", ".join(choices))
    for kind in getattr(config, "augment_kinds", ()):
        _require(
            kind in get_args(AugmentKind),
            "augment_kinds",
            repr(kind),
            "choose from " + ", ".join(get_args(AugmentKind)),
        )


def _build(cls: type, values: Any) -> Any:
    _require(isinstance(values, dict), cls.__name__, repr(values), "give its settings by name")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{cls.__name__} has no setting named {unknown[0]}: remove it or correct its name.")
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        _require(not required or item.name in values, item.name, "missing", "give it")
    ready: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value)  # type: ignore[arg-type]
        ready[name] = tuple(value) if isinstance(value, list) else value
    return cls(**ready)
