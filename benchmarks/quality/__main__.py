"""Does it overfit less, by how much, at what cost: against DreamBooth, prior preservation, DCO, T-LoRA and the prior.

    python dev.py bench quality                     the verdict's grid: what is missing is run, then the report
    python dev.py bench quality --short             the same machinery in minutes: a lead, no finding
    python dev.py bench quality --grid parts        a grid that chose a constant
    python dev.py bench quality --report            only the tables and the figure, from what is there

Every unit (subject, seed, variant) is one small JSON; stop it when you like, the next call goes on. On a checkpoint
of yours: --checkpoint, --subjects and --clip (see docs/benchmark.md).
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from dataclasses import replace
from pathlib import Path

from apt_train.demo import MODEL
from apt_train.errors import InputError

from .grid import Grid
from .grids import FRAMED, GRIDS, METHODS, SHORT
from .report import write_report
from .run import MakeTask, run_grid
from .store import RESULTS
from .world_task import world_task


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        make_task, grid, name = _what(options)
        folder = options.out or (Path("runs") / "quality-short" if options.short else RESULTS / name)
        if not options.report:
            run_grid(make_task, grid, folder, options.workers)
        print("\n" + write_report(name, grid, folder) + f"\n\nwritten to {folder}")
    except InputError as error:
        print(f"bench quality: {error}", file=sys.stderr)
        return 2
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", choices=sorted(GRIDS), default="verdict")
    parser.add_argument("--short", action="store_true", help="two subjects, one seed, fewer steps and prompts")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes of one thread (default: the cores)")
    parser.add_argument("--out", type=Path, help="folder of the units (default: the committed one of the grid)")
    parser.add_argument("--model", type=Path, help="for --grid framed: what benchmarks/world/framed.py wrote")
    real = parser.add_argument_group("on a checkpoint of yours")
    real.add_argument("--checkpoint", type=Path, help="SD1.5 or SDXL, a .safetensors or a diffusers folder")
    real.add_argument("--subjects", type=Path, help="a folder per subject: pictures, class_word.txt, heldout/")
    real.add_argument("--clip", type=Path, help="CLIP as a transformers folder")
    real.add_argument("--dino", type=Path, help="DINOv2 as a transformers folder")
    real.add_argument("--hps", type=Path, help="HPSv2 as a transformers CLIP folder")
    real.add_argument("--device", help="default: CUDA if there is one")
    real.add_argument("--seeds", type=int, default=3, help="how many")
    return parser.parse_args(arguments)


def _what(options: argparse.Namespace) -> tuple[MakeTask, Grid, str]:
    """The task's maker, the grid and its name."""
    if options.checkpoint is not None:
        return _real(options)
    if options.short:
        return functools.partial(world_task, SHORT.share), SHORT, "short"
    grid = GRIDS[options.grid]
    if (grid.task == FRAMED) != (options.model is not None) and not options.report:
        raise InputError("--model and --grid framed belong together: give both, or neither.")
    return functools.partial(world_task, grid.share, options.model or MODEL), grid, options.grid


def _real(options: argparse.Namespace) -> tuple[MakeTask, Grid, str]:
    """The verdict's methods on a user's checkpoint and subjects."""
    from .real_task import real_task, subject_names

    if options.subjects is None or options.clip is None or options.out is None:
        raise InputError("--checkpoint needs --subjects, --clip and --out: name those folders too.")
    share = SHORT.share if options.short else 1.0
    steps = (50, 100) if options.short else (250, 500, 1000, 2000)
    grid = Grid(
        subjects=tuple(subject_names(options.subjects)),
        seeds=tuple(range(1 if options.short else options.seeds)),
        variants=METHODS,
        probe_at=steps,
        sample_at=steps,
        share=share,
        task=f"{options.checkpoint} {options.subjects} {options.clip} {options.dino} {options.hps}",
    )
    make = functools.partial(
        real_task,
        options.checkpoint,
        options.subjects,
        options.clip,
        options.dino,
        options.hps,
        device=options.device,
        share=share,
    )
    options.workers = 1  # one model on the device
    return make, replace(grid, recipe={"steps": steps[-1], "output": {"snapshot_every": steps[0]}}), "checkpoint"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
