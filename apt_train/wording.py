"""Names, counts and noise levels in words: long lists shortened, nothing that a terminal or log cannot show."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 5) -> str:
    """`a, b and c`; of more than `most` names, the first ones and a count of the others: `a, b and 7 others`."""
    shown, more = list(names[:most]), len(names) - most
    if more > 0:
        shown.append(f"{more} others" if more > 1 else "1 other")
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else "".join(shown)


def counted(count: int, what: str) -> str:
    """A count with its noun: `1 picture`, `3 pictures`, `no pictures`."""
    return f"{count or 'no'} {what}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def reason_of(error: OSError) -> str:
    """The system's reason in lower case, to continue a sentence."""
    return (error.strerror or str(error)).lower()


def in_brackets(error: BaseException) -> str:
    """The first line of an error, without its full stop, to stand within a sentence; its type if it says nothing."""
    return str(error).strip().partition("\n")[0].removesuffix(".") or type(error).__name__


def printable(name: str) -> str:
    """A file name with line breaks, control characters and undecodable bytes replaced by `?`."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def bin_names(bins: int) -> list[str]:
    """The noise levels of every bin, as `0.3-0.4`, with enough digits to distinguish them."""
    return [levels_named(b / bins, (b + 1) / bins, bins) for b in range(bins)]


def levels_named(low: float, high: float, bins: int) -> str:
    """The noise levels from `low` to `high`, with as many digits as for `bins` bins."""
    digits = next(d for d in (1, 2, 3, 4) if 10**d >= bins)
    return f"{low:.{digits}f}-{high:.{digits}f}"
