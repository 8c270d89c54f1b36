"""The picture on the training node: the preset's values, samples large, the filmstrip, and the indicator beneath.

In: arranging them. Not in: when it is drawn (`watch`), the charts (`apt_train.report.live_images`).
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..apt_train.config import TrainConfig
from ..apt_train.events import PreviewEvent
from ..apt_train.palette import INK
from ..apt_train.presets import in_force
from ..apt_train.report.filmstrip import prompt_label
from ..apt_train.report.grid import fit_label, font, labelled_grid, stacked_vertically

SIDES = (384, 384, 256, 192)  # pixels of a sample, by number of prompts shown
LETTERS, GAP = 18, 6


def sample_sheet(samples: PreviewEvent, config: TrainConfig) -> Image.Image:
    """The newest samples: one column per prompt, prior above tuned, from the same noise. If there are many prompts, the
    first ones and the last, which may be the unseen one, are shown. Each is labelled with its prompt."""
    count = len(samples.tuned)
    shown = list(range(count)) if count <= len(SIDES) else [*range(len(SIDES) - 1), count - 1]
    side = SIDES[len(shown) - 1]
    rows = [[_scaled(row[i], side) for i in shown] for row in (samples.prior, samples.tuned)]
    names = [prompt_label(config, samples.prompts[i]) for i in shown]
    return labelled_grid(rows, ["prior", f"step\n{samples.step}"], names, text_size=LETTERS)


def header_of(preset: str, config: TrainConfig) -> str:
    """`preset quick look: steps 400, learning_rate 0.0002`; empty if the preset sets nothing."""
    sets = in_force(preset, config)
    return f"preset {preset}: {sets}" if sets else ""


def stacked(header: str, parts: Sequence[Image.Image]) -> Image.Image:
    """The parts beneath each other, none wider than the first; the header above them."""
    width, face = parts[0].width, font(LETTERS, header)
    text = fit_label(header, width - 2 * GAP, face) if header else ""
    top = round(LETTERS * 1.3) * (text.count("\n") + 1) + GAP if text else 0
    sheet = stacked_vertically(parts, gap=GAP, above=top)
    ImageDraw.Draw(sheet).multiline_text((GAP, GAP), text, INK, face)
    return sheet


def small_strip(strip: Image.Image, large: Image.Image) -> Image.Image:
    """The filmstrip, no wider than the samples above and at most half as high; the run's folder has the full size."""
    scale = min(1.0, large.width / strip.width, large.height / 2 / strip.height)
    size = max(1, int(strip.width * scale)), max(1, int(strip.height * scale))
    return strip if scale == 1 else strip.resize(size, Image.Resampling.LANCZOS)


def _scaled(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.LANCZOS)
