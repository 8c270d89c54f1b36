"""The check-up in order: the LoRA is found on the model, measured at each strength, and a strength is named.

In: what is measured when, and what it is measured on. Not in: the measures (`probe`), the rule (`recommend`), words
(`verdict`), the sheet (`sheet`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator

import torch
from PIL import Image
from torch import Tensor

from ..config import OutputConfig
from ..data.buckets import bucket_multiple, prepare
from ..data.dataset import ImageSet, TrainImage
from ..data.latent_bank import LatentBank
from ..errors import InputError
from ..families.components import Components
from ..families.precision import resolve_dtype
from ..sample.drift import drift_of, unrelated_prompts
from ..sample.sampler import sample
from ..settings_field import require
from ..text.captions import SUBJECT
from ..text.conditioning import Conditioner
from ..training.plan import resolve_device
from ..training.room import is_out_of_memory
from ..training.streams import vae_on
from .blocks import blocks_of
from .findings import Asked, AtStrength, CheckUp
from .gain import gain_of
from .lora_file import LoraFile
from .placing import place
from .probe import Drifts, Looks, Pictures, Probe
from .recommend import recommended
from .subject import Subject
from .with_lora import WithLora, lora_ready

LOWER = 3  # times that the lowest strength is halved where the one to use lies below it
LOWEST = 0.1
MOST_PICTURES = 10

Busy = Callable[[int, int], object]  # calls of the network that have ended, and all of them


def check_up(
    components: Components,
    lora: LoraFile,
    subject: Subject,
    asked: Asked | None = None,
    *,
    images: ImageSet | None = None,
    device: str | torch.device | None = None,
    busy: Busy = lambda done, total: None,
) -> CheckUp:
    """Look a LoRA over on its model, which comes back as it was.

    Args:
        images: the pictures it was trained on, with captions; None: what needs them is not measured.
        busy: called before each picture that is encoded, and each call of the network; what it raises ends the work.

    Raises:
        InputError: the LoRA is another model's; a caption, size or precision that cannot be; too little memory.
    """
    asked, place_ = asked or Asked(), resolve_device(device)
    placement = place(lora, components)
    try:
        with lora_ready(components, placement, place_, working_dtype(asked.precision, place_)) as ready:
            return _Work(ready, lora, subject, asked, images, busy).done()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError("Out of memory: give the check-up a lower resolution, or free memory.") from error


def working_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What a check-up computes in. `auto`: float16 on a CUDA GPU, else float32.

    In bfloat16, merging a LoRA into the weights would round much of it away (ours).
    """
    return resolve_dtype("fp16" if precision == "auto" and device.type == "cuda" else precision, device)


class _Work:
    """One check-up under way."""

    def __init__(
        self, ready: WithLora, lora: LoraFile, subject: Subject, asked: Asked, images: ImageSet | None, busy: Busy
    ) -> None:
        self._ready, self._lora, self._subject, self._asked, self._busy = ready, lora, subject, asked, busy
        self._components, self._placement = ready.components, ready.placement
        self._side = asked.resolution or self._components.family.resolution
        self._notes: list[str] = []
        rows = asked.rows or (1 if self._side > 768 else 4)
        self._shared = subject.conditioner(self._components)
        pictures = None if images is None else self._pictures(images)
        self._pictures_used = 0 if pictures is None else len(pictures.captions)
        self._unrelated = unrelated_prompts(asked.unrelated or OutputConfig().drift_prompts, subject.class_word)
        if not self._unrelated:
            raise InputError("Every unrelated prompt names the class word: give some about other things.")
        named = [text for text in (pictures.captions if pictures else ()) if SUBJECT in text]
        prompt = subject.caption(asked.prompt)
        require(SUBJECT in prompt, "prompt", repr(asked.prompt), "write {subject} where the subject belongs")
        own = list(dict.fromkeys(named)) or [prompt]
        self._prompts = list(itertools.islice(itertools.cycle(own), len(self._unrelated)))
        self._probe = Probe(
            ready, pictures=pictures, prompts=self._prompts, unrelated=self._unrelated, bins=asked.bins,
            draws=asked.draws, side=self._side, rows=rows,
        )  # fmt: skip
        self._prior_losses = torch.zeros(0)

    def done(self) -> CheckUp:
        with self._counted():
            with self._ready.prior():
                self._probe.begin(self._shared)
                self._prior_losses = self._probe.losses(self._shared, 0)
                samples = self._drawn(self._shared, tuned=False)
            points: list[AtStrength] = []
            for strength in self._asked.strengths:
                point, drawn = self._at(strength)
                points.append(point)
                samples += drawn
            for _ in range(LOWER):
                if not recommended(points).below or points[0].strength < LOWEST:
                    break
                point, drawn = self._at(points[0].strength / 2)
                points.insert(0, point)
                samples[1:1] = drawn
        return CheckUp(
            self._lora, self._placement, blocks_of(self._ready), self._subject, points, recommended(points),
            self._prompts, self._unrelated, self._pictures_used, self._asked.bins,
            self._components.schedule.num_timesteps, self._components.source, samples,
            [*self._components.notes, *self._notes],
        )  # fmt: skip

    def _at(self, strength: float) -> tuple[AtStrength, list[Image.Image]]:
        with self._ready.at(strength):
            # A LoRA on the text encoders changes what every text is read as.
            changes = self._placement.changes_text
            conditioner = self._subject.conditioner(self._components) if changes else self._shared
            losses = self._probe.losses(conditioner, strength)
            drifts, looks = self._probe.drifts(conditioner, strength), self._probe.looks(conditioner)
            return self._point(strength, losses, drifts, looks), self._drawn(conditioner, tuned=True)

    def _point(self, strength: float, losses: Tensor, drifts: Drifts, looks: Looks | None) -> AtStrength:
        assert self._probe.scale is not None
        named, others = self._probe.scale
        drift = drift_of(drifts.subject, drifts.unrelated)
        return AtStrength(
            strength, drift.subject, float(drifts.bare.mean()), drift.unrelated, drift.ratio,
            float((drifts.unrelated / others).mean()), float((drifts.bare / named).mean()),
            gain=gain_of(self._prior_losses, losses, self._components.schedule.num_timesteps),
            alignment=None if looks is None else looks.alignment, context=None if looks is None else looks.context,
        )  # fmt: skip

    def _pictures(self, images: ImageSet) -> Pictures:
        chosen = _some(images, MOST_PICTURES)
        self._notes += images.notes
        if len(chosen.images) < len(images.images):
            self._notes.append(f"Of {len(images.images)} pictures {len(chosen.images)} were looked at.")
        captions = self._subject.captions(chosen, self._asked.prompt)
        if not any(SUBJECT in text for text in captions):
            self._notes.append("No caption names the subject, so the trigger was only tried on the prompt.")
        components = self._components
        prepared = prepare(chosen, self._side, bucket_multiple(0, self._side, components.size_multiple))
        bank = LatentBank(
            prepared, components.encode, seed=self._asked.seed, kinds=(), max_zoom=1.0, max_degrees=0.0, max_variants=0,
            vae_factor=components.family.vae_factor, on_device=lambda: vae_on(components, self._ready.device),
            on_encode=lambda _, done, total: self._busy(0, 0),
        )  # fmt: skip
        bank.encode_plain()
        return Pictures.of(prepared, bank, captions)

    def _drawn(self, reader: Conditioner, *, tuned: bool) -> list[Image.Image]:
        """One sample, or none where none are wanted."""
        asked = self._asked
        if not asked.sample_steps:
            return []
        with torch.no_grad(), vae_on(self._components, self._ready.device):
            text = reader.encode([self._subject.caption(asked.prompt)], tuned=tuned)
            nothing = reader.encode([""], tuned=False)
            return sample(
                self._components, text, nothing, seed=asked.seed, steps=asked.sample_steps, guidance=asked.guidance,
                height=self._side, width=self._side, device=self._ready.device, dtype=self._ready.dtype,
                on_notice=self._notes.append,
            )  # fmt: skip

    @contextlib.contextmanager
    def _counted(self) -> Generator[None]:
        """Inside the block `busy` is called before each call of the network."""
        prior, each = self._probe.calls
        drawn = self._asked.sample_steps
        count = len(self._asked.strengths)
        total, done = prior + drawn + count * (each + drawn), itertools.count()

        def ask(*_: object) -> None:
            place_ = next(done)
            self._busy(place_, max(total, place_ + 1))

        hook = self._components.unet.register_forward_pre_hook(ask)
        try:
            yield
        finally:
            hook.remove()


def _some(images: ImageSet, most: int) -> ImageSet:
    """At most so many, spread evenly."""
    count = len(images.images)
    if count <= most:
        return images
    chosen: list[TrainImage] = [images.images[k * count // most] for k in range(most)]
    return ImageSet(chosen, images.digest, images.notes)
