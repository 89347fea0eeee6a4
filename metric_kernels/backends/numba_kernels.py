"""Row kernels, compiled by Numba for one formula, metric and float type.

Every row is worked on by one thread. Nearly all columns are negatives, so a formula for negatives is evaluated on the whole
row without a branch and corrected at the columns of the anchor's label, which are found first; one for positives is evaluated
at these columns only.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Callable, NamedTuple

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic

from metric_kernels.backends import numba_fn
from metric_kernels.backends.numba_fn import OPTIONS, typed
from metric_kernels.language import Formula, Stage, bind
from metric_kernels.tile import Side, Tile

_OPTIONS = {**OPTIONS, "_nrt": False}
_jit = numba.njit(**_OPTIONS)
_jit_sum = numba.njit(**{**_OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})
_INTEGERS = {np.float32: np.int32, np.float64: np.int64}
_BLOCK = 64


class _Points(NamedTuple):
    """Statistics, gradients and columns of extremes of the points of one side, all (K, points)."""

    values: np.ndarray
    grads: np.ndarray
    index: np.ndarray


class _Rows(NamedTuple):
    """What a kernel works on. Arrays have two dimensions, a vector being one row; ``numbers`` are eps and the parameters."""

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
    first: int
    diagonal: int


@_jit
def _find(labels, label, own, found):
    """Lists the columns of a label other than ``own``, then ``own`` itself unless negative; returns the number of others."""
    number = 0
    for start in range(0, labels.shape[0], _BLOCK):
        block = labels[start : start + _BLOCK]
        some = 0
        for other in block:
            some |= other == label
        if some:
            for j, other in enumerate(block, start):
                found[number] = j
                number += (other == label) & (j != own)
    if own >= 0:
        found[number] = own
    return number


@functools.cache
def _reductions(dtype) -> dict[str, Callable]:
    """For each kind of statistic a function of values and their number."""
    integer = _INTEGERS[dtype]
    magnitude = np.iinfo(integer).max
    sign_bit, lowest = np.iinfo(integer).min, integer(dtype(-np.inf).view(integer) ^ magnitude)
    shift = integer(np.iinfo(integer).bits - 1)
    zero, inf = dtype(0), dtype(np.inf)
    exp, log = numba_fn.exp, numba_fn.log

    @_jit_sum
    def total(t):
        everything = 0.0
        for start in range(0, t.shape[0], 4096):
            part = zero
            for x in t[start : start + 4096]:
                part += x
            everything += part
        return dtype(everything)

    @_jit
    def count(t):
        number = 0
        for x in t:
            number += x != zero
        return dtype(number)

    @_jit
    def extreme(t, flip):
        # The bits of a float, those of a negative one inverted, are integers in the same order.
        bits = t.view(integer)
        top = integer(lowest)
        for j in range(t.shape[0]):
            key = bits[j] ^ flip
            key ^= (key >> shift) & magnitude
            key = magnitude if t[j] != t[j] else key
            top = max(top, key)
        top ^= (top >> shift) & magnitude
        return integer(top ^ flip).view(dtype)

    @_jit_sum
    def mass(t, top):
        everything = 0.0
        for start in range(0, t.shape[0], 4096):
            part = zero
            for x in t[start : start + 4096]:
                part += exp(x - top)
            everything += part
        return dtype(everything)

    @_jit
    def lse(t):
        top = extreme(t, integer(0))
        top = zero if abs(top) == inf else top
        return log(mass(t, top)) + top

    @_jit
    def largest(t):
        return extreme(t, integer(0))

    @_jit
    def smallest(t):
        return extreme(t, integer(sign_bit))

    return {"total": total, "count": count, "lse": lse, "largest": largest, "smallest": smallest}
