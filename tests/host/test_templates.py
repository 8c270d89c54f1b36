"""How the templates look when they are opened, in both renderers: legible, nothing over anything else, in its group."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import dev

from .conftest import link
from .editor import Browser, Editor, lacking
from .graphs import picture
from .server import Host
from .test_examples import EXAMPLES, PUBLISHED, read

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

LEAST_CONTRAST = 4.5
LEAST_ZOOM = 0.6  # below 0.57 the classic renderer hides all text
SLACK = 1.0  # pixels of the graph: the page rounds
each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom, in the graph's pixels

# As the template browser does. In Nodes 2.0 the page's own elements are measured, whatever the graph believes.
OPEN = "async ([workflow, name]) => { await app.loadGraphData(workflow, true, true, name, { openSource: 'template' }) }"
SEEN = """() => {
  const { ds, canvas } = app.canvas;
  const page = canvas.getBoundingClientRect();
  const inGraph = ({ x, y, width, height }) => [
    (x - page.x) / ds.scale - ds.offset[0], (y - page.y) / ds.scale - ds.offset[1], width / ds.scale, height / ds.scale,
  ];
  const nodes = app.graph.nodes.map((node) => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    const box = element ? inGraph(element.getBoundingClientRect()) : [...node.boundingRect];
    const [drawn, pictures] = [Boolean(element?.innerText.trim()), element?.querySelectorAll("img").length];
    return { name: `${node.id} ${node.title}`, type: node.type, box, drawn, pictures };
  });
  const groups = app.graph.groups.map((group) => ({ name: group.title, box: [...group.boundingRect] }));
  return { zoom: ds.scale, hidden: app.canvas.low_quality, nodes, groups };
}"""
SETTLED = """() => {
  const sizes = JSON.stringify(app.graph.nodes.map((node) => [...node.boundingRect]));
  const same = sizes === window.aptSizes;
  window.aptSizes = sizes;
  return same;
}"""


# Of the note's words on what lies behind them, as in WCAG: 1 cannot be read, 4.5 is the least for small text. The page
# names colours in several ways; a canvas knows them all.
CONTRASTS = """([type]) => {
  const brush = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  const colour = (layers) => {
    for (const layer of layers) {
      brush.fillStyle = layer;
      brush.fillRect(0, 0, 1, 1);
    }
    return [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const grounds = (element) =>
    element ? [...grounds(element.parentElement), getComputedStyle(element).backgroundColor] : ["black"];
  const { id } = app.graph.nodes.find((node) => node.type === type);
  const words = [...document.querySelector(`[data-node-id="${id}"] .comfy-markdown-content`).querySelectorAll("*")]
    .filter((element) => [...element.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return words.map((element) => {
    const behind = grounds(element);
    const [low, high] = [colour(behind), colour([...behind, getComputedStyle(element).color])].map(light).sort();
    return [element.textContent, (high + 0.05) / (low + 0.05)];
  });
}"""


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes-2.0"])
def editor(host: Host, checkpoints: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Editor]:
    for kind, name in PUBLISHED.items():
        if not (file := host.folder / "models" / "checkpoints" / name).exists():
            link(file, checkpoints[kind])
    photos = host.folder / "input" / "my_toy"
    photos.mkdir(exist_ok=True)
    for seed in range(5):
        picture(seed, 128, 96).save(photos / f"{seed}.png")
    with Browser() as browser, browser.page(host, 1600, 1000, Comfy__VueNodes__Enabled=request.param) as page:
        page.elements = request.param
        yield page


@each
def test_a_template_opens_legibly(editor: Editor, path: Path) -> None:
    editor.do(OPEN, read(path), path.stem)
    editor.until("([count]) => app.graph.nodes.length === count", len(read(path)["nodes"]))
    editor.page.wait_for_timeout(1000)
    editor.page.wait_for_function(SETTLED, polling=500)
    seen = editor.do(SEEN)
    assert seen["zoom"] >= LEAST_ZOOM and not seen["hidden"]
    nodes = {node["name"]: corners(node["box"]) for node in seen["nodes"]}
    assert [pair for pair in combinations(nodes, 2) if overlap(*(nodes[name] for name in pair))] == []
    groups = [corners(group["box"]) for group in seen["groups"]]
    assert [name for name, box in nodes.items() if not any(holds(group, box) for group in groups)] == []
    first = next(corners(node["box"]) for node in seen["nodes"] if node["type"] == "MarkdownNote")
    assert all(first[0] <= box[0] and first[1] <= box[1] for box in nodes.values()), "what to do first, top left"
    if editor.elements:
        assert [node["name"] for node in seen["nodes"] if not node["drawn"]] == []
        words = editor.do(CONTRASTS, "MarkdownNote")
        assert words and [text for text, contrast in words if contrast < LEAST_CONTRAST] == []


NOTE_SEEN = """([heading]) => {
  const { id } = app.graph.nodes.find((node) => node.type === "MarkdownNote");
  const boxes = document.querySelectorAll(`[data-node-id="${id}"] .comfy-markdown-content, .comfy-markdown .tiptap`);
  return [...boxes].map((box) => box.innerText).find((text) => text.includes(heading));
}"""
GROUPS = "() => app.graph.groups.map((group) => group.title)"


def test_a_chinese_editor_shows_templates_in_chinese_and_saves_them_in_english(host: Host, editor: Editor) -> None:
    """So that the file opens in any language; what the user has written stays as it is."""
    said = json.loads(TRANSLATED.read_text(encoding="utf-8"))["aptTrain"]["templates"]
    try:
        host.post("/settings", **{"Comfy.Locale": "zh"})
        editor.reopen()
        for path in EXAMPLES:
            english = read(path)
            note = next(node for node in english["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
            editor.do(OPEN, english, path.stem)
            heading = said[note.split("\n")[0]].lstrip("# ")
            assert "*" not in editor.until(NOTE_SEEN, heading, timeout=30), "a mark that the editor does not understand"
            assert editor.do(GROUPS) == [said[group["title"]] for group in english["groups"]]
            assert texts_of(editor.workflow()) == texts_of(english)
            assert not editor.do("() => app.extensionManager.workflow.activeWorkflow.isModified")
            editor.set("MarkdownNote", text=note + "My own words.")
            (changed,) = [node for node in editor.workflow()["nodes"] if node["type"] == "MarkdownNote"]
            assert changed["widgets_values"] == [note + "My own words."]
    finally:
        host.post("/settings", **{"Comfy.Locale": "en"})
        editor.reopen()


TRANSLATED = dev.ROOT / "locales" / "zh" / "main.json"


def texts_of(workflow: dict[str, Any]) -> list[Any]:
    """What a workflow says: titles, and all that stands in widgets."""
    nodes = sorted(workflow["nodes"], key=lambda node: node["id"])
    groups = [group["title"] for group in workflow["groups"]]
    return [*groups, *((node.get("title"), node.get("widgets_values")) for node in nodes)]


TRAINING = [path for path in EXAMPLES if "sdxl" not in path.stem and "APTTrain" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_nothing_outgrows_its_group_once_it_has_run(host: Host, editor: Editor, path: Path) -> None:
    """Lines of text and pictures make nodes grow."""
    editor.do(OPEN, read(path), path.stem)
    editor.set("APTImageSet", folder="my_toy")
    editor.set("APTTrain", resolution=64, rank=4)
    for steps in ("APTTrain", "PrimitiveInt"):
        editor.do(STEPS, steps)
    editor.set("EmptyLatentImage", width=64, height=64)
    editor.set("KSampler", steps=1)
    host.wait(editor.queue(), timeout=300)
    editor.until("() => app.nodeOutputs && Object.values(app.nodeOutputs).some((output) => output?.images?.length)")
    editor.page.wait_for_timeout(3000)
    seen = editor.do(SEEN)
    nodes = {node["name"]: corners(node["box"]) for node in seen["nodes"]}
    groups = [corners(group["box"]) for group in seen["groups"]]
    assert [name for name, box in nodes.items() if not any(holds(group, box) for group in groups)] == []
    assert [pair for pair in combinations(nodes, 2) if overlap(*(nodes[name] for name in pair))] == []
    if editor.elements:
        pictures = {node["pictures"] for node in seen["nodes"] if node["type"] == "APTTrain"}
        assert pictures == {1}, "the live picture has gone"


ALONE = """async ([type]) => {
  await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  [node.pos, app.canvas.ds.scale, app.canvas.ds.offset] = [[60, 60], 0.7, [40, 40]];
}"""
LIVE_THEN_OWN = """async ([type, file]) => {
  await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  const blob = await (await fetch(`/view?filename=${file}&type=input`)).blob();
  const ids = { nodeId: String(node.id), displayNodeId: String(node.id), realNodeId: String(node.id), jobId: "job" };
  app.api.dispatchCustomEvent("b_preview_with_metadata", { blob, parentNodeId: "", promptId: "job", ...ids });
  const live = Object.keys(app.nodePreviewImages).length;
  const output = { images: [{ filename: file, subfolder: "", type: "input" }] };
  app.api.dispatchCustomEvent("executed", { node: node.id, display_node: node.id, prompt_id: "job", output });
  return [live, Object.keys(app.nodePreviewImages).length];
}"""


@pytest.mark.parametrize("node_type", ["APTTrain", "APTSnapshotSheet"])
def test_a_live_picture_goes_when_the_nodes_own_has_come(host: Host, editor: Editor, node_type: str) -> None:
    """The page is told what the host tells it, without a run."""
    assert editor.do(LIVE_THEN_OWN, node_type, host.upload("own.png", picture(0))) == [1, 0]


SHEETS = {"APTSnapshotSheet": "pick_a_snapshot", "APTLoadRun": "pick_a_snapshot", "APTLoRACheckUp": "check_a_lora_up"}
SHOW = """([type, file, size]) => {
  const { id } = app.graph.nodes.find((node) => node.type === type);
  const output = { images: [{ filename: file, subfolder: "", type: "input" }], sheet_size: size };
  app.api.dispatchCustomEvent("executed", { node: String(id), display_node: String(id), prompt_id: "job", output });
}"""
# How high a picture is on its node, in the graph's pixels.
DRAWN = """([type]) => {
  app.canvas.setDirty(true, true);
  const node = app.graph.nodes.find((node) => node.type === type);
  const element = document.querySelector(`[data-node-id="${node.id}"] img`);
  if (element) return element.naturalWidth && element.getBoundingClientRect().height / app.canvas.ds.scale;
  const room = node.widgets?.find((widget) => widget.name.startsWith("$$canvas-image-preview"))?.computedHeight;
  const [picture] = node.imgs ?? [];
  const { naturalWidth: width, naturalHeight: height } = picture ?? {};
  return width && room ? Math.min(room, (node.size[0] * height) / width) : 0;
}"""


@pytest.mark.parametrize("node_type", SHEETS)
@pytest.mark.parametrize("new", [False, True], ids=["template", "new"])
def test_a_sheet_is_large_enough_to_be_read(host: Host, editor: Editor, node_type: str, new: bool) -> None:
    """And stays in its template's group. The page is told what the host tells it, without a run."""
    path = next(path for path in EXAMPLES if path.stem == SHEETS[node_type])
    if new:
        editor.do(ALONE, node_type)
    else:
        editor.do(OPEN, read(path), path.stem)
        editor.until("([count]) => app.graph.nodes.length === count", len(read(path)["nodes"]))
    editor.page.wait_for_function(SETTLED, polling=500)
    size = [900, 900]
    editor.do(SHOW, node_type, host.upload("sheet.png", picture(3, *size)), size)
    least = 270 if editor.elements else 390  # Nodes 2.0 shares a node's height between its picture and its text boxes
    editor.until(f"([type, least]) => ({DRAWN})([type]) > least", node_type, least, timeout=30)
    editor.page.wait_for_function(SETTLED, polling=500)
    if out := os.environ.get("APT_TRAIN_SCREENSHOTS"):
        (Path(out) / f"{node_type}_{new}_{editor.elements}.png").write_bytes(editor.screenshot())
    seen = editor.do(SEEN)
    nodes, groups = ([corners(one["box"]) for one in seen[kind]] for kind in ("nodes", "groups"))
    assert new or all(any(holds(group, box) for group in groups) for box in nodes)


# Of training, wherever the number stands: on the node itself, or on one that is wired to it.
STEPS = """([type]) => app.graph.nodes.filter((node) => node.type === type).forEach((node) => {
  const widget = node.widgets.find((each) => each.name === "steps" || /steps/i.test(node.title));
  if (widget) widget.value = 2;
})"""


def corners(box: list[float]) -> Rectangle:
    left, top, width, height = box
    return left + SLACK, top + SLACK, left + width - SLACK, top + height - SLACK


def overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def holds(outer: Rectangle, inner: Rectangle) -> bool:
    grown = outer[0] - 2 * SLACK, outer[1] - 2 * SLACK, outer[2] + 2 * SLACK, outer[3] + 2 * SLACK
    return grown[0] <= inner[0] and grown[1] <= inner[1] and inner[2] <= grown[2] and inner[3] <= grown[3]


def test_what_overlaps_or_sticks_out_would_be_seen() -> None:
    """The measures themselves."""
    box: list[Any] = [0, 0, 100, 50]
    assert overlap(corners(box), corners([90, 40, 100, 50])) and not overlap(corners(box), corners([100, 0, 10, 10]))
    assert holds(corners([0, 0, 120, 60]), corners(box)) and not holds(corners([0, 0, 120, 45]), corners(box))
