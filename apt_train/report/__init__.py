"""The verdict on a run on paper: pictures, tables, words."""

from .write import write_report

__all__ = ["write_report"]
