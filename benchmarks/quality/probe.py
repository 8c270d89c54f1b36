"""Losses and drift at fixed noise: what training and held-out pictures cost the model, how far it left the prior.

No sampling: a few hundred forward passes a snapshot. The noise of a probe never changes, so differences between
snapshots and methods are those of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import ImageOps
from torch import Tensor

from apt_train.augment import draw_variant
from apt_train.components import Components
from apt_train.conditioning import Conditioner
from apt_train.rng import generator
from apt_train.sample import ddim, guided_unet, initial_noise, sampling_timesteps
from apt_train.streams import vae_on

from .subjects import KINDS, Captioned, Subject, as_signed
from .task import Task

BINS = 10


@dataclass(frozen=True)
class Probe:
    """Noisy latents and what the model should answer; `prior`: the prior's own mean squared error."""

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

    def keep(name: str, captions: list[str], make: Callable[[], Probe]) -> None:
        key = {"of": "probe", "name": name, "captions": captions, "pictures": subject.digest, "bins": BINS}
        key |= {"repeats": task.loss_repeats, "class": subject.class_word}
        made[name] = Probe(captions, **task.cached(components, key, lambda: make().tensors()))

    for name, items in (("training", subject.training), ("augmented", subject.training), ("heldout", subject.heldout)):
        if not items:
            continue
        repeats = task.loss_repeats if name != "heldout" else 1
        captions = [item.caption for item in items for _ in range(BINS * repeats)]
        keep(
            name,
            captions,
            lambda items=items, captions=captions, augment=name == "augmented": _loss_probe(
                task, components, conditioner, items, captions, augment
            ),
        )
    for kind in KINDS:
        texts = [prompt.text for prompt in subject.prompts if prompt.kind == kind][: task.drift_prompts]
        captions = [text for _ in range(BINS) for text in texts]
        keep(kind, captions, lambda texts=texts: _drift_probe(task, components, conditioner, texts))
    return made


@torch.no_grad()
def errors(
    components: Components, conditioner: Conditioner, probe: Probe, *, tuned: bool, batch: int = 32
) -> Tensor:
    """Mean squared error of epsilon per sample, float32 (N,), of the model as it stands."""
    found = []
    for rows in torch.arange(len(probe.captions)).split(batch):
        captions = [probe.captions[row] for row in rows.tolist()]
        noisy, times = probe.noisy[rows].to(conditioner.device), probe.timesteps[rows].to(conditioner.device)
        epsilon = _epsilon(components, conditioner, noisy, times, captions, tuned)
        found.append((epsilon - probe.goal[rows].to(epsilon)).square().mean(dim=(1, 2, 3)).cpu())
    return torch.cat(found)


def by_bin(values: Tensor, timesteps: Tensor, num_timesteps: int) -> list[float]:
    """Mean of `values` (N,) in each timestep bin."""
    bins = timesteps * BINS // num_timesteps
    return [float(values[bins == b].mean()) for b in range(BINS)]


def _loss_probe(
    task: Task,
    components: Components,
    conditioner: Conditioner,
    items: Sequence[Captioned],
    captions: list[str],
    augment: bool,
) -> Probe:
    """Every picture at every bin, its timestep and noise its own."""
    repeats, total = len(captions) // len(items), components.schedule.num_timesteps
    latents, times, noises = [], [], []
    for index, item in enumerate(items):
        for repeat in range(repeats):
            key = ("probe", "augmented" if augment else "plain", index, repeat)
            latents.append(_latent(components, item, key if augment else None))
            noises.append(torch.randn(latents[-1].shape, generator=generator(*key)))
            start, end = (repeat % BINS) * total // BINS, (repeat % BINS + 1) * total // BINS
            times.append(torch.randint(start, end, (), generator=generator(*key, "time")))
    latent, timesteps, noise = torch.stack(latents), torch.stack(times), torch.stack(noises)
    noisy = components.schedule.add_noise(latent, noise, timesteps)
    probe = Probe(captions, noisy, timesteps, noise, torch.zeros(len(captions)))
    prior = errors(components, conditioner, probe, tuned=False, batch=task.sampling_batch)
    return Probe(captions, noisy, timesteps, noise, prior)


@torch.no_grad()
def _latent(components: Components, item: Captioned, key: tuple[str | int, ...] | None) -> Tensor:
    """The posterior's mean; with a key of one augmented variant, the affine map at its published range."""
    side = components.family.resolution
    picture = as_signed([ImageOps.fit(item.picture.convert("RGB"), (side, side))])[0]
    if key is not None:
        picture, _, _ = draw_variant(
            picture, None, kinds=("affine",), max_zoom=3.0, max_degrees=15.0, generator=generator(*key, "variant")
        )
    with vae_on(components, components.unet.device):
        return components.encode(picture[None].to(components.unet.device))[0][0].float().cpu()


def _drift_probe(task: Task, components: Components, conditioner: Conditioner, texts: list[str]) -> Probe:
    """The prior's own guided trajectories, one timestep a bin; the goal is what the prior answers there."""
    schedule, side = components.schedule, components.family.resolution
    shape = (components.unet.config["in_channels"], *[side // components.family.vae_factor] * 2)
    noise = torch.stack([initial_noise(0, k, shape) for k in range(len(texts))]).to(conditioner.device)
    seen: list[tuple[Tensor, int]] = []
    with torch.no_grad():
        predict = guided_unet(
            components,
            conditioner.encode(texts, tuned=False),
            conditioner.encode([""], tuned=False),
            range(len(texts)),
            task.guidance,
            (side, side),
            conditioner.device,
            components.unet.dtype,
        )

        def watched(latents: Tensor, timestep: int) -> Tensor:
            seen.append((latents, timestep))
            return predict(latents, timestep)

        ddim(schedule, watched, noise, sampling_timesteps(schedule, BINS))
        noisy = torch.cat([latents for latents, _ in seen])
        times = torch.tensor([timestep for _, timestep in seen]).repeat_interleave(len(texts))
        captions = texts * BINS
        goal = torch.cat(
            [
                _epsilon(components, conditioner, noisy[rows], times[rows].to(noisy.device), captions[rows], False)
                for rows in (slice(i, i + task.sampling_batch) for i in range(0, len(captions), task.sampling_batch))
            ]
        )
    return Probe(captions, noisy.cpu(), times, goal.cpu(), torch.zeros(len(captions)))


def _epsilon(
    components: Components, conditioner: Conditioner, noisy: Tensor, times: Tensor, captions: list[str], tuned: bool
) -> Tensor:
    """The epsilon the UNet stands for, without guidance, float32."""
    conditioning, dtype = conditioner.encode(captions, tuned=tuned), components.unet.dtype
    extra = None
    if components.uses_size_ids:
        assert conditioning.pooled is not None
        side = components.family.resolution
        size_ids = torch.tensor([(side, side, 0, 0, side, side)] * len(captions), device=noisy.device)
        extra = {"text_embeds": conditioning.pooled.to(dtype), "time_ids": size_ids.float()}
    prediction = components.unet(
        noisy.to(dtype), times, encoder_hidden_states=conditioning.hidden.to(dtype), added_cond_kwargs=extra
    ).sample.float()
    return components.schedule.to_epsilon(prediction, noisy, times)
