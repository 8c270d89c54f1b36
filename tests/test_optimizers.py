"""The optimizers by name: what each does, and that its whole state comes back, whatever optimizer it is.

Not here: files and checksums of a state (`test_run_files`).
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from apt_train.config import OptimizerConfig
from apt_train.errors import InputError
from apt_train.optimizers import BUILDERS
from apt_train.run.optimizer_state import kept_for, learning, put_back, take
from apt_train.training.optimizer import state_bytes
from tests.lora_files import metadata_of
from tests.tiny import tiny_components
from tests.training import Recorder, quick_config, run, same_weights, stopping

SETTINGS = OptimizerConfig(beta1=0.8, beta2=0.95, epsilon=1e-6)


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


class InBytes(torch.optim.Optimizer):
    """One whose moment takes a byte per weight, with a scale for each row; its constructor asks for what it likes."""

    def __init__(self, parameters: Any, secret: float) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.secret = secret

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                moment = state["bytes"].float() * state["scale"] if state else torch.zeros_like(parameter)
                moment = self.secret * moment + parameter.grad
                state["scale"] = moment.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30) / 127
                state["bytes"] = (moment / state["scale"]).round().to(torch.int8)
                parameter.sub_(moment, alpha=group["lr"])


class Averaging(torch.optim.Optimizer):
    """Schedule-free SGD (arXiv 2405.15682): gradients are taken at y, and x is used. `eval` gives x back exactly."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr, "steps": 0, "learns": False})

    @torch.no_grad()
    def _move(self, learns: bool) -> None:
        for group in self.param_groups:
            for parameter in group["params"] if group["learns"] != learns else ():
                x, z = (self.state[parameter].setdefault(key, parameter.detach().clone()) for key in "xz")
                parameter.copy_(x.lerp(z, 0.1) if learns else x)
            group["learns"] = learns

    def train(self) -> None:
        self._move(True)

    def eval(self) -> None:
        self._move(False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                x, z = (self.state[parameter].setdefault(key, parameter.detach().clone()) for key in "xz")
                z.sub_(parameter.grad, alpha=group["lr"])
                x.lerp_(z, 1 / group["steps"])


class Strict(torch.optim.Optimizer):
    """One that has no learning rate of its own, steps only after `train`, and begins with a None in its group."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"learns": False, "last": None})

    def train(self) -> None:
        for group in self.param_groups:
            group["learns"] = True

    def eval(self) -> None:
        for group in self.param_groups:
            group["learns"] = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            if not group["learns"]:
                raise RuntimeError("not in train mode")
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=(group["lr"] + (group["last"] or 0.0)) / 2)
            group["last"] = group["lr"]


class Mixed(torch.optim.Optimizer):
    """One whose groups keep different things, in further dtypes, and which adds to its groups in the first step."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__([{**group, "calls": [0]} for group in groups], {"lr": 0.1, "best": math.inf})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["first"] = group.get("first", float(group["params"][0].grad.norm()) + 1)
            group["calls"][0] += 1
            for parameter in group["params"]:
                self._one(parameter, group, "m/8" if group["weight_decay"] else "count")

    def _one(self, parameter: Any, group: dict[str, Any], key: str) -> None:
        dtype = torch.float8_e4m3fn if key == "m/8" else torch.uint16
        kept = self.state[parameter].get(key, torch.zeros(parameter.shape, dtype=dtype)).float()
        self.state[parameter][key] = (0.9 * kept + parameter.grad.clamp(0, 1)).to(dtype)
        parameter.sub_(kept + parameter.grad, alpha=group["lr"] / group["first"] / group["calls"][0])


class Noisy(torch.optim.Optimizer):
    """One that draws at random."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad + 0.1 * torch.randn_like(parameter), alpha=group["lr"])


OWN: dict[str, Any] = {
    "counting": lambda groups, settings: Counting(groups),
    "in bytes": lambda groups, settings: InBytes(groups, 0.9),
    "averaging": lambda groups, settings: Averaging(groups),
    "strict": lambda groups, settings: Strict(groups),
    "mixed": lambda groups, settings: Mixed(groups),
}
ALL = {**BUILDERS, **OWN}


@pytest.fixture(autouse=True)
def all_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, build in OWN.items():
        monkeypatch.setitem(BUILDERS, name, build)


def trained(build: Any, seed: int = 0) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    draws = torch.Generator().manual_seed(seed)
    parameters = {name: torch.nn.Parameter(torch.randn(shape, generator=draws)) for name, shape in SHAPES.items()}
    first, *rest = parameters.values()
    groups = [{"params": rest, "lr": 0.1, "weight_decay": 0.01}, {"params": [first], "lr": 0.2, "weight_decay": 0.0}]
    return parameters, build(groups, SETTINGS)


SHAPES = {"a": (3, 2), "b": (3, 2), "c": (4,)}


def moved(parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
    for step in steps:
        for place, parameter in enumerate(parameters.values()):
            parameter.grad = torch.sin(torch.arange(parameter.numel()) + step + place).reshape(parameter.shape)
        with learning(optimizer):
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
    found, settings = take(fresh, again)
    assert settings == values and {key: t.dtype for key, t in found.items()} == {
        key: t.dtype for key, t in kept.items()
    }
    expected, found = moved(unbroken, optimizer, range(6, 12)), moved(again, fresh, range(6, 12))
    assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize("name", ALL)
def test_what_a_state_holds_is_known_before_there_is_one(name: str) -> None:
    """Shapes and types, for the checks of a state and for the memory estimate. Nothing of the optimizer moves.

    One that begins to keep something in a later step would be refused when it is resumed.
    """
    parameters, optimizer = trained(ALL[name])
    before, groups = [value.detach().clone() for value in parameters.values()], copy.deepcopy(take(optimizer, {})[1])
    expected = kept_for(optimizer, parameters)
    assert not optimizer.state and take(optimizer, {})[1] == groups
    assert all(map(torch.equal, before, parameters.values()))
    for steps in (range(1), range(1, 12)):
        moved(parameters, optimizer, steps)
        for key, parameter in parameters.items():
            kept = {part: value for part, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
            assert {part: (t.shape, t.dtype) for part, t in expected[key].items()} == {
                part: (t.shape, t.dtype) for part, t in kept.items()
            }
    sizes = [t.nbytes for kept in optimizer.state.values() for t in kept.values() if isinstance(t, Tensor) and t.dim()]
    assert state_bytes(optimizer, parameters) == sum(sizes)


@pytest.mark.parametrize("name", ["adamw", "radam"])
def test_betas_and_epsilon_reach_the_optimizer(name: str) -> None:
    group = trained(BUILDERS[name])[1].param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 1e-6, 0.01, 0.1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("no_report")
def test_a_run_with_it_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 8, "optimizer": name, "lr_schedule": "cosine"}
    run(output_dir=tmp_path, on_event=stopping(3), **settings)
    recorder = Recorder()
    resumed = run(output_dir=tmp_path, resume=True, on_event=recorder, **settings)
    assert same_weights(resumed, run(**settings))
    values = json.loads((tmp_path / "snapshots/step_000008/state.json").read_text())
    assert name.lower() in metadata_of(tmp_path / "toy_subject.safetensors")["ss_optimizer"].lower()
    assert recorder.steps[-1].lr == values["optimizer"]["groups"][0]["lr"]


@pytest.mark.usefixtures("no_report")
def test_what_it_draws_at_random_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "noisy", lambda groups, settings: Noisy(groups))
    run(output_dir=tmp_path, on_event=stopping(2), optimizer="noisy")
    assert same_weights(run(output_dir=tmp_path, resume=True, optimizer="noisy"), run(optimizer="noisy"))


LOST: dict[str, Any] = {  # what an optimizer keeps, by what it does in a step
    "the attribute calls": lambda one: setattr(one, "calls", 1),
    "the attribute moments": lambda one: one.moments.update(m=torch.zeros(1)),
    "the attribute inner": lambda one: one.inner.step(),
    "the state all": lambda one: one.state["all"].update(calls=1),
    "the state pair": lambda one: one.state[one.param_groups[0]["params"][0]].update(pair=(1, 2)),
    "the state moments": lambda one: one.state[one.param_groups[0]["params"][0]].update(moments=[torch.zeros(1)]),
    "the state wave": lambda one: one.state[one.param_groups[0]["params"][0]].update(wave=torch.zeros(1) * 1j),
    "the group's d": lambda one: one.param_groups[0].update(d=torch.ones(1)),
}


@pytest.mark.parametrize("lost", LOST)
def test_what_no_file_would_give_back_is_refused_before_the_first_step(
    lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(Strict):
        def __init__(self, groups: Any) -> None:
            super().__init__(groups)
            self.calls, self.moments = 0, dict[str, Tensor]()
            if "inner" in lost:
                self.inner = torch.optim.SGD(groups, momentum=0.9)

        def step(self, closure: Any = None) -> None:
            LOST[lost](self)

    monkeypatch.setitem(BUILDERS, "forgetful", lambda groups, settings: Forgetful(groups))
    recorder = Recorder()
    with pytest.raises(AssertionError, match=f"Forgetful cannot be resumed: files would not give back {lost}"):
        run(optimizer="forgetful", on_event=recorder)
    assert not recorder.steps


@pytest.mark.usefixtures("no_report")
def test_what_leaves_a_run_is_what_the_optimizer_hands_out(tmp_path: Path) -> None:
    """Even if a step is cut short while the weights are those at which it learns; and it resumes to the same bits."""

    class Cut(Exception):
        pass

    def cut(_module: Any, _inputs: Any) -> None:
        if recorder.steps and recorder.steps[-1].step == 3:
            raise Cut

    settings: dict[str, Any] = {"steps": 6, "optimizer": "averaging", "watch_drift": False}
    parts, recorder = tiny_components(), Recorder()
    handle = parts.unet.register_forward_pre_hook(cut)
    with pytest.raises(Cut):
        run(parts, output_dir=tmp_path, on_event=recorder, **settings)
    handle.remove()
    lora, state = (
        load_file(tmp_path / "snapshots/step_000003" / name)
        for name in ("toy_subject.safetensors", "state.safetensors")
    )
    handed, learnt = (
        sorted(value.double().sum().item() for name, value in state.items() if name.startswith(start))
        for start in ("optimizer/x/adapter.", "optimizer/z/adapter.")
    )
    weights = [tensor.double().sum().item() for name, tensor in lora.items() if not name.endswith(".alpha")]
    assert sorted(weights) == handed != learnt
    assert same_weights(run(output_dir=tmp_path, resume=True, **settings), run(**settings))


def test_the_optimizers_differ_and_the_default_is_adamw() -> None:
    assert same_weights(run(), run(optimizer="adamw"))
    assert not same_weights(run(), run(optimizer="radam"))


def test_runs_from_before_it_could_be_chosen_stay_the_same_run() -> None:
    assert "optimizer" not in quick_config().identity()["optimizer"]
    assert quick_config(optimizer="radam").identity()["optimizer"]["optimizer"] == "radam"


def test_adamw_moves_each_weight_in_one_go_where_torch_can_and_as_its_plain_version_does() -> None:
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(5, 7, generator=draws)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    fused = BUILDERS["adamw"]([{"params": weights[:1], "lr": 0.1, "weight_decay": 0.1}], SETTINGS)
    plain = torch.optim.AdamW(
        weights[1:], lr=0.1, weight_decay=0.1, betas=SETTINGS.betas, eps=SETTINGS.epsilon, foreach=False
    )
    for _ in range(20):
        for weight, optimizer in zip(weights, (fused, plain), strict=True):
            weight.grad = weight.detach() ** 2
            optimizer.step()
    assert fused.param_groups[0]["fused"] and not torch.equal(weights[0], start)
    assert torch.allclose(weights[0], weights[1], rtol=1e-5)
    elsewhere = torch.nn.Parameter(start.to("meta"))
    assert not BUILDERS["adamw"]([{"params": [elsewhere], "lr": 0.1}], SETTINGS).param_groups[0]["fused"]


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="optimizer is 'sgdw': choose one of adamw, radam"):
        quick_config(optimizer="sgdw")
