"""`report.md`: verdict, tables and pictures of a run as one page.

In: Markdown. Not in: numbers (`run_summary`), words (`verdict`), drawing (`plots`), writing the files (`write`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..config import METHOD_TITLES
from ..events import NoticeEvent
from ..names import FILMSTRIP
from ..presets import in_force
from ..verdict.run_files import RunRecord
from ..verdict.run_summary import Summary
from ..verdict.words import paragraph

CAPTIONS = {
    "indicator.png": "Overfitting indicator per noise level (0 clean, 1 pure noise). At 0 the tuned model predicts the "
    "noise of the training pictures no better than the prior. Near 1 it predicts it far better.",
    "drift.png": "Drift ratio of each snapshot: how much prompts without the subject change, divided by how much the "
    "subject's own change. It stays level while the subject is learned, and rises where the model overfits.",
    "losses.png": "Loss terms over the steps: faint as logged, thick their moving average. The denoising loss depends "
    "far more on the noise level than on training. So its average has the noise levels evened out.",
    "balance.png": "Gradient norm of each weighted term, and its part of their sum.",
    "attention.png": "Cross-attention per token, with its mean for prior > tuned. A token of the context that the "
    "tuned model has dimmed looks dark in its row and blue in the difference.",
    FILMSTRIP: "Samples over the snapshots, one seed a row. The last snapshot that still obeys the unseen prompt and "
    "shows the subject is the one to keep.",
}


def page(run: RunRecord, pictures: Sequence[str], previews: Sequence[tuple[str, str]]) -> str:
    """The page. `pictures`: those of `CAPTIONS` that exist; `previews`: files of prior and tuned per prompt."""
    summary = run.summary
    parts = [f"# {run.config.name}: report of the run", paragraph(summary)]
    if run.notices:
        parts.append("## Notices\n\n" + "\n".join(map(_notice_item, run.notices)))
    preset = ": ".join(filter(None, [run.preset, in_force(run.preset, run.config)])) or "-"
    parts += [_run_table(summary, preset), _term_table(summary)]
    if summary.bins:
        parts.append(_bin_table(summary))
    parts += [f"![{file}]({file})\n\n{CAPTIONS[file]}" for file in pictures]
    if previews:
        rows = [(f"![prior]({prior})", f"![tuned]({tuned})") for prior, tuned in previews]
        parts.append("Newest previews, the same seed for both:\n\n" + _table(("prior", "tuned"), rows))
    return "\n\n".join(parts) + "\n"


def _notice_item(notice: NoticeEvent) -> str:
    """A notice as a list item, with everything escaped that Markdown would take for a picture, a link or HTML."""
    text = re.sub(r"[\\`*\[\]<>|]", r"\\\g<0>", " ".join(notice.text.split()))
    return f"- {text}" + (f" (step {notice.step})" if notice.step else "")


def _run_table(summary: Summary, preset: str) -> str:
    near = f"{len(summary.near_one)} of {len(summary.bins)}" if summary.bins else "not measured"
    rows = [
        ("method", METHOD_TITLES[summary.method]),
        ("preset", preset),
        ("steps", f"{summary.steps_done} of {summary.steps_planned}"),
        ("denoising loss over the last half", summary.trend),
        ("noise levels near 1", near),
        ("most noise levels near 1 since step", _or_dash(summary.most_since, "d")),
        ("weight left to the denoising loss", _or_dash(summary.data_weight, ".2f")),
        ("drift ratio at the last snapshot measured", f"{summary.drift[-1].ratio:.2f}" if summary.drift else "-"),
        ("steps with clipped gradient", _or_dash(summary.clipped, ".0%")),
    ]
    return _table(("", "value"), rows)


def _term_table(summary: Summary) -> str:
    rows: list[tuple[str, ...]] = []
    for name, term in summary.terms.items():
        part = summary.balance.get(name)
        gradient = ("-", "-") if part is None else (f"{part.norm:.3g}", f"{part.share:.0%}")
        rows.append((name.replace("_", " "), f"{term.first_quarter:.4g}", f"{term.last_quarter:.4g}", *gradient))
    return _table(("term", "first quarter", "last quarter", "gradient norm", "share"), rows)


def _bin_table(summary: Summary) -> str:
    rows = [
        (item.range, str(item.samples), f"{item.gamma:.3f}", _or_dash(item.near_one_since, "d"))
        for item in summary.bins
    ]
    indicator = (
        "indicator at the last step" if summary.window == 1 else f"indicator, mean of the last {summary.window} steps"
    )
    return _table(("noise level", "samples", indicator, "near 1 since step"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _or_dash(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
