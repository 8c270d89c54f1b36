"""How far two models' attention differs, as one score and token by token.

In: maps by layer -> numbers -> text. Not in: capturing the maps (`host.attention`), pictures (`apt_train.report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """Per column, float64 (columns,): mean attention of the prior and the tuned model, and the variation between them.

    `variation`: half the absolute difference. Summed over all columns it is the total variation distance of the two
    models' attention. Every mean is over positions and heads, then over layers.
    """

    prior: Tensor
    tuned: Tensor
    variation: Tensor

    @property
    def alignment(self) -> float:
        """1 - total variation (ours): 1 for equal attention, 0 for no overlap."""
        return 1 - float(self.variation.sum())


def compare(prior: Sequence[Tensor], tuned: Sequence[Tensor]) -> Comparison:
    """Compare maps (heads, positions, columns) of each layer, whose rows sum to 1."""
    halves = [(t.double() - p.double()).abs() / 2 for p, t in zip(prior, tuned, strict=True)]
    return Comparison(*(_mean(maps) for maps in (prior, tuned, halves)))


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack([layer.double().mean(dim=(0, 1)) for layer in maps]).mean(dim=0)


def table(comparison: Comparison, labels: Sequence[str], shown: Sequence[int], heading: Sequence[str]) -> str:
    """Aligned text: the heading's lines, then one line per shown column."""
    total = float(comparison.variation.sum())
    rows = [("token", "prior", "tuned", "difference", "share of the change")]
    for i in shown:
        prior, tuned = float(comparison.prior[i]), float(comparison.tuned[i])
        share = f"{float(comparison.variation[i]) / total:.1%}" if total > 0 else "-"
        rows.append((labels[i], f"{prior:.2%}", f"{tuned:.2%}", f"{100 * (tuned - prior):+.2f}", share))
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([*heading, "", *lines])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
