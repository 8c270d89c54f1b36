"""`APT Image Set` on the real host: training from a folder, what is found, which folders are read, the sheet seen.

Not here: each finding (`tests/test_check.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from apt_train.config import TrainConfig
from apt_train.data.dataset import load_images
from apt_train.photo_check.preflight import preflight
from apt_train.photo_check.sheet import contact_sheet
from apt_train.run.content import Content

from ..photo_sets import GOOD, Photo
from .editor import Browser, Editor, lacking
from .graphs import half_transparent, picture, train_node, untouched
from .server import Host, HostError
from .trained import log_of, new_run, shown_text
from .workflows import Graph, Node, checkpoint

IMAGES, CAPTIONS, MASKS, FINDINGS, SHEET = range(5)
NODE_TYPE = "APTImageSet"


def image_set(g: Graph, **changes: Any) -> Node:
    return g.node(NODE_TYPE, **{**untouched(NODE_TYPE), "resolution": 64, **changes})


def mixed_folder(folder: Path) -> Path:
    """Other sizes, some with a caption, a mask file or transparency, none with all."""
    folder.mkdir()
    picture(0).save(folder / "a.png")
    picture(1, 96, 64).save(folder / "b.jpg", quality=90)
    half_transparent(picture(2, 80, 80)).save(folder / "c.png")
    picture(3, 64, 128).save(folder / "d.png")
    mask = Image.new("L", (32, 64))
    mask.paste(255, (8, 8, 24, 40))
    mask.save(folder / "d-mask.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(4, 96, 64).save(folder / "e.jpg", exif=turned)
    (folder / "b.txt").write_text("a toy on the beach\nat night", encoding="utf-8")
    (folder / "d.caption").write_text("{subject} in the snow", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def toys(host: Host) -> Path:
    """In the host's input folder, as toys."""
    return mixed_folder(host.folder / "input" / "toys")


# ---- training from it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha_masks", [False, True])
def test_what_it_hands_on_is_the_folder_as_the_command_line_reads_it(host: Host, toys: Path, alpha_masks: bool) -> None:
    """Pictures, captions and masks of the run are those of `load_images`, by their digests."""
    g = Graph()
    node = image_set(g, folder="toys", alpha_masks=alpha_masks, class_word="toy")
    train_node(
        g, checkpoint(g, "sd15.safetensors"), node[IMAGES], captions=node[CAPTIONS], masks=node[MASKS], seed=80, steps=1
    )
    run = new_run(host, lambda: host.run(g.prompt, timeout=300))
    parts = json.loads((run / "config.json").read_text(encoding="utf-8"))["parts"]
    config = TrainConfig(class_word="toy", identifier="my_toy")
    expected = Content("", cast("Any", Schedule), load_images(toys, alpha_masks=alpha_masks), None, config).parts()
    for name in ("pictures", "captions", "masks"):
        assert parts[name] == expected[name]
    assert sum(map(bool, parts["masks"])) == (2 if alpha_masks else 1) and len(log_of(run)) == 1


class Schedule:
    """Of which nothing is compared."""

    prediction, fingerprint = "", b""


def test_findings_and_sheet_are_those_of_the_command_line(host: Host, toys: Path) -> None:
    g = Graph()
    node = image_set(g, folder="toys", class_word="toy")
    text, wired = g.node("PreviewAny", source=node[FINDINGS]), g.node("PreviewImage", images=node[SHEET])
    result = host.run(g.prompt)
    found = preflight(load_images(toys), 64, class_word="toy")
    assert shown_text(result, text) == "\n".join(found.lines())
    assert "No caption, though other pictures have one: a.png, c.png and e.jpg." in shown_text(result, text)
    sheet = contact_sheet(found)
    for (entry,) in (result.outputs[shown.id]["images"] for shown in (node, wired)):
        assert np.array_equal(np.asarray(host.image(entry).convert("RGB")), np.asarray(sheet))
    assert result.outputs[node.id]["sheet_size"] == list(sheet.size)


def test_it_runs_again_when_a_file_of_the_folder_has_changed(host: Host, tmp_path: Path) -> None:
    folder = mixed_folder(tmp_path / "here")
    g = Graph()
    node = image_set(g, path=str(folder))
    text = g.node("PreviewAny", source=node[FINDINGS])
    host.run(g.prompt)
    assert node.id in host.run(g.prompt).cached
    changes = [
        lambda: (folder / "a.txt").write_text("a toy", encoding="utf-8"),
        lambda: picture(9).save(folder / "f.png"),
        lambda: (folder / "d-mask.png").unlink(),
    ]
    for change in changes:
        change()
        result = host.run(g.prompt)
        assert node.id not in result.cached
    assert "5 pictures" not in shown_text(result, text) and "6 pictures" in shown_text(result, text)


def test_wired_captions_and_masks_take_the_place_of_the_folders(host: Host, toys: Path) -> None:
    g = Graph()
    lines = g.node("PrimitiveStringMultiline", value="\n".join(f"{{subject}} on ground {i}" for i in range(5)))
    node = image_set(g, folder="toys", captions=lines[0])
    text = g.node("PreviewAny", source=node[FINDINGS])
    assert "No caption" not in shown_text(host.run(g.prompt), text)

    alone = host.folder / "input" / "alone"
    alone.mkdir()
    Photo(1).draw().save(alone / "a.png")
    mask = host.upload("alone_mask.png", Photo(1, reach=0.05).mask().convert("RGB"))
    g = Graph()
    masks = g.node("LoadImageMask", image=mask, channel="red")
    node = image_set(g, folder="alone", masks=masks[0], resolution=256)
    text = g.node("PreviewAny", source=node[FINDINGS])
    assert "The subject fills little of the picture: a.png 0.8%." in shown_text(host.run(g.prompt), text)


def test_wired_images_are_looked_through_too(host: Host) -> None:
    names = [host.upload(f"wired_{i}.png", photo.draw()) for i, photo in enumerate(GOOD[:2])]
    g = Graph()
    batch = g.node("ImageBatch", image1=g.node("LoadImage", image=names[0])[0], image2=["1", 0])
    node = image_set(g, images=batch[0], resolution=256)
    text = g.node("PreviewAny", source=node[FINDINGS])
    said = shown_text(host.run(g.prompt), text)
    assert said.startswith("2 findings in 2 pictures at 256 pixels.")
    assert "picture 1 and picture 2 look almost the same" in said


# ---- mistakes ----------------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "untouched": ({}, "No pictures are given: choose a folder, write the path of one, or wire images."),
    "two": ({"folder": "toys", "path": "/tmp"}, "folder and path are both given"),
    "nowhere": ({"path": "nowhere"}, "The image folder nowhere does not exist"),
    "gone": ({"folder": "gone"}, "The image folder gone does not exist"),
    "a file": ({"path": "toys/a.png"}, "The image folder toys/a.png is a file: give a folder"),
    "no colour": ({"folder": "toys", "background": "sky"}, "background is 'sky'"),
    "a name": ({"folder": "toys", "class_word": "toy", "subject": "a/b"}, "subject is 'a/b': use only letters"),
    "a placeholder": ({"folder": "toys", "class_word": "{subject}"}, "class_word is '{subject}'"),
    "no size": ({"folder": "toys", "resolution": 1 << 20}, "resolution is 1048576"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_at_the_node_before_anything_runs(host: Host, toys: Path, mistake: str) -> None:
    changes, sentence = MISTAKES[mistake]
    g = Graph()
    node = image_set(g, **changes)
    with pytest.raises(HostError) as caught:
        host.queue(g.prompt)
    assert caught.value.kind == "refused" and caught.value.node == node.id
    assert sentence in caught.value.sentence and str(host.folder) not in caught.value.sentence


def test_a_broken_picture_is_named_with_the_widget_that_leaves_it_out(host: Host, tmp_path: Path) -> None:
    folder = mixed_folder(tmp_path / "here")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    g = Graph()
    image_set(g, path=str(folder))
    with pytest.raises(HostError, match="skip_bad_images"):
        host.run(g.prompt)
    g = Graph()
    node = image_set(g, path=str(folder), skip_bad_images=True)
    text = g.node("PreviewAny", source=node[FINDINGS])
    assert "Left out: bad.png" in shown_text(host.run(g.prompt), text)


# ---- which folders are read --------------------------------------------------------------------------------------


def test_folders_of_input_are_offered_by_name(host: Host, toys: Path) -> None:
    (host.folder / "input" / "shelf" / "cups").mkdir(parents=True, exist_ok=True)
    options = host.object_info(NODE_TYPE)["input"]["required"]["folder"]
    assert {"none", "toys", "shelf", "shelf/cups"} <= set(options[1]["options"])


def test_output_and_home_are_understood(host: Host, tmp_path: Path) -> None:
    mixed_folder(host.folder / "output" / "drawn")
    for path in ("drawn [output]", str(host.folder / "input" / "toys"), "toys/../toys"):
        g = Graph()
        image_set(g, path=path)
        host.run(g.prompt)


# ---- in the editor -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as chromium:
        yield chromium


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2.0"])
def editor(request: pytest.FixtureRequest, browser: Browser, host: Host, toys: Path) -> Iterator[Editor]:
    """With the node alone in a new workflow, at the zoom at which templates open."""
    with browser.page(host, Comfy__VueNodes__Enabled=request.param) as page:
        page.do(ALONE, NODE_TYPE)
        yield page


ALONE = """async ([type]) => {
  await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  [node.pos, app.canvas.ds.scale, app.canvas.ds.offset] = [[60, 60], 0.7, [40, 40]];
  app.canvas.setDirty(true, true);
}"""
SET_FOLDER = """([name]) => {
  const widget = app.graph.nodes[0].widgets.find((widget) => widget.name === "folder");
  widget.value = name;
}"""
in_the_editor = pytest.mark.skipif(bool(lacking()), reason=lacking())


@in_the_editor
def test_a_new_node_left_untouched_says_what_it_lacks(editor: Editor) -> None:
    with pytest.raises(HostError) as caught:
        editor.queue()
    assert caught.value.sentence == MISTAKES["untouched"][1]


CALLED: dict[str, tuple[str, dict[str, str]]] = {
    "a word alone": ("", {"subject": "", "class_word": "toy"}),
    "both": ("my_toy", {"subject": "my_toy", "class_word": "toy"}),
    "a name that training refuses": ("a/b", {"subject": "", "class_word": ""}),
}


@in_the_editor
@pytest.mark.parametrize(("subject", "sent"), CALLED.values(), ids=list(CALLED))
def test_what_the_subject_is_called_is_typed_once(editor: Editor, subject: str, sent: dict[str, str]) -> None:
    """In the training node; the workflow keeps the set's own widgets empty."""
    editor.do(TRAINED_ON, subject)
    assert called(editor) == sent
    (saved,) = [node for node in editor.workflow()["nodes"] if node["type"] == NODE_TYPE]
    assert "toy" not in saved["widgets_values"] and "my_toy" not in saved["widgets_values"]
    editor.set(NODE_TYPE, class_word="dog")
    assert called(editor)["class_word"] == "dog"


@in_the_editor
def test_a_class_word_comes_by_a_wire_and_out_of_a_subgraph_and_from_two_alike(editor: Editor) -> None:
    editor.do(TRAINED_ON, "")
    editor.do(BY_WIRE, "cat")
    assert called(editor)["class_word"] == "cat"
    editor.do(ANOTHER, "cat")
    assert called(editor)["class_word"] == "cat"
    editor.set("APTTrain", class_word="bird")  # the wired one keeps its wire's
    assert called(editor)["class_word"] == ""
    for mode in (2, 4, 0):  # muted, bypassed, at work
        editor.do(f"() => {{ app.graph.nodes.findLast((node) => node.type === 'APTTrain').mode = {mode} }}")
        assert called(editor)["class_word"] == ("cat" if mode else "")
    editor.do("() => { app.graph.remove(app.graph.nodes.findLast((node) => node.type === 'APTTrain')) }")
    editor.do("() => { app.graph.convertToSubgraph(new Set(app.graph.nodes.filter((n) => n.type !== 'APTImageSet'))) }")
    assert called(editor)["class_word"] == "cat"


@in_the_editor
def test_a_notice_says_that_the_set_is_checked_at_another_size_than_it_is_trained_at(editor: Editor) -> None:
    editor.do(TRAINED_ON, "")
    notice = editor.page.get_by_text("set resolution of APT Image Set to 768")
    for resolution in (0, 512, 768):
        assert not notice.count()
        editor.set("APTTrain", resolution=resolution)
        editor.do(QUEUED)
    notice.wait_for(timeout=30_000)


QUEUED = """async () => {
  const { api } = await import("/scripts/api.js");
  api.dispatchCustomEvent("promptQueued", { number: 1, batchCount: 1 });
}"""


def called(editor: Editor) -> dict[str, str]:
    """As the set is sent it."""
    (node,) = [node for node in editor.prompt().values() if node["class_type"] == NODE_TYPE]
    return {name: node["inputs"][name] for name in ("subject", "class_word")}


TRAINED_ON = """([subject]) => {
  const [set] = app.graph.nodes;
  const [between, trainer] = ["ImageScaleBy", "APTTrain"].map((type) => LiteGraph.createNode(type));
  for (const node of [between, trainer]) app.graph.add(node);
  const values = { subject, class_word: "toy" };
  for (const [name, value] of Object.entries(values)) trainer.widgets.find((w) => w.name === name).value = value;
  set.connect(0, between, between.findInputSlot("image"));
  between.connect(0, trainer, trainer.findInputSlot("images"));
}"""
BY_WIRE = """([word]) => {
  const trainer = app.graph.nodes.find((node) => node.type === "APTTrain");
  const text = LiteGraph.createNode("PrimitiveString");
  app.graph.add(text);
  text.widgets[0].value = word;
  text.connect(0, trainer, trainer.findInputSlot("class_word"));
}"""
ANOTHER = """([word]) => {
  const trainer = LiteGraph.createNode("APTTrain");
  app.graph.add(trainer);
  trainer.widgets.find((widget) => widget.name === "class_word").value = word;
  app.graph.nodes.find((node) => node.type === "ImageScaleBy").connect(0, trainer, trainer.findInputSlot("images"));
}"""


@in_the_editor
def test_the_sheet_is_seen_on_the_node_at_full_width(host: Host, editor: Editor) -> None:
    editor.do(SET_FOLDER, "toys")
    result = host.wait(editor.queue())
    (entry,) = result.images
    sheet = host.image(entry)
    shown = editor.until(SHOWN, entry["filename"])
    editor.page.wait_for_timeout(1500)
    shown = editor.do(SHOWN, entry["filename"])
    if out := os.environ.get("APT_TRAIN_SCREENSHOTS"):
        (Path(out) / f"image_set_{shown['kind']}.png").write_bytes(editor.screenshot())
    assert shown["natural"] == list(sheet.size)
    assert shown["width"] / 0.7 > 550 and shown["height"] / shown["width"] == pytest.approx(
        sheet.height / sheet.width, rel=0.05
    )


# The picture on the node in CSS pixels: an element in the newer renderer, drawn on the canvas in the classic one.
SHOWN = """([file]) => {
  const [node] = app.graph.nodes;
  const element = [...document.querySelectorAll("img")].find((img) => img.src.includes(file) && img.clientWidth > 50);
  if (element?.naturalWidth) {
    const { width, height } = element.getBoundingClientRect();
    return { kind: "vue", natural: [element.naturalWidth, element.naturalHeight], width, height };
  }
  const image = node.imgs?.[0];
  if (!image?.naturalWidth) return null;
  const widget = node.widgets.find((widget) => widget.name.startsWith("$$canvas-image-preview"));
  const room = [node.size[0], node.size[1] - (widget?.y ?? 0)];
  const scale = Math.min(room[0] / image.naturalWidth, room[1] / image.naturalHeight) * app.canvas.ds.scale;
  const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
  return { kind: "classic", natural: [image.naturalWidth, image.naturalHeight], width, height };
}"""
