"""The optimizers by name: what each does, and that its whole state comes back, whatever optimizer it is.

Not here: files and checksums of a state (`test_run_files`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apt_train.errors import InputError
from apt_train.events import StopTraining
from apt_train.optimizers import BUILDERS, Shared
from apt_train.run.optimizer_state import put_back, shapes, take
from tests.lora_files import metadata_of
from tests.training import Recorder, quick_config, run, same_weights

SHARED = Shared((0.8, 0.95), 1e-6)


class Counting(torch.optim.Optimizer):
    """One that keeps its own step size in its group, as some do, and a plain number beside its tensors."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "own": 1.0})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["own"] *= 1.5
            for parameter in group["params"]:
                state = self.state[parameter]
                state["calls"] = state.get("calls", 0) + 1
                state["sum"] = state.get("sum", torch.zeros_like(parameter)) + parameter.grad
                parameter.data -= group["lr"] * group["own"] * state["calls"] * state["sum"]


def counting(groups: list[dict[str, Any]], shared: Shared) -> torch.optim.Optimizer:
    return Counting(groups)


ALL = {**BUILDERS, "counting": counting}


def trained(build: Any, seed: int = 0) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    draws = torch.Generator().manual_seed(seed)
    parameters = {name: torch.nn.Parameter(torch.randn(shape, generator=draws)) for name, shape in SHAPES.items()}
    first, *rest = parameters.values()
    groups = [{"params": rest, "lr": 0.1, "weight_decay": 0.01}, {"params": [first], "lr": 0.2, "weight_decay": 0.0}]
    return parameters, build(groups, SHARED)


SHAPES = {"a": (3, 2), "b": (3, 2), "c": (4,)}


def moved(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    for step in steps:
        for place, parameter in enumerate(parameters.values()):
            parameter.grad = torch.sin(torch.arange(parameter.numel()) + step + place).reshape(parameter.shape)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters.values()]


@pytest.mark.parametrize("name", ALL)
def test_a_state_put_back_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    """Moments, settings of the groups and plain values, through JSON, into parameters of another start."""
    unbroken, optimizer = trained(ALL[name])
    moved(unbroken, optimizer, range(6))
    optimizer.param_groups[1]["lr"] = 0.05  # as a schedule or the optimizer itself changes it
    tensors, values = take(optimizer, unbroken)
    kept = {key: tensor.clone() for key, tensor in tensors.items()}
    again, fresh = trained(ALL[name], seed=1)
    for key, parameter in again.items():
        parameter.data.copy_(unbroken[key])
    put_back(fresh, again, kept, json.loads(json.dumps(values)))
    assert take(fresh, again)[1] == values
    expected, found = moved(unbroken, optimizer, range(6, 12)), moved(again, fresh, range(6, 12))
    assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("name", ALL)
def test_the_shapes_of_a_state_are_known_before_there_is_one(name: str) -> None:
    parameters, optimizer = trained(ALL[name])
    expected = {key: shapes(optimizer, parameter.shape) for key, parameter in parameters.items()}
    assert not optimizer.state
    moved(parameters, optimizer, range(1))
    for key, parameter in parameters.items():
        kept = optimizer.state[parameter]
        assert expected[key] == {part: value.shape for part, value in kept.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("name", BUILDERS)
def test_betas_and_epsilon_reach_the_optimizer(name: str) -> None:
    group = trained(BUILDERS[name])[1].param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 1e-6, 0.01, 0.1)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.usefixtures("no_report")
def test_a_run_with_it_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    class Stop(Recorder):
        def __call__(self, event: Any) -> None:
            super().__call__(event)
            if self.steps and self.steps[-1].step == 3:
                raise StopTraining

    settings: dict[str, Any] = {"steps": 8, "optimizer": name, "lr_schedule": "cosine"}
    run(output_dir=tmp_path, on_event=Stop(), **settings)
    recorder = Recorder()
    resumed = run(output_dir=tmp_path, resume=True, on_event=recorder, **settings)
    assert same_weights(resumed, run(**settings))
    values = json.loads((tmp_path / "snapshots/step_000008/state.json").read_text())
    assert name.lower() in metadata_of(tmp_path / "toy_subject.safetensors")["ss_optimizer"].lower()
    assert recorder.steps[-1].lr == values["optimizer"]["groups"][0]["lr"]


def test_the_optimizers_differ_and_the_default_is_adamw() -> None:
    assert same_weights(run(), run(optimizer="adamw"))
    assert not same_weights(run(), run(optimizer="radam"))


def test_runs_from_before_it_could_be_chosen_stay_the_same_run() -> None:
    assert "optimizer" not in quick_config().identity()["optimizer"]
    assert quick_config(optimizer="radam").identity()["optimizer"]["optimizer"] == "radam"


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="optimizer is 'sgdw': choose one of adamw, radam"):
        quick_config(optimizer="sgdw")
