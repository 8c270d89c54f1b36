"""The report's curves: indicator, drift, losses, balance, as matplotlib figures, separately or all in one.

In: drawing. Not in: pyplot, style sheets or any other shared state of matplotlib; numbers (`run_summary`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..palette import BLUE, FAINT, INK, ORANGE, Legend, as_hex, bin_colours
from ..verdict.run_files import RunRecord
from ..verdict.run_log import DRIFT, Floats, RunLog, block_means, moving_average
from ..verdict.run_summary import NEAR_ONE, RISE, evened_denoising
from ..wording import bin_names
from .heat_map import heat_map
from .matplotlib_parts import (
    Axes,
    Figure,
    FigureBase,
    FigureCanvasAgg,
    LogLocator,
    MaxNLocator,
    NullLocator,
    Text,
    our_style,
)
from .typeface import families_for

MOST_POINTS = 1200  # no screen shows more
MOST_BARS = 60
DRIFT_NAMES = ("on the subject's prompt", "on prompts without it")
DRIFT_COLOURS = (BLUE, ORANGE)
MARKS: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.8}
DASHED: dict[str, Any] = {"color": as_hex(INK), "linewidth": 0.8, "linestyle": (0, (4, 4)), "zorder": 1}
BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}  # a legend


@our_style()
def part_figure(part: str, run: RunRecord) -> Figure:
    """One of `PARTS` on its own sheet, 1300 pixels wide; a single loss panel gets half of that."""
    columns, rows = _panel_grid(run.log)
    losses = (6.5 * columns, 3.1 * rows + 0.4) if rows else (13, 4.8)
    sizes = {"indicator": (13, 4.8), "drift": (13, 4.0), "losses": losses, "balance": (13, 4.4)}
    figure = Figure(sizes[part], dpi=100, layout="constrained")
    PARTS[part](figure, run)
    return figure


@our_style()
def overview_figure(run: RunRecord) -> Figure:
    """Indicator, drift, losses and balance beneath each other, in letters large enough for a small window."""
    rows = _panel_grid(run.log)[1]
    losses, part, empty = 2.1 * rows + 0.4, 2.9, 0.8  # inches
    heights = [3.5 if run.summary.indicator_measured else empty, part if len(run.log.drift_step) else empty]
    heights += [losses if rows else empty, part if run.log.balance else empty]
    figure = Figure((9.5, sum(heights)), dpi=100, layout="constrained")
    places = figure.subfigures(len(PARTS), 1, squeeze=False, height_ratios=heights)[:, 0]
    for draw, place in zip(PARTS.values(), places, strict=True):
        draw(place, run)
    return figure


@our_style()
def glance_figure(run: RunRecord) -> Figure:
    """A small figure, legible on a node: the indicator's map, the drift ratio beneath."""
    log, empty, part = run.log, 0.5, 2.0  # inches
    heights = [part if run.summary.indicator_measured else empty, part if len(log.drift_step) else empty]
    figure = Figure((4.2, sum(heights)), dpi=100, layout="constrained")
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    if run.summary.indicator_measured:
        _indicator_heat(upper.subplots(), log, "Overfitting indicator")
    else:
        message(upper, "The indicator was not measured.", 9)
    if len(log.drift_step):
        _drift_ratio(lower.subplots(), run)
    else:
        message(lower, "The drift from the prior was not measured.", 9)
    return figure


@our_style()
def as_picture(figure: Figure, width: int) -> Image.Image:
    """The figure as pixels, `width` of them across; letters scale with it."""
    figure.set_dpi((width + 0.01) / figure.get_figwidth())  # matplotlib truncates the product, rounding errors and all
    for text in figure.findobj(Text):
        if not text.get_text().isascii():  # a name in other letters
            text.set_fontfamily(families_for(text.get_text()))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _indicator(figure: FigureBase, run: RunRecord) -> None:
    """One curve per bin of the noise level over the steps, beside the same numbers as a bins x steps heat map."""
    if not run.summary.indicator_measured:
        return message(figure, "The overfitting indicator was not measured in this run.")
    curves, chart = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _indicator_curves(curves, run.log)
    _indicator_heat(chart, run.log, "The same as a map")


def _indicator_curves(axes: Axes, log: RunLog) -> None:
    steps, gamma = (block_means(values.astype(np.float64), MOST_POINTS) for values in (log.step, log.gamma))
    labels = bin_names(gamma.shape[1])
    marker = "o" if len(steps) == 1 else None
    for values, label, colour in zip(np.transpose(gamma), labels, bin_colours(len(labels)), strict=True):
        axes.plot(steps, values, color=as_hex(colour), linewidth=1.7, marker=marker, label=label)
    axes.axhline(NEAR_ONE, **DASHED)
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
    _dress(axes, "Overfitting indicator by noise level (dashed: near 1)", "indicator γ")
    letters, columns = 8.5 if len(labels) <= 16 else 6, 1 + len(labels) // 33
    axes.legend(title="noise level", title_fontsize=9, fontsize=letters, ncols=columns, reverse=True, **BESIDE)


def _indicator_heat(axes: Axes, log: RunLog, title: str) -> None:
    gamma, labels = block_means(log.gamma, MOST_POINTS), bin_names(log.gamma.shape[1])
    extent = (int(log.step[0]) - 0.5, int(log.step[-1]) + 0.5, -0.5, len(labels) - 0.5)
    fields: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    axes.imshow(heat_map(np.transpose(gamma)), extent=extent, **fields)
    every = -(-len(labels) // 20)
    axes.set_yticks(range(0, len(labels), every), labels[::every])
    _dress(axes, title, "noise level", grid=False)
    scale = axes.inset_axes((1.05, 0, 0.045, 1))
    scale.imshow(heat_map(np.linspace(0, 1, 256)[:, None]), extent=(0, 1, 0, 1), **fields)
    _dress(scale, "", "indicator γ", grid=False)
    scale.set(xticks=[], xlabel="")
    scale.yaxis.set_label_position("right")
    scale.yaxis.tick_right()
    scale.spines[:].set_visible(False)


def _drift(figure: FigureBase, run: RunRecord) -> None:
    """Drift from the prior at each snapshot: the ratio of unrelated to subject, beside the two themselves."""
    log = run.log
    if not len(log.drift_step):
        return message(figure, "The drift from the prior was not measured in this run (watch_drift, snapshot_every).")
    subject, unrelated = (np.where(log.drift[name] > 0, log.drift[name], np.nan) for name in DRIFT[:2])
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _drift_ratio(left, run)
    for name, values, colour in zip(DRIFT_NAMES, (subject, unrelated), DRIFT_COLOURS, strict=True):
        right.plot(log.drift_step, values, color=as_hex(colour), label=name, **MARKS)
    _log_scale_if_wide(right, np.concatenate([subject, unrelated]), lowest=0.0)
    _dress(right, "Drift from the prior", "squared difference of epsilon")
    right.legend(fontsize=9, **BESIDE)


def _drift_ratio(axes: Axes, run: RunRecord) -> None:
    ratio = run.log.drift["ratio"]
    axes.plot(run.log.drift_step, ratio, color=as_hex(DRIFT_COLOURS[1]), **MARKS)
    known = ratio[np.isfinite(ratio)]
    if len(known):
        axes.axhline(RISE * known.min(), **DASHED)
        axes.set_ylim(0, max(1e-6, 1.1 * RISE * known.min(), 1.1 * known.max()))
    _dress(axes, f"Drift ratio (dashed: {RISE:g} times the lowest)", "without / with subject")


def _losses(figure: FigureBase, run: RunRecord) -> None:
    """One panel per computed term and per further number: every step faint, the moving average over it.

    The denoising loss is averaged after removing the size typical of each noise level, which would hide its trend.
    """
    log, shown = run.log, _curves_shown(run.log)
    if not shown:
        return message(figure, "No finite loss in this log.")
    columns, rows = _panel_grid(log)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    window = max(1, len(log) // 25) | 1
    for axes, (name, values) in zip(panels, shown.items(), strict=False):
        curve = evened_denoising(log) if name == "denoising" else values
        _loss_panel(axes, [log.step, values, moving_average(curve, window)], log.legends[name])
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    note = f"thick: mean over {window} steps, denoising with noise levels evened out" if window > 1 else "every step"
    figure.suptitle(f"Losses before their weights ({note})", fontsize=11, color=as_hex(INK), x=0.01, ha="left")


def _loss_panel(axes: Axes, columns: list[Any], legend: Legend) -> None:
    """`columns`: steps, values, their average. With a lazy prior most steps lack some terms."""
    known = np.isfinite(columns[1])
    steps, raw, average = (block_means(column[known].astype(np.float64), MOST_POINTS) for column in columns)
    axes.plot(steps, raw, color=legend.colour, alpha=0.28, linewidth=0.8)
    axes.plot(steps, average, color=legend.colour, linewidth=2.0, marker="o" if len(raw) == 1 else None)
    _log_scale_if_wide(axes, raw, lowest=0.01)  # in the first step the regularisers are 0 except for rounding
    _dress(axes, legend.title, "")


def _balance(figure: FigureBase, run: RunRecord) -> None:
    """Gradient norm of each term over the steps, beside each term's share of their sum."""
    log = run.log
    if not log.balance:
        return message(figure, "The gradient of the single terms was not measured in this run (balance_every).")
    steps = block_means(log.balance_step.astype(np.float64), MOST_BARS)
    norms = {name: block_means(values, MOST_BARS) for name, values in log.balance.items()}
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for name, values in norms.items():
        left.plot(steps, values, color=log.legends[name].colour, **MARKS)
    _log_scale_if_wide(left, np.concatenate(list(norms.values())), lowest=0.0)
    _dress(left, "Gradient norm of each term", "norm")
    _share_bars(right, steps, {log.legends[name]: np.nan_to_num(values) for name, values in norms.items()})
    right.legend(fontsize=9, reverse=True, **BESIDE)


def _share_bars(axes: Axes, steps: Floats, norms: dict[Legend, Floats]) -> None:
    total = np.maximum(sum(norms.values()), 1e-30)
    width = float(np.diff(steps).max()) if len(steps) > 1 else 1.0
    bottom = np.zeros(len(steps))
    for legend, values in norms.items():
        axes.bar(steps, values / total, width=width, bottom=bottom, color=legend.colour, label=legend.title)
        bottom = bottom + values / total
    axes.set_ylim(0, 1)
    axes.set_xlim(steps[0] - width, steps[-1] + width)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _dress(axes, "Part of the norms' sum", "", grid=False)


def _curves_shown(log: RunLog) -> dict[str, Floats]:
    return {name: values for name, values in (log.terms | log.numbers).items() if np.isfinite(values).any()}


def _panel_grid(log: RunLog) -> tuple[int, int]:
    """Columns and rows of the loss panels; no rows if there is nothing to show."""
    count = len(_curves_shown(log))
    columns = min(2, max(1, count))
    return columns, -(-count // columns)


def _dress(axes: Axes, title: str, ylabel: str, grid: bool = True) -> None:
    """The style of charts over steps."""
    dress(axes, title, ylabel, (10.5, 9, 8.5), grid=grid)
    axes.set_xlabel("step", fontsize=9, color=as_hex(INK))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1, steps=[1, 2, 5, 10]))


def dress(axes: Axes, title: str, ylabel: str, letters: tuple[float, float, float], *, grid: bool) -> None:
    """Title, labels and frame of any chart. `letters`: font sizes in points of title, axis label and ticks."""
    axes.set_title(title, fontsize=letters[0], color=as_hex(INK), loc="left")
    axes.set_ylabel(ylabel, fontsize=letters[1], color=as_hex(INK))
    axes.tick_params(labelsize=letters[2], colors=as_hex(INK))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(as_hex(FAINT))
    if grid:
        axes.grid(axis="y", color=as_hex(FAINT), linewidth=0.6)
        axes.set_axisbelow(True)


def _log_scale_if_wide(axes: Axes, values: Floats, lowest: float) -> None:
    """Use a logarithmic axis if the values span more than a decade; it starts at their quantile `lowest`."""
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) < 2 or np.quantile(positive, 0.98) < 15 * np.quantile(positive, 0.02):
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylim(np.quantile(positive, lowest) / 1.4, positive.max() * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def message(place: FigureBase | Axes, text: str, letters: float = 13) -> None:
    """Text in the middle, if there is nothing to draw."""
    place.text(0.5, 0.5, text, ha="center", va="center", fontsize=letters, color=as_hex(INK))


PARTS = {"indicator": _indicator, "drift": _drift, "losses": _losses, "balance": _balance}  # from the top down
