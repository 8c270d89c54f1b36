"""Getting a run ready: everything that lasts longer than one step, built from components, pictures and settings."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapter import TimestepRank, adapter_parameters, add_adapter, check_no_adapter, remove_adapter
from .batch import Batch, collate, draw_samples, size_ids_of
from .buckets import bucket_notes, prepare
from .captions import caption_for, class_caption
from .capture import attention_layers
from .components import Components
from .conditioning import Conditioner
from .config import TrainConfig
from .dataset import ImageSet
from .errors import InputError
from .identifier import Identifier
from .indicator import OverfitIndicator
from .latent_bank import LatentBank
from .objective import Objective, objective_of
from .step import TrainingStep

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Stream:
    """Pictures with their latents and captions, and the draws from them."""

    name: str  # enters the draws, so that two streams draw apart
    bank: LatentBank
    captions: list[str]
    size_ids: list[list[float]]
    example: Tensor  # the first picture as trained on, uint8 (3, H, W), for the attention figure

    def draw(
        self,
        p_aug: Tensor,
        *,
        count: int,
        batch_size: int,
        num_timesteps: int,
        seed: int,
        step: int,
        mask_fill: bool,
        device: torch.device,
    ) -> list[Batch]:
        """The batches of one optimizer step: `count` samples, `batch_size` at a time."""
        samples = draw_samples(
            self.bank,
            p_aug,
            count=count,
            num_timesteps=num_timesteps,
            seed=seed,
            step=step,
            stream=self.name,
            mask_fill=mask_fill,
        )
        chunks = [samples[i : i + batch_size] for i in range(0, count, batch_size)]
        return [collate(chunk, self.captions, self.size_ids, device) for chunk in chunks]


@dataclass
class Run:
    """A run in progress. `trainable`: every trained parameter by name, adapter and identifier."""

    components: Components
    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    objective: Objective
    subject: Stream
    preservation: Stream | None
    identifier: Identifier | None
    conditioner: Conditioner
    indicator: OverfitIndicator
    trainable: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr_factor: Callable[[int], float]
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    training_step: TrainingStep
    steps_done: int = 0
    updating: bool = False  # inside the update, when parameters and moments may disagree


@contextlib.contextmanager
def prepared_run(
    components: Components,
    images: ImageSet,
    prior_images: ImageSet | None,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    notify: Callable[[str], None],
) -> Iterator[Run]:
    """A run with its adapter on the UNet; when the block ends the adapter is off and the modules are on the CPU.

    Raises InputError for anything in the pictures, captions or settings that cannot be trained on.
    """
    _check_layers(components, config)
    subject, preservation = _streams(components, images, prior_images, config, device, notify)
    for note in [*components.notes, *images.notes, *(prior_images.notes if prior_images else [])]:
        notify(note)
    if subject.bank.fixed:
        notify("The VAE gives no standard deviation: each picture's latent is fixed.")
    with _encoders_on(components), _adapter_on(components, config, device, dtype):
        identifier, conditioner = _conditioning(components, config, device, dtype)
        for warning in conditioner.warnings():
            notify(warning)
        _prepare_captions(conditioner, subject, preservation, components, config)
        yield _assemble(components, config, device, dtype, subject, preservation, identifier, conditioner)


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What the base weights and passes are in. InputError: fp16 on the CPU."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        # By capability: torch calls bf16 supported also where it is only emulated.
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision is fp16 on the CPU, which trains too slowly and overflows: choose bf16 or fp32.")
    return DTYPES[precision]


def _check_layers(components: Components, config: TrainConfig) -> None:
    """A UNet may have no attention in the part that a regulariser looks at."""
    goal, unet = objective_of(config.method, config.apt, config.dco_beta), components.unet
    if goal.dist_weight > 0 and not attention_layers(unet, "attn1", goal.dist_layers):
        raise InputError(_no_layers("dist_layers", goal.dist_layers, "stabilization"))
    if goal.attn_weight > 0 and not attention_layers(unet, "attn2", goal.attn_layers):
        raise InputError(_no_layers("attn_layers", goal.attn_layers, "alignment"))


def _no_layers(setting: str, layers: str, switch: str) -> str:
    return f"{setting} is {layers}, but this model has no attention there: choose all, or switch {switch} off."


def _streams(
    components: Components,
    images: ImageSet,
    prior_images: ImageSet | None,
    config: TrainConfig,
    device: torch.device,
    notify: Callable[[str], None],
) -> tuple[Stream, Stream | None]:
    captions = [
        caption_for(
            image.caption,
            image.name,
            template=config.data.caption_template,
            name=config.name,
            class_word=config.class_word,
        )
        for image in images.images
    ]
    subject = _stream("subject", components, images, captions, config, device, notify)
    if prior_images is None:
        return subject, None
    texts = [
        class_caption(image.caption or config.data.class_caption, config.class_word) for image in prior_images.images
    ]
    return subject, _stream("preservation", components, prior_images, texts, config, device, notify)


def _stream(
    name: str,
    components: Components,
    images: ImageSet,
    captions: list[str],
    config: TrainConfig,
    device: torch.device,
    notify: Callable[[str], None],
) -> Stream:
    resolution = config.data.resolution or components.family.resolution
    own = components.size_multiple
    multiple = config.data.bucket_multiple or (math.lcm(64, own) if resolution >= 512 else own)
    if multiple % own:
        raise InputError(
            f"bucket_multiple is {multiple}: this model needs sides that are multiples of {own}, so give such a number."
        )
    prepared = prepare(images, resolution, multiple)
    for note in bucket_notes(prepared):
        notify(note)
    bank = LatentBank(
        prepared,
        components.encode,
        seed=config.seed,
        kinds=config.apt.augment_kinds,
        max_zoom=config.apt.max_zoom,
        max_degrees=config.apt.max_degrees,
        max_variants=config.apt.augment_variants if name == "subject" else 0,
        vae_factor=components.family.vae_factor,
        on_device=lambda: vae_on(components, device),
    )
    bank.encode_plain()
    example = ((prepared[0].image + 1) * 127.5).round().to(torch.uint8)
    return Stream(name, bank, captions, [size_ids_of(picture) for picture in prepared], example)


@contextlib.contextmanager
def vae_on(components: Components, device: torch.device) -> Iterator[None]:
    """The VAE on the compute device for as long as the block lasts."""
    if components.vae is None:
        yield
        return
    components.vae.to(device)
    try:
        yield
    finally:
        components.vae.to("cpu")


def _conditioning(
    components: Components, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Identifier | None, Conditioner]:
    encoders = components.text_encoders
    identifier = None
    if config.identifier_mode == "learned":  # before the cast, which would round the rows it starts from
        identifier = Identifier.from_init_word(encoders, config.resolved_init_word).to(device)
    for encoder in encoders:
        encoder.model.requires_grad_(False).to(device, dtype)
    return identifier, Conditioner(encoders, identifier, class_word=config.class_word, name=config.name)


def _prepare_captions(
    conditioner: Conditioner, subject: Stream, preservation: Stream | None, components: Components, config: TrainConfig
) -> None:
    """Encode what never changes; in word mode that is everything, and the text encoders leave the device."""
    previews = (*config.output.preview_prompts, config.data.caption_template, "") if config.output.preview_every else ()
    conditioner.precompute([*subject.captions, *(preservation.captions if preservation else ()), *previews])
    if config.identifier_mode == "word":
        for encoder in components.text_encoders:
            encoder.model.to("cpu")


@contextlib.contextmanager
def _encoders_on(components: Components) -> Iterator[None]:
    """The text encoders come back to the CPU, however the block ends."""
    try:
        yield
    finally:
        for encoder in components.text_encoders:
            encoder.model.to("cpu")


@contextlib.contextmanager
def _adapter_on(
    components: Components, config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> Iterator[None]:
    """The UNet on the device, training, with a fresh LoRA; after the block without it, in eval mode, on the CPU."""
    unet, adapter = components.unet, config.adapter
    check_no_adapter(unet)
    try:
        nn.Module.to(unet, device, dtype)  # diffusers' own `to` warns about a cast that is meant
        add_adapter(
            unet,
            rank=adapter.rank,
            alpha=adapter.resolved_alpha,
            dropout=adapter.dropout,
            targets=adapter.targets,
            seed=config.seed,
        )
        unet.train()
        if _checkpoints(components, config, device):
            unet.enable_gradient_checkpointing()
        yield
    finally:
        unet.disable_gradient_checkpointing()
        remove_adapter(unet)
        nn.Module.to(unet.eval(), "cpu")


def _checkpoints(components: Components, config: TrainConfig, device: torch.device) -> bool:
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    return components.family.is_sdxl and device.type == "cuda"


def _assemble(
    components: Components,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    subject: Stream,
    preservation: Stream | None,
    identifier: Identifier | None,
    conditioner: Conditioner,
) -> Run:
    objective = objective_of(config.method, config.apt, config.dco_beta)
    num_timesteps = components.schedule.num_timesteps
    indicator = OverfitIndicator(config.apt.bins, config.apt.ema, config.apt.temperature, num_timesteps)
    step = TrainingStep(
        components.unet,
        conditioner,
        components.schedule,
        indicator,
        objective,
        uses_size_ids=components.uses_size_ids,
        dtype=dtype,
        save_memory=_checkpoints(components, config, device),
        chunks=conditioner.num_chunks([*subject.captions, *(preservation.captions if preservation else ())]),
    )
    if objective.rank_by_timestep:
        adapter = config.adapter
        step.timestep_rank = TimestepRank(
            components.unet, rank=adapter.rank, min_rank=adapter.resolved_min_rank, num_timesteps=num_timesteps
        )
    trainable, optimizer = _optimizer(components.unet, identifier, config)
    return Run(
        components,
        config,
        device,
        dtype,
        objective,
        subject,
        preservation,
        identifier,
        conditioner,
        indicator,
        trainable,
        optimizer,
        _lr_factor(config),
        torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        step,  # pyright: ignore[reportPrivateImportUsage]
    )


def _optimizer(
    unet: nn.Module, identifier: Identifier | None, config: TrainConfig
) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    """AdamW over the adapter and, without weight decay, the identifier's rows; each group keeps its own rate."""
    settings = config.optimizer
    adapter = {f"adapter.{name}": parameter for name, parameter in adapter_parameters(unet).items()}
    rows = {f"identifier.{i}": row for i, row in enumerate(identifier.rows)} if identifier is not None else {}
    groups = [
        {"params": list(adapter.values()), "base_lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    ]
    if rows:
        groups.append({"params": list(rows.values()), "base_lr": settings.embedding_learning_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
    return {**adapter, **rows}, optimizer


def _lr_factor(config: TrainConfig) -> Callable[[int], float]:
    """The learning rate's factor by step (0-based): a diffusers schedule read as a plain function.

    Without a scheduler object there is no scheduler state, so a resumed run cannot disagree with it.
    """
    from diffusers.optimization import get_scheduler

    settings = config.optimizer
    nothing = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        settings.lr_schedule, nothing, num_warmup_steps=settings.warmup_steps, num_training_steps=config.steps
    )
    return scheduler.lr_lambdas[0]  # pyright: ignore[reportAttributeAccessIssue]
