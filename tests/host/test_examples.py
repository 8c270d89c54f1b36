"""The example workflows and the blueprint, as the real editor reads them and the real host runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dev

from .conftest import link
from .editor import Browser, Editor, lacking
from .graphs import QUICK, options, picture
from .server import Host
from .workflows import Graph

EXAMPLES = sorted((dev.ROOT / "example_workflows").glob("*.json"))
BLUEPRINT = dev.ROOT / "subgraphs" / "Personalize and generate.json"
PUBLISHED = {"sd15": "v1-5-pruned-emaonly-fp16.safetensors", "sdxl": "sd_xl_base_1.0.safetensors"}
IN_EDITOR_ALONE = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}
TRIGGERS = {"APTTrain": "trigger", "APTOverfitIndicatorMonitor": "trigger", "APTSnapshotSheet": "trigger"}
TUNED = {"APTTrain", "LoraModelLoader", "APTSnapshotSheet"}
each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
each_file = pytest.mark.parametrize("path", [*EXAMPLES, BLUEPRINT], ids=lambda path: path.stem)
with_editor = pytest.mark.skipif(bool(lacking()), reason=lacking())


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


# ---- the files -------------------------------------------------------------------------------------------------


def test_there_are_these() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "attention_preview", "check_a_lora_up", "compare_prior_dreambooth_apt", "monitor_and_pick_snapshot",
        "pick_a_snapshot", "sdxl_train_and_generate", "train_and_generate",
    ]  # fmt: skip


@each
def test_it_has_a_thumbnail(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 150_000
    with Image.open(thumbnail) as image:
        assert image.format == "JPEG" and image.width >= 640
        _, saturation, brightness = np.asarray(image.convert("HSV")).transpose(2, 0, 1)
    assert np.mean((saturation > 90) & (brightness > 60)) > 0.15, "a result has colours, an empty node has none"


@each_file
def test_it_names_no_place_on_a_machine(path: Path) -> None:
    for text in texts(read(path)):
        assert not re.search(r"(^|[\s\"'(=])(/|~/|[A-Za-z]:\\)\w|localhost|127\.0\.0\.1", text), text


def texts(value: Any) -> Iterator[str]:
    """Every string in a parsed file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


@each
def test_its_nodes_stand_apart_in_titled_groups(path: Path) -> None:
    workflow = read(path)
    boxes = [frame(node) for node in workflow["nodes"]]
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:number]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
    groups = [(group["title"], group["bounding"]) for group in workflow["groups"]]
    for left, top, right, bottom in boxes:
        assert any(
            title and x <= left and y <= top and right <= x + width and bottom <= y + height
            for title, (x, y, width, height) in groups
        )


def frame(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom; the title stands above the position."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - 30, x + width, y + height


@each
def test_it_says_what_to_put_where(path: Path) -> None:
    (note,) = [node for node in read(path)["nodes"] if node["type"] == "MarkdownNote"]
    said = note["widgets_values"][0]
    assert "models/checkpoints" in said and ("**Your photos**" in said or "**The run**" in said)


@each
def test_the_user_chooses_folder_or_run_and_the_checkpoint_is_a_published_one(path: Path) -> None:
    nodes = read(path)["nodes"]
    first = [node["widgets_values"][0] for node in nodes if node["type"] in ("APTImageSet", "APTLoadRun")]
    assert first in (["none"], ["no run yet"]) and "LoadImage" not in {node["type"] for node in nodes}
    (loader,) = [node for node in nodes if node["type"] == "CheckpointLoaderSimple"]
    assert loader["widgets_values"][0] in PUBLISHED.values()
    assert loader["properties"]["models"][0]["name"] == loader["widgets_values"][0]


@each
def test_what_is_tuned_hears_its_trigger_by_the_trained_clip(path: Path) -> None:
    graph = Wires(read(path))
    samplers = graph.of("KSampler")
    if graph.of("APTLoRACheckUp"):
        assert not samplers  # it draws by itself, what a file or a user says
        return
    assert samplers
    for sampler in samplers:
        positive = graph.source(sampler, "positive")
        trains = "APTTrain" if graph.of("APTTrain") else "CheckpointLoaderSimple"
        assert graph.source(positive, "clip")["type"] == trains
        tuned = graph.source(sampler, "model")["type"] in TUNED
        assert tuned == any(TRIGGERS.get(node["type"]) == output for node, output in graph.before(positive, "text"))
    assert any(graph.source(sampler, "model")["type"] in TUNED for sampler in samplers)


class Wires:
    """Who is wired to whom in a workflow file."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {link[0]: link for link in workflow["links"]}

    def of(self, node_type: str) -> list[dict[str, Any]]:
        return [node for node in self.nodes.values() if node["type"] == node_type]

    def wire(self, node: dict[str, Any], name: str) -> tuple[dict[str, Any], str] | None:
        """The node and the output that an input comes from."""
        number = next(slot["link"] for slot in node["inputs"] if slot["name"] == name)
        if number is None:
            return None
        source = self.nodes[self.links[number][1]]
        return source, source["outputs"][self.links[number][2]]["name"]

    def source(self, node: dict[str, Any], name: str) -> dict[str, Any]:
        wire = self.wire(node, name)
        assert wire is not None, (node["type"], name)
        return wire[0]

    def before(self, node: dict[str, Any], name: str) -> Iterator[tuple[dict[str, Any], str]]:
        """Everything that an input's text is made of, by text nodes."""
        wire = self.wire(node, name)
        if wire is not None:
            yield wire
            if wire[0]["type"].startswith("String"):
                for slot in wire[0]["inputs"]:
                    yield from self.before(wire[0], slot["name"])


# ---- on the host -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def furnished(host: Host, checkpoints: dict[str, Path]) -> None:
    """The files that the examples name: tiny checkpoints, and a tiny picture."""
    for kind, name in PUBLISHED.items():
        link(host.folder / "models" / "checkpoints" / name, checkpoints[kind])
    host.upload("example.png", picture(0))
    photos = host.folder / "input" / "my_toy"
    photos.mkdir()
    for seed in range(3):
        picture(seed).save(photos / f"{seed}.png")


@pytest.fixture(scope="module")
def known(host: Host) -> dict[str, Any]:
    return host.object_info()


@each_file
def test_the_host_knows_every_node(known: dict[str, Any], path: Path) -> None:
    workflow = read(path)
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    nodes = [node for graph in (workflow, *subgraphs) for node in graph["nodes"]]
    types = {node["type"] for node in nodes} - {graph["id"] for graph in subgraphs}
    assert types - IN_EDITOR_ALONE <= known.keys()


@pytest.fixture(scope="module")
def editor(host: Host, furnished: None) -> Iterator[Editor]:
    with Browser() as browser, browser.page(host) as page:
        yield page


@with_editor
@each
def test_it_runs_to_images(host: Host, editor: Editor, path: Path) -> None:
    editor.load(read(path))
    prompt = small(editor.prompt())
    if "sdxl" in path.stem:
        quick(prompt)
    for node in prompt.values():
        if node["class_type"] == "APTLoadRun":  # one that the templates before it have trained
            node["inputs"]["run"] = host.object_info("APTLoadRun")["input"]["required"]["run"][1]["options"][0]
        if node["class_type"] == "APTLoRACheckUp":
            choices = host.object_info("APTLoRACheckUp")["input"]["required"]["lora_name"][1]["options"]
            node["inputs"]["lora_name"] = choices[1]
    result = host.run(prompt, timeout=300)
    savers = [number for number, node in prompt.items() if node["class_type"] == "SaveImage"]
    sizes = {host.image(result.outputs[number]["images"][0]).size for number in savers}
    assert sizes == {(64, 64)} if path.stem != "check_a_lora_up" else min(min(sizes)) >= 600


def small(prompt: dict[str, Any]) -> dict[str, Any]:
    """A prompt for seconds instead of hours."""
    sizes = {
        "APTImageSet": {"folder": "my_toy"},
        "APTLoRACheckUp": {"resolution": 64, "sample_steps": 0, "strengths": "1.0", "draws": 1},
        "APTSnapshotSheet": {"width": 64, "height": 64, "sampler_steps": 1},
        "APTTrain": {"steps": 1, "rank": 4, "resolution": 64},
        "KSampler": {"steps": 2},
        "EmptyLatentImage": {"width": 64, "height": 64},
    }
    for node in prompt.values():
        for name, value in sizes.get(node["class_type"], {}).items():
            wire = node["inputs"][name]
            if isinstance(wire, list):
                prompt[wire[0]]["inputs"]["value"] = value
            else:
                node["inputs"][name] = value
    return prompt


def quick(prompt: dict[str, Any]) -> None:
    """Without a learned word, whose way through SDXL's text encoders is most of the time."""
    g = Graph()
    node = options(g, **QUICK)
    prompt["options"] = g.prompt[node.id]
    for trainer in prompt.values():
        if trainer["class_type"] == "APTTrain":
            trainer["inputs"]["options"] = ["options", 0]


@with_editor
@each
def test_the_file_is_what_the_editor_writes(editor: Editor, path: Path) -> None:
    """Also: no widget has moved since. `python -m tests.host.build_examples` makes the files anew."""
    workflow = read(path)
    editor.load(workflow)
    written = editor.workflow()
    assert {node["id"]: essence(node) for node in written["nodes"]} == {
        node["id"]: essence(node) for node in workflow["nodes"]
    }
    assert sorted(written["links"]) == sorted(workflow["links"])


def essence(node: dict[str, Any]) -> dict[str, Any]:
    """What a node is, but for its size, which a preview may change."""
    slots = [[slot["name"] for slot in node.get(side, ())] for side in ("inputs", "outputs")]
    return {"type": node["type"], "values": node.get("widgets_values"), "slots": slots, "at": node["pos"]}


@with_editor
def test_the_blueprint_trains_and_draws(host: Host, editor: Editor) -> None:
    editor.load(read(BLUEPRINT))
    (node,) = read(BLUEPRINT)["nodes"]
    assert [slot["name"] for slot in node["outputs"]] == ["IMAGE", "trigger"]
    assert {slot["name"] for slot in node["inputs"]} >= {
        "model",
        "clip",
        "vae",
        "images",
        "class_word",
        "prompt",
        "steps",
        "width",
        "height",
    }
    editor.do(AROUND)
    prompt = small(editor.prompt())
    shown = host.run(prompt, timeout=300).outputs
    (saver,) = [number for number, node in prompt.items() if node["class_type"] == "SaveImage"]
    (reader,) = [number for number, node in prompt.items() if node["class_type"] == "PreviewAny"]
    assert host.image(shown[saver]["images"][0]).size == (64, 64)
    assert shown[reader]["text"][0].startswith("embedding:toy_subject_")


AROUND = """() => {
  const [inner] = app.graph.nodes;
  const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
  const wire = (from, output, to, input) => from.connect(from.findOutputSlot(output), to, to.findInputSlot(input));
  const loader = add("CheckpointLoaderSimple");
  loader.widgets[0].value = "sd15.safetensors";
  for (const name of ["model", "clip", "vae"]) wire(loader, name.toUpperCase(), inner, name);
  const picture = add("LoadImage");
  picture.widgets[0].value = "example.png";
  wire(picture, "IMAGE", inner, "images");
  wire(inner, "IMAGE", add("SaveImage"), "images");
  wire(inner, "trigger", add("PreviewAny"), "source");
}"""


# ---- comfy-cli, where it is installed: heavy, so no dependency of the tests -----------------------------------------

CLI = shutil.which("comfy")
with_cli = pytest.mark.skipif(CLI is None, reason="no comfy-cli (`comfy`) on the path")


def comfy(*options: str, home: Path, folder: Path = dev.ROOT) -> subprocess.CompletedProcess[str]:
    quiet = {**os.environ, "DO_NOT_TRACK": "1", "HOME": str(home)}
    command = [str(CLI), "--skip-prompt", *options]
    return subprocess.run(command, cwd=folder, env=quiet, capture_output=True, text=True, timeout=120)


@with_cli
@each
def test_comfy_cli_finds_the_workflow_valid(known: dict[str, Any], path: Path, tmp_path: Path) -> None:
    info = tmp_path / "object_info.json"
    info.write_text(json.dumps(known))
    done = comfy("--json", "workflow", "validate", "--workflow", str(path), "--input", str(info), home=tmp_path)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["ok"], answer["error"]
    assert answer["data"]["valid"] and not answer["data"]["warnings"]


@with_cli
def test_comfy_cli_finds_the_pack_valid(host: Host, tmp_path: Path) -> None:
    done = comfy("node", "validate", home=tmp_path, folder=host.folder / "custom_nodes" / dev.PACK)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "All validation checks passed" in said and "warning" not in said, said
