"""Cross-attention maps of the prior and the tuned model, token by token, as one picture (after the paper's figure).

In: maps -> picture. Not in: capturing maps and merging layers (`training.capture`), running a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..palette import INK
from .grid import fit_label, font, labelled_grid, stacked_vertically
from .heat_map import heat_map

TILE = 112  # pixels, the longer side of a map
PER_ROW = 9
COVERS = 0.85  # opacity of a map over a picture, at the map's peak
LEAST_WIDTH = 480  # pixels: room for the text above and beneath, even for a single token
LEGEND = "mean attention, prior > tuned; one scale per token; difference: blue less, red more than the prior"
ROWS = ("prior", "tuned", "difference")

_Column = tuple[Image.Image | None, ...]  # one picture per row


def attention_tiles(
    maps: tuple[Tensor, Tensor],
    labels: Sequence[str],
    image: Image.Image | None = None,
    *,
    heading: Sequence[str] = (),
    per_row: int = PER_ROW,
    text_size: float = 13,
    over: bool = False,
) -> Image.Image:
    """Rows prior | tuned | difference, one column per token; long captions continue in further rows.

    Args:
        maps: attention per token, the prior's and the tuned model's, float (columns, h, w), each in [0, 1].
        labels: one per column.
        image: the picture the maps belong to, shown as the first column.
        heading: lines above the tiles.
        per_row: most tokens per row; use few and large letters if the sheet is shown small.
        text_size: of the labels, in pixels.
        over: draw the maps over `image`, which shows through where there is little attention.

    In a column the prior's and the tuned map share one scale, from 0 to the higher peak. So a token that was dimmed
    looks dim. The difference (tuned - prior) is blue for less and red for more, in full colour at half that
    peak. Beneath the label is the token's mean attention, prior > tuned.
    """
    prior, tuned = (side.detach().float().cpu().numpy().astype(np.float64) for side in maps)
    assert prior.shape == tuned.shape and prior.ndim == 3 and len(prior) == len(labels), "a map and a label per column"
    scale = TILE / max(prior.shape[1:])
    size = max(1, round(prior.shape[2] * scale)), max(1, round(prior.shape[1] * scale))
    beneath = None if image is None else image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    columns = [_column(p, t, size, beneath if over else None) for p, t in zip(prior, tuned, strict=True)]
    titles = [f"{name}\n{_percent(p)} > {_percent(t)}" for name, p, t in zip(labels, prior, tuned, strict=True)]
    if beneath is not None:
        columns, titles = [(beneath, None, None), *columns], ["picture", *titles]
    return _stack(_sheets(columns, titles, per_row, text_size), heading, text_size)


def _column(
    prior: NDArray[np.float64], tuned: NDArray[np.float64], size: tuple[int, int], beneath: Image.Image | None
) -> _Column:
    peak = max(float(np.nanmax(prior)), float(np.nanmax(tuned)), 1e-12)
    rows = ((prior / peak, False), (tuned / peak, False), (2 * (tuned - prior) / peak, True))
    return tuple(_tile(values, size, beneath, signed=signed) for values, signed in rows)


def _tile(
    values: NDArray[np.float64], size: tuple[int, int], beneath: Image.Image | None, *, signed: bool
) -> Image.Image:
    """A map, alone or over a picture: the more attention, or the larger its change, the less shows through."""
    colours = heat_map(values, size, signed=signed, smooth=True)
    if beneath is None:
        return colours
    shares = np.nan_to_num(np.abs(values)).clip(0, 1) * COVERS * 255
    covers = Image.fromarray(cast("NDArray[np.uint8]", shares.round().astype(np.uint8)))
    return Image.composite(colours, beneath, covers.resize(size, Image.Resampling.BICUBIC))


def _sheets(columns: list[_Column], titles: list[str], per_row: int, text_size: float) -> list[Image.Image]:
    """The fewest sheets that hold the columns, evenly filled and equally wide."""
    beside = math.ceil(len(columns) / math.ceil(len(columns) / per_row))
    missing = -len(columns) % beside
    columns, titles = [*columns, *[(None,) * len(ROWS)] * missing], [*titles, *[""] * missing]
    parts = [slice(start, start + beside) for start in range(0, len(columns), beside)]
    return [
        labelled_grid(list(zip(*columns[part], strict=True)), ROWS, titles[part], gap=5, text_size=text_size)
        for part in parts
    ]


def _stack(sheets: list[Image.Image], heading: Sequence[str], text_size: float) -> Image.Image:
    """Sheets beneath each other, with the heading above and the legend below."""
    gap, margin, line = 14, 6, round(text_size * 1.3)
    face = font(text_size - 1, "".join(heading))
    width = max(LEAST_WIDTH, *(sheet.width for sheet in sheets))
    above, below = (fit_label("\n".join(lines), width - 2 * margin, face) for lines in (heading, [LEGEND]))
    top, bottom = margin + line * (above.count("\n") + 1) if above else 0, gap + line * (below.count("\n") + 1)
    stacked = stacked_vertically(sheets, gap=gap, above=top, below=bottom, least_width=width)
    for text, y in ((above, margin), (below, stacked.height - bottom + gap / 2)):
        ImageDraw.Draw(stacked).multiline_text((margin, y), text, INK, face, spacing=line - text_size)
    return stacked


def _percent(values: NDArray[np.float64]) -> str:
    mean = float(np.nanmean(values)) * 100
    return f"{mean:.0f}%" if mean >= 9.95 else f"{mean:.1f}%"
