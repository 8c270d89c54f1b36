"""Compare APT with DreamBooth, prior preservation, DCO, T-LoRA and the prior: how much each overfits, at what cost.

    python dev.py bench quality                     run what the verdict's grid lacks, then report
    python dev.py bench quality --short             the same code in minutes: a lead, not a finding
    python dev.py bench quality --grid parts        a grid that chose a constant
    python dev.py bench quality --report            only the tables and the figure, from the units run so far

Each unit (subject, seed, variant) is one small JSON file. Stop whenever you like: the next call continues. For your own
checkpoint: --checkpoint, --subjects and --clip (see docs/benchmark/checkpoint.md).
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from pathlib import Path

from apt_train.config import AptConfig
from apt_train.demo.recipe import MODEL
from apt_train.errors import InputError

from .grid import Grid
from .grids import FRAMED, GRIDS, SHORT, methods
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
            run_grid(make_task, grid, folder, options.workers or _cores())
        print("\n" + write_report(name, grid, folder) + f"\n\nwritten to {folder}")
    except InputError as error:
        print(f"bench quality: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench quality: stopped. Run the same command to continue", file=sys.stderr)
        return 130
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", choices=sorted(GRIDS), help="which (default: verdict)")
    parser.add_argument("--short", action="store_true", help="two subjects, one seed, fewer steps and prompts")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--workers", type=int, help="processes of one thread (default: the cores; one on a checkpoint)")
    parser.add_argument("--out", type=Path, help="folder of the units (default: the committed one of the grid)")
    parser.add_argument("--model", type=Path, help="for framed and ablation: what benchmarks/world/framed.py wrote")
    real = parser.add_argument_group("on a checkpoint of yours")
    real.add_argument("--checkpoint", type=Path, help="SD1.5 or SDXL, a .safetensors or a diffusers folder")
    real.add_argument("--subjects", type=Path, help="a folder per subject: pictures, class_word.txt, heldout/")
    real.add_argument("--clip", type=Path, help="CLIP as a transformers folder")
    real.add_argument("--dino", type=Path, help="DINOv2 as a transformers folder")
    real.add_argument("--hps", type=Path, help="HPSv2 as a transformers CLIP folder")
    real.add_argument("--device", help="default: CUDA if there is one")
    real.add_argument("--seeds", type=int, help="how many (default: 3)")
    return parser.parse_args(arguments)


def _what(options: argparse.Namespace) -> tuple[MakeTask, Grid, str]:
    """The task's factory, the grid and its name. InputError: options that conflict, or a number out of range."""
    for name in ("workers", "seeds"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name} is {value}: give a whole number of at least 1.")
    if options.checkpoint is not None:
        _refuse(options, ("grid", "model", "workers"), "goes with the drawn world, not with --checkpoint")
        return _real(options)
    _refuse(options, ("subjects", "clip", "dino", "hps", "device", "seeds"), "goes with --checkpoint")
    if options.short:
        _refuse(options, ("grid", "model"), "does not go with --short, which is a grid of its own")
        return functools.partial(world_task, SHORT.share), SHORT, "short"
    name = options.grid or "verdict"
    grid = GRIDS[name]
    if (grid.task == FRAMED) != (options.model is not None) and not options.report:
        raise InputError("--model goes with --grid framed or ablation, and they with it: give both, or neither.")
    return functools.partial(world_task, grid.share, _there(options.model or MODEL)), grid, name


def _refuse(options: argparse.Namespace, names: tuple[str, ...], reason: str) -> None:
    """Refuse an option that would have no effect."""
    for name in names:
        if getattr(options, name) is not None:
            raise InputError(f"--{name} {reason}: leave it out.")


def _there(path: Path) -> Path:
    """Checked once here, so that not every unit of the grid fails with it."""
    if not path.exists():
        raise InputError(f"{path} does not exist: name a checkpoint that does.")
    return path


def _real(options: argparse.Namespace) -> tuple[MakeTask, Grid, str]:
    """The verdict's methods on the user's checkpoint and subjects."""
    from .real_subjects import real_subject, subject_names
    from .real_task import real_task

    if options.subjects is None or options.clip is None or options.out is None:
        raise InputError("--checkpoint needs --subjects, --clip and --out: name those folders too.")
    share = SHORT.share if options.short else 1.0
    steps = (50, 100) if options.short else (250, 500, 1000, 2000)
    names = subject_names(options.subjects)
    shown = [real_subject(name, options.subjects).digest for name in names]  # other photos are another grid
    grid = Grid(
        subjects=tuple(names),
        seeds=tuple(range(options.seeds or (1 if options.short else 3))),
        variants=methods({"temperature": AptConfig().temperature}),
        probe_at=steps,
        sample_at=steps,
        share=share,
        recipe={"steps": steps[-1], "output": {"snapshot_every": steps[0]}},
        task=f"{options.checkpoint} {options.clip} {options.dino} {options.hps} {shown}",
    )
    make = functools.partial(
        real_task,
        _there(options.checkpoint),
        options.subjects,
        options.clip,
        options.dino,
        options.hps,
        device=options.device,
        share=share,
    )
    options.workers = 1  # one model on the device
    return make, grid, "checkpoint"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` stops the workers as Ctrl-C does
    sys.exit(main())
