"""Prompts in the host's API format, built in Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """A node of a graph; `node[0]` is its first output, to be given to another node's input."""

    id: str

    def __getitem__(self, output: int) -> list[Any]:
        return [self.id, output]


@dataclass
class Graph:
    """`prompt` is what `Host.run` takes; nodes are numbered "1", "2", ... in the order of their making."""

    prompt: dict[str, dict[str, Any]] = field(default_factory=dict)

    def node(self, node_type: str, /, **inputs: Any) -> Node:
        name = str(len(self.prompt) + 1)
        self.prompt[name] = {"class_type": node_type, "inputs": inputs}
        return Node(name)


def checkpoint(g: Graph, name: str) -> tuple[list[Any], list[Any], list[Any]]:
    """The wires model, clip and vae."""
    loader = g.node("CheckpointLoaderSimple", ckpt_name=name)
    return loader[0], loader[1], loader[2]


def text_to_image(
    g: Graph, model: Any, clip: Any, vae: Any, prompt: str | list[Any], seed: int = 0, *, steps: int = 2, size: int = 64
) -> Node:
    """Draws and saves a picture, `size` wide and high; returns the SaveImage node."""
    positive = g.node("CLIPTextEncode", text=prompt, clip=clip)
    negative = g.node("CLIPTextEncode", text="", clip=clip)
    latent = g.node("EmptyLatentImage", width=size, height=size, batch_size=1)
    sampler = g.node(
        "KSampler", model=model, positive=positive[0], negative=negative[0], latent_image=latent[0],
        seed=seed, steps=steps, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    picture = g.node("VAEDecode", samples=sampler[0], vae=vae)
    return g.node("SaveImage", images=picture[0], filename_prefix="picture")
