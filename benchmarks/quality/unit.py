"""One unit: train one variant on one subject, measure its snapshots, and return a small JSON object."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from apt_train.adapter import Adapter
from apt_train.config import TrainConfig
from apt_train.data.dataset import ImageSet
from apt_train.families.components import Components
from apt_train.families.load import load_checkpoint
from apt_train.families.network import Network
from apt_train.families.precision import resolve_dtype
from apt_train.names import step_folder
from apt_train.run.folder import RunFolder
from apt_train.sample.apply import personalized
from apt_train.text.conditioning import Conditioner
from apt_train.training.train import train
from apt_train.verdict.run_files import read_run

from .distances import set_distances
from .grid import PRIOR, Grid, Unit, merged
from .indicator_rule import indicated_snapshot
from .motion import motion_of
from .pictures import draw_pictures, prior_pictures
from .probe import by_bin, errors, probes_of
from .subjects import KINDS, Judge, Subject, image_set
from .task import Task

REFERENCE_SEEDS = (101, 102)  # of the prior's reference pictures for distances. Runs are sampled with their own
PRESERVATION_SEED = 201
LOSSES = ("training", "augmented", "heldout")
GAMMA_EVERY = 10  # steps between stored values of gamma


def run_unit(task: Task, grid: Grid, unit: Unit) -> dict[str, Any]:
    """Train, measure, and return what will be committed."""
    components, subject = task.components, task.subject(unit.subject)
    with _on(components, task.device):
        bench = _Bench(task, components, subject, task.judge(subject), unit.seed)
        if unit.variant == PRIOR:
            return {"unit": _about(unit, bench), "snapshots": [bench.prior()]}
        return _trained(bench, grid, unit)


def _trained(bench: _Bench, grid: Grid, unit: Unit) -> dict[str, Any]:
    variant = grid.variants[unit.variant]
    recipe = merged(bench.task.recipe, grid.recipe or {}, {"output": {"watch_drift": False}})  # the probes measure it
    config = variant.config(recipe, bench.subject.class_word, unit.seed)
    preservation = bench.preservation() if variant.preservation else None
    # A rounded base stays rounded, and the LoRA is used on a full one.
    trained = bench.components if config.base_storage == "full" else load_checkpoint(bench.task.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        train(
            trained,
            bench.subject.images,
            config,
            prior_images=preservation,
            output_dir=folder,
            device=bench.task.device,
        )
        to(bench.components, bench.task.device)
        place, run = RunFolder(Path(folder), config.name), read_run(Path(folder))
        snapshots = [
            bench.snapshot(place, config, step, sampled=step in grid.sample_at)
            for step in sorted({*grid.probe_at, *grid.sample_at})
        ]
        every = config.output.snapshot_every
        motion = motion_of(place, run.log, range(every, config.steps + 1, every))
    return {
        "unit": _about(unit, bench),
        "settings": variant.settings,
        "recommended": indicated_snapshot(run.summary),
        "gamma": np.round(run.log.gamma[GAMMA_EVERY - 1 :: GAMMA_EVERY], 3).tolist(),
        "motion": _rounded(motion),
        "snapshots": snapshots,
    }


def _about(unit: Unit, bench: _Bench) -> dict[str, Any]:
    return {
        "subject": unit.subject,
        "group": bench.subject.group,
        "seed": unit.seed,
        "variant": unit.variant,
        "space": bench.judge.space,
        "pictures": bench.subject.digest[:16],
    }


class _Masked:
    """A network whose predictions have the ranks of their timesteps."""

    def __init__(self, network: Network, adapter: Adapter) -> None:
        self._network, self._adapter = network, adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def predict(self, module: Any, noisy: torch.Tensor, timesteps: torch.Tensor, *more: Any) -> torch.Tensor:
        with self._adapter.at(timesteps.reshape(-1)):
            return self._network.predict(module, noisy, timesteps, *more)


@contextlib.contextmanager
def ranks_by_timestep(components: Components, adapter: Adapter) -> Iterator[None]:
    """Inside the block the model is called with a T-LoRA's ranks at each timestep, and with all of another LoRA's."""
    network = components.network
    components.network = cast("Any", _Masked(network, adapter))
    try:
        yield
    finally:
        components.network = network


class _Bench:
    """One subject's pictures, probes and judge, on one model."""

    def __init__(self, task: Task, components: Components, subject: Subject, judge: Judge, seed: int) -> None:
        self.task, self.components, self.subject, self.judge, self.seed = task, components, subject, judge, seed
        self._prior = Conditioner(components.text_encoders, None, class_word=subject.class_word, name="the_subject")
        assert [prompt.kind for prompt in subject.prompts] == sorted(
            (prompt.kind for prompt in subject.prompts), key=KINDS.index
        ), "prompts come kind by kind"
        # Everything that depends on the prior alone, before an adapter is added.
        self._probes = probes_of(self.task, self.components, self._prior, self.subject)
        self._reference = _joined([self.judge.features(self._pictures(seed)) for seed in REFERENCE_SEEDS])
        self._same_noise = self._pictures(self.seed)

    def preservation(self) -> ImageSet:
        """The prior's own pictures of the class, for DreamBooth's preservation term."""
        texts = [f"a photo of a {self.subject.class_word}"] * self.task.preservation_pictures
        pictures = prior_pictures(self.task, self.components, self._prior, texts, PRESERVATION_SEED)
        return image_set(pictures, texts)

    def prior(self) -> dict[str, Any]:
        """The prior, measured like a trained model against itself at the reference's seeds.

        If the judge can make true pictures of the prompts, they are measured too, as `true`: the ceiling.
        """
        again = self._pictures(self.seed + 50)
        losses = {name: self._by_bin(name, self._probes[name].prior) for name in LOSSES if name in self._probes}
        found = {"step": 0, "prior_losses": losses, **self._judged(again)}
        true = self.judge.ideal(self.subject.prompts, again)
        return _rounded(found if true is None else {**found, "true": self._judged(true)})

    def snapshot(self, folder: RunFolder, config: TrainConfig, step: int, *, sampled: bool) -> dict[str, Any]:
        """Measures of one snapshot: the probes, and with `sampled` also pictures."""
        place = step_folder(folder.snapshots, step)
        embedding = place / folder.embedding.name
        with personalized(
            self.components,
            load_file(place / folder.lora.name),
            load_file(embedding) if embedding.exists() else None,
            config,
        ) as (conditioner, adapter):
            to(self.components, self.task.device)
            with ranks_by_timestep(self.components, adapter):  # T-LoRA as published masks its ranks here, too
                found = self._measured(conditioner, sampled)
        return _rounded({"step": step, **found})

    def _measured(self, conditioner: Conditioner, sampled: bool) -> dict[str, Any]:
        """Measures of the current model."""
        found = self._probed(conditioner)
        if not sampled:
            return found

        def draw(texts: list[str]) -> list[Image.Image]:
            return draw_pictures(self.task, self.components, conditioner, texts, tuned=True, seed=self.seed)

        return {**found, **self._judged(self._by_kind(draw))}

    def _probed(self, conditioner: Conditioner) -> dict[str, Any]:
        batch, values = self.task.sampling_batch, {}
        for name, probe in self._probes.items():
            found = errors(self.components, conditioner, probe, tuned=True, batch=batch)
            values[name] = self._by_bin(name, found)
        losses = {name: values.pop(name) for name in LOSSES if name in values}
        return {"losses": losses, "drift": values}

    def _by_bin(self, name: str, values: torch.Tensor) -> list[float]:
        return by_bin(values, self._probes[name].timesteps, self.components.schedule.num_timesteps)

    def _judged(self, pictures: list[Image.Image]) -> dict[str, Any]:
        score = self.judge.score(pictures, self.subject.prompts, self._same_noise)
        features = self.judge.features(pictures)
        other = np.array([prompt.kind == "other" for prompt in self.subject.prompts])
        others = np.tile(other, len(REFERENCE_SEEDS))
        distances = {"elsewhere": set_distances(features["all"][other], self._reference["all"][others])}
        if "scene" in features:
            distances["scene"] = set_distances(features["scene"], self._reference["scene"])
        return {"score": score, "distances": distances}

    def _pictures(self, seed: int) -> list[Image.Image]:
        """The prior's pictures of all prompts. Those that subjects share are sampled once."""
        return self._by_kind(lambda texts: prior_pictures(self.task, self.components, self._prior, texts, seed))

    def _by_kind(self, draw: Callable[[list[str]], list[Image.Image]]) -> list[Image.Image]:
        """Pictures of all prompts, kind by kind, so that picture k of a kind has the same noise for every subject."""
        texts = ([prompt.text for prompt in self.subject.prompts if prompt.kind == kind] for kind in KINDS)
        return [picture for of_kind in texts if of_kind for picture in draw(of_kind)]


def to(components: Components, device: str) -> None:
    """Move UNet and text encoders to the device, in the trainer's precision. The VAE moves when needed."""
    dtype = resolve_dtype("auto", torch.device(device))
    for module in components.modules:
        torch.nn.Module.to(module, device, dtype)


@contextlib.contextmanager
def _on(components: Components, device: str) -> Iterator[None]:
    to(components, device)
    components.unet.eval()
    try:
        yield
    finally:
        for module in components.modules:
            torch.nn.Module.to(module, "cpu")


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _rounded(value: Any) -> Any:
    """Five significant digits: well below the noise, and the files stay small."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
