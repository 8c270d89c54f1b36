"""Do two versions of the trainer make the same bits? Twelve short runs, kept by one version, compared by the other.

    python -m tests.same_bits keep FOLDER       train them and keep their LoRAs, embeddings and logged numbers
    python -m tests.same_bits compare FOLDER    train them again and name what differs; exit code 1 if anything does

Meant for a redrawing that must not change a result: keep with the old version, compare with the new one, on one machine
and one thread. A log may change its layout: what is compared is every number of each step, wherever it stands.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apt_train.families.components import Components
from tests.tiny import tiny_components
from tests.training import pictures, run

STEPS = 6
EVERY_PART: dict[str, Any] = {"dist_weight": 1.0, "attn_weight": 1.0, "balance_every": 2, "snapshot_every": 3}


def _masked() -> Any:
    mask = torch.zeros(3, 64, 64)
    mask[:, 16:48, 8:40] = 1
    return pictures(masks=mask)


RUNS: dict[str, Callable[[Path], Any]] = {
    "apt learned": lambda out: _run(out),
    "apt word": lambda out: _run(out, identifier_mode="word"),
    "dreambooth": lambda out: _run(out, method="dreambooth", weight_decay=0.1, lr_schedule="cosine"),
    "dco word": lambda out: _run(out, method="dco", identifier_mode="word"),
    "tlora": lambda out: _run(out, method="tlora", min_rank=1),
    "indicator schedule, lazy prior": lambda out: _run(out, attn_schedule="indicator", lazy_prior=2),
    "linear schedule, temperature auto": lambda out: _run(out, attn_schedule="linear", temperature="auto"),
    "raw, all layers": lambda out: _run(out, dist_mode="raw", dist_layers="all", attn_layers="all"),
    "prior preservation": lambda out: _run(out, prior_images=pictures(seed=5), init_word="teddy bear"),
    "checkpointing, feed forward, dropout": lambda out: _run(
        out, gradient_checkpointing=True, targets="attention+ff", dropout=0.1
    ),
    "accumulation, masks, fill": lambda out: _run(
        out, images=_masked(), accumulation=2, mask_fill=True, augment_kinds=["affine", "flip", "color"]
    ),
    "sdxl, v-prediction": lambda out: _run(out, tiny_components("sdxl", "v_prediction"), alpha=2.0),
}


def _run(out: Path, components: Components | None = None, **settings: Any) -> Any:
    return run(components, output_dir=out, **{"steps": STEPS, **EVERY_PART, **settings})


def trained(name: str, folder: Path) -> tuple[dict[str, Tensor], list[list[float]]]:
    """One of the runs: its tensors, and the numbers of its log step by step, sorted."""
    result = RUNS[name](folder)
    tensors = {**result.lora, **{f"embedding/{key}": rows for key, rows in (result.embeddings or {}).items()}}
    return tensors, [numbers for line in _log(folder) if (numbers := sorted(_numbers(line)))]


def _log(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield float(value)


def keep(folder: Path) -> None:
    for name in RUNS:
        tensors, numbers = trained(name, folder / name / "run")
        save_file(tensors, folder / name / "tensors.safetensors")
        (folder / name / "numbers.json").write_text(json.dumps(numbers), encoding="utf-8")
        print(f"kept: {name}", flush=True)


def differences(name: str, kept: Path, work: Path) -> list[str]:
    """What of a run differs from the kept one, in words; empty: nothing, to the bit."""
    tensors, numbers = trained(name, work / name)
    before = load_file(kept / name / "tensors.safetensors")
    found = [f"{key} is in one of them only" for key in sorted(before.keys() ^ tensors.keys())]
    found += [key for key in sorted(before.keys() & tensors.keys()) if not torch.equal(before[key], tensors[key])]
    logged = json.loads((kept / name / "numbers.json").read_text(encoding="utf-8"))
    steps = enumerate(zip(logged, numbers, strict=False), start=1)
    found += [f"the log of step {step}" for step, (then, now) in steps if then != now]
    return found + ["the log's length"] * (len(logged) != len(numbers))


def compare(kept: Path, work: Path) -> int:
    changed = 0
    for name in RUNS:
        found = differences(name, kept, work)
        changed += bool(found)
        print(f"{name}: {', '.join(found[:4]) or 'the same bits'}", flush=True)
    return int(changed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=["keep", "compare"])
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.command == "keep":
        keep(asked.folder)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            sys.exit(compare(asked.folder, Path(scratch)))
