"""Writes the report of a run directory: `report.md`, `report.json` and their PNG files.

In: writing the report's files. Not in: reading the run's (`run_files`), the page (`page`), numbers (`run_summary`),
drawing (`plots`, `attention_tiles`).
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..disk.files import atomic_write, sweep, write_text
from ..errors import InputError
from ..names import ATTENTION, FILMSTRIP, PREVIEWS, REPORT, REPORT_NUMBERS
from ..run.attention_file import AttentionMaps, read_maps
from ..run.preview_files import find_previews, preview_file
from ..verdict.run_files import RunRecord, read_run
from ..verdict.words import advice, paragraph
from .attention_tiles import attention_tiles
from .filmstrip import draw_filmstrip
from .page import CAPTIONS, page

if TYPE_CHECKING:
    from .matplotlib_parts import Figure


def write_report(run_dir: str | Path) -> Path:
    """Write the report of a finished or interrupted run into its own folder. Returns the path of `report.md`.

    Reads `config.json` and `log.jsonl`, and if they exist `attention.safetensors` and the previews. InputError, raised
    before anything is written: a file is missing or unreadable, or the folder takes no files. Every file is written
    atomically, `report.md` last.
    """
    folder = Path(run_dir)
    pictures, numbers, text = _composed(folder)
    sweep(folder)
    _write_pictures(folder, pictures)
    write_text(folder / REPORT_NUMBERS, numbers)
    write_text(folder / REPORT, text)
    return folder / REPORT


def _composed(folder: Path) -> tuple[dict[str, bytes], str, str]:
    """PNG files by name, `report.json` and `report.md`. InputError: the folder's files make no sense."""
    try:
        run = read_run(folder)
        pictures = _draw(run, read_maps(folder / ATTENTION))
        if (strip := draw_filmstrip(folder, run.config)) is not None:
            pictures[FILMSTRIP] = _png(strip)
        return pictures, _numbers(run), page(run, list(pictures), _newest_previews(folder))
    except InputError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{error.filename or folder} cannot be read ({reason}): correct its permissions.") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"The run in {folder} is damaged ({type(error).__name__}): restore its config.json and log.jsonl, then ask "
            "for the report again."
        ) from error


def _draw(run: RunRecord, maps: AttentionMaps | None) -> dict[str, bytes]:
    """The figures as PNG files by name, in the report's order."""
    wanted = {"indicator": True, "drift": len(run.log.drift_step), "losses": True, "balance": run.log.balance}
    drawn = {f"{part}.png": _png(_figure(part, run)) for part, is_there in wanted.items() if is_there}
    if maps is not None:
        picture = None if maps.image is None else Image.fromarray(maps.image.permute(1, 2, 0).contiguous().numpy())
        drawn["attention.png"] = _png(attention_tiles((maps.prior, maps.tuned), maps.labels, picture))
    return drawn


def _figure(part: str, run: RunRecord) -> Figure:
    from .plots import part_figure  # imported late: training does without matplotlib until its end

    return part_figure(part, run)


def _png(drawn: Figure | Image.Image) -> bytes:
    buffer = BytesIO()
    if isinstance(drawn, Image.Image):
        drawn.save(buffer, format="png")
    else:
        from .matplotlib_parts import our_style

        with our_style():
            drawn.savefig(buffer, format="png")
    return buffer.getvalue()


def _numbers(run: RunRecord) -> str:
    """`report.json`; non-finite numbers become null, because JSON has no NaN."""
    summary, notices = run.summary, [{"step": notice.step, "text": notice.text} for notice in run.notices]
    values = {"format": 1, **asdict(summary), "advice": advice(summary), "verdict": paragraph(summary)}
    plain = json.loads(json.dumps({**values, "notices": notices}), parse_constant=lambda _: None)
    return json.dumps(plain, indent=2) + "\n"


def _newest_previews(folder: Path) -> list[tuple[str, str]]:
    """(prior, tuned) picture files of the last step with previews, relative to the run folder; one pair per prompt."""
    tuned = [(step, prompt) for step, prompt, kind, _ in find_previews(folder / PREVIEWS) if kind == "tuned"]
    place = Path(PREVIEWS)
    return [
        (preview_file(place, step, prompt, "prior").as_posix(), preview_file(place, step, prompt, "tuned").as_posix())
        for step, prompt in tuned
        if step == tuned[-1][0]
    ]


def _write_pictures(folder: Path, pictures: dict[str, bytes]) -> None:
    """Write the figures, and remove those of an earlier report that this one lacks."""
    for name, content in pictures.items():
        atomic_write(folder / name, lambda draft, content=content: draft.write_bytes(content))
    for name in CAPTIONS.keys() - pictures.keys():
        with contextlib.suppress(OSError):  # a folder of that name, or open in another program
            (folder / name).unlink()
