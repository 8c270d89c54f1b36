"""The report's curves: indicator, losses, balance, as matplotlib figures, each alone or all in one.

In: drawing. Not in: pyplot, style sheets or any other state of matplotlib that others share; numbers (`run_summary`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from .palette import BLUE, FAINT, INK, ORANGE, Look, as_hex, bin_colours, heat
from .run_log import DRIFT, Floats, RunLog, block_means, moving_average
from .run_summary import NEAR_ONE, RISE, bin_edges, evened_denoising

MOST_POINTS = 1200  # more than that no screen shows
MOST_BARS = 60
DRIFT_NAMES = ("on the subject's prompt", "on prompts without it")
DRIFT_COLOURS = (BLUE, ORANGE)


def indicator_figure(log: RunLog, *, measured: bool, num_timesteps: int = 1000) -> Figure:
    """One curve per timestep bin over the steps, beside the same numbers as a bins x steps heat map."""
    figure = _figure(13, 4.8)
    _draw_indicator(figure, log, measured, num_timesteps)
    return figure


def losses_figure(log: RunLog, *, num_timesteps: int = 1000) -> Figure:
    """A panel per term that the run computed: every step faint, the moving average over it.

    The denoising loss is averaged with its timesteps' own levels taken out, which else hide where it goes.
    """
    columns, rows = _panel_grid(log)
    figure = _figure(6.5 * columns, 3.1 * rows + 0.4) if rows else _figure(13, 4.8)
    _draw_losses(figure, log, num_timesteps)
    return figure


def balance_figure(log: RunLog) -> Figure:
    """Gradient norm of each term over the steps, beside each term's part of their sum."""
    figure = _figure(13, 4.4)
    _draw_balance(figure, log)
    return figure


def drift_figure(log: RunLog) -> Figure:
    """Drift from the prior at each snapshot: on prompts without the subject over that on its own, beside the two."""
    figure = _figure(13, 4.0)
    _draw_drift(figure, log)
    return figure


def overview_figure(log: RunLog, *, measured: bool, num_timesteps: int = 1000) -> Figure:
    """Indicator, drift, losses and balance under each other, in letters large enough for a small window."""
    rows = _panel_grid(log)[1]
    losses, part = 2.1 * rows + 0.4 if rows else 0.8, 2.9
    heights = [3.5 if measured else 0.8, part if len(log.drift_step) else 0.8, losses, part if log.balance else 0.8]
    figure = _figure(9.5, sum(heights))
    first, second, third, fourth = figure.subfigures(4, 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_indicator(first, log, measured, num_timesteps)
    _draw_drift(second, log)
    _draw_losses(third, log, num_timesteps)
    _draw_balance(fourth, log)
    return figure


def as_picture(figure: Figure, width: int) -> Image.Image:
    """The figure as pixels, `width` of them across; letters grow with it."""
    figure.set_dpi((width + 0.01) / figure.get_figwidth())  # matplotlib cuts the product off, rounding errors and all
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _figure(width: float, height: float) -> Figure:
    """An empty figure, its size in inches of 100 dots."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _draw_indicator(figure: FigureBase, log: RunLog, measured: bool, num_timesteps: int) -> None:
    if not measured:
        return _message(figure, "The overfitting indicator was not measured in this run.")
    steps = block_means(log.step.astype(np.float64), MOST_POINTS)
    gamma = block_means(log.gamma, MOST_POINTS)
    labels = [f"{low}-{high}" for low, high in bin_edges(gamma.shape[1], num_timesteps)]
    curves, chart = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _indicator_curves(curves, steps, gamma, labels)
    _indicator_heat(figure, chart, (int(log.step[0]), int(log.step[-1])), gamma, labels)


def _draw_drift(figure: FigureBase, log: RunLog) -> None:
    if not len(log.drift_step):
        return _message(figure, "The drift from the prior was not measured in this run (watch_drift, snapshot_every).")
    subject, unrelated = (np.where(log.drift[name] > 0, log.drift[name], np.nan) for name in DRIFT[:2])
    ratio, marks = log.drift["ratio"], {"marker": "o", "markersize": 4, "linewidth": 1.8}
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    left.plot(log.drift_step, ratio, color=as_hex(DRIFT_COLOURS[1]), **marks)
    known = ratio[np.isfinite(ratio)]
    if len(known):
        left.axhline(RISE * known.min(), color=as_hex(INK), linewidth=0.8, linestyle=(0, (4, 4)), zorder=1)
        left.set_ylim(0, max(1e-6, 1.1 * RISE * known.min(), 1.1 * known.max()))
    _dress(left, f"Drift ratio (dashed: {RISE:g} times the lowest)", "without / with subject")
    for name, values, colour in zip(DRIFT_NAMES, (subject, unrelated), DRIFT_COLOURS, strict=True):
        right.plot(log.drift_step, values, color=as_hex(colour), label=name, **marks)
    _log_scale_if_wide(right, np.concatenate([subject, unrelated]), lowest=0.0)
    _dress(right, "Drift from the prior", "squared difference of epsilon")
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _draw_losses(figure: FigureBase, log: RunLog, num_timesteps: int) -> None:
    shown = _terms_shown(log)
    if not shown:
        return _message(figure, "No finite loss in this log.")
    columns, rows = _panel_grid(log)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    window = max(1, len(log) // 25) | 1
    for axes, name in zip(panels, shown, strict=False):
        level = evened_denoising(log, num_timesteps) if name == "denoising" else log.terms[name]
        smooth = moving_average(level, window)
        _loss_panel(axes, log.step, log.terms[name], smooth, log.looks[name])
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    note = f"thick: mean over {window} steps, denoising with timesteps evened out" if window > 1 else "every step"
    figure.suptitle(f"Losses before their weights ({note})", fontsize=11, color=as_hex(INK), x=0.01, ha="left")


def _draw_balance(figure: FigureBase, log: RunLog) -> None:
    if not log.balance:
        return _message(figure, "The gradient of the single terms was not measured in this run (balance_every).")
    steps = block_means(log.balance_step.astype(np.float64), MOST_BARS)
    norms = {name: block_means(values, MOST_BARS) for name, values in log.balance.items()}
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for name, values in norms.items():
        look = log.looks[name]
        left.plot(steps, values, marker="o", markersize=4, linewidth=1.8, color=look.colour, label=look.title)
    _log_scale_if_wide(left, np.concatenate(list(norms.values())), lowest=0.0)
    _dress(left, "Gradient norm of each term", "norm")
    _share_bars(right, steps, norms, log.looks)
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, reverse=True)


def _terms_shown(log: RunLog) -> list[str]:
    return [name for name in log.terms if np.isfinite(log.terms[name]).any()]


def _panel_grid(log: RunLog) -> tuple[int, int]:
    """Columns and rows of the loss panels; no rows where there is nothing to show."""
    count = len(_terms_shown(log))
    columns = min(2, max(1, count))
    return columns, -(-count // columns)


def _indicator_curves(axes: Axes, steps: Floats, gamma: Floats, labels: list[str]) -> None:
    marker = "o" if len(steps) == 1 else None
    for values, label, colour in zip(gamma.T, labels, bin_colours(len(labels)), strict=True):
        axes.plot(steps, values, color=as_hex(colour), linewidth=1.7, marker=marker, label=label)
    axes.axhline(NEAR_ONE, color=as_hex(INK), linewidth=0.8, linestyle=(0, (4, 4)), zorder=1)
    axes.set_ylim(-0.02, 1.03)
    axes.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
    _dress(axes, "Overfitting indicator by timestep (dashed: near 1)", "indicator γ")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], names[::-1], title="timesteps", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
        fontsize=8.5 if len(labels) <= 16 else 6, title_fontsize=9, ncols=1 + len(labels) // 33,
    )  # fmt: skip


def _indicator_heat(figure: FigureBase, axes: Axes, ends: tuple[int, int], gamma: Floats, labels: list[str]) -> None:
    extent = (ends[0] - 0.5, ends[1] + 0.5, -0.5, len(labels) - 0.5)
    image = axes.imshow(
        gamma.T,
        origin="lower",
        aspect="auto",
        extent=extent,
        vmin=0,
        vmax=1,
        cmap=_heat_map(),
        interpolation="nearest",
    )
    every = -(-len(labels) // 20)
    axes.set_yticks(range(0, len(labels), every), labels[::every])
    _dress(axes, "The same as a map", "timesteps", grid=False)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("indicator γ", fontsize=9, color=as_hex(INK))
    bar.ax.tick_params(labelsize=8, colors=as_hex(INK))
    bar.outline.set_visible(False)  # type: ignore[operator]


def _loss_panel(axes: Axes, step: Any, values: Floats, average: Floats, look: Look) -> None:
    known = np.isfinite(values)  # a lazy prior leaves most steps of its terms empty
    steps, raw, smooth = step[known].astype(np.float64), values[known], average[known]
    points = [block_means(column, MOST_POINTS) for column in (steps, raw, smooth)]
    marker = "o" if len(raw) == 1 else None
    axes.plot(points[0], points[1], color=look.colour, alpha=0.28, linewidth=0.8)
    axes.plot(points[0], points[2], color=look.colour, linewidth=2.0, marker=marker)
    _log_scale_if_wide(axes, points[1], lowest=0.01)  # the first step's regularisers are 0 but for rounding
    _dress(axes, look.title, "")


def _share_bars(axes: Axes, steps: Floats, norms: dict[str, Floats], looks: dict[str, Look]) -> None:
    filled = {name: np.nan_to_num(values) for name, values in norms.items()}
    total = np.maximum(sum(filled.values()), 1e-30)
    width = float(np.diff(steps).max()) if len(steps) > 1 else 1.0
    bottom = np.zeros(len(steps))
    for name, values in filled.items():
        look = looks[name]
        axes.bar(steps, values / total, width=width, bottom=bottom, color=look.colour, label=look.title)
        bottom = bottom + values / total
    axes.set_ylim(0, 1)
    axes.set_xlim(steps[0] - width, steps[-1] + width)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    _dress(axes, "Part of the norms' sum", "", grid=False)


def _dress(axes: Axes, title: str, ylabel: str, grid: bool = True) -> None:
    axes.set_title(title, fontsize=10.5, color=as_hex(INK), loc="left")
    axes.set_xlabel("step", fontsize=9, color=as_hex(INK))
    axes.set_ylabel(ylabel, fontsize=9, color=as_hex(INK))
    axes.tick_params(labelsize=8.5, colors=as_hex(INK))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1, steps=[1, 2, 5, 10]))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(as_hex(FAINT))
    if grid:
        axes.grid(axis="y", color=as_hex(FAINT), linewidth=0.6)
        axes.set_axisbelow(True)


def _log_scale_if_wide(axes: Axes, values: Floats, lowest: float) -> None:
    """A logarithmic axis where the values span more than a decade, from their quantile `lowest` up."""
    positive = values[np.isfinite(values) & (values > 0)]
    if len(positive) < 2 or np.quantile(positive, 0.98) < 15 * np.quantile(positive, 0.02):
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylim(np.quantile(positive, lowest) / 1.4, positive.max() * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _message(figure: FigureBase, text: str) -> None:
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=13, color=as_hex(INK))


def _heat_map() -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("indicator", heat(np.linspace(0, 1, 64)) / 255.0)
