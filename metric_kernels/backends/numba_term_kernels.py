"""The kernels of terms, as Numba compiles them; csrc/ordered.h and csrc/binned.h have the same in C++.

``work`` is the head of the table that a kernel is given: two counters and the number of rows to take at a time, then the number
of all rows and the diagonal. A thread takes rows until none is left, has one row of every scratch array for itself, and
goes through a tile in chunks that stay in the first-level cache. What is no negative is NaN there, since comparisons with it
are false.
"""

import numba
import numpy as np

from metric_kernels.backends import numba_fn
from metric_kernels.backends.numba_jit import jit, jit_sum, kernel, pointer, rows, take

CHUNK = 512
# Longer lists are bisected.
_DIRECT_UP_TO = 48
_NONE = np.int64(-1)


@jit
def _load(v, other, label, sign, margin, u):
    """u = sign * v - margin of the negatives, NaN elsewhere. Returns whether any v is NaN."""
    nan = u.dtype.type(np.nan)
    spoiled = 0
    for j in range(u.shape[0]):
        u[j] = sign * v[j] - margin if other[j] != label else nan
        spoiled += v[j] != v[j]
    return spoiled > 0


@jit
def _number_above(values, u, above, hits):
    """How many of some sorted values are above each u. Adds to hits, at [c], the number of those with c."""
    length = values.shape[0]
    for j in range(u.shape[0]):
        above[j] = 0
    if length <= _DIRECT_UP_TO:
        before = 0
        for k in range(length):
            t, number = values[k], 0
            for j in range(u.shape[0]):
                above[j] += t > u[j]
                number += t > u[j]
            hits[length - k] += number - before
            before = number
        return
    # None of the first above[j] values is above u[j], and any of those after the next ``left`` is.
    left = length
    while left > 0:
        half = (left + 1) // 2
        for j in range(u.shape[0]):
            above[j] += 0 if values[np.uint32(above[j] + half - 1)] > u[j] else half
        left -= half
    for j in range(u.shape[0]):
        above[j] = length - above[j]
        hits[np.uint32(above[j])] += 1


@jit
def _count_for(new, old, hits, below):
    """Hands on what was counted for one list and begins with another. Returns the new one.

    Adds to below[old, k] the number of hits with the value at k above them, as other threads may do at the same time.
    """
    if new != old:
        number, length = 0, hits.shape[0] - 1
        for k in range(0 if old == _NONE else length):
            number += hits[length - k]
            if number:
                take(pointer(below[old].ctypes.data + below.itemsize * k, numba.int64), number)
        hits[:] = 0
    return new


@jit
def _largest_sums(values, sums):
    """Sums of the c largest values, at [c]."""
    sums[0] = 0.0
    for c in range(1, values.shape[0] + 1):
        value = values[values.shape[0] - c]
        sums[c] = sums[c - 1] + (0.0 if value == -np.inf else np.float64(value))


@jit_sum
def _hinges(u, above, sums):
    """The sum of all hinges, and the number of those above 0."""
    total, number = 0.0, 0
    for j in range(u.shape[0]):
        c = above[j]
        total += sums[np.uint32(c)] - c * np.float64(u[j]) if c > 0 else 0.0
        number += c
    return total, number


@kernel
def ranks(work, numbers, v, labels, ref_labels, order, which, lists, totals, counts, below, u, above, hits, sums):
    sign, margin, columns, current = numbers[0], numbers[1], ref_labels.shape[0], _NONE
    for place in rows(work):
        i = order[place]
        values = lists[which[i]]
        if which[i] != current:
            current = _count_for(which[i], current, hits, below)
            _largest_sums(values, sums)
        total, number, spoiled = 0.0, 0, False
        for j in range(0, columns, CHUNK):
            k = min(j + CHUNK, columns)
            mine = u[: k - j]
            spoiled |= _load(v[i][j:k], ref_labels[j:k], labels[i], sign, margin, mine)
            _number_above(values, mine, above, hits)
            part, some = _hinges(mine, above, sums)
            total += part
            number += some
        totals[i] += np.nan if spoiled else total
        counts[i] += number
    _count_for(_NONE, current, hits, below)


@kernel
def rank_grads(work, numbers, v, labels, ref_labels, order, which, lists, scale, g, below, u, above, hits):
    sign, margin, columns, current = numbers[0], numbers[1], ref_labels.shape[0], _NONE
    for place in rows(work):
        i = order[place]
        current = _count_for(which[i], current, hits, below)
        factor = -sign * scale[i]
        for j in range(0, columns, CHUNK):
            k = min(j + CHUNK, columns)
            mine, out = u[: k - j], g[i][j:k]
            _load(v[i][j:k], ref_labels[j:k], labels[i], sign, margin, mine)
            _number_above(lists[current], mine, above, hits)
            for c in range(k - j):
                out[c] += factor * u.dtype.type(above[c])
    _count_for(_NONE, current, hits, below)


@jit
def _hinge(t):
    return numba_fn.relu(t)


@jit
def _step(t):
    return numba_fn.step(t)


@jit
def _squared_hinge(t):
    return numba_fn.relu(t) * numba_fn.relu(t)


@jit
def _twice_hinge(t):
    return numba_fn.relu(t) + numba_fn.relu(t)


@jit
def _softplus(t):
    return numba_fn.softplus(t)


@jit
def _sigmoid(t):
    return numba_fn.sigmoid(t)


# Each with its derivative.
SHAPES = {"hinge": (_hinge, _step), "squared_hinge": (_squared_hinge, _twice_hinge), "softplus": (_softplus, _sigmoid)}


@jit_sum
def _sum_inside(cost, t, u, low, high):
    """The sum of the costs of t with every u that are between two bounds, and their number."""
    zero = u.dtype.type(0)
    total, number = zero, 0
    for j in range(u.shape[0]):
        f = cost(t - u[j])
        inside = (f > low) & (f < high)
        total += f if inside else zero
        number += inside
    return total, number


@jit_sum
def _slopes_inside(cost, slope, t, u, low, high, by_negative):
    """Adds the slopes of these costs to by_negative, and returns their sum."""
    zero = u.dtype.type(0)
    total = zero
    for j in range(u.shape[0]):
        f = cost(t - u[j])
        w = slope(t - u[j]) if (f > low) & (f < high) else zero
        by_negative[j] += w
        total += w
    return total


@kernel
def sums(work, numbers, v, labels, ref_labels, lists, totals, counts, u, cost):
    sign, margin, low, high, columns = numbers[0], numbers[1], numbers[2], numbers[3], ref_labels.shape[0]
    for i in rows(work):
        total, number, spoiled = 0.0, 0, False
        for j in range(0, columns, CHUNK):
            k = min(j + CHUNK, columns)
            mine = u[: k - j]
            spoiled |= _load(v[i][j:k], ref_labels[j:k], labels[i], sign, margin, mine)
            for t in lists[i]:
                if t != -np.inf:
                    part, some = _sum_inside(cost, t, mine, low, high)
                    total += part
                    number += some
        totals[i] += np.nan if spoiled else total
        counts[i] += number


@kernel
def sum_grads(work, numbers, v, labels, ref_labels, lists, scale, g, slopes, u, by_negative, cost, slope):
    sign, margin, low, high, columns = numbers[0], numbers[1], numbers[2], numbers[3], ref_labels.shape[0]
    for i in rows(work):
        factor = -sign * scale[i]
        for j in range(0, columns, CHUNK):
            k = min(j + CHUNK, columns)
            mine, out = u[: k - j], g[i][j:k]
            _load(v[i][j:k], ref_labels[j:k], labels[i], sign, margin, mine)
            by_negative[:] = 0
            for place in range(lists.shape[1]):
                t = lists[i, place]
                if t != -np.inf:
                    slopes[i, place] += _slopes_inside(cost, slope, t, mine, low, high, by_negative)
            for c in range(k - j):
                out[c] += factor * by_negative[c]


@kernel
def nearest(work, numbers, v, labels, ref_labels, lists, columns):
    sign, length = numbers[0], lists.shape[1]
    for i in rows(work):
        mine, values, out, farthest = v[i], lists[i], columns[i], -1
        # The nearest negative among those with exactly k + 1 values of the list before them, then among those with more.
        out[:] = -1
        for j in range(ref_labels.shape[0]):
            u = sign * mine[j]
            if ref_labels[j] == labels[i] or u != u:
                continue
            if farthest < 0 or u > sign * mine[farthest]:
                farthest = j
            before = np.searchsorted(values, u)
            if before > 0 and (out[before - 1] < 0 or u < sign * mine[out[before - 1]]):
                out[before - 1] = j
        best = -1
        for k in range(length - 1, -1, -1):
            if out[k] >= 0:
                u = sign * mine[out[k]]
                if best < 0 or u < sign * mine[best] or (u == sign * mine[best] and out[k] < best):
                    best = out[k]
            out[k] = farthest if best < 0 else best


@jit
def _node(v, low, per_step, last, real):
    """The lower one of the two nodes of a value, and the share of the upper one. A NaN is at the first node."""
    place = (v - low) * per_step
    place = place if place > real.type(0) else real.type(0)
    place = place if place < real.type(last) else real.type(last)
    node = min(np.int32(place), np.int32(last - 1))
    return node, place - real.type(node)


@kernel
def histogram(work, numbers, v, labels, ref_labels, out, spoiled, node, lower, upper, own):
    low, per_step, lone, unit = numbers[0], numbers[1], numbers[2] != 0, np.float64(numbers[3])
    diagonal, nodes, columns, whole = work[1, 1], out.shape[1] // 2, ref_labels.shape[0], np.int64(unit)
    own[:] = 0
    for i in rows(work):
        target = own if out.shape[0] == 1 else out[i]
        alone = lone and labels[i] < 0
        for j in range(0, columns, CHUNK):
            k = min(j + CHUNK, columns)
            mine, other, itself, some = v[i][j:k], ref_labels[j:k], i + diagonal - j if diagonal >= 0 else -1, 0
            for c in range(k - j):
                first, share = _node(mine[c], low, per_step, nodes - 1, v.dtype)
                pair, known, same = c != itself, mine[c] - mine[c] == 0, other[c] == labels[i]
                some += pair & (not known)
                counts = pair & known & (not (alone & same))
                rounded = np.int64(np.rint(share * unit))
                node[c] = first + (0 if same else nodes)
                upper[c] = rounded if counts else 0
                lower[c] = whole - rounded if counts else 0
            for c in range(k - j):
                target[np.uint32(node[c])] += lower[c]
                target[np.uint32(node[c] + 1)] += upper[c]
            if some:
                spoiled[i] = 1
    for k in range(own.shape[0]):
        if own[k]:
            take(pointer(out.ctypes.data + out.itemsize * k, numba.int64), own[k])


@kernel
def histogram_grads(work, numbers, v, labels, ref_labels, slopes, g):
    low, per_step, lone, high = numbers[0], numbers[1], numbers[2] != 0, numbers[3]
    diagonal, last = work[1, 1], slopes.shape[1] // 2
    zero = v.dtype.type(0)
    for i in rows(work):
        mine, out, itself = v[i], g[i], i + diagonal if diagonal >= 0 else -1
        table, alone = slopes[i if slopes.shape[0] > 1 else 0], lone and labels[i] < 0
        for j in range(ref_labels.shape[0]):
            node, _ = _node(mine[j], low, per_step, last, v.dtype)
            same = ref_labels[j] == labels[i]
            slope = table[np.uint32(node + (0 if same else last))]
            counts = (mine[j] >= low) & (mine[j] <= high) & (j != itself) & (not (alone & same))
            out[j] += slope if counts else zero


@kernel
def pair_values(work, numbers, s, p, q, out, value):
    for i in rows(work):
        mine, result = s[i], out[i]
        for j in range(q.shape[0]):
            result[j] = value(mine[j], p[i], q[j], numbers[0])


@jit_sum
def _pair_slopes(dvalue, s, p, q, eps, g):
    total = s.dtype.type(0)
    for j in range(q.shape[0]):
        slope, by_norm = dvalue(s[j], p, q[j], eps)
        s[j] = g[j] * slope
        total += g[j] * by_norm
    return total


@kernel
def pair_slopes(work, numbers, s, p, q, g, norm_grad, dvalue):
    columns = q.shape[0]
    for i in rows(work):
        total = 0.0
        for j in range(0, columns, CHUNK):
            k = min(j + CHUNK, columns)
            total += _pair_slopes(dvalue, s[i][j:k], p[i], q[j:k], numbers[0], g[i][j:k])
        norm_grad[i] = total
