"""Makes the example workflows, their thumbnails, the blueprint and the screenshots in docs/start.md in the real editor.

    python -m tests.host.build_examples [NAME ...] [--checkpoint FILE]

NAMEs: some of the examples, `thumbnails`, `blueprint`, `screenshot`; without them all. The tiny checkpoints stand in
for the published ones; with a Stable Diffusion 1.5 checkpoint as FILE, and time, the screenshots show real pictures.
The thumbnails are drawn by the embedded model, which takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import dev

from ..conftest import cached, link
from ..editor import Browser, Editor, lacking
from ..server import Host
from .blueprint import TITLE, blueprint
from .examples import EXAMPLES, SD15, SDXL
from .pictures import screenshot
from .results import thumbnails
from .sketch import Sketch

EXAMPLE_WORKFLOWS = dev.ROOT / "example_workflows"
SUBGRAPHS = dev.ROOT / "subgraphs"
LOOK = {
    "LiteGraph__Canvas__MinFontSizeForLOD": 0,
    "Comfy__Graph__CanvasInfo": False,
    "Comfy__VueNodes__Enabled": False,  # one renderer for all pictures, whatever was looked at before
}
SCREENSHOTS = {False: dev.ROOT / "docs" / "editor.png", True: dev.ROOT / "docs" / "editor-nodes-2.0.png"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.host.build_examples")
    names = [*EXAMPLES, "thumbnails", "blueprint", "screenshot"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="an SD1.5 checkpoint for the screenshots")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"there is no {' or '.join(unknown)}")
    place = dev.find_host()
    if place is None or lacking():
        parser.error(dev.NO_HOST if place is None else lacking())
    with tempfile.TemporaryDirectory() as folder:
        furnish(Path(folder), place[0], options.checkpoint)
        with Host(Path(folder), *place) as host, Browser() as browser:
            for name in options.names or names:
                print(name, flush=True)
                make(name, host, browser, real=options.checkpoint is not None)
    return 0


def furnish(folder: Path, place: Path, checkpoint: Path | None) -> None:
    """The checkpoints under their published names, and the picture that every host has."""
    models = folder / "models" / "checkpoints"
    models.mkdir(parents=True)
    link(models / SD15[0], checkpoint or cached("sd15"))
    link(models / SDXL[0], cached("sdxl"))
    (folder / "input").mkdir()
    shutil.copy(place / "input" / "example.png", folder / "input")


def make(name: str, host: Host, browser: Browser, *, real: bool) -> None:
    if name == "thumbnails":
        for example, picture in thumbnails(host.folder / name).items():
            picture.save(EXAMPLE_WORKFLOWS / f"{example}.jpg", "JPEG", quality=85, optimize=True)
        return
    if name == "screenshot":
        for elements, path in SCREENSHOTS.items():
            look = {**LOOK, "Comfy__VueNodes__Enabled": elements}
            with browser.page(host, 1600, 1000, scale=1.25, **look) as editor:
                path.write_bytes(screenshot(editor, real=real))
        return
    with large(host, browser) as editor:
        if name == "blueprint":
            write(SUBGRAPHS / f"{TITLE}.json", blueprint(editor))
        else:
            sketch = Sketch()
            EXAMPLES[name](sketch)
            write(EXAMPLE_WORKFLOWS / f"{name}.json", sketch.draw(editor))


def large(host: Host, browser: Browser) -> Editor:
    """Room for a graph at full size, beside the notices."""
    return browser.page(host, 2000, 1500, **LOOK)


def write(path: Path, workflow: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
