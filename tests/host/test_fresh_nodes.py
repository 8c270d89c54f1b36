"""Every node of the pack as an artist gets it: found by its name, put into the graph, left as it is, and run.

In: both renderers; what the editor puts into the widgets; workflows saved when a widget was another one. Not in: the
rest of what the editor shows (`test_editor`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..node_texts import nodes
from .editor import SETTINGS, Browser, Editor, lacking
from .graphs import picture, training_graph, untouched
from .server import Host, HostError
from .test_editor import search
from .test_examples import EXAMPLES, read

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

OPTIONS = "APTTrainOptions"
BLANK = "async () => { await app.extensionManager.command.execute('Comfy.NewBlankWorkflow') }"
VALUES = """([type]) => Object.fromEntries(
  app.graph.nodes.find((node) => node.type === type).widgets.map((widget) => [widget.name, widget.value]))"""
# What a graph needs beside the pack's own nodes; steps and resolution come by wire, so that no widget is touched.
AROUND = """() => {
  const add = (type, ...values) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    values.forEach((value, i) => { node.widgets[i].value = value });
    return node;
  };
  const find = (type) => app.graph.nodes.find((node) => node.type === type);
  const [trainer, preview, monitor, pictures, sheet, checkUp] = [
    "APTTrain", "APTAttentionAlignPreview", "APTOverfitIndicatorMonitor", "APTImageSet", "APTSnapshotSheet",
    "APTLoRACheckUp",
  ].map(find);
  const options = ["APTTrainOptions", "APTDataOptions", "APTMethodOptions", "APTSampleOptions", "APTAdapterOptions"]
    .map(find);
  const wire = (from, output, to, input) => {
    from.connect(from.outputs.findIndex((slot) => slot.name === output), to, to.findInputSlot(input));
  };
  const loader = add("CheckpointLoaderSimple", "sd15.safetensors");
  for (const name of ["model", "clip", "vae"]) wire(loader, name.toUpperCase(), trainer, name);
  wire(add("LoadImage", "example.png"), "IMAGE", pictures, "images");
  for (const name of ["images", "captions", "masks"]) wire(pictures, name, trainer, name);
  wire(add("PrimitiveInt", 1), "INT", trainer, "steps");
  wire(add("PrimitiveInt", 64), "INT", trainer, "resolution");
  options.forEach((node, i) => wire(node, "options", options[i + 1] ?? trainer, "options"));
  trainer.widgets.find((widget) => widget.name === "class_word").value = "toy";
  wire(trainer, "APT_RUN", monitor, "run");
  wire(trainer, "APT_RUN", preview, "run");
  for (const name of ["model", "clip"]) wire(loader, name.toUpperCase(), preview, name);
  wire(trainer, "MODEL", preview, "tuned");
  wire(trainer, "APT_RUN", sheet, "run");
  for (const name of ["model", "clip", "vae"]) wire(loader, name.toUpperCase(), sheet, name);
  for (const name of ["width", "height"]) wire(add("PrimitiveInt", 64), "INT", sheet, name);
  wire(add("PrimitiveInt", 1), "INT", sheet, "sampler_steps");
  for (const name of ["model", "clip", "vae"]) wire(loader, name.toUpperCase(), checkUp, name);
  wire(trainer, "LORA_MODEL", checkUp, "lora");
  wire(trainer, "APT_RUN", checkUp, "run");
  wire(add("PrimitiveInt", 64), "INT", checkUp, "resolution");
  wire(add("PrimitiveInt", 0), "INT", checkUp, "sample_steps");
  wire(add("PrimitiveString", "1.0"), "STRING", checkUp, "strengths");
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as chromium:
        yield chromium


@pytest.fixture(params=[False, True], ids=["classic", "nodes-2.0"])
def editor(request: pytest.FixtureRequest, browser: Browser, host: Host) -> Iterator[Editor]:
    host.upload("example.png", picture(0))
    with browser.page(host, Comfy__VueNodes__Enabled=request.param) as page:
        page.do(BLANK)
        yield page


def add(editor: Editor, node_type: str) -> None:
    """By its name in the editor's search; a deprecated node, which is not found there, as a saved workflow adds it."""
    if nodes()[node_type].deprecated:
        editor.do("([type]) => { app.graph.add(LiteGraph.createNode(type)) }", node_type)
    else:
        add_by_search(editor, node_type)


def add_by_search(editor: Editor, node_type: str) -> None:
    search(editor, nodes()[node_type].display_name)
    editor.page.get_by_text(nodes()[node_type].display_name, exact=True).first.wait_for(timeout=60_000)
    editor.page.keyboard.press("Enter")
    editor.until("([type]) => app.graph.nodes.some((node) => node.type === type)", node_type)
    # Out of the way of the next double click.
    editor.do(
        "() => { for (const node of app.graph.nodes) node.pos = [-3000, -3000]; app.canvas.setDirty(true, true) }"
    )


def test_every_node_runs_as_the_editor_makes_it(host: Host, editor: Editor) -> None:
    for node_type in nodes():
        add(editor, node_type)
        values = editor.do(VALUES, node_type)
        assert {name: values[name] for name in untouched(node_type)} == untouched(node_type)
    editor.do(AROUND)
    host.wait(editor.queue(), timeout=600)


NEW_OPTIONS = ["APTMethodOptions", "APTAdapterOptions", "APTDataOptions", "APTSampleOptions"]
HEIGHT = """([type]) => {
  const node = app.graph.nodes.find((node) => node.type === type);
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  return element ? element.getBoundingClientRect().height / app.canvas.ds.scale : node.size[1] + 30;
}"""


@pytest.mark.parametrize("node_type", NEW_OPTIONS)
def test_an_options_node_fits_on_a_screen(editor: Editor, node_type: str) -> None:
    """With its advanced widgets hidden, as it is new."""
    editor.do("([type]) => { app.graph.add(LiteGraph.createNode(type)) }", node_type)
    editor.page.wait_for_timeout(1000)
    assert 60 < editor.do(HEIGHT, node_type) < 600


def test_a_monitor_is_seen_after_an_undo(editor: Editor) -> None:
    """Which makes every node anew. Where Nodes 2.0 drew the old monitor, the host puts no element of the new one."""
    editor.do("() => { app.graph.add(LiteGraph.createNode('APTOverfitIndicatorMonitor')) }")
    seen = "() => app.graph.nodes[0]?.widgets.find(({ element }) => element)?.element.checkVisibility()"
    editor.until(seen)
    old = editor.page.evaluate_handle("() => app.graph.nodes[0]")
    editor.do(
        """async () => {
          const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
          tracker.captureCanvasState();
          app.graph.add(LiteGraph.createNode("KSampler"));
          tracker.captureCanvasState();
          await tracker.undo();
        }"""
    )
    assert editor.page.evaluate("(old) => app.graph.nodes.length === 1 && app.graph.nodes[0] !== old", old)
    editor.until(seen, timeout=10)


def test_the_search_offers_no_node_of_earlier_versions(editor: Editor) -> None:
    search(editor, "apt options")
    editor.page.get_by_text("APT Method Options", exact=True).first.wait_for(timeout=60_000)
    assert not editor.page.get_by_text("APT Train Options", exact=True).count()


OLD_KINDS = {
    "never set": ([], "affine"),
    "the default": (["affine"], "affine"),
    "two": (["flip", "affine"], "affine+flip"),
    "all": (["color", "flip", "affine"], "affine+flip+color"),
}


def test_a_list_of_kinds_in_a_saved_workflow_becomes_the_choice_it_means(editor: Editor) -> None:
    editor.do("([type]) => { app.graph.add(LiteGraph.createNode(type)) }", OPTIONS)
    workflow = editor.workflow()
    (node,) = workflow["nodes"]
    place = [slot.id for slot in nodes()[OPTIONS].inputs if "default" in slot.more].index("augment_kinds")
    for kinds, choice in OLD_KINDS.values():
        node["widgets_values"][place] = kinds
        editor.load(workflow)
        assert editor.do(VALUES, OPTIONS)["augment_kinds"] == choice
        assert [node["inputs"]["augment_kinds"] for node in editor.prompt().values()] == [choice]


# ---- a subject's name in a prompt ------------------------------------------------------------------------------------


def test_every_example_fills_in_its_subject_unless_the_trainer_is_bypassed(host: Host, browser: Browser) -> None:
    (module,) = [path for path in host.get("/extensions") if path.endswith("/prompts.js")]
    with browser.page(host) as editor:
        call = "async ([path, graphs]) => { const m = await import(path); return graphs.map(m.isUnfilled) }"
        for path in EXAMPLES:
            editor.load(read(path))
            assert editor.do(call, module, [editor.prompt()]) == [False], path.stem
        editor.load(read(next(path for path in EXAMPLES if path.stem == "train_and_generate")))
        editor.do(BYPASSED)
        editor.page.get_by_text("becomes nothing, so the picture lacks your subject").wait_for(timeout=30_000)


BYPASSED = """async () => {
  app.graph.nodes.find((node) => node.type === "APTTrain").mode = 4;
  const { api } = await import("/scripts/api.js");
  api.dispatchCustomEvent("promptQueued", { number: 1, batchCount: 1 });
}"""


def test_a_notice_says_so_when_the_prompt_is_queued(host: Host, browser: Browser) -> None:
    with browser.page(host) as editor:
        editor.do(BLANK)
        editor.do(NAMED_IN_VAIN)
        editor.page.get_by_text("my_toy alone shows no subject").wait_for(timeout=30_000)


NAMED_IN_VAIN = """async () => {
  const [trainer, encoder] = ["APTTrain", "CLIPTextEncode"].map((type) => LiteGraph.createNode(type));
  for (const node of [trainer, encoder]) app.graph.add(node);
  trainer.widgets.find((widget) => widget.name === "subject").value = "my_toy";
  trainer.connect(1, encoder, encoder.findInputSlot("clip"));
  encoder.widgets[0].value = "my_toy on the beach";
  const { api } = await import("/scripts/api.js");
  api.dispatchCustomEvent("promptQueued", { number: 1, batchCount: 1 });
}"""


# ---- Chinese -----------------------------------------------------------------------------------------------------


def test_a_chinese_editor_is_chinese_in_monitor_combos_and_notices(host: Host, browser: Browser) -> None:
    (module,) = [path for path in host.get("/extensions") if path.endswith("/monitor_view.js")]
    series = {"points": [{"step": 3, "loss": 0.5, "gamma": [0.25]}], "total": 9, "state": "stopped"}
    try:
        with browser.page(host, Comfy__Locale="zh") as editor:
            said = "async ([path, series]) => (await import(path)).statusOf(series)"
            assert (
                editor.do(said, module, series)
                == "已停止 · 第 3 / 9 步 · 损失 0.500 · 平均 gamma 0.25 · 再次加入队列即可继续"
            )
            editor.do(BLANK)
            for node_type in nodes():
                editor.do("([type]) => { app.graph.add(LiteGraph.createNode(type)) }", node_type)
            shown = editor.do(LABELS)
            assert shown["resume"] == "automatic（自动）" and shown["augment_kinds"] == "affine（缩放与旋转）"
            assert shown["method"] == "APT" and shown["fixed"] == "fixed", "the host's own control of a seed"
            boxes = editor.do(BOXES)
            assert boxes["sample_prompts"] == "样图提示词: a {subject} on a beach"
            assert [name for name, words in boxes.items() if name in words] == []
            line = "document.querySelector('.apt-train-monitor').firstElementChild.textContent"
            assert editor.until(f"() => {line}") == "请连接一个 APT 训练节点的 APT_RUN。"
    finally:
        host.post("/settings", **{"Comfy.Locale": "en"})


def test_no_choice_of_a_new_node_is_cut_off_in_a_chinese_editor(host: Host, browser: Browser) -> None:
    """In Nodes 2.0, whose page has elements to be measured."""
    try:
        with browser.page(host, 3000, 1600, Comfy__Locale="zh", Comfy__VueNodes__Enabled=True) as editor:
            editor.do(BLANK)
            editor.do(SIDE_BY_SIDE, [name for name, node in nodes().items() if not node.deprecated])
            shown = editor.until(f"() => {{ const found = ({CHOICES})(); return found.length > 15 && found }}")
            assert [text for text, needed, width in shown if needed > width + 1] == []
    finally:
        host.post("/settings", **{"Comfy.Locale": "en"})


def test_the_servers_sentences_are_in_the_browsers_language_where_none_was_chosen(host: Host, browser: Browser) -> None:
    (module,) = [path for path in host.get("/extensions") if path.endswith("/texts.js")]
    sentence = "class_word is empty: say what the subject is, for example toy or dog."
    host.upload("example.png", picture(0))
    host.post("/settings", **SETTINGS, **{"Comfy.Locale": None})
    visitor = browser.chromium.new_context(viewport={"width": 1600, "height": 1000}, locale="zh-CN")
    try:
        with Editor(host, visitor.new_page()) as editor:
            translated = editor.do("async ([path, said]) => (await import(path)).saySentence(said)", module, sentence)
            assert translated.startswith("class_word 为空")
            mistake = training_graph(["example.png"], class_word="")[0].prompt
            host.until(lambda: "class_word 为空" in told_by(host, mistake), 30, "spoke no Chinese", pause=0.5)
    finally:
        host.post("/settings", **{"Comfy.Locale": "en"})


def told_by(host: Host, mistake: dict[str, Any]) -> str:
    with pytest.raises(HostError) as caught:
        host.queue(mistake)
    return caught.value.sentence


# As the classic renderer draws them; the newer one asks the same function.
LABELS = """() => Object.fromEntries(app.graph.nodes.flatMap((node) => node.widgets)
  .filter((widget) => widget.type === "combo").map((widget) => [widget.name, widget._displayValue]))"""
BOXES = """() => Object.fromEntries(app.graph.nodes.flatMap((node) => node.widgets)
  .filter(({ element }) => element instanceof HTMLTextAreaElement)
  .map(({ name, element }) => [name, element.placeholder]))"""
SIDE_BY_SIDE = """([types]) => {
  let [x, y, row] = [0, 0, 0];
  for (const type of types) {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [x, y];
    [x, row] = [x + node.size[0] + 40, Math.max(row, node.size[1])];
    if (x > 3000) [x, y, row] = [0, y + row + 150, 0];
  }
  [app.canvas.ds.scale, app.canvas.ds.offset] = [0.6, [150, 150]];
  app.canvas.setDirty(true, true);
}"""
# Text of each choice that shows, the width it needs, and the width it has.
CHOICES = """() => [...document.querySelectorAll("[data-node-id] button *")]
  .filter((element) => !element.children.length && element.textContent.includes("（") && element.clientWidth)
  .map((element) => [element.textContent, element.scrollWidth, element.clientWidth])"""
