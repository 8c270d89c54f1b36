"""The judge: a small network that reads shape, colours, pattern, ground, place and style from a 64 px picture.

It is trained on the drawn world (`benchmarks/world/train_judge.py`) and answers two questions about a sample. Does it
show what its prompt asked for (`Judge.classify`)? How close is its object to a given subject (`Judge.fidelity`, the
cosine between embeddings of the object)?
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..disk.tensor_file import read_tensors
from .recipe import MODEL

WEIGHTS = "judge.safetensors"
CONFIG = "config.json"

DEFAULT_FOLDER = MODEL / "judge"  # beside the embedded model, for which it was trained


class _Residual(nn.Module):
    """Halve the resolution, change the width, then one 3 x 3 residual convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.down(x)))
        return F.relu(x + self.norm2(self.conv(x)))


class JudgeNetwork(nn.Module):
    """Convolutional trunk with two embeddings: one for the object, one for the scene around it (source: ours).

    Object heads (shape, pattern, colours, first colour, stripe angle) see only the object embedding, and scene heads
    (ground, place, style) only the scene embedding. So the cosine of object embeddings says little about where the
    object is.

    Args:
        labels: the class names of each head; `colours` is multi-label, all others are exclusive.
        width: channels of the first block.
        embedding: length of each of the two embeddings.
    """

    OBJECT_HEADS = ("shape", "pattern", "colours", "first", "angle")
    SCENE_HEADS = ("ground", "place", "style")
    object_centre: Tensor

    def __init__(self, labels: dict[str, list[str]], width: int = 32, embedding: int = 64) -> None:
        super().__init__()
        self.labels, self.width, self.embedding = labels, width, embedding
        widths = (width, width * 3 // 2, width * 2, width * 3)
        blocks = [_Residual(i, o) for i, o in zip((3, *widths[:-1]), widths, strict=True)]
        self.trunk = nn.Sequential(*blocks)
        flat = widths[-1] * 4 * 4
        self.object_embedding = nn.Linear(flat, embedding)
        self.scene_embedding = nn.Linear(flat, embedding)
        heads = {name: nn.Linear(embedding, len(labels[name])) for name in self.OBJECT_HEADS + self.SCENE_HEADS}
        self.heads = nn.ModuleDict(heads)
        # Mean embedding of the drawn world; without subtracting it every cosine is close to one.
        self.register_buffer("object_centre", torch.zeros(embedding))

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Object and scene embeddings, each (N, embedding), of images (N, 3, 64, 64) in [-1, 1]."""
        flat = self.trunk(images).flatten(1)
        return self.object_embedding(flat), self.scene_embedding(flat)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every head, each (N, classes)."""
        thing, scene = self.embed(images)
        return {name: head(thing if name in self.OBJECT_HEADS else scene) for name, head in self.heads.items()}


class Judge:
    """A trained `JudgeNetwork` in evaluation mode. Images are float (N, 3, 64, 64) in [-1, 1]."""

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().requires_grad_(False)
        self.labels = network.labels  # class names by head

    def features(self, images: Tensor, part: str = "object") -> Tensor:
        """Embeddings, float (N, D).

        `object` (default) is centred on the drawn world, for cosines between objects; `scene` is the embedding of
        the surroundings; `all` joins both, for distances between sets of pictures.
        """
        pairs = [self.network.embed(batch.float()) for batch in torch.split(images, 256)]
        things = torch.cat([thing for thing, _ in pairs]) - self.network.object_centre
        scenes = torch.cat([scene for _, scene in pairs])
        return {"object": things, "scene": scenes, "all": torch.cat([things, scenes], 1)}[part]

    def fidelity(self, images: Tensor, reference: Tensor) -> Tensor:
        """Mean cosine of each image's object to the reference pictures' objects, float (N,) in [-1, 1]."""
        ours = F.normalize(self.features(images), dim=1)
        theirs = F.normalize(self.features(reference), dim=1)
        return (ours @ theirs.T).mean(dim=1)

    def classify(self, images: Tensor) -> dict[str, list[str]]:
        """What each picture shows: a label per attribute.

        `colours` is one colour for a plain object, otherwise two in alphabetical order, as `blue+red`. Like `pattern`
        it is empty if the judge sees no object (`shape` is `none`).
        """
        logits: list[dict[str, Tensor]] = [self.network(batch.float()) for batch in torch.split(images, 256)]
        return self._read({name: torch.cat([one[name] for one in logits]) for name in logits[0]})

    def _read(self, logits: dict[str, Tensor]) -> dict[str, list[str]]:
        exclusive = ("shape", "pattern", "ground", "place", "style")
        seen = {name: [self.labels[name][int(i)] for i in logits[name].argmax(1)] for name in exclusive}
        ranked = logits["colours"].argsort(dim=1, descending=True)
        seen["colours"] = []
        for row, shape in enumerate(seen["shape"]):
            if shape == "none":
                seen["pattern"][row] = ""
                seen["colours"].append("")
                continue
            count = 1 if seen["pattern"][row] == "plain" else 2
            seen["colours"].append("+".join(sorted(self.labels["colours"][int(i)] for i in ranked[row][:count])))
        return seen


def load_judge(path: str | Path = DEFAULT_FOLDER) -> Judge:
    """The judge stored in a folder: `judge.safetensors` and `config.json`."""
    folder = Path(path)
    network = JudgeNetwork(**json.loads((folder / CONFIG).read_bytes()))
    weights = {name: value.float() for name, value in read_tensors(folder / WEIGHTS)[0].items()}
    network.load_state_dict(weights, strict=False)
    return Judge(network)
