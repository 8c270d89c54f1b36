"""Graphs around the pack's nodes, and pictures for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..node_texts import nodes
from .server import Host
from .workflows import Graph, Node, checkpoint

MODEL, CLIP, LORA, RUN, LOSSES, TRIGGER = range(6)  # the outputs of APT Train
SETTINGS: Mapping[str, Any] = {
    "subject": "my_toy", "class_word": "toy", "caption_template": "a photo of {subject}", "steps": 3, "rank": 4,
    "learning_rate": 1e-3, "resolution": 64, "batch_size": 1, "seed": 1, "method": "APT", "resume": "automatic",
}  # fmt: skip
# A learned word takes the text encoder's backward pass, most of the time on a tiny model.
QUICK: Mapping[str, Any] = {"identifier_mode": "word", "balance_every": 0}
LEARNED: Mapping[str, Any] = {"identifier_mode": "learned"}


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Coarse coloured noise: no two seeds alike."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST)


def half_transparent(image: Image.Image) -> Image.Image:
    """The right half cut away."""
    image = image.convert("RGBA")
    image.paste((0, 0, 0, 0), (image.width // 2, 0, image.width, image.height))
    return image


def upload_pictures(host: Host, count: int = 2, **size: int) -> list[str]:
    return [host.upload(f"subject_{seed}.png", picture(seed, **size)) for seed in range(count)]


def image_batch(g: Graph, names: list[str]) -> list[Any]:
    """The pictures as one batch."""
    wires = [g.node("LoadImage", image=name)[0] for name in names]
    batch = wires[0]
    for wire in wires[1:]:
        batch = g.node("ImageBatch", image1=batch, image2=wire)[0]
    return batch


def train_node(
    g: Graph, wires: tuple[Any, Any, Any], images: Any, setting: Mapping[str, Any] | None = None, **changes: Any
) -> Node:
    """`APT Train` on a checkpoint's wires, with an options node.

    `setting`: widgets of the options beside QUICK's. `changes`: of the node's own inputs; `options=None` for none.
    """
    model, clip, vae = wires
    wired = changes.pop("options", ...)
    if wired is ...:
        wired = options(g, **{**QUICK, **(setting or {})})[0]
    extra = {} if wired is None else {"options": wired}
    return g.node("APTTrain", model=model, clip=clip, vae=vae, images=images, **{**SETTINGS, **changes, **extra})


def training_graph(
    names: list[str], kind: str = "sd15", setting: Mapping[str, Any] | None = None, **changes: Any
) -> tuple[Graph, Node]:
    """A graph with the training node alone, and what it needs."""
    g = Graph()
    wires = checkpoint(g, f"{kind}.safetensors")
    return g, train_node(g, wires, image_batch(g, names), setting, **changes)


def untouched(node_type: str) -> dict[str, Any]:
    """The widgets of one of the pack's nodes as the editor fills a new node (`test_fresh_nodes` compares them).

    It takes the schema's default, but starts a list of several choices empty, whatever its default is.
    """
    slots = [slot for slot in nodes()[node_type].inputs if "default" in slot.more]
    return {slot.id: [] if slot.kind == "MultiCombo" else slot.more["default"] for slot in slots}


def option_defaults() -> dict[str, Any]:
    """The widgets of a new `APT Train Options`."""
    return untouched("APTTrainOptions")


def options(g: Graph, **changes: Any) -> Node:
    """`APT Train Options` as it is new, but for these widgets or wires."""
    return g.node("APTTrainOptions", **{**option_defaults(), **{name: sent(value) for name, value in changes.items()}})


def sent(value: Any) -> Any:
    """A widget's list as the editor sends it; a wire as it is."""
    is_wire = isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)
    return {"__value__": value} if isinstance(value, list) and not is_wire else value
