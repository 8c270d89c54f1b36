"""Every setting of a training run, as frozen dataclasses that check themselves.

Each setting is defined once, with all its metadata (`settings_field`). The command line, the nodes, the documentation
and a run's identity are made from it. Nothing heavy is imported here, only the standard library and the names of kinds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from .adapter_kinds import KINDS
from .names import EMBEDDING, check_subject_name, embedding_stem, plain_trigger
from .optimizers import BUILDERS
from .settings_field import (
    Range,
    Widget,
    all_said,
    built,
    check_values,
    flat_values,
    group,
    hindrance,
    identifying,
    require,
    require_text,
    setting,
)
from .settings_field import choices_of as choices_of  # re-exported for other code

Method = Literal["apt", "dreambooth", "dco", "tlora"]
METHOD_TITLES: dict[str, str] = {"apt": "APT", "dreambooth": "DreamBooth", "dco": "DCO", "tlora": "T-LoRA"}
IdentifierMode = Literal["learned", "word"]
AdapterTargets = Literal["attention", "attention+ff"]
Layers = Literal["up", "mid+up", "all"]
StabilizationMode = Literal["relative", "raw"]
AttnSchedule = Literal["constant", "linear", "indicator"]
AugmentKind = Literal["affine", "flip", "color"]
AugmentFill = Literal["black", "reflect"]
LrSchedule = Literal["constant", "constant_with_warmup", "linear", "cosine"]
Stop = Literal["never", "drift", "settled"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
MemoryUse = Literal["auto", "fixed"]
Storage = Literal["full", "fp8", "int8", "nf4"]

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
_PLACEHOLDER = re.compile(rf"[{{}}]|{EMBEDDING}", re.IGNORECASE)  # of the subject, so not allowed in a class word

# Suits objects, animals and persons: another medium and another place, both obvious at a glance, neither in a photo.
UNSEEN = "a watercolor painting of {subject} on the moon"

# The upper limits are ours. They keep products of settings within 32-bit floats and counts within 64-bit integers.
_STEPS = 1_000_000_000
_SEEDS = Range(0, 2**64 - 1)
_EVERY = Range(0, _STEPS)
_WEIGHT = Range(0, 1_000_000)

_recipe = partial(setting, standing="recipe")
_watching = partial(setting, moves_weights=False)
_performance = partial(setting, widget=Widget(heading="performance", advanced=True))


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The LoRA: its size and where it sits. Defaults are DCO's published recipe."""

    rank: int = _recipe(
        32,
        "Rank of the LoRA: how much it can hold. 32 suits one subject. Higher holds more detail, also of what should "
        "not be learned, in a larger file.",
        Range(1, 65536),
        widget=Widget(most=1024),
    )
    alpha: float | None = _recipe(
        None,
        "Scale of the LoRA: the update is multiplied by alpha / rank. Higher acts like a higher learning rate. Empty: "
        "equal to rank.",
        Range(above=0, high=1_000_000),
        widget=Widget(most=4096, step=0.5),
    )
    dropout: float = setting(
        0.0,
        "Share of the LoRA's inputs dropped while training. Higher learns more slowly and less by heart.",
        Range(0, below=1),
        widget=Widget(most=0.99, step=0.01, advanced=True),
    )
    targets: AdapterTargets = _recipe(
        "attention",
        "Layers that get a LoRA: q, k, v and out of self- and cross-attention, or the feed-forward layers too.",
        more="The feed-forward layers make the file larger.",
    )
    min_rank: int | None = setting(
        None,
        "T-LoRA only: the rank left at the noisiest timestep. Higher is closer to a plain LoRA. Empty: half of rank.",
        Range(1, 65536),
        standing="T-LoRA",
        methods=("tlora",),
        widget=Widget(most=1024, advanced=True),
    )
    kind: str = _recipe(
        "lora",
        "Kind of adapter. lora loads everywhere. rslora scales by alpha / sqrt(rank), which suits high ranks. dora "
        "also learns the size of each weight column, and works in ComfyUI only.",
        choices=KINDS,
        since=4,
    )

    def __post_init__(self) -> None:
        check_values(self)
        fits = self.min_rank is None or self.min_rank <= self.rank
        require(fits, "min_rank", self.min_rank, f"give a whole number from 1 to rank ({self.rank})")

    @property
    def resolved_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def effective_alpha(self) -> float:
        """The alpha in use: training and every program that reads the file multiply the update by it over rank."""
        return float(KINDS[self.kind].alpha(self.rank, self.resolved_alpha))

    @property
    def resolved_min_rank(self) -> int:
        return max(1, self.rank // 2) if self.min_rank is None else self.min_rank


_apt = partial(setting, methods=("apt",))  # read by APT only
_paper = partial(_apt, standing="paper")
_indicator = partial(setting, needs="watch_indicator")
_augmentation = partial(_apt, needs="adaptive_augmentation")
_affine = partial(_apt, needs="augment_kinds=affine")
_stabilization = partial(_apt, needs="stabilization")
_alignment = partial(_apt, needs="alignment")
_regulariser: dict[str, Any] = {  # of both regularisers' weights
    "range": _WEIGHT,
    "runs_prior": True,
    "more": "Of 1, 0.1 and 0.01 for both terms, 0.01 learned most on small drawn scenes.",
    "widget": Widget(most=1e4, step=0.001),
}


@dataclass(frozen=True, kw_only=True)
class AptConfig:
    """The three parts of APT, each with its switch. They apply only if `method` is `apt`."""

    # Adaptive Training Adjustment
    adaptive_augmentation: bool = _paper(
        True,
        "Augment pictures more often as gamma rises (paper), with probability min(gamma, p_max) (reported).",
        runs_prior=True,
    )
    adaptive_loss_weight: bool = _apt(
        True, "Weigh the denoising loss by 1 - gamma (reported).", standing="reported", runs_prior=True
    )
    bins: int = _indicator(
        10,
        "Bins of the noise level in the overfitting indicator (paper: 10). More tell levels apart better, but each is "
        "measured less often.",
        Range(1, 10_000),
        standing="paper",
        widget=Widget(most=1000, advanced=True),
    )
    ema: float = _indicator(
        0.1,
        "Weight of the new value in the indicator's moving averages (reported: 0.1). Higher reacts sooner and "
        "fluctuates more.",
        Range(above=0, high=1),
        standing="reported",
        widget=Widget(least=0.001, step=0.001, advanced=True),
    )
    temperature: float | Literal["auto"] = _indicator(
        1000.0,
        "How strongly training holds back. Higher holds back sooner. It is T in gamma = 1 - exp(-T * gap) (reported: "
        "1000, the steps of the schedule). auto: the gap is measured relative to the prior's own loss (ours).",
        Range(above=0, high=1_000_000_000),
        standing="reported",
        more="The gap is the prior's loss minus the tuned model's. With a higher T gamma rises sooner. If the subject "
        "is not learned, try 300.",
    )
    p_max: float = _augmentation(
        0.8,
        "Highest probability of augmentation (reported: 0.8). At 1 every picture may be augmented, at 0 none.",
        Range(0, 1),
        standing="reported",
        widget=Widget(step=0.01),
    )
    max_zoom: float | Literal["auto"] = _affine(
        "auto",
        "Augmentation zooms out by 1 to this factor (reported: 3). auto: 3 at SDXL's 1024 pixels and 1.5 at 512, "
        "as a smaller picture has fewer latents to lose (ours).",
        Range(1, 1000),
        widget=Widget(most=10, step=0.05, advanced=True),
    )
    max_degrees: float = _affine(
        15.0,
        "Augmentation rotates by up to this many degrees either way (reported: 15). Higher varies the pictures more.",
        Range(0, 180),
        unit="degrees",
        standing="reported",
        widget=Widget(step=0.5, advanced=True),
    )
    augment_kinds: tuple[AugmentKind, ...] = _augmentation(
        ("affine",),
        "Kinds of augmentation: affine is the paper's. flip (mirror) and color are ours.",
        standing="paper",
        more="flip mirrors half of the variants. color changes brightness, contrast and saturation by up to a fifth. "
        "Do not flip a subject that has a left and a right, such as letters.",
    )
    augment_variants: int = _augmentation(
        32,
        "At most this many augmented variants are encoded per picture (ours). More vary more and take longer to "
        "encode.",
        Range(1, 1_000_000),
        more="They are encoded as gamma rises, and kept.",
        widget=Widget(most=1024, advanced=True),
    )
    mask_fill: bool = _affine(
        False,
        "Leave the black fill of augmented pictures out of the denoising loss (ours, as the paper trains on it).",
        more="Try it where samples get dark borders.",
    )

    augment_fill: AugmentFill = _affine(
        "black",
        "What surrounds a zoomed-out or turned picture: black (paper), or reflect, its mirror image (ours).",
        standing="paper",
        since=3,
    )

    # Representation Stabilization
    stabilization: bool = _paper(
        True, "Keep mean and deviation of self-attention features near the prior's (paper, with a distance of ours)."
    )
    dist_weight: float = _stabilization(
        0.01,
        "Weight of the stabilization term (unpublished, so ours, settled by docs/benchmark.md). Higher keeps more of "
        "the prior and learns less of the subject.",
        weighs="stabilization",
        **_regulariser,
    )
    dist_layers: Layers = _stabilization(
        "up", "Part of the UNet whose features are stabilized (ours: the decoder).", widget=Widget(advanced=True)
    )
    dist_mode: StabilizationMode = _stabilization(
        "relative",
        "Divide the shift by the prior's variance, or take it raw (ours: relative).",
        widget=Widget(advanced=True),
    )

    # Attention Alignment
    alignment: bool = _paper(True, "Keep cross-attention maps near the prior's (paper, with a distance of ours).")
    attn_weight: float = _alignment(
        0.01,
        "Weight of the attention alignment term (unpublished, so ours, settled by docs/benchmark.md). Higher keeps "
        "more of the prior and learns less of the subject.",
        weighs="alignment",
        **_regulariser,
    )
    attn_layers: Layers = _alignment(
        "up", "Part of the UNet whose cross-attention is aligned (ours: the decoder).", widget=Widget(advanced=True)
    )
    attn_schedule: AttnSchedule = _alignment(
        "constant",
        "Course of attn_weight: constant. Two more are ours: linear rises from 0 at the first step to full at the "
        "last. indicator multiplies by gamma of each sample's bin.",
        standing="reported",
    )

    lazy_prior: int = _indicator(
        1,
        "Run the prior pass and its losses only every k-th step, with the regularisers scaled by k. 1 is the paper's "
        "way, more is faster (ours).",
        Range(1, _STEPS),
        unit="steps",
        more="Gamma is then measured less often. Not with DCO.",
        widget=Widget(most=64, heading="performance"),
    )
    watch_indicator: bool = _watching(
        False,
        "Measure the indicator even if the method does not use it: costs the prior pass, changes no weight.",
        runs_prior=True,
        widget=Widget(advanced=True),
    )
    balance_every: int = _watching(
        50,
        "Log the gradient norm of each term every so many steps. 0: never.",
        _EVERY,
        unit="steps",
        more="**Overfit Indicator Monitor** draws it.",
        widget=Widget(most=100_000, advanced=True),
    )

    def __post_init__(self) -> None:
        check_values(self)
        remedy = "name at least one, or set adaptive_augmentation to false"
        require(len(self.augment_kinds) > 0, "augment_kinds", "()", remedy)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and the batch. Defaults are DCO's published recipe."""

    learning_rate: float = _recipe(
        5e-5,
        "Learning rate of the LoRA. Higher learns in fewer steps and overfits sooner. Far too high ruins every "
        "picture.",
        Range(above=0, high=1000),
        widget=Widget(least=1e-7, most=1, step=1e-7),
    )
    embedding_learning_rate: float = _recipe(
        5e-6,
        "Learning rate of the learned identifier. Higher lets the word learn more, and leaves less to the LoRA.",
        Range(0, 1000),
        widget=Widget(most=1, step=1e-7),
        needs="identifier_mode=learned",
    )
    beta1: float = _recipe(
        0.9,
        "Decay of the mean of gradients. Higher averages over more steps.",
        Range(0, below=1),
        widget=Widget(most=0.9999, step=1e-4, advanced=True),
    )
    beta2: float = _recipe(
        0.999,
        "Decay of the mean of squared gradients. Higher averages over more steps.",
        Range(0, below=1),
        widget=Widget(most=0.99999, step=1e-5, advanced=True),
    )
    epsilon: float = setting(
        1e-8,
        "Added to the optimizer's denominator. Higher slows weights whose gradients are small.",
        Range(above=0, high=1_000_000),
        widget=Widget(least=1e-12, most=1, step=1e-12, advanced=True),
    )
    weight_decay: float = _recipe(
        1e-4,
        "Weight decay of the LoRA. Higher keeps its weights smaller. The identifier has none.",
        _WEIGHT,
        widget=Widget(most=10, step=1e-5, advanced=True),
    )
    max_grad_norm: float = _recipe(
        1.0,
        "Gradients are scaled down to this norm. Lower tames sudden large steps. 0: no clipping.",
        Range(0, 1_000_000_000),
        widget=Widget(most=1000, step=0.1, advanced=True),
    )
    lr_schedule: LrSchedule = _recipe(
        "constant",
        "How the learning rate changes over the steps. constant stays, linear and cosine fall to 0 by the last step. "
        "All but constant rise over warmup_steps first.",
    )
    warmup_steps: int = setting(
        0,
        "Steps over which the learning rate rises from 0 (every schedule but constant). More begin more gently.",
        _EVERY,
        unit="steps",
        widget=Widget(most=1_000_000),
    )
    batch_size: int = _recipe(
        1,
        "Pictures in one pass. 1 suits 3 to 10 pictures. Higher makes steadier and slower steps, and needs more "
        "memory.",
        Range(1, 65536),
        unit="pictures",
        widget=Widget(most=256),
    )
    accumulation: int = setting(
        1,
        "Passes summed into one optimizer step. More make steadier steps that take longer. Under APT this is close to "
        "a larger batch, but not equal to it.",
        Range(1, 1_000_000),
        unit="passes",
        more="It takes no more memory.",
        widget=Widget(most=1024),
    )
    optimizer: str = _recipe(
        "adamw",
        "The optimizer: adamw, or radam, which needs no warm-up. Both use beta1, beta2 and epsilon.",
        choices=BUILDERS,
        since=2,
    )

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2

    def __post_init__(self) -> None:
        check_values(self)
        idle = self.warmup_steps and self.lr_schedule == "constant"
        require(not idle, "warmup_steps", self.warmup_steps, "set lr_schedule to constant_with_warmup, or this to 0")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How pictures and captions become training samples."""

    resolution: int = setting(
        0,
        "Side of a square picture in pixels. Other aspects keep its area. Higher takes more time and memory. 0: the "
        "model's own, which it draws best.",
        Range(0, 4096),
        unit="px",
        widget=Widget(step=64),
    )
    bucket_multiple: int = setting(
        0,
        "Sides are multiples of this many pixels. Higher crops more. 0: 64, or the model's own factor below a "
        "resolution of 512.",
        Range(0, 4096),
        unit="px",
        widget=Widget(most=512, step=8, advanced=True),
    )
    caption_template: str = setting(
        "a photo of {subject}", "Caption of a picture that has none. {subject} is the subject."
    )
    class_caption: str = setting(
        "a photo of {class_word}",
        "Caption of a prior-preservation picture that has none. {class_word} is the class word.",
        widget=Widget(advanced=True),
        needs="prior_images",
    )
    prior_preservation_weight: float = setting(
        1.0,
        "Weight of the loss on prior-preservation pictures, if there are any. Higher keeps the class more as it was.",
        _WEIGHT,
        standing="DreamBooth",
        weighs="prior_preservation",
        widget=Widget(most=100, step=0.05),
        needs="prior_images",
    )

    def __post_init__(self) -> None:
        check_values(self)
        remedy = "write {subject} where the subject belongs"
        require("{subject}" in self.caption_template, "caption_template", repr(self.caption_template), remedy)


_previews = partial(_watching, needs="preview_every")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Snapshots, preview samples, drift. Nothing here changes the trained weights."""

    snapshot_every: int = _watching(
        250,
        "Steps between snapshots (LoRA and embedding kept, the full state of the last two). Fewer give more to choose "
        "from and take more disk. 0: only at the end.",
        _EVERY,
        unit="steps",
        widget=Widget(most=1_000_000),
    )
    preview_every: int = _watching(
        0,
        "Steps between preview samples. Fewer show more and take longer. 0: none.",
        _EVERY,
        unit="steps",
        widget=Widget(
            most=1_000_000,
            default=250,  # people watch a node, but often not a command line
            note="The samples of prior and tuned model appear on the training node.",
        ),
    )
    preview_prompts: tuple[str, ...] = _previews(
        (),
        "Prompts of the previews, with {subject}. None: the caption template.",
        more="All are saved in the run's folder.",
        widget=Widget(note="One per line."),
    )
    preview_steps: int = _previews(
        25,
        "Denoising steps of a preview. Fewer are quicker and rougher.",
        Range(1, 1_000_000),
        unit="steps",
        widget=Widget(most=1000, advanced=True),
    )
    preview_guidance: float = _previews(
        5.0,
        "Classifier-free guidance scale (cfg) of a preview. Higher follows the prompt more strictly.",
        Range(0, 1000),
        widget=Widget(most=100, step=0.1, advanced=True),
    )
    preview_seed: int = _previews(
        0,
        "Seed of the previews, the same at every snapshot, so that they can be compared.",
        _SEEDS,
        widget=Widget(most=0x7FFFFFFF, advanced=True),
    )
    watch_drift: bool = _watching(
        True,
        "At every snapshot, measure how far the model has moved from the prior, on drift_prompts and on its captions "
        "(ours).",
        more="**Overfit Indicator Monitor** draws it and recommends a snapshot by it. It costs passes of the UNet "
        "without gradient: 40 a snapshot, 200 more at the first.",
        since=1,
        needs="snapshot_every",
    )
    drift_prompts: tuple[str, ...] = _watching(
        (
            "a bowl of fruit on a table",
            "a wooden chair beside a window",
            "a city street at night",
            "a landscape with mountains and a lake",
        ),
        "Prompts without the subject, for watch_drift (ours). Those that name the class word are left out.",
        more="Keep them the same in runs that you want to compare.",
        since=1,
        widget=Widget(advanced=True, note="One per line."),
        needs="watch_drift",
    )

    unseen_prompt: str = _previews(
        "auto",
        "One more preview prompt, which asks for what the pictures never show (ours). auto: a watercolor painting of "
        "{subject} on the moon. Empty: none.",
        more="The last snapshot that still obeys it is the one to keep. It costs as much as any other preview prompt.",
        since=5,
    )
    stop: Stop = _watching(
        "never",
        "Whether a run may end before its last step (ours). drift: when the drift ratio has risen to more than three "
        "times its lowest. settled: when nothing changes any more.",
        more="Both are checked after each snapshot and need watch_drift. A run that ended this way continues, bit for "
        "bit, once this is set to never.",
        since=5,
    )

    def __post_init__(self) -> None:
        check_values(self)
        looks = self.stop == "never" or (self.watch_drift and self.snapshot_every > 0)
        require(looks, "stop", self.stop, "switch watch_drift on and set snapshot_every above 0, or set this to never")
        for prompt in self.drift_prompts:
            names = "{subject}" in prompt or EMBEDDING in prompt.lower()
            require(not names, "drift_prompts", repr(prompt), "leave the subject out of it")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    class_word: str = setting(
        dataclasses.MISSING,
        "What the subject is, in words the model knows (toy, teddy bear). The prior reads it where the tuned model "
        "reads the subject.",
        widget=Widget(note="Required."),
    )
    identifier: str = setting(
        "",
        "Name of the subject, the embedding and the LoRA file. Empty: <class-word>_subject.",
        moves_weights=False,  # except as a trigger word: see `identity`
    )
    identifier_mode: IdentifierMode = _recipe(
        "learned",
        "learned: a new word for the subject is trained too. word: a plain trigger word before the class word.",
        more="With a plain word there is no embedding.",
        widget=Widget(heading="subject"),
    )
    init_word: str = setting(
        "",
        "The learned identifier starts as this word or these words. Empty: the class word.",
        standing="paper",
        more="The class word is the paper's.",
        widget=Widget(heading="subject"),
        needs="identifier_mode=learned",
    )
    method: Method = setting(
        "apt",
        "What is trained: APT, plain DreamBooth, DCO, or T-LoRA (DreamBooth with rank by timestep).",
        standing="paper",
    )
    steps: int = _recipe(
        2000,
        "Optimizer steps of the whole run. More learn the subject better, until it overfits. A finished run continues "
        "if you raise it.",
        Range(1, _STEPS),
        unit="steps",
        widget=Widget(most=1_000_000),
    )
    seed: int = setting(0, "Seed of every random draw. Another seed is another training.", _SEEDS)
    dco_beta: float = _recipe(
        1000.0,
        "DCO only: sharpness of the preference over the prior. Higher stays closer to the prior.",
        Range(above=0, high=1_000_000_000),
        methods=("dco",),
        widget=Widget(least=0.001, most=1e6, step=1, heading="subject", advanced=True),
    )
    precision: Precision = setting(
        "auto",
        "Precision of base weights and passes. The LoRA stays fp32. auto: bf16 on CUDA (fp16 if it lacks bf16), else "
        "fp32.",
        widget=Widget(heading="performance"),
    )
    gradient_checkpointing: bool | None = setting(
        None,
        "Recompute activations in the backward pass to save memory. Empty: decided by memory, and never for a CPU.",
        more="It costs time.",
        moves_weights=False,
        widget=Widget(heading="performance"),
    )
    memory: MemoryUse = _performance(
        "auto",
        "auto: with too little free memory on a GPU, recompute activations, no more than needed. If that is not "
        "enough, the text encoders and then blocks of the network wait in main memory. A run that runs out of memory "
        "does the same and continues. fixed: as gradient_checkpointing says.",
        moves_weights=False,
        since=5,
    )
    base_storage: Storage = _performance(
        "full",
        "How the frozen base weights are kept: full in the training precision, fp8 and int8 in one byte each, nf4 in "
        "four bits. All but full round them, for the prior and the tuned model alike. Not with dora.",
        since=5,
    )
    compile_blocks: bool = _performance(
        False,
        "Compile the network's blocks, for shorter steps on a GPU (ours, not measured on one). The first step takes "
        "minutes, as does the first with each new size of picture.",
        more="Needs a C++ compiler, and Triton on a GPU. A run that cannot compile says so and continues without.",
        since=6,
    )
    channels_last: bool = _performance(
        False,
        "Keep the weights of convolutions in the memory layout that GPUs prefer in half precision (ours, not measured "
        "on one).",
        since=6,
    )
    adapter: AdapterConfig = group(AdapterConfig, title="adapter", heading="adapter")
    apt: AptConfig = group(AptConfig, title="APT", heading="APT")
    optimizer: OptimizerConfig = group(OptimizerConfig, title="optimizer", heading="optimizer")
    data: DataConfig = group(DataConfig, title="data", heading="data")
    output: OutputConfig = group(OutputConfig, title="snapshots and previews", heading="snapshots")

    def __post_init__(self) -> None:
        check_values(self)
        require(bool(self.class_word.strip()), "class_word", "empty", "say what the subject is, for example toy or dog")
        _check_plain("init_word", self.init_word)
        check_called(self.class_word, self.identifier)
        fits = self.method != "dco" or self.apt.lazy_prior == 1
        require(fits, "lazy_prior", self.apt.lazy_prior, "DCO's loss needs the prior at every step, so set it to 1")
        kind = self.adapter.kind
        stores = self.base_storage == "full" or not KINDS[kind].reads_base
        # On a node no hand can choose full above a preset that sets another, as it is the widget's default.
        way_out = f"{kind} reads the base's weights themselves, so choose full, or another kind"
        require(stores, "base_storage", self.base_storage, way_out)
        by_rank = [name for name in KINDS if KINDS[name].by_rank]
        fits = self.method != "tlora" or kind in by_rank
        require(fits, "kind", kind, f"T-LoRA takes ranks away, so choose {' or '.join(by_rank)}")

    @property
    def name(self) -> str:
        """The subject's name, and the stem of all its files."""
        return subject_name(self.class_word, self.identifier)

    @property
    def trigger(self) -> str:
        """The words a prompt needs to show the subject: `embedding:NAME_embedding`, in word mode `NAME class_word`."""
        learned = self.identifier_mode == "learned"
        return f"{EMBEDDING}{embedding_stem(self.name)}" if learned else plain_trigger(self.name, self.class_word)

    @property
    def unseen_prompt(self) -> str:
        """A prompt for something no picture shows, with `{subject}`; empty: not wanted."""
        asked = self.output.unseen_prompt.strip()
        return UNSEEN if asked.lower() == "auto" else asked

    @property
    def sampled_prompts(self) -> tuple[str, ...]:
        """The preview prompts, with `{subject}`; the unseen prompt, if any, comes last."""
        asked = self.output.preview_prompts or (self.data.caption_template,)
        return (*asked, self.unseen_prompt) if self.unseen_prompt else asked

    @property
    def resolved_init_word(self) -> str:
        return self.init_word.strip() or self.class_word.strip()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to `config.json`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Any) -> TrainConfig:
        """The inverse of `to_dict`.

        Missing settings get their defaults, as in files of an older version. InputError: an unknown name, as in files
        of a newer version, because training without that setting would be another run.
        """
        return built(TrainConfig, values)

    def identity(self) -> dict[str, Any]:
        """The settings that change the trained weights, for a run's content hash.

        `steps` counts only with a learning-rate or attention schedule that depends on the total.
        """
        values = identifying(self, self.method)
        if not self.reads_total_steps:
            del values["steps"]
        values["adapter"]["alpha"] = self.adapter.resolved_alpha
        values["init_word"] = self.resolved_init_word if self.identifier_mode == "learned" else ""
        if self.identifier_mode == "word":
            values["identifier"] = self.name  # the text encoder reads the trigger word
        return values

    @property
    def reads_total_steps(self) -> bool:
        """Whether the weights at step n depend on the total number of steps."""
        constant = ("constant", "constant_with_warmup")
        linear_attn = self.method == "apt" and self.apt.alignment and self.apt.attn_schedule == "linear"
        return self.optimizer.lr_schedule not in constant or linear_attn

    @property
    def measures_indicator(self) -> bool:
        """Whether the prior's loss is measured; if not, gamma stays 0 and means nothing. `Objective` agrees."""
        values, about = flat_values(self), all_said(TrainConfig)
        running = [name for name in about if about[name].runs_prior and values[name]]
        return self.method == "dco" or any(not hindrance(TrainConfig, name, values) for name in running)

    def indicator_measured(self, gamma: Iterable[float]) -> bool:
        """Whether a run's gamma means anything: it was measured under these settings, or before under others."""
        return self.measures_indicator or any(gamma)


def subject_name(class_word: str, identifier: str) -> str:
    """A subject's name, which its files also have."""
    return identifier or "_".join(class_word.split()) + "_subject"


def check_called(class_word: str, identifier: str) -> None:
    """InputError: no run accepts this class word or identifier. An empty class word means not known yet."""
    check_class_word(class_word)
    letters = "letters, digits, _ and -"
    fits = not identifier or NAME_PATTERN.fullmatch(identifier) is not None
    require(fits, "identifier", repr(identifier), f"use only {letters}")
    name = subject_name(class_word, identifier)
    empty = f"empty and class_word is {class_word!r}, which cannot name files"
    require(NAME_PATTERN.fullmatch(name) is not None, "identifier", empty, f"give a name of {letters}")
    check_subject_name(name)


def check_class_word(word: str) -> None:
    """InputError: no prompt can contain it."""
    require_text("class_word", word)
    _check_plain("class_word", word)


def _check_plain(name: str, word: str) -> None:
    require(not _PLACEHOLDER.search(word), name, repr(word), "write plain words the model knows, such as toy")
