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
def _loaded() -> Generator[None]:
    """For other code in this process the variable stays, and a backend that matplotlib knows is in force."""
    if "matplotlib" not in sys.modules:
        for part in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[part]  # somebody else's attempt failed halfway, and the rest would not fit these
        named = os.environ.pop("MPLBACKEND", "")
        try:
            from matplotlib import rcParams
        finally:
            os.environ.update({"MPLBACKEND": named} if named else {})
        with contextlib.suppress(ValueError):
            rcParams.update({"backend": named} if named else {})
    yield


with _loaded():
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure, FigureBase, SubFigure
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font
    from matplotlib.text import Text
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

__all__ = [
    "Axes", "FT2Font", "Figure", "FigureBase", "FigureCanvasAgg", "LogLocator", "MaxNLocator", "NullLocator",
    "SubFigure", "Text", "fontManager",
]  # fmt: skip
