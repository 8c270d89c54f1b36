"""Train the judge on the rendered world and test it on fresh drawings.

python -m benchmarks.world.train_judge --work .cache/world --out apt_train/assets/drawn_world/judge
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from apt_train.demo.judge import CONFIG, WEIGHTS, Judge, JudgeNetwork, load_judge
from benchmarks.world import draw
from benchmarks.world.pretrain import WORLD_SEED, load_pictures, load_scenes, to_signed

TEST_SEED = 991
JUDGED = ("shape", "pattern", "colours", "ground", "place", "style")

LABELS = {
    "shape": [*draw.SHAPES, "none"],
    "pattern": list(draw.PATTERNS),
    "colours": list(draw.COLOURS),
    "first": list(draw.COLOURS),
    "angle": ["0", "90"],
    "ground": list(draw.GROUNDS),
    "place": list(draw.PLACES),
    "style": list(draw.STYLES),
}


def truth(scene: draw.Scene) -> dict[str, str]:
    """What :meth:`Judge.classify` should answer for a picture of ``scene``."""
    empty = scene.shape is None
    return {
        "shape": scene.shape or "none",
        "pattern": "" if empty else scene.pattern,
        "colours": "" if empty else "+".join(sorted({scene.colour, scene.second})),
        "ground": scene.ground,
        "place": scene.place,
        "style": scene.style,
    }


def targets(scenes: list[draw.Scene]) -> dict[str, Tensor]:
    """Class indices (N,) by head, -100 where a head has no target. ``colours`` is multi-hot (N, 8)."""
    colours = torch.zeros(len(scenes), len(LABELS["colours"]))
    columns: dict[str, list[int]] = {name: [] for name in LABELS if name != "colours"}
    for row, scene in enumerate(scenes):
        there = scene.shape is not None
        columns["shape"].append(LABELS["shape"].index(scene.shape or "none"))
        columns["pattern"].append(LABELS["pattern"].index(scene.pattern) if there else -100)
        columns["first"].append(LABELS["first"].index(scene.colour) if there else -100)
        columns["angle"].append(scene.angle // 90 if there and scene.pattern == "striped" else -100)
        for name in ("ground", "place", "style"):
            columns[name].append(LABELS[name].index(getattr(scene, name)))
        for colour in {scene.colour, scene.second} if there else ():
            colours[row, LABELS["colours"].index(colour)] = 1
    return {name: torch.tensor(values) for name, values in columns.items()} | {"colours": colours}


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, blur, noise and light changes, so that the judge stays reliable on decoded samples."""

    def chance(p: float) -> Tensor:
        return (torch.rand(len(images), 1, 1, 1, generator=generator) < p).float()

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)

    mirror, blur = chance(0.5), chance(0.5) * uniform(0, 1)
    images = mirror * images.flip(-1) + (1 - mirror) * images
    images = blur * F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False) + (1 - blur) * images
    images = images * uniform(0.88, 1.08) + uniform(-0.06, 0.06)
    noise = torch.randn(images.shape, generator=generator)
    return (images + chance(0.6) * uniform(0, 0.12) * noise).clamp(-1, 1)


def loss_of(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Sum of the heads' losses. A head without a target for a picture skips it."""
    there = (wanted["pattern"] >= 0).float()[:, None]
    colours = F.binary_cross_entropy_with_logits(
        logits["colours"], wanted["colours"], there.expand_as(wanted["colours"])
    )
    exclusive = [F.cross_entropy(logits[name], value) for name, value in wanted.items() if name != "colours"]
    return 3 * colours + torch.stack(exclusive).sum()


def fit(network: JudgeNetwork, pictures: Tensor, wanted: dict[str, Tensor], epochs: int, batch: int) -> None:
    """Adam with a one-cycle learning rate over ``epochs`` passes of uint8 pictures (N, 3, 64, 64)."""
    generator = torch.Generator().manual_seed(WORLD_SEED)
    total = epochs * (len(pictures) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
    started, step = time.time(), 0
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures), generator=generator).split(batch)[: len(pictures) // batch]:
            images = augment(to_signed(pictures[rows]), generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            loss = loss_of({k: v.float() for k, v in logits.items()}, {k: v[rows] for k, v in wanted.items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0:
                print(f"judge {step}/{total} loss {loss.item():.3f} {time.time() - started:.0f} s", flush=True)


@torch.no_grad()
def set_centre(network: JudgeNetwork, pictures: Tensor) -> None:
    """Store the mean object embedding of ``pictures``."""
    network.eval()
    network.object_centre.copy_(network.embed(to_signed(pictures))[0].mean(0))


def accuracy(judge: Judge, images: Tensor, scenes: list[draw.Scene]) -> dict[str, float]:
    """Share of correct answers by attribute over images (N, 3, 64, 64) in [-1, 1]."""
    seen, told = judge.classify(images), [truth(scene) for scene in scenes]
    return {name: float(np.mean([s == t[name] for s, t in zip(seen[name], told, strict=True)])) for name in JUDGED}


def save(network: JudgeNetwork, out: Path) -> None:
    """fp16 weights and the constructor's arguments."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.half().contiguous() for name, value in network.state_dict().items() if value.is_floating_point()
    }
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    config = {"labels": network.labels, "width": network.width, "embedding": network.embedding}
    (out / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".cache/world"))
    parser.add_argument("--out", type=Path, default=Path("apt_train/assets/drawn_world/judge"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--test", type=int, default=1500, help="fresh drawings to test on")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(WORLD_SEED)
    pictures = load_pictures(args.work)
    wanted = targets(load_scenes(args.work))
    network = JudgeNetwork(LABELS)
    fit(network, pictures, wanted, args.epochs, args.batch)
    set_centre(network, pictures[:2000])
    save(network, args.out)
    drawn = [draw.any_item(TEST_SEED, index) for index in range(args.test)]
    images = to_signed(torch.from_numpy(np.stack([picture for picture, _ in drawn])).permute(0, 3, 1, 2))
    result = accuracy(load_judge(args.out), images, [scene for _, scene in drawn])
    (args.out / "accuracy.json").write_text(json.dumps({"drawn pictures": args.test} | result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
