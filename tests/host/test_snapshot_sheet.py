"""`APT Snapshot Sheet` and `APT Load Run` on the real host: what is drawn, what goes on, what is drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .events import Events
from .graphs import CLIP, LEARNED, MODEL, RUN, training_graph, untouched, upload_pictures
from .server import Host, HostError, Result
from .test_monitor import the_run
from .trained import shown_text
from .workflows import Graph, Node, checkpoint, text_to_image

SHEET, TUNED, LORA, STRENGTH, WORD, STEP = range(6)
SMALL: dict[str, Any] = {
    "prompts": "a photo of {subject}\na toy by the sea", "steps": "all", "sampler_steps": 2, "cfg": 4.0, "width": 64,
    "height": 64, "cell": 64, "sampler_name": "euler", "scheduler": "normal",
}  # fmt: skip


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def sheet_of(g: Graph, run: Any, **changes: Any) -> Node:
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    values = {**untouched("APTSnapshotSheet"), **SMALL, **changes}
    return g.node("APTSnapshotSheet", model=model, clip=clip, vae=vae, run=run, **values)


def graph(names: list[str], **changes: Any) -> tuple[Graph, Node, Node]:
    """A run of 4 steps with a snapshot at every second one, and its sheet.

    The tiny checkpoint knows "dog"; its row of "toy" is zeros, and a learned row keeps the norm it began with.
    """
    setting = {"snapshot_every": 2, "embedding_learning_rate": 0.1, "init_word": "dog", **LEARNED}
    g, train = training_graph(names, setting=setting, steps=4, seed=71, learning_rate=1e-2)
    return g, train, sheet_of(g, train[RUN], **changes)


def picture(host: Host, result: Result, node: Node) -> np.ndarray:
    return np.asarray(host.image(result.outputs[node.id]["images"][0]), dtype=np.float64)


def cell(sheet: np.ndarray, row: int, column: int, columns: int, rows: int = 2) -> np.ndarray:
    """A picture of the sheet by its place from the right and from below: names stand to the left and above."""
    down, right = sheet.shape[0] - (rows - row) * 68, sheet.shape[1] - (columns - column) * 68
    return sheet[down : down + 64, right : right + 64]


def leave_foreign_words(host: Host) -> None:
    """Another subject's words, under the name that a snapshot's has: which one the host takes changes by the start."""
    models = host.folder / "models"
    with safe_open(models / "checkpoints" / "sd15.safetensors", "pt") as file:
        (key,) = [key for key in file.keys() if key.endswith("token_embedding.weight")]
        width = file.get_tensor(key).shape[1]
    for number in range(9):
        folder = models / "embeddings" / f"other_{number}"
        folder.mkdir(parents=True)
        save_file({"clip_l": torch.full((1, width), float(number + 1))}, folder / "my_toy_embedding.safetensors")


def test_each_cell_is_what_the_host_itself_draws(host: Host, names: list[str]) -> None:
    leave_foreign_words(host)
    g, train, sheet = graph(names, strengths="0, 1", column="E")
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    plain = text_to_image(g, model, clip, vae, "a toy by the sea", seed=1)
    tuned = text_to_image(g, train[MODEL], train[CLIP], vae, "a photo of embedding:my_toy_apt_4", seed=1)
    chosen = text_to_image(g, sheet[TUNED], train[CLIP], vae, "a photo of embedding:my_toy_apt_4", seed=1)
    wired = g.node("PreviewImage", images=sheet[SHEET])
    result = host.run(g.prompt)
    drawn = picture(host, result, sheet)
    assert np.array_equal(picture(host, result, wired), drawn)
    assert np.abs(picture(host, result, chosen) - picture(host, result, tuned)).max() <= 1
    assert np.abs(cell(drawn, 1, 0, 5) - picture(host, result, plain)).max() <= 1
    assert np.abs(cell(drawn, 0, 4, 5) - picture(host, result, tuned)).max() <= 1
    assert np.abs(cell(drawn, 1, 1, 5) - cell(drawn, 1, 0, 5)).max() <= 1, "at strength 0 the prior's"
    assert np.abs(cell(drawn, 1, 4, 5) - cell(drawn, 1, 0, 5)).max() > 1
    assert np.abs(cell(drawn, 0, 3, 5) - cell(drawn, 0, 1, 5)).max() > 1, "each step's learned word acts by itself"


def test_the_chosen_column_goes_on_and_nothing_is_drawn_anew(host: Host, names: list[str]) -> None:
    g, _, sheet = graph(names, strengths="0.5, 1", column="b")
    texts = [g.node("PreviewAny", source=sheet[output]) for output in (STRENGTH, STEP, WORD)]
    g.node("SaveLoRA", lora=sheet[LORA], prefix="loras/of_the_sheet")
    result = host.run(g.prompt)
    strength, step, word = (shown_text(result, text) for text in texts)
    assert (strength, step) == ("0.5", "2") and word == "embedding:my_toy_apt_4_s2"
    saved = load_file(host.folder / "output" / "loras" / "of_the_sheet_00001_.safetensors")
    of_step = load_file(the_run(host) / "snapshots" / "step_000002" / "my_toy.safetensors")
    assert all(bool((value == of_step[key]).all()) for key, value in saved.items())
    before = picture(host, result, sheet)
    g.prompt[sheet.id]["inputs"]["column"] = "C"
    with Events(host.port) as events:
        again = host.run(g.prompt)
    told = [event.data["text"] for event in events.of("text") if event.data["node"] == sheet.id]
    assert told[-1] == "column C · step 2 at strength 1 is passed on"
    assert not [text for text in told if "drawing" in text]
    assert np.array_equal(cell(picture(host, again, sheet), 0, 4, 5), cell(before, 0, 4, 5))


def test_a_column_that_is_not_there_is_refused(host: Host, names: list[str]) -> None:
    g, _, sheet = graph(names, column="Z")
    with pytest.raises(HostError) as caught:
        host.run(g.prompt)
    assert caught.value.node == sheet.id and "write one of B, C, or nothing." in caught.value.sentence


def test_another_model_than_the_runs_is_refused_in_words(host: Host, names: list[str]) -> None:
    g, train, _ = graph(names)
    model, clip, vae = checkpoint(g, "sdxl.safetensors")
    other = g.node(
        "APTSnapshotSheet", model=model, clip=clip, vae=vae, run=train[RUN], **untouched("APTSnapshotSheet") | SMALL
    )
    with pytest.raises(HostError) as caught:
        host.run(g.prompt)
    assert caught.value.node == other.id
    assert "does not take all modules of the LoRA" in caught.value.sentence
    assert caught.value.sentence.endswith(": wire the model that it was trained on.")


@pytest.mark.parametrize("loaded", [False, True], ids=["the training node's", "by its file"])
def test_a_model_that_has_the_lora_on_already_is_refused(host: Host, names: list[str], loaded: bool) -> None:
    """Every column would show it twice, and the prior's would show it once."""
    g, train, sheet = graph(names, steps="2")
    wired = train[MODEL]
    if loaded:
        host.run(graph(names)[0].prompt)  # writes the file
        model, _, _ = checkpoint(g, "sd15.safetensors")
        file = {"lora_name": "my_toy_apt_4.safetensors", "strength_model": 0.6}
        wired = g.node("LoraLoaderModelOnly", model=model, **file)[0]
    g.prompt[sheet.id]["inputs"]["model"] = wired
    with pytest.raises(HostError) as caught:
        host.run(g.prompt)
    assert caught.value.node == sheet.id
    assert caught.value.sentence.startswith("The MODEL carries this LoRA already, so it would act twice")


@pytest.mark.parametrize(
    ("part", "sentence"), [("clip", "wire the CLIP of the same checkpoint."), ("vae", "The VAE is one of SDXL")]
)
def test_wires_of_two_models_are_refused_before_anything_is_drawn(
    host: Host, names: list[str], part: str, sentence: str
) -> None:
    g, _, sheet = graph(names)
    _, clip, vae = checkpoint(g, "sdxl.safetensors")
    g.prompt[sheet.id]["inputs"][part] = {"clip": clip, "vae": vae}[part]
    with Events(host.port) as events, pytest.raises(HostError) as caught:
        host.run(g.prompt)
    assert caught.value.node == sheet.id and sentence in caught.value.sentence
    assert not [event for event in events.of("text") if event.data["node"] == sheet.id]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": "\n"}, "prompts is empty"),
        ({"strengths": "strong"}, "strengths holds 'strong'"),
        ({"steps": "best"}, "steps holds 'best'"),
        ({"sampler_name": "pencil"}, "sampler_name is 'pencil': choose one of"),
        ({"cell": 1}, "cell is 1: give a number from 64 to 1024"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(
    host: Host, names: list[str], changes: dict[str, Any], sentence: str
) -> None:
    g, _, sheet = graph(names, **changes)
    told = host.post("/prompt", prompt=g.prompt)["node_errors"]  # the training node beside it runs all the same
    assert sentence in str(told[sheet.id])


# ---- an earlier run -------------------------------------------------------------------------------------------------


def loaded(run: Path, **changes: Any) -> tuple[Graph, Node]:
    g = Graph()
    return g, g.node("APTLoadRun", run=run.name, **{"step": 0, **changes})


def test_an_earlier_run_is_handed_on(host: Host, names: list[str]) -> None:
    host.run(graph(names)[0].prompt)
    run = the_run(host)
    g, node = loaded(run)
    texts = [g.node("PreviewAny", source=node[output]) for output in (2, 3)]
    sheet, wired = sheet_of(g, node[0]), g.node("PreviewImage", images=node[4])
    result = host.run(g.prompt)
    assert np.array_equal(picture(host, result, wired), picture(host, result, node))
    assert [shown_text(result, text) for text in texts] == ["embedding:my_toy_apt_4", "toy"]
    assert picture(host, result, sheet).std() > 10
    assert picture(host, result, node).shape[0] < 300, "a sample, and above it a line each for the run and its step"
    assert run.name in host.object_info("APTLoadRun")["input"]["required"]["run"][1]["options"]


def test_before_a_choice_it_says_what_there_is_to_choose(host: Host, names: list[str]) -> None:
    """As a template leaves it, also where runs have been trained since."""
    g, node = loaded(Path("x"))
    g.prompt[node.id]["inputs"]["run"] = "no run yet"

    def told() -> str:
        with pytest.raises(HostError) as caught:
            host.queue(g.prompt)
        return caught.value.sentence

    kept = host.folder / "output" / "apt_train"
    aside = kept.with_name("aside")
    if kept.exists():
        kept.rename(aside)
    assert told().startswith("There is no run in output/apt_train yet")
    if aside.exists():
        aside.rename(kept)
    else:
        host.run(training_graph(names)[0].prompt)
    assert told().startswith("No run is chosen: choose one of the list")


def test_a_run_that_is_not_there_is_refused(host: Host) -> None:
    for name in ("nothing_0", "../apt_train"):
        g, node = loaded(Path("x"))
        g.prompt[node.id]["inputs"]["run"] = name
        with pytest.raises(HostError) as caught:
            host.queue(g.prompt)
        assert "There is no run" in str(caught.value.details["node_errors"][node.id])


def test_a_required_widget_that_a_script_left_out_is_named(host: Host) -> None:
    """As the host says it, with nothing of our own beside it."""
    g, node = loaded(Path("x"))
    del g.prompt[node.id]["inputs"]["run"]
    with pytest.raises(HostError) as caught:
        host.queue(g.prompt)
    assert [error["type"] for error in caught.value.details["node_errors"][node.id]["errors"]] == [
        "required_input_missing"
    ]
