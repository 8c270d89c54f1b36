"""The report on a run: pictures, tables, words."""

from .write import write_report

__all__ = ["write_report"]
