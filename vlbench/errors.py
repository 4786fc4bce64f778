"""The mistakes vlbench knows how to explain: what is wrong, where, and what to do next.

A user's mistake is printed on one line without a traceback and ends the process with status 2. Anything else is a bug
in vlbench and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class VlbenchError(Exception):
    """A mistake that its reader can mend.

    Args: what: the rule with the values filled in. where: ``file:line``, a path or a name. hint: what to do next.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        super().__init__(what, where, hint)
        self.what, self.where, self.hint = what, None if where is None else str(where), hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments do not survive the default pickling
        return _rebuild, (type(self), self.what, self.where, self.hint)


class CardError(VlbenchError):
    """A card, a declaration or an option on the command line names or holds something impossible."""


class DataError(VlbenchError):
    """Annotations, features or predictions are missing, broken or do not fit together."""


class PlanError(VlbenchError):
    """A study cannot be planned or reported as asked."""


class StoreError(VlbenchError):
    """The store cannot be read or written, or holds something that this version does not understand."""


class EnvironmentProblem(VlbenchError):
    """The machine lacks something that was asked for: a device, a library, a server."""


class Diverged(VlbenchError):
    """Training produced a value that is not finite; the cell is recorded as failed with this cause."""


def _rebuild(kind: type[VlbenchError], what: str, where: str | None, hint: str | None) -> VlbenchError:
    return kind(what, where=where, hint=hint)


def suggestion(name: str, known: Iterable[str]) -> str:
    """``did you mean "fra"? known: ...`` for a name that was not found; the near miss only if there is one."""
    names = sorted(known)
    import difflib

    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names) if names else "none"
    return (f'did you mean "{near[0]}"? ' if near else "") + f"known: {listed}"
