"""Packs one matrix for the inputs that it will meet: what rounding a column spoils, the columns after it make good.

GPTQ (arXiv 2210.17323), then coordinate descent on the levels and scales that it finds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fermi import _C
from fermi.quantization.levels import Levels, find_levels, pack_levels
from fermi.quantization.recipe import Packing

__all__ = ["fit_to", "pack_for"]

Doubles = npt.NDArray[np.float64]

#: Part of the mean square of an input that is added to each, so that a short text determines everything.
DAMPING = 0.01

#: How strongly `fit_to` holds on to the matrix that there is, likewise.
CAUTION = 0.3

#: Passes over levels and scales after the first.
SWEEPS = 2

#: Columns whose errors are passed on one by one; further ones get them all at once.
BLOCK = 128


def fit_to(matrix: Doubles, hessian: Doubles, products: Doubles) -> Doubles:
    """The matrix W near ``matrix``, [rows, columns], whose outputs x · Wᵀ are nearest to what is wanted.

    ``hessian``: Σ xᵀx, [columns, columns]; ``products``: Σ xᵀ · wanted, [columns, rows].
    """
    caution = CAUTION * np.mean(np.diag(hessian)) + np.finfo(np.float32).tiny
    fitted: Doubles = np.linalg.solve(hessian + caution * np.eye(len(hessian)), products + caution * matrix.T).T
    return fitted


def pack_for(matrix: Doubles, hessian: Doubles, packing: Packing, *, candidates: int, backend: _C.Backend) -> _C.Weight:
    """``matrix``, [rows, columns], packed so that outputs x · Wᵀ change little; ``hessian``: Σ xᵀx over the inputs."""
    columns = matrix.shape[1]
    damped = hessian + (DAMPING * np.mean(np.diag(hessian)) + np.finfo(np.float32).tiny) * np.eye(columns)
    group = packing.group_of(columns) or columns
    found = _round_in_order(matrix, damped, packing, group, candidates, backend)
    for _ in range(SWEEPS):
        _improve_levels(matrix, damped, found)
        _improve_scales(matrix, damped, found)
    _improve_levels(matrix, damped, found)
    return pack_levels(found, packing, columns)


def _round_in_order(
    matrix: Doubles, hessian: Doubles, packing: Packing, group: int, candidates: int, backend: _C.Backend
) -> Levels:
    """GPTQ: columns with large inputs first, so that many are left to make good for them. Scales are found before."""
    rows, columns = matrix.shape
    found = Levels.empty(rows, columns, group)
    sizes = np.diag(hessian) / np.mean(np.diag(hessian))
    for g in range(found.scales.shape[1]):
        span = found.span(g)
        find_levels(found, matrix[:, span], sizes[span], g, packing, candidates, backend)
    order = np.argsort(-sizes, kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T  # upper
    rest = matrix[:, order]
    for start in range(0, columns, BLOCK):
        end = min(columns, start + BLOCK)
        errors = np.empty((rows, end - start))
        for i in range(start, end):
            error = (rest[:, i] - found.round(order[i], rest[:, i])) / factor[i, i]
            errors[:, i - start] = error
            rest[:, i + 1 : end] -= np.outer(error, factor[i, i + 1 : end])
        rest[:, end:] -= errors @ factor[start:end, end:]
    return found


def _improve_levels(matrix: Doubles, hessian: Doubles, found: Levels) -> None:
    """Each column's best levels, given all the others."""
    columns = matrix.shape[1]
    for start in range(0, columns, BLOCK):
        end = min(columns, start + BLOCK)
        pull = (matrix - found.values()) @ hessian[:, start:end]  # half the gradient, with its sign turned
        for c in range(start, end):
            before = found.column(c)
            moved = before - found.round(c, before + pull[:, c - start] / hessian[c, c])
            pull += np.outer(moved, hessian[c, start:end])


def _improve_scales(matrix: Doubles, hessian: Doubles, found: Levels) -> None:
    """Each group's best scales, given all the others and its levels."""
    error = matrix - found.values()
    for g in range(found.scales.shape[1]):
        span = found.span(g)
        levels = found.levels[:, span].astype(np.float64)
        inner = levels @ hessian[span, span]
        squares = (inner * levels).sum(axis=1)
        change = np.divide(
            ((error @ hessian[:, span]) * levels).sum(axis=1), squares, out=np.zeros(len(squares)), where=squares > 0
        )
        before = found.scales[:, g].copy()
        found.set_scales(g, before + change)
        error[:, span] += (before - found.scales[:, g])[:, None] * levels
