"""The screenshot of a finished run in the editor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

import dev

from ..editor import Editor
from ..server import Host
from .examples import NEGATIVE, SD15, canvas, checkpoint, drawn, encoded, photos, prompt, saved, training
from .sketch import Sketch, group, script

SUBJECT = dev.ROOT / "apt_train" / "assets" / "demo" / "subject"
TINY: dict[str, Any] = {"steps": 100, "resolution": 64, "learning_rate": 1e-3, "rank": 8}  # for a random model


def subject(host: Host) -> str:
    """A folder of the demo's pictures, large, in the host's input folder; its name there."""
    folder = host.folder / "input" / "my_toy"
    folder.mkdir(exist_ok=True)
    for path in sorted(SUBJECT.glob("*.png")):
        enlarged(path).save(folder / path.name)
    return folder.name


def enlarged(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB").resize((512, 512), Image.Resampling.BICUBIC)


def finish(editor: Editor) -> None:
    """Runs what is open; with a real checkpoint that takes its time. Waits until the notice of it has gone."""
    editor.host.wait(editor.queue(), timeout=24 * 3600)
    editor.page.wait_for_timeout(8000)


def screenshot(editor: Editor, *, real: bool) -> bytes:
    """A finished run, as a PNG: the pictures, the training node, the monitor, and what the picked snapshot draws.

    `real`: the checkpoint is a real one, and is given the steps and the size that it needs.
    """
    s, folder = Sketch(), subject(editor.host)
    editor.reopen()  # a page that was there first marks pictures it has not heard of as missing
    run_and_draw(s, folder, {} if real else TINY, 512 if real else 64)
    s.draw(editor)
    finish(editor)
    width, height = editor.page.viewport_size["width"], editor.page.viewport_size["height"]
    editor.do(script("frame.js"), [], [70, 100, width - 12, height - 60])  # beside the bars
    editor.page.wait_for_timeout(2000)
    return editor.screenshot()


def run_and_draw(s: Sketch, folder: str, settings: dict[str, Any], side: int) -> None:
    loader = checkpoint(s, SD15)
    images, learned = photos(s, folder=folder)
    train = training(s, loader, learned, size=(400, 960), **settings)
    monitor = s.node("APTOverfitIndicatorMonitor", {"run": train["APT_RUN"]}, size=(500, 1110))
    wires = {"model": loader["MODEL"], "lora": monitor["LORA_MODEL"]}
    tuned = s.node("LoraModelLoader", wires, title="The snapshot's LoRA", size=(330, 0))
    text = prompt(s, monitor["trigger"])
    positive = encoded(s, train["CLIP"], text["STRING"], "Positive")
    negative = encoded(s, train["CLIP"], NEGATIVE, "Negative")
    latent = canvas(s, side)
    sampler, picture = drawn(s, tuned["model"], positive, negative, latent, loader["VAE"])
    save = saved(s, picture, "my_toy", size=(330, 430))
    s.column(group("Photos", [images]))
    s.column(group("Train", [train]), group("Model", [loader]))
    s.column(group("Watch it overfit, or not", [monitor]))
    s.column(
        group("Draw with the picked snapshot", [tuned, text, positive, negative, latent], [sampler, picture, save])
    )
