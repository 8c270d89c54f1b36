"""An artist's first picture: a fresh profile, a template, a folder of five photos, one word typed, Run.

By mouse and keyboard alone, in both renderers. Two things are not as on a first visit. The checkpoint is a tiny one
under a name of its own, so it is chosen from the list where the template's is missing. And `SMALL` is set behind the
user's back: with the template's own 2,000 steps of 512 pixels a machine without a GPU would take days.

In: the one way from the first page to a picture. Not in: how templates are laid out (`test_templates`), and that each
of them runs (`test_examples`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

import dev

from .editor import READY, Browser, Editor, lacking
from .graphs import picture
from .server import Host
from .test_editor import card
from .test_examples import EXAMPLES, read
from .test_templates import SEEN, SETTLED, corners, holds, overlap
from .trained import config_of, log_of, new_run

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

TEMPLATE = next(path for path in EXAMPLES if path.stem == "train_and_generate")
CHECKPOINT, FOLDER = "sd15.safetensors", "holiday photos"
WORDS = {False: "teapot", True: "cactus"}  # two, so that the second visitor's run is not the first one's, found again
SMALL: dict[str, dict[str, Any]] = {
    "APTTrain": {"steps": 1, "resolution": 64, "rank": 4},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "KSampler": {"steps": 1},
}
OWN_PICTURES = {"APTImageSet": "sheet_size", "APTTrain": "picture_size"}  # what says how large each is
BLANK = {"x": 700, "y": 900}  # nothing of the template lies there
# What goes down on the keyboard as text, wherever it lands; a key held with Control writes nothing.
HEAR_KEYS = """() => {
  window.aptTyped = "";
  const heard = ({ key, ctrlKey }) => { if (key.length === 1 && !ctrlKey) window.aptTyped += key };
  window.addEventListener("keydown", heard, true);
}"""
WIDGET = """([type, name]) => {
  const node = app.graph.nodes.find((node) => node.type === type);
  const widget = node.widgets.find((widget) => widget.name === name);
  const { x, y } = app.canvas.canvas.getBoundingClientRect();
  const { scale, offset } = app.canvas.ds;
  const at = [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.y ?? widget.last_y) + 10];
  const place = [x + (at[0] + offset[0]) * scale, y + (at[1] + offset[1]) * scale];
  return { id: String(node.id), value: widget.value, choices: widget.options?.values, place };
}"""
# The picture that a node shows: an element in the newer renderer, drawn on the canvas in the classic one.
SHOWN = """([type]) => {
  const node = app.graph.nodes.find((node) => node.type === type);
  const image = document.querySelector(`[data-node-id="${node.id}"] img`) ?? node.imgs?.[0];
  return image?.naturalWidth ? [image.naturalWidth, image.naturalHeight] : null;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as chromium:
        yield chromium


@pytest.mark.parametrize("elements", list(WORDS), ids=["classic", "nodes-2.0"])
def test_from_the_first_page_to_a_picture_with_one_word_typed(host: Host, browser: Browser, elements: bool) -> None:
    with first_visit(host, browser, elements) as editor:
        open_template(editor)
        put_photos(host)
        refresh(editor)
        choose(editor, "APTImageSet", "folder", FOLDER, elements)
        choose(editor, "CheckpointLoaderSimple", "ckpt_name", CHECKPOINT, elements)
        write(editor, "APTTrain", "class_word", WORDS[elements], elements)
        for node_type, values in SMALL.items():
            editor.set(node_type, **values)

        assert editor.do("() => window.aptTyped") == "r" + WORDS[elements]
        queued: list[str] = []
        run = new_run(host, lambda: queued.append(drawn(host, editor)))
        assert config_of(run)["class_word"] == WORDS[elements] and len(log_of(run)) == SMALL["APTTrain"]["steps"]
        pictures_are_seen(host, editor, queued[0])
        nothing_is_wrong(editor)


def first_visit(host: Host, browser: Browser, elements: bool) -> Editor:
    """Nothing is known of the visitor but the renderer: the page greets with the template browser."""
    (host.folder / "user" / "default" / "comfy.settings.json").unlink(missing_ok=True)
    host.post("/settings", **{"Comfy.VueNodes.Enabled": elements})
    visitor = browser.chromium.new_context(viewport={"width": 1600, "height": 1000}, locale="en-US")
    editor = Editor(host, visitor.new_page())
    editor.page.wait_for_function(READY)
    editor.do(HEAR_KEYS)
    return editor


def open_template(editor: Editor) -> None:
    editor.page.get_by_text(dev.PACK, exact=True).click(timeout=60_000)
    editor.page.locator(card(TEMPLATE)).click()
    editor.until("([count]) => app.rootGraph.nodes.length === count", len(read(TEMPLATE)["nodes"]))
    editor.page.wait_for_function(SETTLED, polling=500)


def put_photos(host: Host) -> None:
    """As a file manager does, while the page is open."""
    folder = host.folder / "input" / FOLDER
    folder.mkdir(exist_ok=True)
    for seed in range(5):
        picture(seed, 128, 96).save(folder / f"IMG_{seed}.jpg")


def choose(editor: Editor, node_type: str, name: str, choice: str, elements: bool) -> None:
    """One of a list's entries."""
    where = editor.do(WIDGET, node_type, name)
    if elements:
        editor.page.locator(f"[data-node-id='{where['id']}'] button[aria-label='{name}']").click()
        editor.page.get_by_role("option", name=choice, exact=True).click()
    else:
        editor.page.mouse.click(*where["place"])
        editor.page.locator(".litemenu-entry", has_text=choice).click()
    assert editor.do(WIDGET, node_type, name)["value"] == choice


def write(editor: Editor, node_type: str, name: str, text: str, elements: bool) -> None:
    """In the place of what stands there."""
    where = editor.do(WIDGET, node_type, name)
    if elements:
        editor.page.locator(f"[data-node-id='{where['id']}'] input[aria-label='{name}']").click()
    else:
        editor.page.mouse.click(*where["place"])
        editor.page.locator(".graphdialog input.value").wait_for()
    editor.page.keyboard.press("Control+a")
    editor.page.keyboard.type(text)
    editor.page.keyboard.press("Enter")
    assert editor.do(WIDGET, node_type, name)["value"] == text


def refresh(editor: Editor) -> None:
    """The key R, as the note in the template says; the new folder is offered then."""
    editor.page.locator("#graph-canvas").click(position=BLANK)
    editor.page.keyboard.press("r")
    offered = f"([choice, ...widget]) => ({WIDGET})(widget).choices.includes(choice)"
    editor.until(offered, FOLDER, "APTImageSet", "folder")


def drawn(host: Host, editor: Editor) -> str:
    """By the Run button, to the end; the prompt's id. HostError: it failed."""
    with editor.page.expect_response(lambda answer: answer.url.endswith("/prompt")) as answer:
        editor.page.get_by_test_id("queue-button").click()
    assert answer.value.status == 200, answer.value.text()
    return host.wait(answer.value.json()["prompt_id"]).prompt_id


def pictures_are_seen(host: Host, editor: Editor, queued: str) -> None:
    """The one that was asked for, the training node's, and the contact sheet: each on its node, as large as it is."""
    outputs = host.wait(queued).outputs.values()
    sizes = {type_: next(out[key] for out in outputs if key in out) for type_, key in OWN_PICTURES.items()}
    (saved,) = [node["id"] for node in read(TEMPLATE)["nodes"] if node["type"] == "SaveImage"]
    (entry,) = host.wait(queued).outputs[str(saved)]["images"]
    assert host.image(entry).size == (64, 64)
    for node_type, size in {"SaveImage": [64, 64], **sizes}.items():
        assert editor.until(SHOWN, node_type) == size, node_type


def nothing_is_wrong(editor: Editor) -> None:
    """No script failed, no notice of an error stands on the page, nothing lies over anything else."""
    editor.page.wait_for_function(SETTLED, polling=500)
    assert [line for line in editor.said if line.startswith("page:") or dev.PACK in line] == []
    assert editor.page.locator("[data-testid='error-overlay'], .p-toast-message-error").count() == 0
    assert editor.do("() => app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type)") == []
    seen = editor.do(SEEN)
    nodes = {node["name"]: corners(node["box"]) for node in seen["nodes"]}
    groups = [corners(group["box"]) for group in seen["groups"]]
    assert [pair for pair in combinations(nodes, 2) if overlap(*(nodes[name] for name in pair))] == []
    assert [name for name, box in nodes.items() if not any(holds(group, box) for group in groups)] == []
