"""Distances of vectors, coordinate by coordinate, as functions that Numba compiles; csrc/vectors.h has the same in C++."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from metric_kernels.backends import numba_fn
from metric_kernels.backends.numba_jit import jit, jit_sum

# So many numbers are added up before they join the rest, since the rounding of a sum grows with its length.
DEPTH = 256


class Measure(NamedTuple):
    """term(a, b, scale, p) is what a coordinate contributes, ``join`` adds up, finish(sum, scale, p) makes it the distance.

    ``inverse`` of the largest difference is the scale of terms, None if they have none. The gradient with respect to a is
    slope(a, b, u, w, p), with u, w = pair(d, g) the same for all coordinates.
    """

    term: Callable
    join: Callable
    finish: Callable
    pair: Callable
    slope: Callable
    inverse: Callable | None = None


def order(p: float) -> float | None:
    """p if it has functions of its own, None for those of all others."""
    return p if p in (1, 2, 3, 4, np.inf) else None


def measure(kind: str, p: float | None, dtype: type) -> Measure:
    return _jensen_shannon(dtype) if kind == "jensen_shannon" else _lp(p, dtype)


@functools.cache
def _lp(p: float | None, dtype: type) -> Measure:
    if p is None:
        return _any_power(dtype)
    return _manhattan(dtype) if p == 1 else _chebyshev(dtype) if p == np.inf else _whole_power(int(p), dtype)


@jit
def plus(a, b):
    return a + b


@jit
def _difference(a, b, scale, p):
    return abs(a - b)


@jit
def _sum_itself(total, scale, p):
    return total


@jit
def _as_given(d, g):
    return d, g


def _manhattan(dtype: type) -> Measure:
    zero = dtype(0)

    @jit
    def slope(a, b, u, w, p):
        return (w if a > b else zero) - (w if a < b else zero)

    return Measure(_difference, plus, _sum_itself, _as_given, slope)


def _chebyshev(dtype: type) -> Measure:
    zero = dtype(0)
    integer = {np.float32: np.int32, np.float64: np.int64}[dtype]

    @jit
    def larger(a, b):
        # Bits of floats >= 0 are in the order of floats, and those of NaN above them.
        return integer(max(dtype(a).view(integer), dtype(b).view(integer))).view(dtype)

    @jit
    def slope(a, b, u, w, p):
        return (w if a - b == u else zero) - (w if b - a == u else zero)

    return Measure(_difference, larger, _sum_itself, _as_given, slope)


def _power(dtype: type, power: Callable, root: Callable, slope_of: Callable) -> Measure:
    zero, one, inf, tiny = dtype(0), dtype(1), dtype(np.inf), np.finfo(dtype).tiny
    maximum = numba_fn.maximum

    @jit
    def term(a, b, scale, p):
        return power(abs(a - b) * scale, p)

    @jit
    def finish(total, scale, p):
        return inf if scale == zero else root(total, p) / scale

    @jit
    def inverse(top):
        return one / maximum(top, tiny)

    @jit
    def pair(d, g):
        return inverse(d), g

    @jit
    def slope(a, b, u, w, p):
        return w * slope_of((a - b) * u, p)

    return Measure(term, plus, finish, pair, slope, inverse)


def _any_power(dtype: type) -> Measure:
    zero, one, exp, log = dtype(0), dtype(1), numba_fn.exp, numba_fn.log

    @jit
    def power(r, p):
        return exp(p * log(r))

    @jit
    def root(total, p):
        return exp(log(total) / p)

    @jit
    def slope(r, p):
        size = exp((p - one) * log(abs(r)))
        return zero if r == zero else -size if r < zero else size

    return _power(dtype, power, root, slope)


def _whole_power(whole: int, dtype: type) -> Measure:
    exp, log, sqrt = numba_fn.exp, numba_fn.log, numba_fn.sqrt

    @jit
    def power(r, p):
        out = r
        for _ in range(1, whole):
            out *= r
        return out

    @jit
    def root(total, p):
        return sqrt(total) if whole == 2 else exp(log(total) / p)

    @jit
    def slope(r, p):
        out = r
        for _ in range(2, whole):
            out *= abs(r)
        return out

    return _power(dtype, power, root, slope)


@functools.cache
def _jensen_shannon(dtype: type) -> Measure:
    zero, one, two, four, half, tiny = dtype(0), dtype(1), dtype(2), dtype(4), dtype(0.5), np.finfo(dtype).tiny
    quarter, sixteenth = dtype(0.25), dtype(0.0625)
    last = {np.float32: 5, np.float64: 12}[dtype]
    log, log1p, sqrt = numba_fn.log, numba_fn.log1p, numba_fn.sqrt

    @jit
    def inverse_of(both):
        return zero if both < tiny else one / both

    @jit
    def log_beside_one(u, t):
        return log1p(t) if abs(t) < quarter else log(u)

    @jit
    def term(a, b, scale, p):
        inverse = inverse_of(a + b)
        t, u, w = (a - b) * inverse, two * a * inverse, two * b * inverse
        z = t * t
        near = zero
        for k in range(last, -1, -1):
            near = near * z + one / dtype((k + 1) * (2 * k + 1))
        far = (zero if u == zero else u * log_beside_one(u, t)) + (zero if w == zero else w * log_beside_one(w, -t))
        return (a + b) * (near * z if z < sixteenth else far)

    @jit
    def finish(total, scale, p):
        return half * sqrt(total)

    @jit
    def pair(d, g):
        return d, zero if d == zero else g / (four * d)

    @jit
    def slope(a, b, u, w, p):
        inverse = inverse_of(a + b)
        share = two * a * inverse
        return zero if share == zero else w * log_beside_one(share, (a - b) * inverse)

    return Measure(term, plus, finish, pair, slope)


# ---- of two rows


@jit
def shifted(a, b, eps):
    return (a - b) + eps


@functools.cache
def length(p: float | None, dtype: type) -> Callable:
    """length(a, b, eps, p) is the p-norm of a - b + eps."""
    of, zero, one = measure("lp", p, dtype), dtype(0), dtype(1)
    larger = measure("lp", np.inf, dtype).join

    @jit
    def largest(a, b, eps, p):
        top = zero
        for f in range(a.shape[0]):
            top = larger(top, abs(shifted(a[f], b[f], eps)))
        return top

    if p == np.inf:
        return largest
    term, finish, inverse = of.term, of.finish, of.inverse

    @jit_sum
    def total(a, b, eps, scale, p):
        everything = zero
        for k in range(0, a.shape[0], DEPTH):
            some, others, part = a[k : k + DEPTH], b[k : k + DEPTH], zero
            for f in range(some.shape[0]):
                part += term(shifted(some[f], others[f], eps), zero, scale, p)
            everything += part
        return everything

    if inverse is None:

        @jit
        def whole(a, b, eps, p):
            return finish(total(a, b, eps, one, p), one, p)

    else:

        @jit
        def whole(a, b, eps, p):
            scale = inverse(largest(a, b, eps, p))
            return finish(total(a, b, eps, scale, p), scale, p)

    return whole


@functools.cache
def row_pair(p: float | None, dtype: type) -> Callable:
    """row_pair(a, b, eps, d, g) is ``pair`` for the gradient of a norm: equal largest differences share it."""
    pair, zero, one = measure("lp", p, dtype).pair, dtype(0), dtype(1)

    @jit_sum
    def number_of(a, b, eps, d):
        number = zero
        for f in range(a.shape[0]):
            number += one if abs(shifted(a[f], b[f], eps)) == d else zero
        return number

    @jit
    def shared(a, b, eps, d, g):
        return pair(d, g / number_of(a, b, eps, d) if g != zero else g)

    @jit
    def plain(a, b, eps, d, g):
        return pair(d, g)

    return shared if p == np.inf else plain
