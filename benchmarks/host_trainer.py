"""DreamBooth here compared with ComfyUI's own trainer node, in CPU seconds per step.

    python -m benchmarks.host_trainer [--name NAME] [--rounds 3] [--pixels 64 256] [--weights fp16|fp32] [--short]

Starts an installed ComfyUI (`dev.find_host`) in a temporary folder, on one thread, with a tiny SD1.5 checkpoint. Both
nodes train on the same pictures, with the same rank, batch size, steps and precision. A step is the difference between
two runs of different length, so loading and saving cancel out. The runs of a round take turns. The host's node trains
every layer and ours the layers that `targets` names, so both choices of it are measured. All of it takes about ten CPU
minutes. `--weights`: the type stored in the checkpoint, by default fp16, like most.

In: time. Not in: how well either node trains.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import psutil

import dev
from apt_train.families.precision import DTYPES
from benchmarks.speed import RESULTS, keep, machine
from tests.host.checkpoints import write_checkpoint
from tests.host.graphs import image_batch, training_graph, upload_pictures
from tests.host.server import Host
from tests.host.workflows import Graph, checkpoint

RANK, PICTURES = 8, 3
LENGTHS = {64: (10, 90), 256: (2, 10)}  # steps of the two runs, by pixels
HOST, ATTENTION, FEED_FORWARD = "TrainLoraNode", "attention", "attention+ff"
STEADY: dict[str, Any] = {
    "identifier_mode": "word", "adaptive_augmentation": False, "balance_every": 0, "precision": "fp32",
    "gradient_checkpointing": "off", "snapshot_every": 0, "preview_every": 0, "watch_drift": False,
}  # fmt: skip


def main() -> None:
    options = _options()
    found = dev.find_host()
    if found is None:
        raise SystemExit(f"{dev.NO_HOST}: install it, or set COMFYUI_PATH to its folder.")
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models" / "checkpoints"
        models.mkdir(parents=True)
        write_checkpoint(models / "sd15.safetensors", "sd15", dtype=DTYPES[options.weights])
        with Host(Path(folder), *found) as host:
            sizes = {64: (1, 3)} if options.short else {side: LENGTHS[side] for side in options.pixels}
            measured = {str(side): steps_at(host, side, sizes[side], options.rounds) for side in sizes}
    values = {"machine": machine(), "rank": RANK, "weights": options.weights, "pixels": measured}
    print(table(values), end="")
    keep(RESULTS, options.name, values)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pixels", type=int, choices=sorted(LENGTHS), nargs="+", default=sorted(LENGTHS))
    parser.add_argument("--weights", choices=("fp16", "fp32"), default="fp16", help="type of the checkpoint's weights")
    parser.add_argument("--name", help="also write benchmarks/results/speed/NAME.json")
    parser.add_argument("--short", action="store_true", help="runs of three steps: does it run?")
    options = parser.parse_args()
    options.rounds = 1 if options.short else options.rounds
    return options


# -- what is measured


def steps_at(host: Host, side: int, lengths: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a step by trainer, one number per round, after one run of each to warm up."""
    names = upload_pictures(host, PICTURES, width=side, height=side)
    ways: dict[str, Callable[[int, int], Graph]] = {
        HOST: lambda steps, seed: host_graph(names, steps, seed),
        ATTENTION: lambda steps, seed: our_graph(names, side, ATTENTION, steps, seed),
        FEED_FORWARD: lambda steps, seed: our_graph(names, side, FEED_FORWARD, steps, seed),
    }
    seeds = count()  # a new seed per run, or the host would return a cached result
    for graph in ways.values():
        _seconds(host, graph(lengths[0], next(seeds)))
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        taken = {(way, steps): _seconds(host, ways[way](steps, next(seeds))) for steps in lengths for way in ways}
        for way in ways:
            found[way].append(round((taken[way, lengths[1]] - taken[way, lengths[0]]) / (lengths[1] - lengths[0]), 5))
    return found


def _seconds(host: Host, graph: Graph) -> float:
    """CPU seconds of the host's process for one prompt."""
    assert host.process is not None
    process = psutil.Process(host.process.pid)
    before = process.cpu_times()
    host.run(graph.prompt, timeout=900)
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system


def host_graph(names: list[str], steps: int, seed: int) -> Graph:
    g = Graph()
    model, clip, vae = checkpoint(g, "sd15.safetensors")
    latents = g.node("VAEEncode", pixels=image_batch(g, names), vae=vae)
    text = g.node("CLIPTextEncode", text="a photo of my_toy toy", clip=clip)
    lora = g.node(
        HOST, model=model, latents=latents[0], positive=text[0], batch_size=1, grad_accumulation_steps=1, steps=steps,
        learning_rate=1e-4, rank=RANK, optimizer="AdamW", loss_function="MSE", seed=seed, training_dtype="fp32",
        lora_dtype="fp32", quantized_backward=False, algorithm="LoRA", gradient_checkpointing=False,
        checkpoint_depth=1, offloading=False, existing_lora="[None]", bucket_mode=False, bypass_mode=False,
    )  # fmt: skip
    g.node("SaveLoRA", lora=lora[0], prefix="host_trainer")
    return g


def our_graph(names: list[str], side: int, targets: str, steps: int, seed: int) -> Graph:
    setting = {**STEADY, "targets": targets}
    changes = {"steps": steps, "rank": RANK, "resolution": side, "learning_rate": 1e-4, "seed": seed}
    return training_graph(names, setting=setting, method="DreamBooth", **changes)[0]


# -- what is printed


def table(values: dict[str, Any]) -> str:
    """Medians over rounds: CPU seconds of a step, and the ratio within a round with its extremes."""
    head = "| pixels | the host's, s | ours, s | ours : the host's | ours with attention+ff, s | ratio |\n"
    return head + "|---|---|---|---|---|---|\n" + "".join(_line(*one) for one in values["pixels"].items())


def _line(side: str, found: dict[str, list[float]]) -> str:
    seconds = {way: f"{statistics.median(taken):.3f}" for way, taken in found.items()}
    ours, more = (_ratio(found[way], found[HOST]) for way in (ATTENTION, FEED_FORWARD))
    return f"| {side} | {seconds[HOST]} | {seconds[ATTENTION]} | {ours} | {seconds[FEED_FORWARD]} | {more} |\n"


def _ratio(ours: list[float], theirs: list[float]) -> str:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"


if __name__ == "__main__":
    main()
