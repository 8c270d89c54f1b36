"""Cross-attention maps of the prior and the tuned model, token by token, as one picture (after the paper's figure).

In: the maps of layers of several sizes -> one map -> picture. Not in: capturing maps (`capture`), running a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from .grid import fit_label, font, labelled_grid
from .palette import INK, PAPER, diverging, heat

TILE = 112  # pixels, the longer side of a map
PER_ROW = 9
LEAST_WIDTH = 480  # pixels: room for the lines above and beneath, also where one token is shown
LEGEND = "mean attention, prior > tuned; one scale per token; difference: blue less, red more than the prior"


def merge_layers(maps: Sequence[Tensor], aspect: float) -> Tensor:
    """Maps (positions, columns) of layers of different sizes -> their mean (columns, h, w) at the finest size.

    `aspect`: height / width of the latent.
    """
    grids = [_grid(layer, aspect) for layer in maps]
    size = max((grid.shape[-2:] for grid in grids), key=lambda shape: shape[0] * shape[1])
    scaled = [F.interpolate(grid[None], size=size, mode="bilinear", align_corners=False)[0] for grid in grids]
    return torch.stack(scaled).mean(dim=0).cpu().contiguous()


def _grid(layer: Tensor, aspect: float) -> Tensor:
    positions = layer.shape[0]
    # Odd latents are rounded up on each way down, so the sides are found, not computed: the divisor nearest in aspect.
    divisors = [h for h in range(1, positions + 1) if positions % h == 0]
    height = min(divisors, key=lambda h: abs(math.log(h * h / positions / aspect)))
    return layer.T.reshape(-1, height, positions // height).float()


def attention_tiles(
    prior: Tensor,
    tuned: Tensor,
    labels: Sequence[str],
    image: Image.Image | None = None,
    *,
    heading: Sequence[str] = (),
    per_row: int = PER_ROW,
    text_size: float = 13,
) -> Image.Image:
    """Rows prior | tuned | difference, one column per token; long captions go on in further rows.

    Args:
        prior, tuned: attention of every token, float (columns, h, w), each in [0, 1].
        labels: one per column.
        image: the picture the maps belong to, shown as the first column.
        heading: lines above the tiles.
        per_row: tokens beside each other, at most; fewer and larger letters suit where the sheet is shown small.
        text_size: of the labels, in pixels.

    In a column the prior's and the tuned map share one scale, from 0 to the larger one's peak, so that a token that
    has been dimmed looks dim; the difference (tuned - prior) is blue for less and red for more, in full colour at half
    that peak. Beneath the label stands the token's mean attention, prior > tuned.
    """
    assert prior.shape == tuned.shape and prior.ndim == 3 and len(prior) == len(labels), "a map and a label per column"
    before, after = (maps.detach().float().cpu().numpy().astype(np.float64) for maps in (prior, tuned))
    columns = [_column(p, t) for p, t in zip(before, after, strict=True)]
    titles = [f"{name}\n{_percent(p)} > {_percent(t)}" for name, p, t in zip(labels, before, after, strict=True)]
    if image is not None:
        picture = image.convert("RGB").resize(columns[0][0].size, Image.Resampling.LANCZOS)
        columns, titles = [(picture, None, None), *columns], ["picture", *titles]
    rows = math.ceil(len(columns) / per_row)
    beside = math.ceil(len(columns) / rows)
    sheets = [
        _sheet(columns[i : i + beside], titles[i : i + beside], beside, text_size)
        for i in range(0, len(columns), beside)
    ]
    return _stack(sheets, heading, text_size)


_Column = tuple[Image.Image, Image.Image | None, Image.Image | None]


def _column(prior: NDArray[np.float64], tuned: NDArray[np.float64]) -> _Column:
    peak = max(float(np.nanmax(prior)), float(np.nanmax(tuned)), 1e-12)
    return _tile(heat(prior / peak)), _tile(heat(tuned / peak)), _tile(diverging(2 * (tuned - prior) / peak))


def _tile(colours: NDArray[np.uint8]) -> Image.Image:
    height, width = colours.shape[:2]
    scale = TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def _sheet(columns: list[_Column], titles: list[str], beside: int, text_size: float) -> Image.Image:
    rows = [[column[r] for column in columns] for r in range(3)]
    padding = [""] * (beside - len(columns))
    return labelled_grid(rows, ["prior", "tuned", "difference"], [*titles, *padding], gap=5, text_size=text_size)


def _stack(sheets: list[Image.Image], heading: Sequence[str], text_size: float) -> Image.Image:
    """Sheets under each other, the heading above and the legend beneath them."""
    gap, margin, face = 14, 6, font(text_size - 1)
    width = max(LEAST_WIDTH, *(sheet.width for sheet in sheets))
    above, below = (fit_label("\n".join(lines), width - 2 * margin, face) for lines in (heading, [LEGEND]))
    line = round(text_size * 1.3)
    top = margin + line * (above.count("\n") + 1) if above else 0
    height = top + sum(sheet.height + gap for sheet in sheets) + line * (below.count("\n") + 1)
    stacked = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(stacked)
    y = top
    for sheet in sheets:
        stacked.paste(sheet, (0, y))
        y += sheet.height + gap
    for text, at in ((above, margin), (below, y - gap / 2)):
        pen.multiline_text((margin, at), text, INK, face, spacing=line - text_size)
    return stacked


def _percent(values: NDArray[np.float64]) -> str:
    mean = float(np.nanmean(values)) * 100
    return f"{mean:.0f}%" if mean >= 9.95 else f"{mean:.1f}%"
