"""The pack in the host's real editor: what an artist sees of a run, help pages, templates; and the console stays quiet.

After each test the console is compared with what it says to a visitor of the same host without any pack.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

import dev

from .conftest import link, link_checkpoints
from .editor import Browser, Editor, lacking
from .graphs import picture
from .server import Host
from .test_examples import BLUEPRINT, EXAMPLES, PUBLISHED, read
from .workflows import Graph, checkpoint, text_to_image

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

WATCHED = next(path for path in EXAMPLES if path.stem == "monitor_and_pick_snapshot")
TRAINER, MONITOR = "APTTrain", "APTOverfitIndicatorMonitor"
# The editor asks for a help page in its own language first, and takes this pack's one page after that.
EXPECTED = re.compile(r"/docs/\w+/en\.md: Failed to load resource: .* 404 ")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as chromium:
        yield chromium


@pytest.fixture(scope="module", autouse=True)
def bare(
    browser: Browser, place: tuple[Path, str], checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> set[str]:
    """What the console says on the host alone; it has ended before the host with the pack starts."""
    folder = tmp_path_factory.mktemp("bare")
    link_checkpoints(folder, checkpoints)
    g = Graph()
    text_to_image(g, *checkpoint(g, "sd15.safetensors"), prompt="a toy")
    with Host(folder, *place, options=("--disable-all-custom-nodes",)) as host, browser.page(host) as editor:
        editor.do("async ([prompt]) => { await app.loadApiJson(prompt, 'drawing') }", g.prompt)
        host.wait(editor.queue())
        help_of(editor, "KSampler")
        browse(editor)
        editor.reopen()
        return set(editor.said)


@pytest.fixture(scope="module")
def page(browser: Browser, bare: set[str], host: Host, checkpoints: dict[str, Path]) -> Iterator[Editor]:
    """On a host that has the files which the examples name."""
    for kind, name in PUBLISHED.items():
        link(host.folder / "models" / "checkpoints" / name, checkpoints[kind])
    host.upload("example.png", picture(0))
    with browser.page(host) as editor:
        yield editor


@pytest.fixture
def editor(page: Editor, bare: set[str]) -> Iterator[Editor]:
    """The page; a test fails if the console says what it does not say on the bare host."""
    yield page
    heard, page.said[:] = page.said[:], []
    assert [line for line in heard if line not in bare and not EXPECTED.search(line)] == []


# ---- a run -----------------------------------------------------------------------------------------------------


def test_a_run_is_seen_while_it_goes_and_by_a_page_opened_again(host: Host, editor: Editor) -> None:
    opened(editor, steps=16, seed=1)
    assert "the curves appear here" in line(editor)
    queued = editor.queue()
    after(editor, 2)
    early, live = curves(editor), live_picture(editor)
    after(editor, 5)
    assert differ(early, curves(editor)) and differ(live, live_picture(editor))

    editor.reopen()
    after(editor, 5)  # what it had missed, and what has come since
    assert host.history(queued) is None
    assert ink(curves(editor))
    host.wait(queued, timeout=300)
    editor.until(f"() => {LINE}.startsWith('done')")
    assert "16 / 16" in line(editor) and ink(curves(editor))
    assert "Step 16" in editor.do(f"() => {PANEL}.lastElementChild.textContent")

    again = host.wait(editor.queue())
    assert {node["id"] for node in editor.workflow()["nodes"] if node["type"] == TRAINER} <= {
        int(number) for number in again.cached
    }


def test_a_page_that_was_open_before_watches_another_pages_run(host: Host, editor: Editor) -> None:
    """Of the same workflow. The host tells of the run to the page that queued it alone."""
    opened(editor, steps=100, seed=3)
    workflow = {"id": editor.workflow()["id"]}
    queued = host.queue(editor.prompt(), "another page", extra_pnginfo={"workflow": workflow})
    editor.until(f"() => /^step [1-9]\\d* \\/ 100/.test({LINE})")
    editor.until(HAS_CURVES)  # which are asked for once the run is known
    host.interrupt(queued)
    editor.until(f"() => {LINE}.startsWith('stopped')")


def test_a_run_inside_a_subgraph_is_seen_too(host: Host, editor: Editor) -> None:
    opened(editor, steps=8, seed=2)
    editor.do(INTO_SUBGRAPH, [TRAINER, MONITOR])
    editor.page.wait_for_timeout(500)
    editor.fit()
    queued = editor.queue()
    after(editor, 1)
    early, live = curves(editor), live_picture(editor)
    after(editor, 4)
    assert differ(early, curves(editor)) and differ(live, live_picture(editor))
    host.wait(queued, timeout=300)
    editor.until(f"() => {LINE}.startsWith('done')")
    editor.do("() => app.canvas.setGraph(app.rootGraph)")


@pytest.mark.parametrize("extra", [{}, {"extra_pnginfo": {}}, {"extra_pnginfo": {"workflow": {"nodes": []}}}])
def test_a_run_that_a_script_queued_is_on_no_open_workflows_monitor(
    host: Host, editor: Editor, extra: dict[str, Any]
) -> None:
    """Over HTTP and without a workflow's id its node numbers mean nothing in the page, though they are the same."""
    opened(editor, steps=2, seed=40 + len(str(extra)))
    heard = editor.do(HEAR)
    assert heard == 0 and "the curves appear here" in line(editor)
    host.wait(host.queue(editor.prompt(), **extra), timeout=300)
    editor.until("() => window.aptHeard.includes('done')")
    editor.page.wait_for_timeout(2000)
    assert "the curves appear here" in line(editor) and not ink(curves(editor))
    editor.do("() => { delete window.aptHeard }")


HEAR = """async () => {
  const { api } = await import("/scripts/api.js");
  window.aptHeard = [];
  api.addEventListener("apt_train.finished", ({ detail }) => window.aptHeard?.push(detail.state));
  return window.aptHeard.length;
}"""


def opened(editor: Editor, steps: int, seed: int) -> None:
    """The monitor's example, made small."""
    editor.load(read(WATCHED))
    editor.set("APTImageSet", folder=photos(editor.host))
    editor.set(TRAINER, steps=steps, seed=seed, resolution=64, rank=4)
    editor.set("KSampler", steps=2)
    editor.set("EmptyLatentImage", width=64, height=64)


def photos(host: Host) -> str:
    """A folder of pictures in the host's input folder; its name there."""
    folder = host.folder / "input" / "watched"
    folder.mkdir(exist_ok=True)
    for seed in range(3):
        picture(seed).save(folder / f"{seed}.png")
    return folder.name


PANEL = "document.querySelector('.apt-train-monitor')"
LINE = f"({PANEL}?.firstElementChild.textContent ?? '')"
HAS_CURVES = f"""() => {{
  const [shown, blank] = [{PANEL}.querySelector('canvas'), document.createElement('canvas')];
  [blank.width, blank.height] = [shown.width, shown.height];
  return shown.toDataURL() !== blank.toDataURL();
}}"""
TRAINING_NODE = f"""[app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes)
  .find((node) => node.type === '{TRAINER}')"""
INTO_SUBGRAPH = """([types]) => {
  const nodes = app.graph.nodes.filter((node) => types.includes(node.type));
  const { subgraph } = app.graph.convertToSubgraph(new Set(nodes));
  app.canvas.setGraph(subgraph);
}"""


def line(editor: Editor) -> str:
    return editor.do(f"() => {LINE}")


def after(editor: Editor, steps: int) -> None:
    """Once the monitor and the training node show a run that has come so far."""
    editor.until(f"([steps]) => Number({LINE}.match(/^step (\\d+) \\//)?.[1]) >= steps", steps)
    editor.until(f"() => {TRAINING_NODE}.imgs?.[0]?.naturalWidth")


def curves(editor: Editor) -> Image.Image:
    """As they stand."""
    return decoded(editor.do(f"() => {PANEL}.querySelector('canvas').toDataURL()"))


def live_picture(editor: Editor) -> Image.Image:
    """The one on the training node."""
    return decoded(
        editor.do(
            f"""() => {{
              const [image] = {TRAINING_NODE}.imgs;
              const canvas = document.createElement("canvas");
              [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
              canvas.getContext("2d").drawImage(image, 0, 0);
              return canvas.toDataURL();
            }}"""
        )
    )


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")


def differ(one: Image.Image, other: Image.Image) -> bool:
    return one.size != other.size or ImageChops.difference(one, other).getbbox(alpha_only=False) is not None


def ink(picture: Image.Image) -> bool:
    """Whether anything is drawn."""
    return picture.getbbox() is not None


def test_a_monitor_that_is_in_no_open_graph_keeps_nothing_running(editor: Editor) -> None:
    """Neither a copy that is never placed (the editor makes one at every Ctrl+C) nor one that lay in a subgraph of a
    workflow that was closed; one in a subgraph that is open goes on."""
    new_node(editor, MONITOR)
    editor.page.wait_for_timeout(4000)  # those of earlier tests
    editor.do(
        """() => {
          const [set, clear] = [window.setInterval, window.clearInterval];
          const going = (window.aptGoing = new Set());
          window.setInterval = (...given) => {
            const id = set(...given);
            if (given[0].name === "tick" && given[1] === 1000) going.add(id);
            return id;
          };
          window.clearInterval = (id) => { going.delete(id); clear(id) };
        }"""
    )
    going = "() => window.aptGoing.size"
    unplaced = editor.do(
        """() => {
          const [placed] = app.graph.nodes;
          app.graph.remove(placed); // stops what went before
          window.aptNode = LiteGraph.createNode(placed.type);
          return window.aptGoing.size;
        }"""
    )
    placed = editor.do("() => { app.graph.add(window.aptNode); window.aptNode.clone(); return window.aptGoing.size }")
    assert (unplaced, placed) == (0, 1)
    editor.do("() => { app.graph.convertToSubgraph(new Set([window.aptNode])) }")
    editor.page.wait_for_timeout(5000)
    assert editor.do(going) == 1
    new_node(editor, "KSampler")
    editor.page.wait_for_timeout(5000)
    assert editor.do(going) == 0
    editor.reopen()


# ---- around it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node_type", [TRAINER, "APTAttentionAlignPreview"])
def test_a_new_nodes_seed_stays_as_it_is(editor: Editor, node_type: str) -> None:
    """Else every queue would train again."""
    new_node(editor, node_type)
    values = editor.do("() => Object.fromEntries(app.graph.nodes[0].widgets.map((w) => [w.label ?? w.name, w.value]))")
    assert values["control after generate"] == "fixed" and values["seed"] == 0


@pytest.mark.parametrize("node_type", [TRAINER, "APTTrainOptions", "APTAttentionAlignPreview", MONITOR, "APTImageSet"])
def test_the_help_page_opens(editor: Editor, node_type: str) -> None:
    help_of(editor, node_type)
    page = (dev.ROOT / "web" / "docs" / f"{node_type}.md").read_text(encoding="utf-8")
    (title,) = re.findall(r"^# (.+)$", page, re.MULTILINE)
    editor.page.get_by_role("heading", name=title, exact=True).wait_for(timeout=60_000)


def new_node(editor: Editor, node_type: str) -> None:
    """Alone in a new workflow, in sight."""
    editor.do(
        """async ([type]) => {
          await app.extensionManager.command.execute("Comfy.NewBlankWorkflow");
          const node = LiteGraph.createNode(type);
          app.graph.add(node);
          [node.pos, app.canvas.ds.scale, app.canvas.ds.offset] = [[300, 300], 1, [0, 0]];
          app.canvas.setDirty(true, true);
        }""",
        node_type,
    )
    editor.until("() => app.canvas.visible_nodes.includes(app.graph.nodes[0])")


def help_of(editor: Editor, node_type: str) -> None:
    """By a click on the node's title and one on the i above it."""
    new_node(editor, node_type)
    place = editor.do(
        """() => {
          const { x, y } = app.canvas.canvas.getBoundingClientRect();
          return [x + 300 + 100, y + 300 - 15];
        }"""
    )
    editor.page.mouse.click(*place)
    editor.page.get_by_test_id("info-button").click(timeout=60_000)
    editor.page.wait_for_timeout(1000)


def test_the_examples_open_from_the_template_browser(editor: Editor) -> None:
    browse(editor)
    editor.page.get_by_text(dev.PACK, exact=True).click()
    for path in EXAMPLES:
        editor.until("([card]) => document.querySelector(card + ' img')?.naturalWidth > 0", card(path))
    editor.page.locator(card(WATCHED)).click()
    editor.until("([name]) => app.extensionManager.workflow.activeWorkflow?.filename === name", WATCHED.stem)
    editor.until("([count]) => app.rootGraph.nodes.length === count", len(read(WATCHED)["nodes"]))
    assert editor.unknown() == []
    assert editor.page.get_by_text("missing", exact=False).count() == 0


def card(path: Path) -> str:
    return f"[data-testid='template-workflow-{path.stem}']"


def browse(editor: Editor) -> None:
    """Opens the template browser."""
    editor.do("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
    editor.page.get_by_test_id("template-filter-bar").wait_for(timeout=60_000)


def test_the_blueprint_is_found_and_put_into_a_graph(host: Host, editor: Editor) -> None:
    entries: list[dict[str, Any]] = list(host.get("/global_subgraphs").values())
    ours = [entry["name"] for entry in entries if dev.PACK in entry["info"]["node_pack"]]
    assert ours == [BLUEPRINT.stem]
    editor.do("async () => { await app.extensionManager.command.execute('Comfy.NewBlankWorkflow') }")
    search(editor, BLUEPRINT.stem)
    editor.page.get_by_text("Subgraph Blueprints / Training / APT").first.wait_for(timeout=60_000)
    editor.page.keyboard.press("Enter")
    editor.until("([title]) => app.graph.nodes.some((node) => node.title === title)", BLUEPRINT.stem)


BOX = "Add a node..."


def search(editor: Editor, words: str) -> None:
    """In the box that a double click opens. It takes keys once it has the focus; until then the canvas takes them.

    A page that is busy takes a double click for two clicks now and then: a user clicks again, and so does this.
    """
    from playwright.sync_api import TimeoutError as NotYet

    canvas, box = editor.page.locator("#graph-canvas"), editor.page.get_by_placeholder(BOX)
    for _ in range(5):
        canvas.dblclick(position={"x": 800, "y": 600})  # waits until nothing lies over it
        with suppress(NotYet):
            box.wait_for(timeout=10_000)
            break
    editor.until("([box]) => document.activeElement === document.querySelector(`input[placeholder='${box}']`)", BOX)
    editor.page.keyboard.type(words)
