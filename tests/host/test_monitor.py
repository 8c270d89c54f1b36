"""`Overfit Indicator Monitor` on the real host: picture, verdict, and the snapshot that goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from .graphs import LEARNED, RUN, training_graph, untouched, upload_pictures
from .server import Host, HostError, Result
from .workflows import Graph, Node, checkpoint

IMAGE, VERDICT, LORA, TRIGGER, PICKED = range(5)


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def graph(names: list[str], **changes: Any) -> tuple[Graph, Node]:
    """A run of 4 steps with a snapshot at every second one, monitored."""
    g, node = training_graph(names, setting={"snapshot_every": 2, **LEARNED}, steps=4, seed=31)
    settings = {"snapshot": "last", "step": 1, "width": 800, **changes}
    return g, g.node("APTOverfitIndicatorMonitor", run=node[3], **settings)


def shown(host: Host, names: list[str], **changes: Any) -> tuple[Result, list[str], Node, str]:
    """What the monitor gives: verdict, trigger and step as texts, and the LoRA saved by the core node."""
    g, monitor = graph(names, **changes)
    texts = [g.node("PreviewAny", source=monitor[output]) for output in (VERDICT, TRIGGER, PICKED)]
    prefix = f"loras/picked_{changes.get('snapshot', 'last')}"
    g.node("SaveLoRA", lora=monitor[LORA], prefix=prefix)
    g.node("PreviewImage", images=monitor[IMAGE])
    result = host.run(g.prompt)
    return result, [result.outputs[text.id]["text"][0] for text in texts], monitor, f"{prefix}_00001_.safetensors"


def the_run(host: Host) -> Path:
    (run,) = (host.folder / "output" / "apt_train").iterdir()
    return run


def same(host: Host, one: str, step: int) -> bool:
    """Whether a file under output/ is the LoRA of a snapshot."""
    other = load_file(the_run(host) / "snapshots" / f"step_{step:06d}" / "my_toy.safetensors")
    return all(bool((value == other[key]).all()) for key, value in load_file(host.folder / "output" / one).items())


def test_the_last_snapshot(host: Host, names: list[str]) -> None:
    result, (verdict, trigger, picked), monitor, saved = shown(host, names)
    assert picked == "4" and same(host, saved, 4)
    assert "APT trained" in verdict and verdict.startswith("Step 4 is passed on")
    assert (host.folder / "models" / "embeddings" / f"{trigger.removeprefix('embedding:')}.safetensors").is_file()
    pictures = [np.asarray(host.image(entry)) for entry in result.images]
    assert sorted(picture.shape[1] for picture in pictures if picture.shape[1] in (800, 840)) == [800, 840]
    assert all(picture.std() > 10 for picture in pictures), "the whole as IMAGE, and what the node has room for"
    assert monitor.id in result.outputs


def test_a_chosen_step_is_published_beside_the_last(host: Host, names: list[str]) -> None:
    _, (_, trigger, picked), _, saved = shown(host, names, snapshot="step", step=2)
    assert picked == "2" and same(host, saved, 2)
    stem = trigger.removeprefix("embedding:")
    assert stem.endswith("_s2")
    assert (host.folder / "models" / "embeddings" / f"{stem}.safetensors").is_file()
    assert same(host, f"loras/{stem}.safetensors", 2)


def test_the_recommended_snapshot_says_why(host: Host, names: list[str]) -> None:
    _, (verdict, _, picked), _, saved = shown(host, names, snapshot="recommended")
    assert same(host, saved, int(picked))
    assert verdict.startswith(f"Step {picked} is passed on, as recommended: ")


def test_a_step_without_a_snapshot_is_refused_with_those_there_are(host: Host, names: list[str]) -> None:
    g, monitor = graph(names, snapshot="step", step=3)
    with pytest.raises(HostError) as caught:
        host.run(g.prompt)
    assert caught.value.node == monitor.id
    assert "no snapshot of step 3" in str(caught.value) and "2, 4" in str(caught.value)


def test_a_page_opened_later_gets_the_curves(host: Host, names: list[str]) -> None:
    run = the_run(host).name
    assert run in [entry["run"] for entry in host.get("/apt_train/runs")["runs"]]
    curves = host.get(f"/apt_train/runs/{run}")
    assert curves["total"] == 4 and [point["step"] for point in curves["points"]] == [1, 2, 3, 4]
    assert [point["drift_ratio"] is not None for point in curves["points"]] == [False, True, False, True]
    assert len(curves["bins"]) == len(curves["points"][0]["gamma"]) == 10
    host.restart()
    assert host.get(f"/apt_train/runs/{run}")["points"] == curves["points"]


@pytest.mark.parametrize("reader", ["APTOverfitIndicatorMonitor", "APTSnapshotSheet"])
def test_a_run_whose_folder_was_deleted_is_missed_in_words(host: Host, names: list[str], reader: str) -> None:
    """The training node is in the host's cache then: nothing of it runs again. It says the way to train it again."""
    g, node = training_graph(names, steps=1, subject=f"gone_{len(reader)}")
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    host.run(g.prompt)
    (folder,) = (host.folder / "output" / "apt_train").glob(f"gone_{len(reader)}_*")
    shutil.rmtree(folder)
    wires = {"model": model, "clip": clip, "vae": vae} if reader == "APTSnapshotSheet" else {}
    g.node(reader, **{**untouched(reader), **wires, "run": node[RUN]})
    with pytest.raises(HostError) as caught:
        host.run(g.prompt)
    assert caught.value.sentence == (
        f"The folder of {folder.name} is gone: restore it to output/apt_train, or train it again by setting resume "
        "of APT Train to restart."
    )
    g.prompt[node.id]["inputs"]["resume"] = "restart"
    if reader == "APTOverfitIndicatorMonitor":
        host.run(g.prompt)
        assert folder.is_dir()
