"""Cancel outside the steps of a run: the line on the node says so, and the next queue is fine.

Not here: Cancel between steps (`test_resume`), what stays in memory (`test_held`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from .events import Event, Events
from .graphs import LORA, RUN, picture, training_graph, untouched, upload_pictures
from .server import Host, HostError
from .trained import log_of, runs
from .workflows import Graph, Node, checkpoint

STOPPED = "stopped: queue again"


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def training(names: list[str]) -> tuple[Graph, Node]:
    return training_graph(names, seed=90, steps=1)


def check_up(names: list[str]) -> tuple[Graph, Node]:
    g, train = training(names)
    wires = dict(zip(("model", "clip", "vae"), checkpoint(g, "sd15.safetensors"), strict=True))
    small: dict[str, Any] = {"sample_steps": 1, "draws": 1, "strengths": "1", "resolution": 64}
    return g, g.node(
        "APTLoRACheckUp", **{**untouched("APTLoRACheckUp"), **wires, **small, "lora": train[LORA], "run": train[RUN]}
    )


def snapshot_sheet(names: list[str]) -> tuple[Graph, Node]:
    g, train = training(names)
    wires = dict(zip(("model", "clip", "vae"), checkpoint(g, "sd15.safetensors"), strict=True))
    small: dict[str, Any] = {"prompts": "a {subject}\na toy", "width": 64, "height": 64, "sampler_steps": 4}
    return g, g.node("APTSnapshotSheet", **{**untouched("APTSnapshotSheet"), **wires, **small, "run": train[RUN]})


WORK = {
    "reading the weights": training,
    "measuring the LoRA": check_up,
    "drawing picture 1": snapshot_sheet,
}


@pytest.mark.parametrize("work", WORK)
def test_the_line_says_that_it_was_stopped(host: Host, names: list[str], work: str) -> None:
    g, node = WORK[work](names)
    before = runs(host)
    with cancelled(host, g, node, work) as events:
        events.wait_for(lambda event: text_of(event, node) == STOPPED)
    assert work != "reading the weights" or runs(host) == before
    with host.events() as events:
        host.run(g.prompt, client_id=events.client_id)
        assert STOPPED not in [text_of(event, node) for event in events]


@pytest.mark.parametrize("resume", ["automatic", "restart"])
@pytest.mark.parametrize("work", ["drawing previews", "writing the report"])
def test_a_run_cancelled_after_its_last_step_is_finished_by_the_next_queue(
    host: Host, names: list[str], work: str, resume: str
) -> None:
    """It has all steps, but not the last samples and the report: those are made, and no step is taken again."""
    setting = {"preview_every": 2, "preview_prompts": "a {subject}"}
    like = {"seed": 91 + len(work + resume), "setting": setting, "resume": resume}
    if work == "writing the report":  # of a run that had one of fewer steps
        host.run(training_graph(names, **like, steps=1)[0].prompt)
    g, node = training_graph(names, **like, steps=2)
    before = runs(host)
    with cancelled(host, g, node, work) as events:
        line = events.wait_for(lambda event: text_of(event, node).startswith("stopped"))
        run = host.folder / "output" / "apt_train" / events.wait_for("apt_train.started").data["run"]
    assert text_of(line, node).startswith("stopped after step 2: queue again to go on")
    assert "set steps" not in text_of(line, node)
    log = log_of(run)
    host.run(g.prompt)
    assert "for 2 steps" in (run / "report.md").read_text(encoding="utf-8")
    assert (run / "previews" / "step_000002_1_tuned.png").is_file()
    assert log_of(run) == log and len(runs(host) - before) <= 1


@contextlib.contextmanager
def cancelled(host: Host, g: Graph, node: Node, work: str) -> Iterator[Events]:
    """Queues a graph and presses Cancel when the node says what it is at; everything that the host has sent."""
    with host.events() as events:
        queued = host.queue(g.prompt, events.client_id)
        events.wait_for(lambda event: work in text_of(event, node), timeout=300)
        host.interrupt()
        with pytest.raises(HostError, match="interrupted"):
            host.wait(queued)
        yield events


def text_of(event: Event, node: Node) -> str:
    """The line on that node, if the event is one."""
    return event.data["text"] if event.kind == "text" and event.data["node"] == node.id else ""


def test_cancel_is_heard_while_a_folder_is_read(host: Host) -> None:
    """Hundreds of large pictures take minutes. This folder cannot be read to its end, and is not."""
    folder = host.folder / "input" / "many"
    folder.mkdir()
    for number in range(40):
        picture(number, 2000, 1500).save(folder / f"{number:02}.png", compress_level=0)
    (folder / "last.png").write_bytes(b"no picture")
    g = Graph()
    node = g.node("APTImageSet", **{**untouched("APTImageSet"), "folder": "many"})
    with host.events() as events:
        queued = host.queue(g.prompt, events.client_id)
        events.wait_for(lambda event: event.kind == "progress_state" and event.data["nodes"][node.id]["max"] == 41)
        host.interrupt()
        with pytest.raises(HostError, match="interrupted"):
            host.wait(queued)
