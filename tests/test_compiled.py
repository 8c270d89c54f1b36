"""Compiled blocks and the layout channels_last: trained with, to the same weights, and nothing of them left behind.

A compiler that runs what it is given takes the real one's place, which takes minutes and a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from apt_train.errors import InputError
from apt_train.events import BusyEvent, NoticeEvent, PreviewEvent, StepEvent, StopTraining, TrainResult
from apt_train.families.components import Components
from apt_train.families.sd.network import StableDiffusion
from apt_train.names import ATTENTION
from apt_train.training import compiled
from apt_train.training.compiled import CompiledBlocks
from apt_train.training.memory import Savings
from apt_train.training.notes import COMPILES
from apt_train.training.out_of_memory import STEPPED_DOWN
from apt_train.training.plan import Plan
from tests.plain_flow import plain_flow_components
from tests.test_room import planned
from tests.tiny import tiny_components
from tests.toy_flow import toy_flow_components
from tests.training import Recorder, out_of_memory, run, same_weights

pytestmark = pytest.mark.usefixtures("one_thread", "no_report")
QUIET: dict[str, Any] = {"watch_drift": False, "steps": 3}
BOTH: dict[str, Any] = {"compile_blocks": True, "channels_last": True}


class Compiler:
    """Counts the graphs it is given, and how often they are called."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: Callable[..., Any], inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1

        def call(*given: Any) -> Any:
            self.calls += 1
            return graph(*given)

        return call


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(compiled, "COMPILER", {"dynamic": False, "backend": found})
    return found


RESIDUAL, ATTENTION_BLOCK = "ResnetBlock2D", "BasicTransformerBlock"


def only(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The last block of a kind stands for all blocks, whose first pass takes seconds."""
    every = StableDiffusion.blocks

    def one(self: StableDiffusion, module: nn.Module) -> list[nn.Module]:
        return [block for block in every(self, module) if type(block).__name__ == kind][-1:]

    monkeypatch.setattr(StableDiffusion, "blocks", one)


@pytest.fixture
def one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, RESIDUAL)


def agree(one: TrainResult, other: TrainResult) -> bool:
    pairs = [(one.lora, other.lora), (one.embeddings or {}, other.embeddings or {})]
    return all(a.keys() == b.keys() and all(torch.allclose(a[k], b[k], 1e-3, 1e-4) for k in a) for a, b in pairs)


# ---- compiled blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ATTENTION_BLOCK, {"method": "apt", "dist_layers": "all", "attn_layers": "all"}),
        (ATTENTION_BLOCK, {"method": "tlora", "gradient_checkpointing": True}),
        (RESIDUAL, {"method": "dreambooth", "base_storage": "fp8", "gradient_checkpointing": True}),
        (ATTENTION_BLOCK, {"method": "dco", "kind": "dora", "precision": "bf16"}),
    ],
)
def test_compiled_blocks_train_as_plain_ones(
    kind: str, settings: dict[str, Any], compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are compiled once: not again for every step's masks, hooks or switched adapter."""
    only(monkeypatch, kind)
    graphs: list[int] = []
    found = run(**QUIET, **settings, compile_blocks=True, on_event=lambda event: graphs.append(compiler.graphs))
    assert agree(found, run(**QUIET, **settings))
    assert compiler.calls > 2 * compiler.graphs and set(graphs) == {0, compiler.graphs}  # all of them in the first step
    assert COMPILES in found.notices


def test_a_networks_own_family_names_the_blocks(compiler: Compiler) -> None:
    settings: dict[str, Any] = {**QUIET, "stabilization": False, "alignment": False}
    found = run(toy_flow_components(), **settings, compile_blocks=True)
    assert compiler.graphs and agree(found, run(toy_flow_components(), **settings))


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="compile_blocks is on, but this network has no blocks"):
        run(plain_flow_components(), **QUIET, method="dreambooth", compile_blocks=True)


def test_blocks_that_wait_in_main_memory_are_compiled_all_the_same(
    compiler: Compiler, one_block: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights are new tensors at each visit, which needs no version of its own."""
    plain = run(**QUIET, gradient_checkpointing=True)
    monkeypatch.setattr(Plan, "savings", Savings(2, blocks_aside=1))
    graphs: list[int] = []
    found = run(**QUIET, **BOTH, on_event=lambda event: graphs.append(compiler.graphs))
    assert agree(found, plain) and compiler.graphs and set(graphs) == {0, compiler.graphs}


def test_blocks_of_a_width_share_their_code(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> None:
    blocks: list[nn.Module] = []

    def transformers(_: object, module: nn.Module) -> list[nn.Module]:
        blocks[:] = [part for part in module.modules() if type(part).__name__ == ATTENTION_BLOCK]
        return blocks

    monkeypatch.setattr(StableDiffusion, "blocks", transformers)
    run(tiny_components("sdxl"), **QUIET, method="dreambooth", compile_blocks=True)
    assert len(blocks) == 8 and compiler.graphs <= 2  # before the first gradient, and after


def test_more_widths_than_torch_allows_are_compiled(compiler: Compiler) -> None:
    limit = torch._dynamo.config.recompile_limit
    blocks = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for width in range(1, 2 * limit)]
    found = CompiledBlocks(blocks)
    for _ in range(2):
        with found.used():
            for width, block in enumerate(blocks, start=1):
                block(torch.ones(1, width))
    assert compiler.graphs == len(blocks) and compiler.calls == 2 * len(blocks)
    assert torch._dynamo.config.recompile_limit == limit
    blocks[0](torch.ones(1, 1))
    assert compiler.calls == 2 * len(blocks)
    found.close()
    other = Compiler()
    torch.compile(nn.Sequential(nn.Linear(7, 7)).forward, backend=other)(torch.ones(1, 7))  # by somebody else
    assert other.graphs == other.calls == 1


def test_only_the_passes_of_a_step_are_compiled(tmp_path: Path, compiler: Compiler, one_block: None) -> None:
    """What else is drawn and measured has sizes of its own, and hooks that compiled code would not see."""
    calls: list[int] = []
    recorder = Recorder()

    def listen(event: Any) -> None:
        recorder(event)
        if isinstance(event, (StepEvent, PreviewEvent)):
            calls.append(compiler.calls)

    settings: dict[str, Any] = {"steps": 4, "snapshot_every": 2, "preview_every": 2, "method": "dreambooth"}
    found = run(**settings, compile_blocks=True, on_event=listen, output_dir=tmp_path)
    each = calls[0]
    assert calls == [each, 2 * each, 2 * each, 3 * each, 4 * each, 4 * each] and compiler.calls == 4 * each > 0
    assert recorder.steps[1].drift is not None and (tmp_path / ATTENTION).is_file()
    assert found.notices == [COMPILES]


def test_a_hook_inside_one_of_several_like_blocks_is_called(compiler: Compiler) -> None:
    """torch takes for granted that blocks which share their code have the same hooks."""
    blocks, seen = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)], list[int]()
    blocks[1][0].register_forward_hook(lambda *_: seen.append(1))
    found = CompiledBlocks(blocks)
    for _ in range(2):
        with found.used():
            for block in blocks:
                block(torch.ones(1, 2))
    assert seen == [1, 1]


def broken_forward(*_: Any) -> Any:
    raise NotImplementedError("No C++ compiler")


def forward_alone(graph: Any, inputs: Any) -> Any:
    def no_backward(*_: Any) -> Any:
        raise RuntimeError("No C++ compiler\n\nand many more lines")

    return aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=no_backward)(graph, inputs)


@pytest.mark.parametrize("backend", [broken_forward, forward_alone])
def test_where_nothing_can_be_compiled_training_goes_on(
    backend: Any, monkeypatch: pytest.MonkeyPatch, one_block: None
) -> None:
    monkeypatch.setattr(compiled, "COMPILER", {"dynamic": False, "backend": backend})
    recorder = Recorder()
    found = run(**QUIET, compile_blocks=True, on_event=recorder)
    told = [notice for notice in found.notices if notice != COMPILES]
    assert len(told) == 1 and "\n" not in told[0] and told[0].startswith("The compiled blocks failed (")
    assert "No C++ compiler): training goes on without compiling." in told[0]
    assert [step.step for step in recorder.steps] == [1, 2, 3] and same_weights(found, run(**QUIET))


def test_an_error_that_compiling_has_not_made_ends_the_run_as_ever(
    monkeypatch: pytest.MonkeyPatch, compiler: Compiler, one_block: None
) -> None:
    parts = tiny_components()
    parts.unet.get_submodule("conv_out").register_forward_hook(broken_forward)
    with pytest.raises(NotImplementedError, match="No C\\+\\+ compiler"):
        run(parts, **QUIET, compile_blocks=True)


def test_where_memory_runs_out_compiling_is_given_up_last(
    compiler: Compiler, one_block: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notice names memory: nothing was wrong with the compiler."""
    out_of_memory(monkeypatch, at=1, times=2)
    found = run(**QUIET, compile_blocks=True)
    told = [notice for notice in found.notices if notice != COMPILES]
    assert told == [
        STEPPED_DOWN,
        "The compiled blocks failed (CUDA out of memory): training goes on without compiling.",
    ]
    assert compiler.calls and found.steps_done == 3


def test_an_error_outside_the_passes_is_not_taken_for_the_compilers(compiler: Compiler, one_block: None) -> None:
    """It is the caller's, raised once: the step is not repeated, and compiling is not blamed."""
    notices: list[str] = []

    def cancel(event: Any) -> None:
        notices.extend([event.text] if isinstance(event, NoticeEvent) else [])
        if isinstance(event, BusyEvent) and event.what == "variants":
            raise RuntimeError("cancelled by the host")

    with pytest.raises(RuntimeError, match="cancelled by the host"):
        run(**{**QUIET, "steps": 4}, compile_blocks=True, on_event=cancel)
    assert compiler.calls and notices == [COMPILES]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"method": "dreambooth"}, {"dropout": 0.3}], ids=str)
def test_the_real_compiler_trains_the_same_weights(settings: dict[str, Any], one_block: None) -> None:
    """Also where there is none, as then nothing is compiled."""
    assert agree(run(**QUIET, **settings, compile_blocks=True), run(**QUIET, **settings))


# ---- the layout ----------------------------------------------------------------------------------------------------


def kernels(parts: Components) -> Iterator[Tensor]:
    """Weights of convolutions that look at more than one position: the others lie alike in both layouts."""
    return (tensor for tensor in parts.unet.parameters() if tensor.dim() == 4 and tensor.shape[-1] > 1)


@pytest.mark.parametrize("settings", [{"method": "dreambooth"}, {}, {"base_storage": "fp8"}], ids=str)
def test_weights_lie_channels_last_while_a_run_trains(settings: dict[str, Any]) -> None:
    parts = tiny_components()

    def look(event: Any) -> None:
        if isinstance(event, StepEvent):
            found = list(kernels(parts))
            assert found and all(one.is_contiguous(memory_format=torch.channels_last) for one in found)
            assert not any(one.is_contiguous() for one in found)
            assert any(one.dtype == torch.float8_e4m3fn for one in found) == ("base_storage" in settings)

    found = run(parts, **QUIET, **settings, channels_last=True, on_event=look)
    assert agree(found, run(**QUIET, **settings)) and all(one.is_contiguous() for one in kernels(parts))


# ---- both ----------------------------------------------------------------------------------------------------------


def state_of(parts: Components) -> list[Any]:
    """What every module holds, and how its tensors lie."""
    found: list[Any] = []
    for part in parts.unet.modules():
        found.append((set(vars(part)), part.training, part._compiled_call_impl))
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                found.append((tensor.stride(), tensor.dtype, tensor.requires_grad, tensor.tolist()))
    return found


class Ends:
    """Ends a run after its first step: from outside, or in the middle of the second one."""

    def __init__(self, unet: nn.Module, error: BaseException | None, inside: bool) -> None:
        self.error = error
        self.armed = False
        self.inside = inside
        unet.get_submodule("conv_out").register_forward_hook(self.in_pass)

    def in_pass(self, *_: Any) -> None:
        if self.armed and self.error is not None:
            raise self.error

    def __call__(self, event: Any) -> None:
        if isinstance(event, StepEvent) and self.error is not None:
            self.armed = self.inside
            if not self.inside:
                raise self.error


@pytest.mark.parametrize("borrowed", [True, False])
@pytest.mark.parametrize(
    ("error", "inside"),
    [(None, False), (StopTraining(), False), (ValueError("the caller's"), False), (KeyboardInterrupt(), True)],
    ids=["finished", "stopped", "failed", "cancelled in a pass"],
)
def test_modules_come_back_to_the_bit(
    error: BaseException | None, inside: bool, borrowed: bool, compiler: Compiler, one_block: None
) -> None:
    parts = replace(tiny_components(), borrowed=borrowed)
    odd = next(kernels(parts))
    odd.data = odd.data.contiguous(memory_format=torch.channels_last)  # as its owner keeps it
    run(parts, **{**QUIET, "steps": 1}, method="dreambooth")  # a library sets some attributes when it is first asked
    ends, before = Ends(parts.unet, error, inside), state_of(parts)
    arguments: dict[str, Any] = {**QUIET, **BOTH, "method": "dreambooth", "on_event": ends}
    if isinstance(error, (ValueError, KeyboardInterrupt)):
        with pytest.raises(type(error)):
            run(parts, **arguments)
    else:
        run(parts, **arguments)
    assert compiler.calls and state_of(parts) == before


def test_a_run_resumes_to_the_same_bits(tmp_path: Path, compiler: Compiler, one_block: None) -> None:
    def stop(event: Any) -> None:
        if isinstance(event, StepEvent) and event.step == 1:
            raise StopTraining

    run(**QUIET, **BOTH, output_dir=tmp_path, on_event=stop)
    resumed = run(**QUIET, **BOTH, output_dir=tmp_path, resume=True)
    assert same_weights(resumed, run(**QUIET, **BOTH)) and resumed.notices == [COMPILES]


@pytest.mark.parametrize("name", BOTH)
def test_it_is_another_run_and_runs_from_before_stay_the_same(name: str) -> None:
    changed: dict[str, Any] = {name: True}
    assert planned(**changed).digest != planned().digest
    assert name not in planned().config.identity()


def test_the_estimate_is_made_without_them(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> None:
    monkeypatch.setattr("apt_train.training.estimate.SMALL", 0)
    assert planned(**BOTH).memory == planned().memory is not None and not compiler.graphs
