"""What a run's log says, in pictures, numbers and words."""

from .write import write_report

__all__ = ["write_report"]
