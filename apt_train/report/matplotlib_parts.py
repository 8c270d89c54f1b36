"""The parts of matplotlib that draw here, loaded whatever backend the environment names.

A backend decides about windows, and none is opened. But matplotlib does not load if $MPLBACKEND names one that it does
not know, such as a notebook's in a program that was started from there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator


@contextlib.contextmanager
def _any_backend() -> Generator[None]:
    """Inside the block matplotlib loads. Afterwards the variable stands, and a name that matplotlib knows counts."""
    is_first, named = "matplotlib" not in sys.modules, os.environ.pop("MPLBACKEND", None)
    for part in [name for name in sys.modules if is_first and name.startswith("matplotlib.")]:
        del sys.modules[part]  # somebody else's attempt failed halfway, and the rest would not fit these
    try:
        yield
    finally:
        os.environ.update({} if named is None else {"MPLBACKEND": named})
    if is_first and named:
        with contextlib.suppress(ValueError):
            rcParams["backend"] = named


with _any_backend():
    from matplotlib import rcParams, style
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure, FigureBase, SubFigure
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font
    from matplotlib.text import Text
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

__all__ = [
    "Axes", "FT2Font", "Figure", "FigureBase", "FigureCanvasAgg", "LogLocator", "MaxNLocator", "NullLocator",
    "SubFigure", "Text", "fontManager", "our_style",
]  # fmt: skip


@contextlib.contextmanager
def our_style() -> Generator[None]:
    """Inside the block a figure is drawn the same under any matplotlibrc, needs no LaTeX, and `$` is a letter."""
    with style.context(["default", {"text.parse_math": False}]):
        yield
