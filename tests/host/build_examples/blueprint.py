"""The subgraph blueprint: training and drawing as one node, published by the real editor."""

from __future__ import annotations

import json
from typing import Any

from ..editor import Editor
from . import examples
from .sketch import Sketch, group, script

TITLE = "Personalize and generate"
CATEGORY = "Training/APT"
DESCRIPTION = (
    "Teaches the model one subject from 3 to 10 pictures with APT Train, then draws it: write {subject} in the prompt "
    "where it goes. Another prompt or seed draws without training again. Drawn at 512 x 512; for SDXL set 1024."
)


def blueprint(editor: Editor) -> dict[str, Any]:
    """As the editor publishes it, with the text that its node library shows."""
    s = Sketch()
    loader = examples.checkpoint(s, examples.SD15)
    photo = s.node("LoadImage", {"image": "example.png"}, size=(230, 326))
    train = examples.training(s, loader, {"images": photo["IMAGE"]}, subject="", class_word="toy")
    text = examples.prompt(s, train["trigger"])
    positive = examples.encoded(s, train["CLIP"], text["STRING"], "Positive")
    negative = examples.encoded(s, train["CLIP"], examples.NEGATIVE, "Negative")
    latent = examples.canvas(s, 512)
    sampler, picture = examples.drawn(s, train["MODEL"], positive, negative, latent, loader["VAE"])
    save = examples.saved(s, picture, "my_toy")
    s.column(group("Around it", [loader, photo]))
    s.column(group("Train", [train]))
    s.column(group("Draw", [text, positive, negative, latent], [sampler, picture]))
    s.column(group("Save", [save]))
    s.draw(editor)
    members = [box.number for box in (train, text, positive, negative, latent, sampler, picture)]
    inputs = [
        ("class_word", train.number, "class_word"), ("prompt", text.number, "string"),
        ("steps", train.number, "steps"), ("seed", sampler.number, "seed"),
        ("width", latent.number, "width"), ("height", latent.number, "height"),
    ]  # fmt: skip
    editor.do(script("wrap.js"), TITLE, members, inputs, [("trigger", train.number, "trigger")])
    return described(published(editor), train.number)


def published(editor: Editor) -> dict[str, Any]:
    file = editor.host.folder / "user" / "default" / "subgraphs" / f"{TITLE}.json"
    editor.host.until(file.is_file, 10, "did not get the blueprint")
    return json.loads(file.read_text(encoding="utf-8"))


def described(workflow: dict[str, Any], trainer: int) -> dict[str, Any]:
    """Its texts; and the training node's live picture shown on it, above the sampler's."""
    workflow["definitions"]["subgraphs"][0] |= {"category": CATEGORY, "description": DESCRIPTION}
    exposures = workflow["nodes"][0]["properties"]["previewExposures"]
    exposures.insert(0, {**exposures[0], "sourceNodeId": str(trainer)})
    return workflow
