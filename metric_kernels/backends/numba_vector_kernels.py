"""The kernels of distances between vectors, as Numba compiles them; csrc/vectors.h has the same in C++.

Columns of points in the forward pass, and features in the backward pass, are taken in pieces that stay in the first-level
cache, so that no loop along them is a reduction. The functions of a distance are those of numba_measures.py.
"""

from metric_kernels.backends import numba_fn
from metric_kernels.backends.numba_jit import jit, kernel, rows
from metric_kernels.backends.numba_measures import DEPTH, plus, shifted

WIDTH = 512


@jit
def _sums(mine, yt, j, part, scale, total, p, term, join):
    """Joins the terms of a row with columns j, j + 1 ... of yt."""
    width = total.shape[0]
    total[:] = 0
    for k in range(0, mine.shape[0], DEPTH):
        part[:] = 0
        for f in range(k, min(k + DEPTH, mine.shape[0])):
            a, b = mine[f], yt[f, j : j + width]
            for c in range(width):
                part[c] = join(part[c], term(a, b[c], scale[c], p))
        for c in range(width):
            total[c] = join(total[c], part[c])


@kernel
def distances(work, numbers, x, yt, out, part, scale, term, join, finish):
    p = numbers[0]
    for i in rows(work):
        for j in range(0, out.shape[1], WIDTH):
            total = out[i, j : j + WIDTH]
            _sums(x[i], yt, j, part, scale, total, p, term, join)
            for c in range(total.shape[0]):
                total[c] = finish(total[c], scale[c], p)


@kernel
def scaled_distances(work, numbers, x, yt, out, part, scale, difference, larger, inverse, term, join, finish):
    """The same with terms that are divided by the largest difference."""
    p = numbers[0]
    for i in rows(work):
        for j in range(0, out.shape[1], WIDTH):
            total = out[i, j : j + WIDTH]
            _sums(x[i], yt, j, part, scale, total, p, difference, larger)
            for c in range(total.shape[0]):
                scale[c] = inverse(total[c])
            _sums(x[i], yt, j, part, scale, total, p, term, join)
            for c in range(total.shape[0]):
                total[c] = finish(total[c], scale[c], p)


@kernel
def distance_grads(work, numbers, x, y, d, g, out, part, pair, slope):
    p = numbers[0]
    for i in rows(work):
        for f in range(0, out.shape[1], WIDTH):
            mine, total = x[i, f : f + WIDTH], out[i, f : f + WIDTH]
            width = total.shape[0]
            total[:] = 0
            for k in range(0, y.shape[0], DEPTH):
                part[:] = 0
                for j in range(k, min(k + DEPTH, y.shape[0])):
                    u, w = pair(d[i, j], g[i, j])
                    other = y[j, f : f + width]
                    for c in range(width):
                        part[c] = plus(part[c], slope(mine[c], other[c], u, w, p))
                for c in range(width):
                    total[c] += part[c]


@kernel
def triplet_losses(work, numbers, anchor, positive, negative, distances, losses, length):
    p, margin, eps = numbers[0], numbers[1], numbers[2]
    for i in rows(work):
        near, far = length(anchor[i], positive[i], eps, p), length(anchor[i], negative[i], eps, p)
        distances[0, i], distances[1, i] = near, far
        if distances.shape[0] == 3:
            other = length(positive[i], negative[i], eps, p)
            distances[2, i] = other
            far = numba_fn.minimum(far, other)
        losses[i] = numba_fn.relu((margin + near) - far)


@kernel
def triplet_grads(work, numbers, anchor, positive, negative, distances, g, grad0, grad1, grad2, row_pair, slope):
    p, margin, eps, swap = numbers[0], numbers[1], numbers[2], distances.shape[0] == 3
    zero, half, one = numbers.dtype.type(0), numbers.dtype.type(0.5), numbers.dtype.type(1)
    for i in rows(work):
        a, b, c, to_a, to_b, to_c = anchor[i], positive[i], negative[i], grad0[i], grad1[i], grad2[i]
        near, far = distances[0, i], distances[1, i]
        other = distances[2, i] if swap else far
        if (margin + near) - numba_fn.minimum(far, other) < zero:
            to_a[:], to_b[:], to_c[:] = zero, zero, zero
            continue
        # Of two equal distances each is the smaller one by half.
        share = one if not swap or far < other else half if far == other else zero
        u0, w0 = row_pair(a, b, eps, near, g[i])
        u1, w1 = row_pair(a, c, eps, far, -g[i] * share)
        for f in range(a.shape[0]):
            ab, ac = slope(shifted(a[f], b[f], eps), zero, u0, w0, p), slope(shifted(a[f], c[f], eps), zero, u1, w1, p)
            to_a[f], to_b[f], to_c[f] = ab + ac, -ab, -ac
        if swap:
            u2, w2 = row_pair(b, c, eps, other, -g[i] * (one - share))
            for f in range(a.shape[0]):
                bc = slope(shifted(b[f], c[f], eps), zero, u2, w2, p)
                to_b[f] += bc
                to_c[f] -= bc
