"""Row kernels, compiled by Numba for one formula, metric and float type.

Every row is worked on by one thread. Nearly all columns are negatives, so a formula for negatives is evaluated on the whole
row without a branch and then corrected at the columns of the anchor's own label, which are found first; a formula for
positives is evaluated at these columns only.
"""

from __future__ import annotations

import functools
from typing import Callable, NamedTuple

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic

from metric_kernels.backends import numba_fn, numba_team
from metric_kernels.backends.numba_fn import OPTIONS, typed
from metric_kernels.language import Formula, Stage, bind
from metric_kernels.tile import Side, Tile

_OPTIONS = {**OPTIONS, "_nrt": False}
_jit = numba.njit(**_OPTIONS)
_jit_sum = numba.njit(**{**_OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})
_LABEL_BLOCK, _SUM_BLOCK = 64, 4096


class _Points(NamedTuple):
    """Statistics of the points of one side, their gradients, and the columns of extremes: (K, points)."""

    values: np.ndarray
    grads: np.ndarray
    index: np.ndarray


class _Rows(NamedTuple):
    """What a kernel works on, all as matrices; ``numbers`` is the column of eps and the parameters of the formula."""

    s: np.ndarray
    labels: np.ndarray
    ref_labels: np.ndarray
    p: np.ndarray
    q: np.ndarray
    numbers: np.ndarray
    mine: _Points
    other: _Points
    out: np.ndarray
    index: np.ndarray
    start: int


@_jit
def _find(labels, label, own, found):
    """Lists the columns of a label other than ``own``, and after them ``own`` unless it is -1. Returns their number."""
    number = 0
    for start in range(0, labels.shape[0], _LABEL_BLOCK):
        block = labels[start : start + _LABEL_BLOCK]
        some = False
        for j in range(block.shape[0]):
            some |= block[j] == label
        if some:
            for j in range(block.shape[0]):
                found[number] = start + j
                number += (block[j] == label) & (start + j != own)
    if own >= 0:
        found[number] = own
    return number


@_jit
def _first(t, top, found, excluded):
    """The first place of an extreme, or of a NaN, that is not one of the excluded; -1 if there is none."""
    for j in range(t.shape[0]):
        if t[j] == top or t[j] != t[j]:
            allowed = True
            for c in range(excluded):
                allowed &= found[c] != j
            if allowed:
                return j
    return -1


@functools.cache
def _reductions(dtype: type) -> dict[str, tuple[float, Callable]]:
    """The value that changes nothing, and a function of an array, for each kind of statistic."""
    integer = {np.float32: np.int32, np.float64: np.int64}[dtype]
    limits = np.iinfo(integer)
    magnitude, sign, places = integer(limits.max), integer(limits.min), integer(limits.bits - 1)
    zero, inf = dtype(0), dtype(np.inf)
    exp, log = numba_fn.exp, numba_fn.log

    @_jit_sum
    def total(t):
        everything = 0.0
        for start in range(0, t.shape[0], _SUM_BLOCK):
            block, part = t[start : start + _SUM_BLOCK], zero
            for j in range(block.shape[0]):
                part += block[j]
            everything += part
        return dtype(everything)

    @_jit
    def count(t):
        number = 0
        for j in range(t.shape[0]):
            number += t[j] != zero
        return dtype(number)

    @_jit
    def ordered(bits):
        """Integers in the order of the floats of these bits; its own inverse."""
        return bits ^ ((bits >> places) & magnitude)

    @_jit
    def largest(t, flip=integer(0)):
        bits = t.view(integer)
        top = ordered((-inf).view(integer))
        for j in range(t.shape[0]):
            top = max(top, magnitude if t[j] != t[j] else ordered(bits[j] ^ flip))
        return integer(ordered(top) ^ flip).view(dtype)

    @_jit
    def smallest(t):
        return largest(t, sign)

    @_jit_sum
    def mass(t, top):
        everything = 0.0
        for start in range(0, t.shape[0], _SUM_BLOCK):
            block, part = t[start : start + _SUM_BLOCK], zero
            for j in range(block.shape[0]):
                part += exp(block[j] - top)
            everything += part
        return dtype(everything)

    @_jit
    def lse(t):
        top = largest(t)
        top = zero if abs(top) == inf else top
        return log(mass(t, top)) + top

    return {
        "total": (zero, total),
        "count": (zero, count),
        "lse": (-inf, lse),
        "largest": (-inf, largest),
        "smallest": (inf, smallest),
    }


def _pick(places: tuple[int, ...]) -> Callable:
    """A compiled function of a matrix and j that returns the tuple of the entries (place, j)."""
    if not places:
        return _jit(lambda matrix, j: ())
    place, others = places[0], _pick(places[1:])
    return _jit(lambda matrix, j: (matrix[place, j],) + others(matrix, j))


class _Terms:
    """The numbers of a pair that kernels reduce, as compiled functions (v, rows, i, j) of the pair value and the place.

    ``swapped`` stands for the pair (j, i) in place of (i, j).
    """

    def __init__(self, formula: Formula, metric: type, dtype: type):
        self.formula, self.dtype = formula, dtype
        offset = 1
        self.calls = []
        for stage in formula.stages:
            self.calls.append(self._calls(stage, range(offset, offset + len(stage.params))))
            offset += len(stage.params)
