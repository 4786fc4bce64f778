"""A lattice of components switched on and off: effects, interactions and fair shares as contrasts.

A cell is named by one digit per component, "101" for first and third on. Every quantity is a mapping cell -> weight for
``design.contrast``, which gives it seeds x queries error bars; ``run_contrast`` is the same over run means with one
pooled variance, as the textbooks of experimental design have it.

Convention: an interaction is the difference of differences, averaged over the other components, not halved.
Source: Box, Hunter and Hunter (2005); Shapley (1953); Banzhaf (1965); Grabisch and Roubens (1999).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations, product
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from vlbench.errors import DataError
from vlbench.stats import student
from vlbench.stats.student import TTest
from vlbench.stats.tables import Floats, exact_sum, mean, variance, vector

Weights = dict[str, float]


def cells(components: int) -> list[str]:
    """All cells of a lattice, "000" to "111". Raises: DataError unless 1 <= components <= 16."""
    if not 1 <= components <= 16:
        raise DataError(f"1 <= components <= 16 must hold, but got {components}")
    return ["".join(digits) for digits in product("01", repeat=components)]


def effect(components: int, chosen: Iterable[int]) -> Weights:
    """Main effect (one index) or interaction (several) of the chosen components.

    Args: components: how many there are. chosen: their indices, from 0.
    Returns: sign / 2^(k - m) for m chosen of k. Raises: DataError for indices that do not exist.
    """
    picked = _indices(components, chosen)
    size = 2.0 ** (components - len(picked))
    return {cell: (-1) ** sum(cell[i] == "0" for i in picked) / size for cell in cells(components)}


def leave_one_out(components: int, index: int) -> Weights:
    """The full model minus the full model without one component."""
    (i,) = _indices(components, [index])
    return {"1" * components: 1.0, "1" * i + "0" + "1" * (components - i - 1): -1.0}


def add_one_in(components: int, index: int) -> Weights:
    """One component alone minus the empty model."""
    (i,) = _indices(components, [index])
    return {"0" * i + "1" + "0" * (components - i - 1): 1.0, "0" * components: -1.0}


def shapley(components: int, index: int) -> Weights:
    """A component's gain averaged over all orders of building up; the shares sum to full minus empty."""
    (i,) = _indices(components, [index])
    out = {}
    for cell in cells(components):
        others = cell.count("1") - (cell[i] == "1")
        share = math.factorial(others) * math.factorial(components - others - 1) / math.factorial(components)
        out[cell] = share if cell[i] == "1" else -share
    return out


def shapley_interaction(components: int, first: int, second: int) -> Weights:
    """The difference of differences of two components, averaged over all orders of building up the others."""
    i, j = _indices(components, [first, second])
    out = {}
    for cell in cells(components):
        others = cell.count("1") - (cell[i] == "1") - (cell[j] == "1")
        share = math.factorial(others) * math.factorial(components - others - 2) / math.factorial(components - 1)
        out[cell] = share if cell[i] == cell[j] else -share
    return out


def subsets(components: int) -> list[tuple[int, ...]]:
    """All non-empty sets of components, single ones first."""
    return list(chain.from_iterable(combinations(range(components), size) for size in range(1, components + 1)))


def variance_shares(means: Mapping[str, float]) -> dict[tuple[int, ...], float]:
    """Each effect's share of the variance of the cell means, from squared Walsh coefficients; for bar charts, untested.

    Args: means: every cell of the lattice -> mean. Raises: DataError for a missing cell or equal means.
    Source: Sobol (1993) on the two-level lattice.
    """
    squares = walsh_squares(means)
    total = exact_sum(squares.values())
    if total <= 0:
        raise DataError("all cells have one mean, so there is no variance to share out")
    return {chosen: square / total for chosen, square in squares.items()}


def walsh_squares(means: Mapping[str, float]) -> dict[tuple[int, ...], float]:
    """Squared Walsh coefficients of the cell means; they sum to the means' variance (divisor 2^k)."""
    k = _complete(means)
    return {
        chosen: (exact_sum(_sign(cell, chosen) * means[cell] for cell in cells(k)) / 2**k) ** 2 for chosen in subsets(k)
    }


def reading(alone: float, last: float, se: float) -> Literal["redundant", "synergistic", "additive"]:
    """How a component goes with the others, from its gain alone (add-one-in) and last (leave-one-out).

    Args: se: of their interaction. Returns: "redundant" if last < alone by more than se, "synergistic" if it is above.
    """
    return "additive" if abs(last - alone) <= se else "redundant" if last < alone else "synergistic"


def run_contrast(runs: Mapping[str, ArrayLike], weights: Mapping[str, float]) -> TTest:
    """A contrast of cell means over run scores, with one variance pooled over all cells.

    Args: runs: cell -> (S,) scores of its runs, in any unit. weights: cell -> weight.
    Null: the contrast of true means is zero; runs independent and normal with one variance in all cells.
    Raises: DataError for NaN, a missing cell, or no replication anywhere.
    """
    tables = {cell: vector(values, cell) for cell, values in sorted(runs.items())}
    missing = [cell for cell, weight in weights.items() if weight and cell not in tables]
    if missing:
        raise DataError(f"no runs of cells {', '.join(missing)}")
    mse, df = pooled_variance(tables)
    used = [(weight, tables[cell]) for cell, weight in sorted(weights.items()) if weight]
    se = math.sqrt(mse * exact_sum(weight**2 / values.size for weight, values in used))
    return student.t_test(exact_sum(weight * mean(values) for weight, values in used), se, df)


def pooled_variance(runs: Mapping[str, ArrayLike]) -> tuple[float, float]:
    """Variance within cells and its degrees of freedom. Raises: DataError without any replication."""
    tables = {cell: vector(values, cell) for cell, values in sorted(runs.items())}
    df = sum(values.size - 1 for values in tables.values())
    if df < 1:
        raise DataError("no cell has two runs, so the noise of a run is unknown")
    return exact_sum((v.size - 1) * variance(v) for v in tables.values() if v.size > 1) / df, float(df)


def sums_of_squares(runs: Mapping[str, ArrayLike]) -> dict[tuple[int, ...], float]:
    """Type II sum of squares of every effect: what it explains beyond all effects that do not contain it.

    Args: runs: every cell of the lattice -> (S,) scores. Raises: DataError for NaN or a missing cell.
    """
    tables = {cell: vector(values, cell) for cell, values in sorted(runs.items())}
    k = _complete(tables)
    y = np.concatenate([tables[cell] for cell in cells(k)])
    y = y - mean(y)
    columns = {
        chosen: np.concatenate([np.full(tables[cell].size, float(_sign(cell, chosen))) for cell in cells(k)])
        for chosen in [(), *subsets(k)]
    }
    out = {}
    for chosen in subsets(k):
        others = [column for term, column in columns.items() if not set(chosen) <= set(term)]
        out[chosen] = _residual(y, others) - _residual(y, [*others, columns[chosen]])
    return out


def _residual(y: Floats, columns: Sequence[Floats]) -> float:
    design = np.column_stack(columns)
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return exact_sum((y - fitted) ** 2)


def _sign(cell: str, chosen: Iterable[int]) -> int:
    return -1 if sum(cell[i] == "0" for i in chosen) % 2 else 1


def _indices(components: int, chosen: Iterable[int]) -> list[int]:
    picked = list(chosen)
    if not picked or len(set(picked)) != len(picked) or not all(0 <= i < components for i in picked):
        raise DataError(f"different components from 0 to {components - 1} are needed, but got {picked}")
    return picked


def _complete(means: Mapping[str, object]) -> int:
    """The number of components. Raises: DataError for a lattice with holes."""
    k = len(next(iter(means), ""))
    missing = [cell for cell in cells(k) if cell not in means] if k else []
    if not k or missing or len(means) != 2**k:
        raise DataError(f"the lattice has holes: {', '.join(missing) or 'no cells'}", hint="all 2^k cells are needed")
    return k
