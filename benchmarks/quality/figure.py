"""The figure: cost against subject fidelity, one line per variant from the prior to the last snapshot."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from apt_train.report.plots import as_picture

from .curves import Curve, Mean, at_step
from .tables import MEASURES, THOUSANDS, variants_of

PANELS = ("fid", "drift_other", "drift_class", "aligned", "copied", "kept")
COLOURS = ("#333333", "#888888", "#8c56a8", "#00808a", "#e0a800", "#e07b00", "#d7263d", "#2a6fbb", "#1a9850")
STYLES = ("-", "--", ":")  # for more variants than colours


def cost_of_fidelity(curves: Sequence[Curve], floors: dict[str, Mean], title: str) -> Image.Image:
    """One panel per measure, over subject fidelity. Whiskers: 95% intervals. Dotted line: the prior's floor."""
    names = [name for name in PANELS if any(name in curve.values for curve in curves)]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        _panel(axis, curves, name, floors.get(name))
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    figure.suptitle(title, fontsize=11)
    return as_picture(figure, width=460 * columns)


def _panel(axis: Axes, curves: Sequence[Curve], name: str, floor: Mean | None) -> None:
    scale = 1000 if name in THOUSANDS else 1
    if floor is not None:
        axis.axhline(scale * floor.mean, color="#999999", linestyle=":", linewidth=1)
    for variant, (style, colour) in zip(variants_of(curves), itertools.product(STYLES, COLOURS), strict=False):
        steps = _sampled_steps(curves, variant)
        across = [Mean.of([*at_step(curves, variant, "fidelity", step).values()]) for step in steps]
        up = [Mean.of([*at_step(curves, variant, name, step).values()]) for step in steps]
        axis.errorbar(
            [mean.mean for mean in across],
            [scale * mean.mean for mean in up],
            yerr=[scale * np.nan_to_num(mean.half) for mean in up],
            color=colour,
            linestyle=style,
            marker="o",
            markersize=3,
            linewidth=1.4,
            elinewidth=0.7,
            label=variant,
        )
    heading, direction = MEASURES[name]
    axis.set_title(f"{heading} ({'higher' if direction > 0 else 'lower'} is better)", fontsize=9)
    axis.set_xlabel("subject fidelity", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _sampled_steps(curves: Sequence[Curve], variant: str) -> list[int]:
    return sorted({int(s) for curve in curves if curve.variant == variant for s in curve.steps[curve.sampled()]})
