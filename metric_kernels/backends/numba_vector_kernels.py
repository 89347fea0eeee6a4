"""The kernels of distances between vectors, as Numba compiles them; csrc/vectors.h has the same in C++.

Columns of points in the forward pass, and features in the backward pass, are taken in pieces that stay in the first-level
cache, so that no loop along them is a reduction.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
from numba import types

from metric_kernels.backends import numba_fn
from metric_kernels.backends.numba_jit import EXACT, jit, jit_sum, matrix, pointer, take

# The p that have kernels of their own.
ORDERS = (1, 2, 3, 4, np.inf)
WIDTH = 512
# So many numbers are added up before they join the rest, since the rounding of a sum grows with its length.
_DEPTH = 256


class _Measure(NamedTuple):
    """A distance. term(a, b, scale, p) is what a coordinate contributes, ``join`` adds up, finish(sum, scale, p) makes the sum
    the distance. The gradient with respect to a is slope(a, b, u, w, p), with u, w = pair(d, g) the same for all coordinates.
    ``light`` terms are taken four at a time; ``scaled`` ones are divided by the largest difference.
    """

    term: Callable
    join: Callable
    finish: Callable
    pair: Callable
    slope: Callable
    light: bool = True
    scaled: bool = False


@jit
def _plus(a, b):
    return a + b


@jit
def _sum_itself(total, scale, p):
    return total


@jit
def _difference(a, b, scale, p):
    return abs(a - b)


@functools.cache
def _measure(name: str, dtype: type) -> _Measure:
    """``name`` is one of ORDERS, "p" for any other, or "jensen_shannon"."""
    if name == "1":
        return _manhattan(dtype)
    if name == "inf":
        return _chebyshev(dtype)
    return _jensen_shannon(dtype) if name == "jensen_shannon" else _power(dtype, 0 if name == "p" else int(name))


def _manhattan(dtype: type) -> _Measure:
    zero = dtype(0)

    @jit
    def pair(d, g):
        return d, g

    @jit
    def slope(a, b, u, w, p):
        return (w if a > b else zero) - (w if a < b else zero)

    return _Measure(_difference, _plus, _sum_itself, pair, slope)


def _chebyshev(dtype: type) -> _Measure:
    zero = dtype(0)
    integer = {np.float32: np.int32, np.float64: np.int64}[dtype]

    @jit
    def larger(a, b):
        # Bits of floats >= 0 are in the order of floats, and those of NaN above them.
        return integer(max(dtype(a).view(integer), dtype(b).view(integer))).view(dtype)

    @jit
    def pair(d, g):
        return d, g

    @jit
    def slope(a, b, u, w, p):
        return (w if a - b == u else zero) - (w if b - a == u else zero)

    return _Measure(_difference, larger, _sum_itself, pair, slope)


def _power(dtype: type, whole: int) -> _Measure:
    """For a whole number, or for any p if it is 0."""
    zero, one, inf, tiny = dtype(0), dtype(1), dtype(np.inf), np.finfo(dtype).tiny
    exp, log, sqrt, maximum = numba_fn.exp, numba_fn.log, numba_fn.sqrt, numba_fn.maximum

    @jit
    def power(r, p):
        if whole == 0:
            return exp(p * log(r))
        out = r
        for _ in range(1, whole):
            out *= r
        return out

    @jit
    def term(a, b, scale, p):
        return power(abs(a - b) * scale, p)

    @jit
    def finish(total, scale, p):
        root = sqrt(total) if whole == 2 else exp(log(total) / p)
        return inf if scale == zero else root / scale

    @jit
    def pair(d, g):
        return one / maximum(d, tiny), g

    @jit
    def slope(a, b, u, w, p):
        r = (a - b) * u
        if whole == 0:
            size = exp((p - one) * log(abs(r)))
            return zero if r == zero else w * (-size if r < zero else size)
        out = r
        for _ in range(2, whole):
            out *= abs(r)
        return w * out

    return _Measure(term, _plus, finish, pair, slope, light=whole > 0, scaled=True)


def _jensen_shannon(dtype: type) -> _Measure:
    zero, one, two, four, half, tiny = dtype(0), dtype(1), dtype(2), dtype(4), dtype(0.5), np.finfo(dtype).tiny
    quarter, sixteenth = dtype(0.25), dtype(0.0625)
    last = {np.float32: 5, np.float64: 12}[dtype]
    log, log1p, sqrt = numba_fn.log, numba_fn._log1p, numba_fn.sqrt

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

    return _Measure(term, _plus, finish, pair, slope, light=False)


# ---- between all rows


def _sums(measure: _Measure, dtype: type) -> Callable:
    term, join, together, zero = measure.term, measure.join, 4 if measure.light else 1, dtype(0)

    @jit
    def sums(own, others, j, scale, p, part, total):
        """Joins the terms of a row with columns j, j + 1 ... of others."""
        width = total.shape[0]
        for c in range(width):
            total[c] = zero
        for k0 in range(0, own.shape[0], _DEPTH):
            end, k = min(own.shape[0], k0 + _DEPTH), k0
            for c in range(width):
                part[c] = zero
            while together == 4 and k + 4 <= end:
                a0, a1, a2, a3 = own[k], own[k + 1], own[k + 2], own[k + 3]
                b0, b1, b2, b3 = others[k, j:], others[k + 1, j:], others[k + 2, j:], others[k + 3, j:]
                for c in range(width):
                    first = join(join(part[c], term(a0, b0[c], scale[c], p)), term(a1, b1[c], scale[c], p))
                    part[c] = join(join(first, term(a2, b2[c], scale[c], p)), term(a3, b3[c], scale[c], p))
                k += 4
            while k < end:
                a, b = own[k], others[k, j:]
                for c in range(width):
                    part[c] = join(part[c], term(a, b[c], scale[c], p))
                k += 1
            for c in range(width):
                total[c] = join(total[c], part[c])

    return sums


def _distances(name: str, dtype: type) -> Callable:
    measure, real = _measure(name, dtype), dtype
    sums, finish, scaled = _sums(measure, dtype), measure.finish, measure.scaled
    largest = _sums(_measure("inf", dtype), dtype)
    maximum, one, tiny = numba_fn.maximum, dtype(1), np.finfo(dtype).tiny

    @jit
    def distances(table, thread, i):
        p, x, others, out = matrix(table[2], real)[0, 0], matrix(table[3], real), matrix(table[4], real), matrix(table[5], real)
        scratch = matrix(table[6], real)
        part, scale = scratch[2 * thread], scratch[2 * thread + 1]
        for j in range(0, out.shape[1], WIDTH):
            total = out[i, j : j + WIDTH]
            if scaled:
                largest(x[i], others, j, scale, p, part, total)
                for c in range(total.shape[0]):
                    scale[c] = one / maximum(total[c], tiny)
            sums(x[i], others, j, scale, p, part, total)
            for c in range(total.shape[0]):
                total[c] = finish(total[c], scale[c], p)

    return distances


def _distance_grads(name: str, dtype: type) -> Callable:
    measure, real, zero = _measure(name, dtype), dtype, dtype(0)
    pair, slope, together = measure.pair, measure.slope, 4 if measure.light else 1

    @jit
    def distance_grads(table, thread, i):
        p, x, others = matrix(table[2], real)[0, 0], matrix(table[3], real)[i], matrix(table[4], real)
        d, g, out = matrix(table[5], real)[i], matrix(table[6], real)[i], matrix(table[7], real)[i]
        part = matrix(table[8], real)[thread]
        for f in range(0, out.shape[0], WIDTH):
            own, total = x[f : f + WIDTH], out[f : f + WIDTH]
            width = total.shape[0]
            for c in range(width):
                total[c] = zero
            for k0 in range(0, d.shape[0], _DEPTH):
                end, k = min(d.shape[0], k0 + _DEPTH), k0
                for c in range(width):
                    part[c] = zero
                while together == 4 and k + 4 <= end:
                    u0, w0 = pair(d[k], g[k])
                    u1, w1 = pair(d[k + 1], g[k + 1])
                    u2, w2 = pair(d[k + 2], g[k + 2])
                    u3, w3 = pair(d[k + 3], g[k + 3])
                    b0, b1, b2, b3 = others[k, f:], others[k + 1, f:], others[k + 2, f:], others[k + 3, f:]
                    for c in range(width):
                        first = part[c] + slope(own[c], b0[c], u0, w0, p) + slope(own[c], b1[c], u1, w1, p)
                        part[c] = first + slope(own[c], b2[c], u2, w2, p) + slope(own[c], b3[c], u3, w3, p)
                    k += 4
                while k < end:
                    u, w = pair(d[k], g[k])
                    b = others[k, f:]
                    for c in range(width):
                        part[c] += slope(own[c], b[c], u, w, p)
                    k += 1
                for c in range(width):
                    total[c] += part[c]

    return distance_grads


# ---- between corresponding rows


@jit
def _shifted(a, b, eps):
    return (a - b) + eps


def _row_distance(name: str, dtype: type) -> Callable:
    measure, zero, one, tiny = _measure(name, dtype), dtype(0), dtype(1), np.finfo(dtype).tiny
    term, finish, scaled, maximum = measure.term, measure.finish, measure.scaled, numba_fn.maximum
    larger = _measure("inf", dtype).join

    @jit
    def largest(a, b, eps):
        top = zero
        for f in range(a.shape[0]):
            top = larger(top, abs(_shifted(a[f], b[f], eps)))
        return top

    @jit_sum
    def total(a, b, eps, scale, p):
        everything = zero
        for k in range(0, a.shape[0], _DEPTH):
            some, others, part = a[k : k + _DEPTH], b[k : k + _DEPTH], zero
            for f in range(some.shape[0]):
                part += term(_shifted(some[f], others[f], eps), zero, scale, p)
            everything += part
        return everything

    if name == "inf":

        @jit
        def distance(a, b, eps, p):
            return largest(a, b, eps)

        return distance

    @jit
    def distance(a, b, eps, p):
        scale = one / maximum(largest(a, b, eps), tiny) if scaled else one
        return finish(total(a, b, eps, scale, p), scale, p)

    return distance


def _triplet_losses(name: str, dtype: type) -> Callable:
    real, distance = dtype, _row_distance(name, dtype)
    minimum, relu = numba_fn.minimum, numba_fn.relu

    @jit
    def triplet_losses(table, thread, i):
        numbers = matrix(table[2], real)[0]
        p, margin, eps = numbers[0], numbers[1], numbers[2]
        a, b, c = matrix(table[3], real)[i], matrix(table[4], real)[i], matrix(table[5], real)[i]
        distances, losses = matrix(table[6], real), matrix(table[7], real)[0]
        near, far = distance(a, b, eps, p), distance(a, c, eps, p)
        distances[0, i], distances[1, i] = near, far
        if distances.shape[0] == 3:
            other = distance(b, c, eps, p)
            distances[2, i] = other
            far = minimum(far, other)
        losses[i] = relu((margin + near) - far)

    return triplet_losses


def _triplet_grads(name: str, dtype: type) -> Callable:
    measure, real, zero, one, half = _measure(name, dtype), dtype, dtype(0), dtype(1), dtype(0.5)
    pair, slope, minimum, shared = measure.pair, measure.slope, numba_fn.minimum, name == "inf"

    @jit_sum
    def number_of(a, b, eps, d):
        number = zero
        for f in range(a.shape[0]):
            number += one if abs(_shifted(a[f], b[f], eps)) == d else zero
        return number

    @jit
    def row_pair(a, b, eps, d, g):
        if shared and g != zero:
            g /= number_of(a, b, eps, d)
        return pair(d, g)

    @jit
    def triplet_grads(table, thread, i):
        numbers = matrix(table[2], real)[0]
        p, margin, eps = numbers[0], numbers[1], numbers[2]
        a, b, c = matrix(table[3], real)[i], matrix(table[4], real)[i], matrix(table[5], real)[i]
        distances, g = matrix(table[6], real), matrix(table[7], real)[0, i]
        ga, gb, gc = matrix(table[8], real)[i], matrix(table[9], real)[i], matrix(table[10], real)[i]
        swap = distances.shape[0] == 3
        near, far = distances[0, i], distances[1, i]
        other = distances[2, i] if swap else far
        if (margin + near) - minimum(far, other) < zero:
            for f in range(a.shape[0]):
                ga[f] = gb[f] = gc[f] = zero
            return
        # Of two equal distances each is the smaller one by half.
        share = one if not swap or far < other else half if far == other else zero
        u0, w0 = row_pair(a, b, eps, near, g)
        u1, w1 = row_pair(a, c, eps, far, -g * share)
        if swap:
            u2, w2 = row_pair(b, c, eps, other, -g * (one - share))
            for f in range(a.shape[0]):
                ab, ac = slope(_shifted(a[f], b[f], eps), zero, u0, w0, p), slope(_shifted(a[f], c[f], eps), zero, u1, w1, p)
                bc = slope(_shifted(b[f], c[f], eps), zero, u2, w2, p)
                ga[f], gb[f], gc[f] = ab + ac, bc - ab, -ac - bc
        else:
            for f in range(a.shape[0]):
                ab, ac = slope(_shifted(a[f], b[f], eps), zero, u0, w0, p), slope(_shifted(a[f], c[f], eps), zero, u1, w1, p)
                ga[f], gb[f], gc[f] = ab + ac, -ab, -ac

    return triplet_grads


_KERNELS = {
    "distances": _distances,
    "distance_grads": _distance_grads,
    "triplet_losses": _triplet_losses,
    "triplet_grads": _triplet_grads,
}


@functools.cache
def kernel(what: str, name: str, dtype: type, arrays: int) -> object:
    """A C function of the address of a table, whose second row begins with the number of rows of the result."""
    row, shape, int64 = _KERNELS[what](name, dtype), (2 + arrays, 3), np.int64

    def call(address):
        table = numba.carray(address, shape, int64)
        counter, step, number = table.ctypes.data, table[0, 2], table[1, 0]
        thread = take(pointer(counter + 8, int64), 1)
        begin = take(pointer(counter, int64), step)
        while begin < number:
            for i in range(begin, min(begin + step, number)):
                row(table, thread, i)
            begin = take(pointer(counter, int64), step)

    return numba.cfunc(types.void(types.voidptr), **EXACT)(call)
