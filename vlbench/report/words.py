"""How numbers are written, everywhere the same: one place for points, probabilities, intervals and durations.

Nothing is rounded before it gets here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "−"  # a true minus sign aligns with the plus sign; plain text formats turn it into a hyphen
NOTHING = "–"  # stands in a cell that has no number; the caption or a note says why
_PLAIN: dict[str, str | int | None] = {
    MINUS: "-",
    NOTHING: "-",
    "±": "+-",
    "→": "->",
    "“": '"',
    "”": '"',
    "×": "x",
    "≤": "<=",
    "·": "|",
}


def points(value: float | None, digits: int = 2) -> str:
    """A level in points: ``41.83``."""
    return NOTHING if value is None or not math.isfinite(value) else _minus(f"{value:.{digits}f}")


def signed(value: float | None, digits: int = 2) -> str:
    """A difference in points: ``+2.10``. What rounds to nothing has no sign."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else _minus(text)


def interval(low: float, high: float, digits: int = 2) -> str:
    """The interval of a difference: ``+0.40 to +3.80``."""
    return f"{signed(low, digits)} to {signed(high, digits)}"


def span(low: float, high: float, digits: int = 2) -> str:
    """The interval of a level: ``39.20 to 44.46``."""
    return f"{points(low, digits)} to {points(high, digits)}"


def p(value: float | None) -> str:
    """A probability: ``0.012``, ``<0.0001``; never zero."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 0.0001:
        return "<0.0001"
    if value < 0.1:
        return f"{value:.{1 - math.floor(math.log10(value))}f}"
    return f"{value:.2f}"


def p_equals(value: float | None, name: str = "p") -> str:
    """``p = 0.012`` or ``p < 0.0001``."""
    text = p(value)
    return f"{name} < {text[1:]}" if text.startswith("<") else f"{name} = {text}"


def count(number: int) -> str:
    """A number of parameters or operations: ``1.2G``, ``9.3M``, ``512.0k``, ``87``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def memory(size: int | None) -> str:
    """Bytes: ``1.2 GB``, ``310 MB``; thousands, not 1024."""
    if size is None:
        return NOTHING
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"


def duration(seconds: float | None) -> str:
    """``41s``, ``11m02s``, ``2h05m``."""
    if seconds is None:
        return NOTHING
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 seed``, ``5 seeds``, ``2 queries``."""
    if number == 1:
        return f"1 {noun}"
    if plural is None:
        plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {plural}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}" if names else "none"


def plain(text: str) -> str:
    """The text with ASCII signs, for formats that are read by machines and narrow terminals."""
    return text.replace(" · ", ", ").translate(str.maketrans(_PLAIN))


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
