"""Losses and drift at fixed noise: the model's loss on training and held-out pictures, its distance from the prior.

Without sampling: a few hundred forward passes per snapshot. A probe's noise never changes, so differences between
snapshots and methods come from the weights alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from PIL import ImageOps
from torch import Tensor

from apt_train.config import AptConfig
from apt_train.data.augment import PUBLISHED_ZOOM, Augmentation, draw_variant
from apt_train.families.components import Components
from apt_train.rng import generator
from apt_train.sample.sampler import Sampler, denoise, from_pictures, initial_noise
from apt_train.text.conditioning import Conditioner
from apt_train.training.vae_visits import vae_on

from .subjects import KINDS, Captioned, Subject
from .task import Task

BINS = 10


@dataclass(frozen=True)
class Probe:
    """Noisy latents and the target answer. `prior`: the prior's own mean squared error."""

    captions: list[str]
    noisy: Tensor  # (N, C, h, w)
    timesteps: Tensor  # int64 (N,)
    goal: Tensor  # (N, C, h, w), epsilon
    prior: Tensor  # (N,)

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("noisy", "timesteps", "goal", "prior")}


def probes_of(task: Task, components: Components, conditioner: Conditioner, subject: Subject) -> dict[str, Probe]:
    """`training`, `augmented` and `heldout` (losses); `subject`, `class` and `other` (drift). The adapter is off."""
    made: dict[str, Probe] = {}
    for name, items, repeats in (
        ("training", subject.training, task.loss_repeats),
        ("augmented", subject.training, task.loss_repeats),
        ("heldout", subject.heldout, 1),
    ):
        if items:
            captions = [item.caption for item in items for _ in range(BINS * repeats)]
            make = partial(_loss_probe, task, components, conditioner, items, captions, augment=name == "augmented")
            made[name] = _kept(task, subject, name, captions, make)
    for kind in KINDS:
        texts = [prompt.text for prompt in subject.prompts if prompt.kind == kind][: task.drift_prompts]
        make = partial(_drift_probe, task, components, conditioner, texts)
        made[kind] = _kept(task, subject, kind, texts * BINS, make)
    return made


def _kept(task: Task, subject: Subject, name: str, captions: list[str], make: Callable[[], Probe]) -> Probe:
    """The prior's part of a probe is computed once."""
    key = {"of": "probe", "name": name, "captions": captions, "pictures": subject.digest, "bins": BINS}
    key |= {"repeats": task.loss_repeats, "class": subject.class_word}
    return Probe(captions, **task.cached(key, lambda: make().tensors()))


def errors(components: Components, conditioner: Conditioner, probe: Probe, *, tuned: bool, batch: int = 32) -> Tensor:
    """Mean squared error of epsilon per sample, float32 (N,), of the current model."""
    epsilon = _epsilon(components, conditioner, probe.noisy, probe.timesteps, probe.captions, tuned, batch)
    return (epsilon - probe.goal).square().mean(dim=(1, 2, 3))


def by_bin(values: Tensor, timesteps: Tensor, num_timesteps: int) -> list[float]:
    """Mean of `values` (N,) in each bin of the noise level."""
    bins = timesteps * BINS // num_timesteps
    return [float(values[bins == b].mean()) for b in range(BINS)]


def _loss_probe(
    task: Task,
    components: Components,
    conditioner: Conditioner,
    items: Sequence[Captioned],
    captions: list[str],
    *,
    augment: bool,
) -> Probe:
    """Every picture in every bin, each with its own timestep and noise."""
    repeats, total = len(captions) // len(items), components.schedule.num_timesteps
    latents, times, noises = [], [], []
    for index, item in enumerate(items):
        keys = [("probe", "augmented" if augment else "plain", index, repeat) for repeat in range(repeats)]
        plain = [] if augment else [_latent(components, item, None)] * repeats
        latents += plain or [_latent(components, item, key) for key in keys]
        for repeat, key in enumerate(keys):
            noises.append(torch.randn(latents[-1].shape, generator=generator(*key)))
            start, end = (repeat % BINS) * total // BINS, (repeat % BINS + 1) * total // BINS
            times.append(torch.randint(start, end, (), generator=generator(*key, "time")))
    latent, timesteps, noise = torch.stack(latents), torch.stack(times), torch.stack(noises)
    noisy = components.schedule.add_noise(latent, noise, timesteps)
    probe = Probe(captions, noisy, timesteps, noise, torch.zeros(len(captions)))
    return replace(probe, prior=errors(components, conditioner, probe, tuned=False, batch=task.sampling_batch))


@torch.no_grad()
def _latent(components: Components, item: Captioned, key: tuple[str | int, ...] | None) -> Tensor:
    """The posterior's mean. With a key, of one augmented variant: the affine map at the published ranges."""
    side = components.family.resolution
    picture = from_pictures([ImageOps.fit(item.picture, (side, side))])[0]
    if key is not None:
        shipped, draws = AptConfig(), generator(*key, "variant")
        picture, _, _ = draw_variant(
            picture, None, Augmentation(("affine",), PUBLISHED_ZOOM, shipped.max_degrees), draws
        )
    unet: Any = components.unet
    device = unet.device
    with vae_on(components, device):
        return components.encode(picture[None].to(device))[0][0].float().cpu()


def _drift_probe(task: Task, components: Components, conditioner: Conditioner, texts: list[str]) -> Probe:
    """The prior's own guided trajectories, one timestep per bin. The target is the prior's answer there."""
    schedule, side = components.schedule, components.family.resolution // components.family.vae_factor
    shape = components.network.latent_channels(components.unet), side, side
    noise = torch.stack([initial_noise(0, k, shape) for k in range(len(texts))]).to(conditioner.device)
    seen: list[tuple[Tensor, int]] = []
    with torch.no_grad():
        text, nothing = conditioner.encode(texts, tuned=False), conditioner.encode([""], tuned=False)
        predict = _sampler(components, conditioner).predictor(text, nothing, task.guidance)

        def watched(latents: Tensor, timestep: int) -> Tensor:
            seen.append((latents, timestep))
            return predict(latents, timestep)

        denoise(schedule, watched, noise, schedule.sampling_timesteps(BINS))
    noisy = torch.cat([latents for latents, _ in seen]).cpu()
    times = torch.tensor([timestep for _, timestep in seen]).repeat_interleave(len(texts))
    goal = _epsilon(components, conditioner, noisy, times, texts * BINS, False, task.sampling_batch)
    return Probe(texts * BINS, noisy, times, goal, torch.zeros(len(noisy)))


@torch.no_grad()
def _epsilon(
    components: Components,
    conditioner: Conditioner,
    noisy: Tensor,
    times: Tensor,
    captions: list[str],
    tuned: bool,
    batch: int,
) -> Tensor:
    """The epsilon that the UNet's answer implies, without guidance, float32 on the CPU."""
    sampler, device, found = _sampler(components, conditioner), conditioner.device, []
    for rows in (slice(first, first + batch) for first in range(0, len(captions), batch)):
        text = conditioner.encode(captions[rows], tuned=tuned)
        predict = sampler.predictor(text)
        latents, timesteps = noisy[rows].to(device), times[rows].to(device)
        found.append(components.schedule.to_epsilon(predict(latents, timesteps), latents, timesteps).cpu())
    return torch.cat(found)


def _sampler(components: Components, conditioner: Conditioner) -> Sampler:
    side, unet = components.family.resolution, cast("Any", components.unet)
    return Sampler(components, (side, side), conditioner.device, unet.dtype)
