"""Third parties register through one entry-point group, ``vlbench.plugins``.

Each entry point is a function without arguments that calls ``vlbench.catalog`` as the built-in page does, under names
of the form ``package/name``. A plug-in that fails to load is reported with its cause, never dropped silently.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from vlbench.errors import EnvironmentProblem

GROUP = "vlbench.plugins"
_loaded: set[str] = set()


def load() -> None:
    """Run every plug-in once. Raises EnvironmentProblem with the plug-in's name if one fails."""
    for point in entry_points(group=GROUP):
        if point.value in _loaded:
            continue
        try:
            point.load()()
        except Exception as error:
            raise EnvironmentProblem(
                f"plug-in {point.name} ({point.value}) failed to load: {type(error).__name__}: {error}",
                hint="mend or uninstall it",
            ) from error
        _loaded.add(point.value)
