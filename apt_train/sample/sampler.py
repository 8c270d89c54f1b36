"""Deterministic, guided sampling of pictures from a model: for previews during training and the demo.

In: the sampling loop, and pairs of prior and tuned pictures. Not in: moving the VAE to the device (the caller does),
text encoding (`conditioning`), arranging pictures on a sheet (`grid`).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy
import torch
from PIL import Image
from torch import Tensor, nn

from ..adapter import Adapter
from ..errors import InputError
from ..families.components import Components
from ..families.network import Process, TextInput
from ..rng import generator
from ..text.conditioning import Conditioner, Conditioning, side_by_side

Notice = Callable[[str], None]
Predict = Callable[[Tensor, "int | Tensor"], Tensor]  # (noisy latents, timestep) -> the network's own prediction


@dataclass(frozen=True)
class Drawing:
    """How pictures are sampled. `guidance`: classifier-free; 1 or less: none."""

    seed: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Sampler:
    """Samples pictures from a model in its current state, with the adapter on or off as it is.

    Args:
        size: (height, width) of the pictures in pixels, multiples of the VAE's factor.
        dtype: the UNet's compute dtype; the latents stay float32.
        batch_size: pictures per UNet call. The noise of picture k depends only on (seed, k); with batches of 1 so does
            the picture, bit for bit.
        on_notice: told about pictures with non-finite values, which are returned grey.
    """

    components: Components
    size: tuple[int, int]
    device: torch.device | str
    dtype: torch.dtype
    batch_size: int = 1
    on_notice: Notice = warnings.warn

    def batches(self, count: int) -> list[range]:
        """The places of `count` pictures or prompts, as many as go into each network call."""
        return [range(first, min(first + self.batch_size, count)) for first in range(0, count, self.batch_size)]

    def draw(self, conditioning: Conditioning, unconditional: Conditioning, drawing: Drawing) -> list[Image.Image]:
        """One picture per row of `conditioning`. `unconditional`: of one row."""
        schedule, shape = self.components.schedule, latent_shape(self.components, *self.size)
        times = schedule.sampling_timesteps(drawing.steps)
        pictures: list[Image.Image] = []
        with torch.no_grad(), eval_mode(self.components.unet):
            for rows in self.batches(len(conditioning.hidden)):
                predict = self.predictor(conditioning, unconditional, drawing.guidance, rows)
                noise = torch.stack([initial_noise(drawing.seed, k, shape) for k in rows])
                latents = denoise(schedule, predict, noise.to(self.device), times)
                pictures += _decode(self.components, latents, rows, self.on_notice)
        return pictures

    def predictor(
        self,
        conditioning: Conditioning,
        unconditional: Conditioning | None = None,
        guidance: float = 1.0,
        rows: range | None = None,
    ) -> Predict:
        """The network with text (its `rows`; None: all), sizes and guidance filled in.

        It takes one timestep for all rows or, if `guidance` is at most 1, also one per row, int64 (N,). In that case
        `unconditional` is not needed.
        """
        guide = guidance > 1 and not self.components.family.reads_guidance
        assert unconditional is not None or not guide, "guidance leads away from the unconditional prediction"
        some = range(len(conditioning.hidden)) if rows is None else rows
        whole = all(encoder.padded for encoder in self.components.text_encoders)
        hidden, mask, pooled = _text(conditioning, unconditional if guide else None, some, whole)
        sizes = [(*self.size, 0, 0, *self.size)] * len(hidden)
        geometry = torch.tensor(sizes, device=self.device, dtype=torch.float32)
        pooled = None if pooled is None else pooled.to(self.device, self.dtype)
        mask = None if mask is None else mask.to(self.device)
        text = TextInput(hidden.to(self.device, self.dtype), pooled, geometry, guidance, mask)
        network, unet = self.components.network, self.components.unet

        def predict(latents: Tensor, timestep: int | Tensor) -> Tensor:
            doubled = torch.cat([latents, latents]) if guide else latents
            time = torch.as_tensor(timestep, device=self.device)
            prediction = network.predict(unet, doubled, time, text, self.dtype)
            if not guide:
                return prediction
            without, with_text = prediction.chunk(2)
            return without + guidance * (with_text - without)

        return predict


def previews(
    sampler: Sampler,
    adapter: Adapter,
    conditioner: Conditioner,
    prompts: list[str],
    drawing: Drawing,
    prior: list[Image.Image] | None = None,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Prior and tuned pictures of the same prompts (with `{subject}`) from the same noise, for a PreviewEvent.

    The prior's are drawn with the adapter off and the class word as the subject. They do not change during a run, so
    pass those of an earlier call as `prior` to avoid drawing them again.
    """
    with torch.no_grad():
        unconditional = conditioner.encode([""], tuned=False)
        if prior is None:
            with adapter.disabled():
                prior = sampler.draw(conditioner.encode(prompts, tuned=False), unconditional, drawing)
        return prior, sampler.draw(conditioner.encode(prompts, tuned=True), unconditional, drawing)


def initial_noise(seed: int, index: int, shape: tuple[int, int, int]) -> Tensor:
    """The initial latent (C, h, w) of picture `index`, float32 on the CPU."""
    return torch.randn(shape, generator=generator(seed, "sample", index))


def denoise(process: Process, predict: Callable[[Tensor, int], Tensor], noise: Tensor, times: list[int]) -> Tensor:
    """Clean latents from `noise` (N, C, h, w), deterministically, down the timesteps `times`.

    `predict(noisy, timestep)`: the network's own prediction.
    """
    latents = noise
    for now, then in zip(times, [*times[1:], None], strict=True):
        latents = process.step(latents, predict(latents, now).float(), now, then)
    return latents


@contextlib.contextmanager
def calls_told(network: nn.Module, tell: Callable[[int], object]) -> Generator[None]:
    """Inside the block `tell` hears of each network call before it is made, with the number of those already made."""
    made = itertools.count()

    def before_call(*_: object) -> None:
        tell(next(made))

    with network.register_forward_pre_hook(before_call):
        yield


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Generator[None]:
    """Evaluation mode inside the block; afterwards every submodule has its own mode again."""
    with contextlib.ExitStack() as stack:
        for part in module.modules():
            stack.callback(setattr, part, "training", part.training)
        module.eval()
        yield


def latent_shape(components: Components, height: int, width: int) -> tuple[int, int, int]:
    """(C, h, w) of a picture of this height and width in pixels. InputError: the model cannot make that size."""
    factor = components.family.vae_factor
    if height <= 0 or width <= 0 or height % factor or width % factor:
        raise InputError(
            f"The picture size {width} x {height} does not fit the model: give multiples of {factor} pixels."
        )
    return components.network.latent_channels(components.unet), height // factor, width // factor


def _text(
    conditioning: Conditioning, unconditional: Conditioning | None, rows: range, whole: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Hidden states, their mask and pooled vectors of the given rows, preceded by the unconditional ones if any.

    `whole`: texts are whole chunks.
    """
    texts, pooled = [_alone(conditioning, k) for k in rows], conditioning.pooled
    pooled = None if pooled is None else pooled[rows.start : rows.stop]
    if unconditional is None:
        return *side_by_side(texts), pooled
    empty = _alone(unconditional, 0).to(texts[0])
    if whole:
        # Longer prompts have more chunks. Those of the empty prompt are as empty as what fills up a shorter one.
        length = math.lcm(len(empty), len(texts[0]))
        empty, *texts = (text.repeat(length // len(text), 1) for text in (empty, *texts))
    if pooled is not None:
        assert unconditional.pooled is not None, "both conditionings come from the same text encoders"
        pooled = torch.cat([unconditional.pooled.expand(len(rows), -1).to(pooled), pooled])
    return *side_by_side([empty] * len(rows) + texts), pooled


def _alone(conditioning: Conditioning, row: int) -> Tensor:
    """One text's hidden states without the padding of its batch."""
    hidden, mask = conditioning.hidden[row], conditioning.mask
    return hidden if mask is None else hidden[mask[row]]


def _decode(components: Components, latents: Tensor, rows: range, on_notice: Notice) -> list[Image.Image]:
    """Decode latents one by one: half the peak memory, and the same picture whatever the batch."""
    pictures: list[Image.Image] = []
    for k, latent in zip(rows, latents, strict=True):
        image = components.decode(latent[None])[0].float()
        if not bool(image.isfinite().all()):
            blame = "the VAE overflows, so load it in float32 or bfloat16" if bool(latent.isfinite().all()) else (
                "the network's latents overflowed, so use bf16 or fp32 precision, or go back to an earlier snapshot"
            )  # fmt: skip
            on_notice(f"Sample picture {k} is not a number and is shown grey: {blame}.")
            image = torch.zeros_like(image)
        pictures.append(to_picture(image))
    return pictures


def to_picture(image: Tensor) -> Image.Image:
    """Float (3, H, W) in [-1, 1] -> RGB picture; values outside are clamped."""
    scaled = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(scaled.permute(1, 2, 0).cpu().numpy())


def from_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size -> float (N, 3, H, W) in [-1, 1]; the inverse of `to_picture`."""
    pixels = numpy.stack([numpy.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
