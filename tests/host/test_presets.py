"""Presets, options nodes that chain, samples and a run that ended by itself, on the real host and in its editor.

Not here: what each preset sets (`tests/test_presets.py`), that every widget reaches a run (`test_options`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .editor import Browser, Editor, lacking
from .graphs import half_transparent, picture, sent, train_node, training_graph, untouched, upload_pictures
from .server import Host, HostError
from .trained import config_of, log_of, new_run, runs
from .workflows import Graph, Node, checkpoint

WORD = {"APTDataOptions": {"identifier_mode": "word"}, "APTMethodOptions": {"balance_every": 0}}
OFTEN = {"snapshot_every": 2, "preview_every": 2, "preview_steps": 1}


@pytest.fixture(scope="module")
def names(host: Host) -> list[str]:
    return upload_pictures(host)


def chain(g: Graph, *nodes: tuple[str, dict[str, Any]]) -> Node:
    """Options nodes as they are new, but for these widgets, each wired into the next; the last of them."""
    before: Node | None = None
    for node_type, changes in nodes:
        values = {**untouched(node_type), **{name: sent(value) for name, value in changes.items()}}
        before = g.node(node_type, **values, **({"options": before[0]} if before else {}))
    assert before is not None
    return before


def trained_with(host: Host, names: list[str], *nodes: tuple[str, dict[str, Any]], **changes: Any) -> Path:
    """The run of a chain of options nodes."""
    g = Graph()
    wires = checkpoint(g, "sd15.safetensors")
    image = g.node("LoadImage", image=names[0])
    train_node(g, wires, image[0], options=chain(g, *nodes)[0], **{"steps": 2, **changes})
    return new_run(host, lambda: host.run(g.prompt))


def found_again(host: Host, prompt: dict[str, Any]) -> bool:
    before = runs(host)
    host.run(prompt)
    return runs(host) == before


# ---- presets -----------------------------------------------------------------------------------------------------


def test_a_preset_sets_what_is_not_set_by_hand_and_the_run_says_so(host: Host, names: list[str]) -> None:
    g, node = training_graph(names, preset="small pictures", steps=2, seed=41)
    with host.events() as events:
        run = new_run(host, lambda: host.run(g.prompt, client_id=events.client_id))
        lines = [event.data["text"] for event in events.of("text") if event.data["node"] == node.id]
    assert config_of(run)["apt"]["temperature"] == 300.0 and config_of(run)["apt"]["augment_fill"] == "reflect"
    said = "small pictures: temperature 300, augment_fill reflect, alignment off"
    assert f"preset {said} · getting ready" in lines
    assert json.loads((run / "config.json").read_text())["preset"] == "small pictures"
    assert f"| preset | {said} |" in (run / "report.md").read_text()
    same = {"temperature": "300", "augment_fill": "reflect", "alignment": False}
    by_hand, _ = training_graph(names, setting=same, steps=2, seed=41)
    assert found_again(host, by_hand.prompt), "a run is known by its values alone"


def test_by_hand_stands_above_a_preset(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, setting={"temperature": "50"}, preset="small pictures", steps=2, seed=42)
    run = new_run(host, lambda: host.run(g.prompt))
    assert config_of(run)["apt"]["temperature"] == 50.0 and config_of(run)["apt"]["augment_fill"] == "reflect"
    assert "| preset | small pictures: augment_fill reflect, alignment off |" in (run / "report.md").read_text()


def test_an_unknown_preset_is_refused_when_the_prompt_is_queued(host: Host, names: list[str]) -> None:
    g, _ = training_graph(names, preset="fastest")
    with pytest.raises(HostError, match="preset is 'fastest': choose one of published, quick look"):
        host.queue(g.prompt)


# ---- options that chain ------------------------------------------------------------------------------------------


def test_options_chain_in_any_order_and_of_two_alike_the_later_counts(host: Host, names: list[str]) -> None:
    chosen: list[tuple[str, dict[str, Any]]] = [
        ("APTMethodOptions", {"balance_every": 0, "temperature": "70"}),
        ("APTAdapterOptions", {"alpha": 2.0, "weight_decay": 0.01}),
        ("APTDataOptions", {"identifier_mode": "word", "bucket_multiple": 32}),
        ("APTSampleOptions", {"snapshot_every": 1, "preview_every": 0, "drift_prompts": "a city"}),
    ]
    run = trained_with(host, names, ("APTMethodOptions", {"temperature": "50", "p_max": 0.5}), *chosen, seed=43)
    config = config_of(run)
    assert config["apt"]["temperature"] == 70.0 and config["apt"]["p_max"] == 0.8, "all of the later one's fields"
    assert config["adapter"]["alpha"] == 2.0 and config["optimizer"]["weight_decay"] == 0.01
    assert config["identifier_mode"] == "word" and config["data"]["bucket_multiple"] == 32
    assert config["output"]["snapshot_every"] == 1 and config["output"]["drift_prompts"] == ["a city"]
    with pytest.raises(ValueError, match="not enough values"):  # no run is made: it is found
        trained_with(host, names, *reversed(chosen), seed=43)


def test_the_node_of_earlier_versions_chains_with_them(host: Host, names: list[str]) -> None:
    old = ("APTTrainOptions", {"identifier_mode": "word", "balance_every": 0, "p_max": 0.5, "alpha": 2.0})
    run = trained_with(host, names, old, ("APTAdapterOptions", {"weight_decay": 0.02}), seed=44)
    config = config_of(run)
    assert config["apt"]["p_max"] == 0.5 and config["identifier_mode"] == "word"
    assert config["adapter"]["alpha"] is None and config["optimizer"]["weight_decay"] == 0.02


def test_a_mask_is_read_as_the_data_options_say_wherever_they_stand(host: Host) -> None:
    """A cut-out picture's mask is white where it is transparent."""
    name, losses = host.upload("cutout.png", half_transparent(picture(5))), []
    for counts in ("white", "black"):
        g = Graph()
        image = g.node("LoadImage", image=name)
        method = ("APTMethodOptions", {"balance_every": 0})
        options = chain(g, ("APTDataOptions", {"identifier_mode": "word", "mask_counts": counts}), method)
        train_node(g, checkpoint(g, "sd15.safetensors"), image[0], options=options[0], masks=image[1], steps=1, seed=45)
        losses.append(log_of(new_run(host, lambda g=g: host.run(g.prompt)))[0]["denoising"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("node_type", "change", "sentence"),
    [
        ("APTMethodOptions", {"temperature": "warm"}, "temperature is 'warm': give a number above 0, or auto."),
        ("APTAdapterOptions", {"warmup_steps": 5}, "warmup_steps is 5: set lr_schedule to constant_with_warmup"),
        ("APTDataOptions", {"background": "no colour"}, "background"),
        ("APTSampleOptions", {"stop": "drift", "watch_drift": False}, "stop is drift: switch watch_drift on"),
    ],
)
def test_each_refuses_what_cannot_be_when_the_prompt_is_queued(
    host: Host, names: list[str], node_type: str, change: dict[str, Any], sentence: str
) -> None:
    g = Graph()
    image = g.node("LoadImage", image=names[0])
    train_node(g, checkpoint(g, "sd15.safetensors"), image[0], options=chain(g, (node_type, change))[0])
    with pytest.raises(HostError, match=sentence):
        host.queue(g.prompt)


# ---- samples -----------------------------------------------------------------------------------------------------


def test_several_prompts_and_an_unseen_one_are_drawn_large_with_a_filmstrip(host: Host, names: list[str]) -> None:
    prompts = "a {subject} on a beach\n\na dog"
    g, node = training_graph(names, setting=OFTEN, sample_prompts=prompts, steps=4, seed=46)
    with host.events() as events:
        result: list[Any] = []
        run = new_run(host, lambda: result.append(host.run(g.prompt, client_id=events.client_id)))
        lines = [event.data["text"] for event in events.of("text") if event.data["node"] == node.id]
        live = events.pictures_of(node.id)
    names_of = sorted(path.name for path in (run / "previews").iterdir())
    assert len(names_of) == 2 * 3 * 2 and names_of[-1] == "step_000004_2_tuned.png"
    with Image.open(run / "previews" / "step_000004_2_tuned.png") as unseen:
        assert unseen.info["prompt"] == "a watercolor painting of {subject} on the moon"
    (shown,) = result[0].outputs[node.id]["images"]
    end = host.image(shown)
    with Image.open(run / "filmstrip.png") as strip:
        assert strip.width > 3 * 192 and strip.height > 3 * 192
    assert end.width > 3 * 256 and end.height > 2 * 256 + 256
    assert result[0].outputs[node.id]["picture_size"] == list(end.size)
    assert live[-1].size == end.size and live[0].width < end.width, "the chart alone before the first samples"
    assert any(" · samples took " in line for line in lines)
    assert "![filmstrip.png](filmstrip.png)" in (run / "report.md").read_text()


# ---- a run that ended by itself ----------------------------------------------------------------------------------


def test_a_run_that_ended_by_itself_is_found_and_goes_on_with_never(host: Host, names: list[str]) -> None:
    """The log says where: what it has measured at the third snapshot is made to have risen."""
    g, _ = training_graph(names, setting={"snapshot_every": 2, "preview_every": 0}, steps=6, seed=47)
    run = new_run(host, lambda: host.run(g.prompt))
    lines = log_of(run)
    for line in lines:
        if "drift" in line:
            line["drift"]["ratio"] = 0.5 if line["step"] == 6 else 0.1
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def more(stop: str) -> tuple[list[str], Graph]:
        g = Graph()
        wires = checkpoint(g, "sd15.safetensors")
        options = chain(
            g,
            ("APTTrainOptions", {**WORD["APTDataOptions"], **WORD["APTMethodOptions"]}),
            ("APTSampleOptions", {"snapshot_every": 2, "preview_every": 0, "stop": stop}),
        )
        images = g.node("ImageBatch", image1=g.node("LoadImage", image=names[0])[0],
                        image2=g.node("LoadImage", image=names[1])[0])  # fmt: skip
        node = train_node(g, wires, images[0], options=options[0], steps=10, seed=47)
        with host.events() as events:
            host.run(g.prompt, client_id=events.client_id)
            return [event.data["text"] for event in events.of("text") if event.data["node"] == node.id], g

    said, _ = more("drift")
    assert said[-1].startswith("found, not trained again: 6 steps · stopped by itself · ")
    assert len(log_of(run)) == 6 and runs(host) >= {run}
    said, _ = more("never")
    assert said[-1].startswith("done: 10 steps · ") and len(log_of(run)) == 10
    said, _ = more("drift")
    assert said[-1].startswith("found, not trained again: 6 steps · stopped by itself · "), "where it would have ended"
    assert len(log_of(run)) == 10


# ---- in the editor -----------------------------------------------------------------------------------------------

with_editor = pytest.mark.skipif(bool(lacking()), reason=lacking())
VALUES = """([type]) => Object.fromEntries(
  app.graph.nodes.find((node) => node.type === type).widgets.map((widget) => [widget.name, widget.value]))"""


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2.0"])
def editor(request: pytest.FixtureRequest, host: Host) -> Iterator[Editor]:
    host.upload("example.png", picture(0))
    with Browser() as browser, browser.page(host, Comfy__VueNodes__Enabled=request.param) as page:
        yield page


@with_editor
def test_a_workflow_of_an_earlier_version_keeps_every_value(host: Host, editor: Editor) -> None:
    """Values are kept by place, the one after the seed's too; what is new stands behind them at its default."""
    old = json.loads((Path(__file__).parent / "old_workflow.json").read_text(encoding="utf-8"))
    (node,) = [node for node in old["nodes"] if node["type"] == "APTTrain"]
    editor.load(old)
    values = editor.do(VALUES, "APTTrain")
    assert list(values.values())[: len(node["widgets_values"])] == node["widgets_values"]
    assert (values["preset"], values["sample_prompts"]) == ("published", "")
    assert (values["class_word"], values["seed"], values["captions"]) == ("teapot", 77, "my {subject}")
    (sent_on,) = [item for item in editor.prompt().values() if item["class_type"] == "APTTrain"]
    assert (sent_on["inputs"]["method"], sent_on["inputs"]["rank"]) == ("DCO", 5)


@with_editor
def test_what_a_preset_sets_is_said_when_it_is_chosen(editor: Editor) -> None:
    """The other widgets go on showing their own values. One that sets nothing needs no word."""
    editor.do("async () => { await app.extensionManager.command.execute('Comfy.NewBlankWorkflow') }")
    editor.do("() => { app.graph.add(LiteGraph.createNode('APTTrain')) }")
    notices = editor.page.locator(".p-toast-message")
    editor.set("APTTrain", preset="published")
    editor.set("APTTrain", preset="quick look")
    notices.first.wait_for(timeout=30_000)
    (text,) = notices.all_inner_texts()
    assert "quick look sets steps 400, learning_rate 0.0002," in text and "changed yourself" in text


# How wide a node draws its picture, in pixels of the graph.
DRAWN = """() => {
  const node = app.graph.nodes.find((node) => node.type === "APTTrain");
  const element = document.querySelector(`[data-node-id="${node.id}"] img`);
  if (element) return element.getBoundingClientRect().width / app.canvas.ds.scale;
  const room = node.widgets?.find((widget) => widget.name.startsWith("$$canvas-image-preview"))?.computedHeight;
  const [picture] = node.imgs ?? [];
  return picture && room ? Math.min(node.size[0], (room * picture.naturalWidth) / picture.naturalHeight) : 0;
}"""
GRAPH = """([sampling]) => {
  const add = (type, x, y, ...values) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [x, y];
    values.forEach((value, i) => { node.widgets[i].value = value });
    return node;
  };
  const wire = (from, output, to, input) => {
    from.connect(from.outputs.findIndex((slot) => slot.name === output), to, to.findInputSlot(input));
  };
  const [loader, trainer] = [add("CheckpointLoaderSimple", 0, 0, "sd15.safetensors"), add("APTTrain", 800, 0)];
  const [data, sample] = [add("APTDataOptions", 0, 300, "word"), add("APTSampleOptions", 400, 0, ...sampling)];
  sample.widgets.find((widget) => widget.name === "preview_steps").value = 1;
  const values = { class_word: "toy", steps: 4, resolution: 64, rank: 4, preset: "strong likeness", seed: 48 };
  for (const [name, value] of Object.entries(values)) {
    trainer.widgets.find((widget) => widget.name === name).value = value;
  }
  for (const name of ["model", "clip", "vae"]) wire(loader, name.toUpperCase(), trainer, name);
  wire(add("LoadImage", 0, 600, "example.png"), "IMAGE", trainer, "images");
  wire(data, "options", sample, "options");
  wire(sample, "options", trainer, "options");
  trainer.setSize([400, trainer.size[1]]);
}"""


@with_editor
def test_samples_are_seen_large_on_the_node(host: Host, editor: Editor) -> None:
    """Two prompts, so each sample is nearly half as wide as the picture."""
    editor.do("async () => { await app.extensionManager.command.execute('Comfy.NewBlankWorkflow') }")
    editor.do(GRAPH, [2, 2])
    editor.fit()
    host.wait(editor.queue(), timeout=300)
    editor.fit()  # the classic page loads a picture when it draws the node, so the node has to be in sight
    editor.until(f"() => {{ app.canvas.setDirty(true, true); return ({DRAWN})() > 320 }}")
