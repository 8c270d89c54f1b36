"""A run directory -> pictures, tables, a verdict in words: `report.md`, `report.json` and their PNG files.

In: writing the report's files. Not in: reading the run's (`run_files`), numbers (`run_summary`), words (`verdict`),
drawing (`plots`, `attention_tiles`).
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..disk.files import atomic_write, sweep, write_text
from ..disk.json_file import parse_json
from ..disk.tensor_file import read_tensors
from ..errors import InputError
from ..names import ATTENTION, CONFIG, LOG
from ..run import config_file, log
from ..run.notices import Notice
from .attention_tiles import attention_tiles
from .plots import balance_figure, drift_figure, indicator_figure, losses_figure
from .run_files import RunRecord, read_run
from .run_log import RunLog
from .run_summary import Summary
from .verdict import METHOD_NAMES, advice, paragraph

CAPTIONS = {
    "indicator.png": "Overfitting indicator per timestep bin: at 0 the tuned model predicts the noise of the training "
    "pictures no better than the prior, near 1 far better.",
    "drift.png": "How far each snapshot has left the prior on prompts without the subject, over how far on the "
    "subject's own: while it learns the subject this stays low, where it overfits it climbs.",
    "losses.png": "Loss terms over the steps: faint as logged, thick their moving average. The denoising loss depends "
    "on the timestep drawn far more than on training, so its average has the timesteps evened out.",
    "balance.png": "Gradient norm of each weighted term, and its part of their sum.",
    "attention.png": "Cross-attention per token, with its mean for prior > tuned: tokens of the context that the tuned "
    "model has dimmed look dark in its row and blue in the difference.",
}


LARGEST = {CONFIG: config_file.MOST_BYTES, LOG: log.MOST_BYTES, ATTENTION: 1 << 30}  # bytes


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a finished or broken-off run into its own folder; returns the path of `report.md`.

    Reads `config.json` and `log.jsonl`, and `attention.safetensors` and the previews where there are any. A missing
    or unreadable file is an InputError, raised before anything is written; so is a folder that takes no file. Every
    file appears complete or not at all, `report.md` last.
    """
    folder = Path(run_dir)
    pictures, numbers, text = _composed(folder)
    sweep(folder)
    _write_pictures(folder, pictures)
    write_text(folder / "report.json", numbers)
    write_text(folder / "report.md", text)
    return folder / "report.md"


def _composed(folder: Path) -> tuple[dict[str, bytes], str, str]:
    """PNG files by name, `report.json` and `report.md`; a folder whose files make no sense is an InputError."""
    try:
        _check_files(folder)
        run = read_run(folder)
        tiles = _read_attention(folder / ATTENTION)
        pictures = _draw(run.log, run.summary, run.num_timesteps, tiles)
        numbers = json.dumps(_as_json(run), indent=2) + "\n"
        return pictures, numbers, _as_markdown(run, list(pictures), _newest_previews(folder))
    except InputError:
        raise
    except (
        ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise InputError(
            f"The run in {folder} is damaged ({type(error).__name__}): restore its config.json and log.jsonl, then ask "
            "for the report again."
        ) from error


def _check_files(folder: Path) -> None:
    """Pipes and devices would be read for ever, and a file far larger than any of ours for long."""
    for name, most in LARGEST.items():
        path = folder / name
        if path.exists() and not path.is_file():
            raise InputError(f"{name} in {folder} is not a file: restore it, then ask for the report again.")
        if path.is_file() and path.stat().st_size > most:
            raise InputError(f"{name} in {folder} is too large to be one of ours: restore it or move it away.")


def _read_attention(path: Path) -> Image.Image | None:
    """The tiles of the maps saved at the end of the run; None where none were saved."""
    if not path.exists():
        return None
    try:
        tensors, metadata = read_tensors(path)
        maps = [tensors[name].float() for name in ("prior", "tuned")]
        labels = parse_json(metadata["labels"].encode())
        picture = tensors.get("image")
        assert maps[0].shape == maps[1].shape and maps[0].ndim == 3 and len(labels) == len(maps[0]) > 0
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AssertionError):
        raise InputError(
            f"{path.name} is damaged or holds no attention maps: delete it and ask for the report again."
        ) from None
    return attention_tiles(maps[0], maps[1], [str(label) for label in labels], _picture(picture))


def _picture(pixels: torch.Tensor | None) -> Image.Image | None:
    """uint8 (3, H, W) -> picture."""
    return None if pixels is None else Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _draw(log: RunLog, summary: Summary, num_timesteps: int, tiles: Image.Image | None) -> dict[str, bytes]:
    """The figures as PNG files by name, in the report's order."""
    figures: dict[str, Callable[[], Any]] = {
        "indicator.png": lambda: indicator_figure(
            log, measured=summary.indicator_measured, num_timesteps=num_timesteps
        ),
        "losses.png": lambda: losses_figure(log, num_timesteps=num_timesteps),
    }
    if len(log.drift_step):
        figures["drift.png"] = lambda: drift_figure(log)
    if log.balance:
        figures["balance.png"] = lambda: balance_figure(log)
    drawn = {name: _png(draw().savefig) for name, draw in figures.items()}
    if tiles is not None:
        drawn["attention.png"] = _png(tiles.save)
    return {name: drawn[name] for name in CAPTIONS if name in drawn}


def _png(save: Callable[..., object]) -> bytes:
    buffer = BytesIO()
    save(buffer, format="png")
    return buffer.getvalue()


def _write_pictures(folder: Path, pictures: dict[str, bytes]) -> None:
    """A figure of an earlier report that this one lacks is removed."""
    for name, content in pictures.items():
        atomic_write(folder / name, lambda draft, content=content: draft.write_bytes(content))
    for name in CAPTIONS.keys() - pictures.keys():
        with contextlib.suppress(OSError):  # a folder of that name, or open in another program
            (folder / name).unlink()


def _newest_previews(folder: Path) -> list[tuple[str, str]]:
    """(prior, tuned) picture files, inside the run folder, of the last step that drew previews; one pair per prompt."""
    tuned = sorted((folder / "previews").glob("step_*_tuned.png"), key=_numbers)
    newest = [path.name for path in tuned if _numbers(path)[:1] == _numbers(tuned[-1])[:1]]
    return [(f"previews/{name.replace('_tuned', '_prior')}", f"previews/{name}") for name in newest]


def _numbers(path: Path) -> list[int]:
    """Step and prompt in the name of a preview."""
    return [int(part) for part in path.stem.split("_") if part.isdecimal()]


def _as_json(run: RunRecord) -> dict[str, Any]:
    summary, notices = run.summary, [asdict(notice) for notice in run.notices]
    values = {"format": 1, **asdict(summary), "advice": advice(summary), "verdict": paragraph(summary)}
    values["notices"] = notices
    return _plain(values)


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is no number is null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_markdown(run: RunRecord, pictures: list[str], previews: list[tuple[str, str]]) -> str:
    summary = run.summary
    parts = [f"# {run.config.name}: report of the run", paragraph(summary)]
    if run.notices:
        parts.append("## Notices\n\n" + "\n".join(map(_notice_item, run.notices)))
    parts += [_run_table(summary), _term_table(summary)]
    if summary.bins:
        parts.append(_bin_table(summary))
    parts += [f"![{file}]({file})\n\n{CAPTIONS[file]}" for file in pictures]
    if previews:
        rows = [(f"![prior]({prior})", f"![tuned]({tuned})") for prior, tuned in previews]
        parts.append("Newest previews, the same seed for both:\n\n" + _table(("prior", "tuned"), rows))
    return "\n\n".join(parts) + "\n"


def _notice_item(notice: Notice) -> str:
    """A list's line. File names in it may hold what Markdown would take for a picture, a link or HTML."""
    text = re.sub(r"[\\`*\[\]<>|]", r"\\\g<0>", " ".join(notice.text.split()))
    return f"- {text}" + (f" (step {notice.step})" if notice.step else "")


def _run_table(summary: Summary) -> str:
    rows = [
        ("method", METHOD_NAMES.get(summary.method, summary.method)),
        ("steps", f"{summary.steps_done} of {summary.steps_planned}"),
        ("denoising loss over the last half", summary.trend),
        (
            "timestep bins near 1",
            f"{len(summary.near_one)} of {len(summary.bins)}" if summary.bins else "not measured",
        ),
        ("most bins near 1 since step", _or_dash(summary.most_since)),
        (
            "weight left to the denoising loss",
            "-" if summary.data_weight is None else f"{summary.data_weight:.2f}",
        ),
        ("drift ratio at the last snapshot measured", f"{summary.drift[-1].ratio:.2f}" if summary.drift else "-"),
        ("steps with clipped gradient", "-" if summary.clipped is None else f"{summary.clipped:.0%}"),
    ]
    return _table(("", "value"), rows)


def _term_table(summary: Summary) -> str:
    rows = []
    for name, term in summary.terms.items():
        part = summary.balance.get(name)
        gradient = ("-", "-") if part is None else (f"{part.norm:.3g}", f"{part.share:.0%}")
        rows.append((name.replace("_", " "), f"{term.first_quarter:.4g}", f"{term.last_quarter:.4g}", *gradient))
    return _table(("term", "first quarter", "last quarter", "gradient norm", "share"), rows)


def _bin_table(summary: Summary) -> str:
    rows = [
        (
            f"{item.timesteps[0]}-{item.timesteps[1]}",
            str(item.samples),
            f"{item.gamma:.3f}",
            _or_dash(item.near_one_since),
        )
        for item in summary.bins
    ]
    return _table(
        ("timesteps", "samples", f"indicator, mean over the closing {summary.window}", "near 1 since step"),
        rows,
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
