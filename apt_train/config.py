"""Every setting of a training run, as frozen dataclasses that check themselves.

In: names, ranges, defaults and one help sentence each, with its standing (paper / reported / ours): the command line
and the nodes read them from here. Not in: anything heavy; this module imports the standard library alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .adapter_kinds import KINDS
from .errors import InputError
from .names import check_subject_name
from .optimizers import BUILDERS

Method = Literal["apt", "dreambooth", "dco", "tlora"]
IdentifierMode = Literal["learned", "word"]
AdapterTargets = Literal["attention", "attention+ff"]
Layers = Literal["up", "mid+up", "all"]
StabilizationMode = Literal["relative", "raw"]
AttnSchedule = Literal["constant", "linear", "indicator"]
AugmentKind = Literal["affine", "flip", "color"]
AugmentFill = Literal["black", "reflect"]
LrSchedule = Literal["constant", "constant_with_warmup", "linear", "cosine"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN = 80  # characters of a value in a message
_PLACEHOLDER = re.compile(r"[{}]|embedding:", re.IGNORECASE)  # stands for the subject in captions, not for its kind


@dataclass(frozen=True)
class _Range:
    """Where a number may lie; `above` and `below`: the bound itself does not count."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """NaN is in no range."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.below is not None:
            return f"from {self.low} up to, not including, {self.below}"
        return f"above {self.above} and at most {self.high}" if self.low is None else f"from {self.low} to {self.high}"


def _set(default: Any, help: str, range: _Range | None = None, choices: Iterable[str] = ()) -> Any:
    """A setting with its default and the sentence that tooltips and `--help` show; every number has its range.

    `choices`: of a text whose choices no Literal says.
    """
    return field(default=default, metadata={"help": help, "range": range, "choices": choices})


def choices_of(item: dataclasses.Field[Any], hint: Any) -> tuple[str, ...]:
    """The texts that a setting may be; none: it is no choice, or may also be a number."""
    named = get_args(hint) if get_origin(hint) is Literal else ()
    return tuple(item.metadata.get("choices") or named)


# The upper ends are ours. They keep every product of settings inside 32-bit floats and every count inside 64-bit ones.
_STEPS = 1_000_000_000
_SEEDS = _Range(0, 2**64 - 1)
_EVERY = _Range(0, _STEPS)
_WEIGHT = _Range(0, 1_000_000)


def _group(cls: type) -> Any:
    return field(default_factory=cls)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The LoRA: its size and where it sits. Defaults are DCO's published recipe."""

    rank: int = _set(32, "Rank of the LoRA: how much it can hold; its file grows with it.", _Range(1, 65536))
    alpha: float | None = _set(
        None,
        "Scale of the LoRA: the update is multiplied by alpha / rank. Empty: equal to rank.",
        _Range(above=0, high=1_000_000),
    )
    dropout: float = _set(0.0, "Share of the LoRA's inputs dropped while training.", _Range(0, below=1))
    targets: AdapterTargets = _set(
        "attention",
        "Layers that get a LoRA: q, k, v and out of self- and cross-attention, or the feed-forward layers too.",
    )
    min_rank: int | None = _set(
        None, "T-LoRA only: the rank left at the noisiest timestep. Empty: half of rank.", _Range(1, 65536)
    )
    kind: str = _set(
        "lora",
        "Kind of adapter: lora; rslora, whose scale is alpha / sqrt(rank), for high ranks; dora, which also learns the "
        "size of each column of the weights, for ComfyUI alone.",
        choices=KINDS,
    )

    def __post_init__(self) -> None:
        _check_values(self)
        fits = self.min_rank is None or self.min_rank <= self.rank
        _require(fits, "min_rank", self.min_rank, f"give a whole number from 1 to rank ({self.rank})")

    @property
    def resolved_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def effective_alpha(self) -> float:
        """What the update is multiplied by, times rank: in training, and in the file, where every program reads it."""
        return float(KINDS[self.kind].alpha(self.rank, self.resolved_alpha))

    @property
    def resolved_min_rank(self) -> int:
        return max(1, self.rank // 2) if self.min_rank is None else self.min_rank


@dataclass(frozen=True, kw_only=True)
class AptConfig:
    """The three parts of APT, each with its switch. They act when `method` is `apt`."""

    # Adaptive Training Adjustment
    adaptive_augmentation: bool = _set(True, "Augment pictures with probability min(gamma, p_max) (reported).")
    adaptive_loss_weight: bool = _set(True, "Weigh the denoising loss by 1 - gamma (reported).")
    bins: int = _set(10, "Timestep bins of the overfitting indicator (paper: 10).", _Range(1, 10_000))
    ema: float = _set(
        0.1, "Weight of the new value in the indicator's moving averages (reported: 0.1).", _Range(above=0, high=1)
    )
    temperature: float | Literal["auto"] = _set(
        1000.0,
        "T in gamma = 1 - exp(-T * gap) (reported: 1000, the steps of the schedule), or auto: the gap is measured "
        "relative to the prior's own loss (ours).",
        _Range(above=0, high=1_000_000_000),
    )
    p_max: float = _set(0.8, "Highest probability of augmentation (reported: 0.8).", _Range(0, 1))
    max_zoom: float | Literal["auto"] = _set(
        "auto",
        "Augmentation zooms out by 1 to this factor (reported: 3), or auto: 3 at SDXL's 1024 pixels, and less where a "
        "picture has fewer latents, so that as many are left of it (ours: 1.5 at 512).",
        _Range(1, 1000),
    )
    max_degrees: float = _set(
        15.0, "Augmentation rotates by up to this many degrees either way (reported: 15).", _Range(0, 180)
    )
    augment_kinds: tuple[AugmentKind, ...] = _set(
        ("affine",), "Kinds of augmentation: affine is the paper's; flip (mirror) and color are ours."
    )
    augment_variants: int = _set(32, "Most augmented variants encoded per picture (ours).", _Range(1, 1_000_000))
    mask_fill: bool = _set(
        False, "Leave the black fill of augmented pictures out of the denoising loss (ours; the paper trains on it)."
    )

    augment_fill: AugmentFill = _set(
        "black", "Beside a picture zoomed out or turned lies black (paper), or reflect: its mirror image (ours)."
    )

    # Representation Stabilization
    stabilization: bool = _set(
        True, "Keep mean and deviation of self-attention features near the prior's (paper; their distance is ours)."
    )
    dist_weight: float = _set(
        0.01, "Weight of the stabilization term (unpublished; ours, settled by docs/benchmark.md).", _WEIGHT
    )
    dist_layers: Layers = _set("up", "Part of the UNet whose features are stabilized (ours: the decoder).")
    dist_mode: StabilizationMode = _set(
        "relative", "Divide the shift by the prior's variance, or take it raw (ours: relative)."
    )

    # Attention Alignment
    alignment: bool = _set(True, "Keep cross-attention maps near the prior's (paper; their distance is ours).")
    attn_weight: float = _set(
        0.01, "Weight of the attention alignment term (unpublished; ours, settled by docs/benchmark.md).", _WEIGHT
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
        _Range(1, _STEPS),
    )
    watch_indicator: bool = _set(
        False, "Measure the indicator also where the method does not use it: costs the prior pass, changes no weight."
    )
    balance_every: int = _set(50, "Log the gradient norm of each term every so many steps; 0: never.", _EVERY)

    def __post_init__(self) -> None:
        _check_values(self)
        for name, number in (("temperature", "a number above 0"), ("max_zoom", "a number from 1 to 1000")):
            value = getattr(self, name)
            is_word = isinstance(value, str) and value != "auto"
            _require(not is_word, name, repr(value), f"give {number}, or auto")
        remedy = "name at least one, or set adaptive_augmentation to false"
        _require(len(self.augment_kinds) > 0, "augment_kinds", "()", remedy)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and the batch. Defaults are DCO's published recipe."""

    learning_rate: float = _set(5e-5, "Learning rate of the LoRA.", _Range(above=0, high=1000))
    embedding_learning_rate: float = _set(5e-6, "Learning rate of the learned identifier.", _Range(0, 1000))
    beta1: float = _set(0.9, "Decay of the mean of gradients.", _Range(0, below=1))
    beta2: float = _set(0.999, "Decay of the mean of squared gradients.", _Range(0, below=1))
    epsilon: float = _set(1e-8, "Added to the optimizer's denominator.", _Range(above=0, high=1_000_000))
    weight_decay: float = _set(1e-4, "Weight decay of the LoRA; the identifier has none.", _WEIGHT)
    max_grad_norm: float = _set(
        1.0, "Gradients are scaled down to this norm; 0: no clipping.", _Range(0, 1_000_000_000)
    )
    lr_schedule: LrSchedule = _set("constant", "Course of the learning rate over the steps.")
    warmup_steps: int = _set(
        0, "Steps over which the learning rate rises from 0 (every schedule but constant).", _EVERY
    )
    batch_size: int = _set(1, "Pictures in one pass; memory grows with it.", _Range(1, 65536))
    accumulation: int = _set(
        1,
        "Passes summed into one optimizer step. Under APT nearly a larger batch: each pass sees the last ones.",
        _Range(1, 1_000_000),
    )
    optimizer: str = _set(
        "adamw",
        "What moves the weights: adamw, or radam, which warms itself up. Both read the betas and epsilon here.",
        choices=tuple(BUILDERS),
    )

    def __post_init__(self) -> None:
        _check_values(self)
        idle = self.warmup_steps and self.lr_schedule == "constant"
        _require(not idle, "warmup_steps", self.warmup_steps, "set lr_schedule to constant_with_warmup, or this to 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How pictures and captions become training samples."""

    resolution: int = _set(
        0, "Side of a square picture in pixels; other aspects keep its area. 0: the model's own.", _Range(0, 4096)
    )
    bucket_multiple: int = _set(
        0,
        "Sides are multiples of this many pixels. 0: 64, or the model's own factor below a resolution of 512.",
        _Range(0, 4096),
    )
    caption_template: str = _set(
        "a photo of {subject}", "Caption of a picture that has none; {subject} is the subject."
    )
    class_caption: str = _set(
        "a photo of {class_word}",
        "Caption of a prior-preservation picture that has none; {class_word} is the class word.",
    )
    prior_preservation_weight: float = _set(
        1.0, "Weight of the loss on prior-preservation pictures, where given.", _WEIGHT
    )

    def __post_init__(self) -> None:
        _check_values(self)
        remedy = "write {subject} where the subject belongs"
        _require("{subject}" in self.caption_template, "caption_template", repr(self.caption_template), remedy)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Snapshots, preview samples, drift. Nothing here changes the trained weights."""

    snapshot_every: int = _set(
        250,
        "Steps between snapshots (LoRA and embedding kept; the full state of the last two); 0: only at the end.",
        _EVERY,
    )
    preview_every: int = _set(0, "Steps between preview samples; 0: none.", _EVERY)
    preview_prompts: tuple[str, ...] = _set((), "Prompts of the previews, with {subject}; none: the caption template.")
    preview_steps: int = _set(25, "Denoising steps of a preview.", _Range(1, 1_000_000))
    preview_guidance: float = _set(5.0, "Classifier-free guidance scale of a preview.", _Range(0, 1000))
    preview_seed: int = _set(0, "Seed of the previews.", _SEEDS)
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
    steps: int = _set(2000, "Optimizer steps of the whole run.", _Range(1, _STEPS))
    seed: int = _set(0, "Seed of every random draw.", _SEEDS)
    dco_beta: float = _set(
        1000.0, "DCO only: sharpness of the preference over the prior.", _Range(above=0, high=1_000_000_000)
    )
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
        check_subject_name(self.name)
        _require(
            self.method != "dco" or self.apt.lazy_prior == 1,
            "lazy_prior",
            self.apt.lazy_prior,
            "DCO's loss needs the prior at every step, so set it to 1",
        )
        by_rank = [name for name, kind in KINDS.items() if kind.by_rank]
        fits = self.method != "tlora" or self.adapter.kind in by_rank
        _require(fits, "kind", self.adapter.kind, f"T-LoRA takes ranks away, so choose {' or '.join(by_rank)}")

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
    def from_dict(values: Any) -> TrainConfig:
        """The inverse of `to_dict`.

        What is left out has its default, as in files of an older version. InputError: an unknown name, as in files of a
        newer one: to train on without what it says would be another run.
        """
        return _build(TrainConfig, values)

    def identity(self) -> dict[str, Any]:
        """The settings that change the trained weights: what a run's content hash is made of.

        `steps` counts only under a learning-rate or attention schedule that reads the total. A setting that is added
        later has to be left out of this at its default, or older runs could not be resumed.
        """
        values = self.to_dict()
        del values["output"], values["identifier"], values["gradient_checkpointing"]
        if self.method == "apt":
            del values["apt"]["balance_every"], values["apt"]["watch_indicator"]
            if self.apt.augment_fill == "black":  # added later
                del values["apt"]["augment_fill"]
        else:  # what the indicator's own state and log depend on
            values["apt"] = {name: values["apt"][name] for name in ("bins", "ema", "temperature", "lazy_prior")}
        if self.method != "dco":
            del values["dco_beta"]
        if self.method != "tlora":
            del values["adapter"]["min_rank"]
        if not self.reads_total_steps:
            del values["steps"]
        if self.optimizer.optimizer == "adamw":  # runs of earlier versions do not name it
            del values["optimizer"]["optimizer"]
        if self.adapter.kind == "lora":  # likewise
            del values["adapter"]["kind"]
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
        text = value if isinstance(value, str) else _spelled(value)
        raise InputError(f"{name} is {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}: {remedy}.")


def _spelled(value: object) -> str:
    """As Python writes it, which refuses whole numbers of more than 4300 digits."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _check_types(config: Any) -> None:
    """Refuse a value of another type than its field's, in words: settings also come from JSON and from wires."""
    hints = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, hint = getattr(config, item.name), hints[item.name]
        if get_origin(hint) is tuple:
            ok = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
            _require(ok, item.name, _spelled(value), "give a list of texts")
        else:
            parts = () if get_origin(hint) is Literal else get_args(hint)
            allowed = [_plain_type(part) for part in parts] or [_plain_type(hint)]
            _require(any(_is_a(value, kind) for kind in allowed), item.name, _spelled(value), f"give {_named(allowed)}")
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                _require(_is_text(text), item.name, ascii(text), "leave out what is no letter")


def _is_text(text: str) -> bool:
    """Tokenizers read it and files hold it: no zero bytes, no halves of letters."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


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
    """Refuse a value of the wrong type, outside a Literal field's choices, or outside its range."""
    _check_types(config)
    hints = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        choices = choices_of(item, hints[item.name])
        if choices:
            value = getattr(config, item.name)
            _require(value in choices, item.name, repr(value), "choose one of " + ", ".join(choices))
    for kind in getattr(config, "augment_kinds", ()):
        kinds = get_args(AugmentKind)
        _require(kind in kinds, "augment_kinds", repr(kind), "choose from " + ", ".join(kinds))
    _check_ranges(config)


def _check_ranges(config: Any) -> None:
    """Refuse a number outside its field's range."""
    hints = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, allowed = getattr(config, item.name), item.metadata.get("range")
        if allowed is None or not isinstance(value, (int, float)):
            continue
        kind = "a whole number" if float not in (hints[item.name], *get_args(hints[item.name])) else "a number"
        _require(allowed.holds(value), item.name, value, f"give {kind} {allowed}")


def _build(cls: type, values: Any) -> Any:
    _require(isinstance(values, dict), cls.__name__, _spelled(values), "give its settings by name")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(
            f"{cls.__name__} has no setting named {unknown[0]}: remove it, correct its name, or use the version of APT "
            "Train that knows it."
        )
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        _require(not required or item.name in values, item.name, "missing", "give it")
    ready: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value)  # type: ignore[arg-type]
        ready[name] = tuple(value) if isinstance(value, list) else value
    return cls(**ready)
