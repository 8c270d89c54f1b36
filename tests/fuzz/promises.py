"""What every run promises, whatever its settings: checked on its folder, its events and the model it leaves behind."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor

from apt_train.config import TrainConfig
from apt_train.data.dataset import ImageSet
from apt_train.errors import InputError
from apt_train.events import Event, PlanEvent, StepEvent
from apt_train.families.components import Components
from apt_train.run.config_file import read_config
from apt_train.run.log import terms_of
from apt_train.sample.apply import personalized
from apt_train.sample.sampler import Sampler, eval_mode
from apt_train.text.conditioning import Conditioner
from tests.lora_files import metadata_of

from .outcome import Wrong

SIDE = 32  # pixels


@dataclass
class Seen:
    """A run as its caller saw it. `before`: `state_of` the model; `live`: what the trained network predicted."""

    components: Components
    images: ImageSet
    config: TrainConfig
    before: dict[str, Any]
    events: list[Event] = field(default_factory=list)
    live: Tensor | None = None

    @property
    def steps(self) -> list[StepEvent]:
        return [event for event in self.events if isinstance(event, StepEvent)]

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.precision == "bf16" else torch.float32


def check_run(folder: Path, seen: Seen) -> None:
    """Wrong: a promise is broken."""
    check_untouched(seen)
    check_counts(seen)
    check_log(folder, seen)
    try:
        check_settings(folder, seen)
        check_applied(folder, seen)
    except InputError as error:
        raise Wrong(f"the run's own files are refused: {error}") from error


def state_of(components: Components) -> dict[str, Any]:
    """All of a model and of torch that a run could leave changed, by name; of a tensor its value comes first."""
    parts = [*components.modules, *([] if components.vae is None else [components.vae])]
    switches = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_device()
    state: dict[str, Any] = {"torch": (*switches, torch.get_rng_state().tolist(), random.getstate())}
    for number, part in enumerate(parts):
        for name, module in part.named_modules():
            kept = vars(module)
            hooks = [hook for kind in kept if kind.endswith("_hooks") for hook in kept[kind].values()]
            ours = [hook for hook in hooks if not hook.__module__.startswith("transformers")]  # its own stay, once used
            names = sorted(key for key in kept if not key.startswith("_"))
            checkpoints = kept.get("gradient_checkpointing")
            state[f"{number} {name}"] = type(module), module.training, ours, names, checkpoints
        for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
            value = tensor.detach().clone(), tensor.dtype
            state[f"{number} {name}:"] = *value, tensor.stride(), tensor.requires_grad, tensor.grad, tensor.device
    return state


def check_untouched(seen: Seen) -> None:
    """The model is as it was but for rounded weights; so is torch."""
    before, after = seen.before, state_of(seen.components)
    rounds = seen.dtype != torch.float32 or seen.config.base_storage != "full"
    for name in before.keys() | after.keys():
        then, now = before.get(name, (None,)), after.get(name, (None,))
        if name.endswith(":") and len(then) == len(now):
            same = rounds or torch.equal(then[0], now[0])
            then, now = (same or "its bits", *then[2:]), (True, *now[2:])
        if then != now:
            raise Wrong(f"something is left behind: {name} was {str(then)[:300]} and is {str(now)[:300]}")


def check_counts(seen: Seen) -> None:
    """The plan's numbers are those of what happened."""
    plan = next(event for event in seen.events if isinstance(event, PlanEvent))
    steps = [event.step for event in seen.steps]
    by_itself = seen.config.output.stop != "never"
    is_whole = steps == list(range(1, len(steps) + 1)) and (len(steps) == plan.steps or by_itself)
    if not is_whole or plan.steps != seen.config.steps or plan.pictures != len(seen.images.images):
        raise Wrong(f"the plan differs from what happened: {plan}, steps {steps}")


def check_log(folder: Path, seen: Seen) -> None:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    if [line["step"] for line in lines] != [event.step for event in seen.steps]:
        raise Wrong("the log has other steps than the run")
    samples = seen.config.optimizer.batch_size * seen.config.optimizer.accumulation
    for line in lines:
        terms = terms_of(line)
        numbers = [line["loss"], *line["gamma"], *line["level"], *(value or 0.0 for value in terms.values())]
        if terms.keys() != read_config(folder).legends.keys() or not numpy.isfinite(numbers).all():
            raise Wrong(f"a line of the log: {line}")
        if (len(line["timestep"]), len(line["gamma"])) != (samples, seen.config.apt.bins):
            raise Wrong(f"a line of the log, its counts: {line}")
        check_sum(seen.config, line, terms)


def check_sum(config: TrainConfig, line: dict[str, Any], terms: dict[str, Any]) -> None:
    """The weighted terms sum to the loss; the factor 1 - gamma of the data term is between 0 and 1."""
    apt, adaptive = config.apt, config.method == "apt" and config.apt.adaptive_loss_weight
    if config.method == "dco" or apt.attn_schedule == "indicator":  # their weights depend on each sample
        return
    share = (line["step"] - 1) / max(1, config.steps - 1) if apt.attn_schedule == "linear" else 1.0
    weights = {
        "stabilization": apt.lazy_prior * apt.dist_weight, "alignment": apt.lazy_prior * apt.attn_weight * share,
        "prior_preservation": config.data.prior_preservation_weight,
    }  # fmt: skip
    most = terms["denoising"]
    rest = line["loss"] - sum(weights[name] * (terms[name] or 0) for name in terms if name != "denoising")
    slack = 1e-4 * (1 + abs(line["loss"]))
    if not (0 if adaptive else most) - slack <= rest <= most + slack:
        raise Wrong(f"the terms do not sum to the loss: {line}")


def check_settings(folder: Path, seen: Seen) -> None:
    """config.json and the LoRA tell the settings back."""
    told = metadata_of(folder / f"{seen.config.name}.safetensors")
    in_lora = TrainConfig.from_dict(json.loads(told["apt_config"]))
    if not seen.config == in_lora == read_config(folder).settings or int(told["ss_steps"]) != len(seen.steps):
        raise Wrong("the files tell other settings than the run's")


def check_applied(folder: Path, seen: Seen) -> None:
    """The files, put back on the model, predict what the trained network did."""
    lora, word = (folder / f"{seen.config.name}{end}.safetensors" for end in ("", "_embedding"))
    if word.exists() != (seen.config.identifier_mode == "learned") or seen.live is None:
        raise Wrong("the learned word's file is missing, or there is one without such a word")
    rows = load_file(word) if word.exists() else None
    with personalized(seen.components, load_file(lora), rows, seen.config) as (conditioner, _):
        again = predicted(seen.components, conditioner, seen.dtype)
    apart = float((again - seen.live).abs().max() / seen.live.abs().max())
    if not apart <= (1e-5 if seen.dtype == torch.float32 else 0.02):
        raise Wrong(f"the LoRA put back predicts something else: {apart}")


def predicted(components: Components, conditioner: Conditioner, dtype: torch.dtype) -> Tensor:
    """The network's prediction for one noise, with the adapter that it has now."""
    side = SIDE // components.family.vae_factor
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), eval_mode(components.unet):
        text = conditioner.encode(["{subject} beside a red {subject}"], tuned=True)
        return Sampler(components, (SIDE, SIDE), "cpu", dtype).predictor(text)(noise, 500)


def check_same(whole: Path, parts: Path, left_out: tuple[str, ...]) -> None:
    """A run in two parts has the same bytes as an unbroken one, but for what tells times and places."""
    for file in whole.rglob("*"):
        name = file.relative_to(whole)
        told = "state" in name.name or name.name.startswith(("config", "report", ".", *left_out))
        if file.is_file() and not told and not str(name).startswith(left_out):
            if not (parts / name).exists() or (parts / name).read_bytes() != file.read_bytes():
                raise Wrong(f"a run in two parts differs in {name.suffix}: {name}")
