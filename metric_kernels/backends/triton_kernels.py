"""The kernels of the Triton backend: ``height`` rows of products a program, ``width`` columns at a time.

What is known of the points i, the rows, has the shape (height, 1), and of the points j (1, width), so that it broadcasts over
the block of pairs. It is loaded as a vector first: a thread would hold copies of a column for each pair.

A matrix of statistics is a pair (pointer, stride of its rows), and a side is three of them: values, gradients, columns of
extremes. ``counts`` says how many statistics of each to read.

Products are read where ``multiply`` is None, and else made here, see :mod:`.triton_products`. Statistics are then those of
a row and no longer those of each of ``width`` lanes of it, for which there would be no registers.

``formula`` is the :class:`~metric_kernels.backends.triton.Structure` of the formula; its functions come beside it, in
the vocabulary of :mod:`.triton_fn`.
"""

import triton
import triton.language as tl

from metric_kernels.backends.triton_products import _add_weighted, _load, _product, _resident, _scaled

NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def _read(matrix, count: tl.constexpr, points, number, axis: tl.constexpr):
    """Statistics of points of one side; ``axis`` is that of the other side."""
    found = ()
    for k in tl.static_range(count):
        found += (_load(_at(matrix, k, points), points, number, axis),)
    return found


@triton.jit
def _at(matrix, k, points):
    pointer, stride = matrix
    return pointer + k * tl.cast(stride, tl.int64) + points


@triton.jit
def _read_side(side, counts: tl.constexpr, points, number, axis: tl.constexpr):
    values = _read(side[0], counts[0], points, number, axis)
    grads = _read(side[1], counts[1], points, number, axis)
    return values, grads, _read_columns(side[2], counts[2], points, number, axis)


@triton.jit
def _read_columns(matrix, count: tl.constexpr, points, number, axis: tl.constexpr):
    """Columns of extremes, which are less than NO_COLUMN and need one register each."""
    found = ()
    for k in tl.static_range(count):
        found += (_load(_at(matrix, k, points), points, number, axis).to(tl.int32),)
    return found


@triton.jit
def _norm(squares, points, number, axis: tl.constexpr):
    """Squared norms of the points, if the metric asks for any."""
    if squares is None:
        return 0.0
    else:
        return _load(squares + points, points, number, axis)


@triton.jit
def _masks(label, ref_labels, i, j, m, n, diagonal, factors):
    """Which pairs are positive, and which negative. ``diagonal`` is None where no point is on both sides."""
    inside = (i < m)[:, None] & (j < n)[None, :]
    same = label == _load(ref_labels + j, j, n, 0)
    positive = inside & same
    if diagonal is not None:
        # Products are made for all rows at once.
        own = i + diagonal if factors[0] is None else i
        positive &= own[:, None] != j[None, :]
    return positive, inside & ~same


@triton.jit
def _inputs(anchor, other, formula: tl.constexpr, stage: tl.constexpr):
    """The statistics that a stage reads, from all values of either point."""
    found = ()
    for k in tl.static_range(len(formula.rows[stage])):
        found += (anchor[formula.rows[stage][k]],)
    for k in tl.static_range(len(formula.cols[stage])):
        found += (other[formula.cols[stage][k]],)
    return found


@triton.jit
def _start(formula: tl.constexpr, stage: tl.constexpr, height: tl.constexpr, lanes: tl.constexpr):
    """What is known of each statistic before the first column. Every one of ``lanes`` reduces its own columns."""
    zero = _vector(0.0, height, lanes)
    lowest = _vector(float("-inf"), height, lanes)
    states = ()
    for k in tl.static_range(len(formula.kinds[stage])):
        if formula.kinds[stage][k] == "total":
            states += (zero,)
        elif formula.kinds[stage][k] == "count":
            states += (zero.to(tl.int32),)
        elif formula.kinds[stage][k] == "lse":
            states += ((lowest, zero),)
        else:
            states += (_ranked(lowest, NO_COLUMN),)
    return states


@triton.jit
def _vector(value, height: tl.constexpr, lanes: tl.constexpr):
    """(height, lanes), or (height,) for a single one."""
    if lanes == 1:
        return tl.full((height,), value, tl.float32)
    else:
        return tl.full((height, lanes), value, tl.float32)


@triton.jit
def _after(states, v, values, masks, j, lanes: tl.constexpr, formula: tl.constexpr, stage: tl.constexpr):
    """The same after the columns j, whose pair values are v and whose statistics are those of ``values``."""
    after = ()
    for k in tl.static_range(len(formula.kinds[stage])):
        inside = masks[formula.sides[stage][k]]
        if formula.kinds[stage][k] == "total":
            after += (states[k] + _summed(tl.where(inside, values[k], 0.0), lanes),)
        elif formula.kinds[stage][k] == "count":
            # Of a mask alone Triton does not know that it lies where v does, and would make it once more for this sum.
            counted = inside & (values[k] != 0.0) & ((v == v) | (v != v))
            after += (states[k] + _summed(counted.to(tl.int32), lanes),)
        elif formula.kinds[stage][k] == "lse":
            after += (_add_exp(states[k], tl.where(inside, values[k], float("-inf")), inside, lanes),)
        else:
            value = values[k] if formula.kinds[stage][k] == "largest" else -values[k]
            ranked = _ranked(tl.where(inside, value, float("-inf")), tl.where(inside, j[None, :], NO_COLUMN))
            after += (tl.maximum(states[k], _highest(ranked, lanes)),)
    return after


@triton.jit
def _summed(block, lanes: tl.constexpr):
    if lanes == 1:
        return tl.sum(block, 1)
    else:
        return block


@triton.jit
def _highest(block, lanes: tl.constexpr):
    if lanes == 1:
        return tl.max(block, 1)
    else:
        return block


@triton.jit
def _add_exp(state, value, inside, lanes: tl.constexpr):
    """Largest value so far and the sum of the exponentials relative to it, by one exponential for each value."""
    top, total = state
    # Two equal infinities have no difference.
    if lanes == 1:
        highest = tl.maximum(top, tl.max(value, 1))
        ratio = tl.exp(tl.where(top == highest, 0.0, top - highest))
        added = tl.exp(tl.where(value == highest[:, None], 0.0, value - highest[:, None]))
        return highest, total * ratio + tl.sum(tl.where(inside, added, 0.0), 1)
    else:
        ratio = tl.exp(tl.where(value == top, 0.0, -tl.abs(value - top)))
        after = tl.where(value > top, total * ratio + 1.0, total + ratio)
        return tl.where(value > top, value, top), tl.where(inside, after, total)


@triton.jit
def _log_sum_exp(state, lanes: tl.constexpr):
    """Over all lanes, -inf if they are empty, and its scale."""
    highest, mass = state
    if lanes != 1:
        top, total = state
        highest = tl.max(top, 1)
        mass = tl.sum(total * tl.exp(tl.where(top == highest[:, None], 0.0, top - highest[:, None])), 1)
    value = highest + tl.log(mass)
    return value, tl.where(tl.abs(value) < float("inf"), tl.exp(value - highest) / mass, 1.0)


@triton.jit
def _ranked(value, column):
    """Integers in the order of (value, -column), in which NaN is the largest value and -0 equals 0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, order)
    return (order.to(tl.int64) << 32) | (NO_COLUMN - column)


@triton.jit
def _unranked(ranked):
    order = (ranked >> 32).to(tl.int32)
    bits = tl.where(order < 0, order ^ 0x7FFFFFFF, order)
    column = NO_COLUMN - (ranked & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True), tl.where(column == NO_COLUMN, -1, column)


@triton.jit
def _pair_grad(v, masks, anchor, other, column, parameters, pairs, dpairs, formula: tl.constexpr):
    """dL/dv of each pair, where the anchor knows the other point as ``column``."""
    values, grads, index = anchor
    positive, negative = (), ()
    for n in tl.static_range(len(formula.kinds)):
        inputs = _inputs(values, other[0], formula, n)
        t = pairs[n](v, *inputs, *parameters[n])
        slope = dpairs[n](v, *inputs, *parameters[n])
        for k in tl.static_range(len(formula.kinds[n])):
            if formula.kinds[n][k] != "count":
                term = grads[formula.first[n] + k] * slope[k]
                if formula.kinds[n][k] == "lse":
                    term *= tl.exp(t[k] - values[formula.first[n] + k])
                elif formula.kinds[n][k] != "total":
                    term = tl.where(index[formula.first[n] + k] == column, term, 0.0)
                if formula.sides[n][k] == 0:
                    positive += (term,)
                else:
                    negative += (term,)
    return _sum_inside(masks[0], positive, v) + _sum_inside(masks[1], negative, v)


@triton.jit
def _sum_inside(mask, terms, v):
    """The terms of one side, masked together."""
    if len(terms) == 0:
        return tl.zeros_like(v)
    else:
        total = terms[0]
        for k in tl.static_range(1, len(terms)):
            total += terms[k]
        return tl.where(mask, total, 0.0)


@triton.jit
def _weight(
    product,
    p_i,
    q_j,
    eps,
    masks,
    mine,
    theirs,
    i,
    j,
    parameters,
    pairs,
    dpairs,
    value: tl.constexpr,
    dvalue: tl.constexpr,
    formula: tl.constexpr,
    there: tl.constexpr,
    back: tl.constexpr,
):
    """dL/ds of each pair, and its share of the gradient with respect to the squared norm of i: what comes of i as the
    anchor (``there``), of j (``back``), or of both.
    """
    if there:
        v = value(product, p_i, q_j, eps)
        grad = _pair_grad(v, masks, mine, theirs, j, parameters, pairs, dpairs, formula)
        slope, norm_slope = dvalue(product, p_i, q_j, eps)
        w = grad * slope
        share = grad * norm_slope
    if back:
        v = value(product, q_j, p_i, eps)
        grad = _pair_grad(v, masks, theirs, mine, i, parameters, pairs, dpairs, formula)
        slope, _ = dvalue(product, q_j, p_i, eps)
        # Back, the row is the other point, and dv/dq = -1/2 dv/ds.
        if there:
            w += grad * slope
            share -= 0.5 * grad * slope
        else:
            w = grad * slope
            share = -0.5 * w
    return w, share


@triton.jit
def _add_slopes(totals, slopes, grads, masks, lanes: tl.constexpr, formula: tl.constexpr, stage: tl.constexpr):
    """For each input of a stage the gradient that comes through its statistics, added up lane by lane."""
    after = ()
    for r in tl.static_range(len(totals)):
        total = totals[r]
        for k in tl.static_range(len(formula.kinds[stage])):
            term = grads[formula.first[stage] + k] * slopes[k * len(totals) + r]
            total += _summed(tl.where(masks[formula.sides[stage][k]], term, 0.0), lanes)
        after += (total,)
    return after


@triton.jit(do_not_specialize=["m", "diagonal"])
def stats(
    tile,
    m,
    n,
    diagonal,
    eps,
    rows,
    cols,
    out,
    index,
    scale,
    parameters,
    value: tl.constexpr,
    pair: tl.constexpr,
    formula: tl.constexpr,
    stage: tl.constexpr,
    counts: tl.constexpr,
    multiply: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    s, labels, ref_labels, p, q, factors = tile
    i = tl.program_id(0) * height + tl.arange(0, height)
    label = _load(labels + i, i, m, 1)
    p_i = _norm(p, i, m, 1)
    mine = _read(rows, counts[0], i, m, 1)
    anchors = _resident(factors, i, m, multiply)
    lanes: tl.constexpr = width if multiply is None else 1
    states = _start(formula, stage, height, lanes)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        product = _product(s, factors, anchors, i, j, m, n, multiply)
        theirs = _read(cols, counts[1], j, n, 0)
        v = value(product, p_i, _norm(q, j, n, 0), eps)
        values = pair(v, *_inputs(mine, theirs, formula, stage), *parameters)
        masks = _masks(label, ref_labels, i, j, m, n, diagonal, factors)
        states = _after(states, v, values, masks, j, lanes, formula, stage)
    for k in tl.static_range(len(formula.kinds[stage])):
        if formula.kinds[stage][k] == "lse":
            found, factor = _log_sum_exp(states[k], lanes)
            tl.store(_at(scale, k, i), factor, mask=i < m)
        elif formula.kinds[stage][k] == "total" or formula.kinds[stage][k] == "count":
            found = (states[k] if lanes == 1 else tl.sum(states[k], 1)).to(tl.float32)
        else:
            extreme, column = _unranked(states[k] if lanes == 1 else tl.max(states[k], 1))
            found = extreme if formula.kinds[stage][k] == "largest" else -extreme
            tl.store(_at(index, k, i), column, mask=i < m)
        tl.store(_at(out, k, i), found, mask=i < m)


@triton.jit
def _rounding(w, dtype: tl.constexpr):
    """What the share of the squared norm loses when w is rounded: of w (y - x) both parts are rounded then, or neither."""
    return 0.5 * (w - w.to(dtype).to(tl.float32))


@triton.jit(do_not_specialize=["m", "diagonal", "row"])
def weights(
    tile,
    m,
    n,
    diagonal,
    eps,
    rows,
    cols,
    norm_grad,
    rounded,
    row,
    parameters,
    pairs,
    dpairs,
    value: tl.constexpr,
    dvalue: tl.constexpr,
    formula: tl.constexpr,
    both: tl.constexpr,
    row_counts: tl.constexpr,
    col_counts: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """The weights go over the products, or to ``rounded``, whose rows share the memory of theirs."""
    s, labels, ref_labels, p, q, factors = tile
    i = tl.program_id(0) * height + tl.arange(0, height)
    label = _load(labels + i, i, m, 1)
    p_i = _norm(p, i, m, 1)
    mine = _read_side(rows, row_counts, i, m, 1)
    by_norm = tl.full((height, width), 0.0, tl.float32)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        inside = (i < m)[:, None] & (j < n)[None, :]
        product = _product(s, factors, 0.0, i, j, m, n, None)
        q_j = _norm(q, j, n, 0)
        theirs = _read_side(cols, col_counts, j, n, 0)
        masks = _masks(label, ref_labels, i, j, m, n, diagonal, factors)
        w, share = _weight(
            product,
            p_i,
            q_j,
            eps,
            masks,
            mine,
            theirs,
            (row + i)[:, None],
            j[None, :],
            parameters,
            pairs,
            dpairs,
            value,
            dvalue,
            formula,
            True,
            both,
        )
        w = _scaled(w, factors, i, j, m, n)
        if rounded is None:
            tl.store(s + i[:, None].to(tl.int64) * n + j[None, :], w, mask=inside)
        else:
            # Where these weights go lie products of this block and of earlier ones, which other threads read.
            tl.debug_barrier()
            share += _rounding(w, rounded[0].dtype.element_ty)
            tl.store(_at(rounded, i[:, None], j[None, :]), w, mask=inside)
        by_norm += tl.where(inside, share, 0.0)
    if norm_grad is not None:
        tl.store(norm_grad + i, tl.sum(by_norm, 1), mask=i < m)


@triton.jit(do_not_specialize=["m", "diagonal"])
def gradients(
    tile,
    m,
    n,
    diagonal,
    eps,
    rows,
    cols,
    out,
    norm_grad,
    parameters,
    pairs,
    dpairs,
    value: tl.constexpr,
    dvalue: tl.constexpr,
    formula: tl.constexpr,
    there: tl.constexpr,
    back: tl.constexpr,
    row_counts: tl.constexpr,
    col_counts: tl.constexpr,
    multiply: tl.constexpr,
    span: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """The weights times the points of the columns, ``span`` coordinates a program; no weight is written."""
    s, labels, ref_labels, p, q, factors = tile
    i = tl.program_id(0) * height + tl.arange(0, height)
    label = _load(labels + i, i, m, 1)
    p_i = _norm(p, i, m, 1)
    mine = _read_side(rows, row_counts, i, m, 1)
    anchors = _resident(factors, i, m, multiply)
    first = tl.program_id(1) * span
    grad = tl.full((height, span), 0.0, tl.float32)
    by_norm = tl.full((height,), 0.0, tl.float32)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        product = _product(s, factors, anchors, i, j, m, n, multiply)
        q_j = _norm(q, j, n, 0)
        theirs = _read_side(cols, col_counts, j, n, 0)
        w, share = _weight(
            product,
            p_i,
            q_j,
            eps,
            _masks(label, ref_labels, i, j, m, n, diagonal, factors),
            mine,
            theirs,
            i[:, None],
            j[None, :],
            parameters,
            pairs,
            dpairs,
            value,
            dvalue,
            formula,
            there,
            back,
        )
        inside = (i < m)[:, None] & (j < n)[None, :]
        grad = _add_weighted(grad, tl.where(inside, w, 0.0), factors, j, n, first, span, multiply)
        if norm_grad is not None:
            if factors[1].dtype.element_ty == tl.bfloat16:
                share += _rounding(w, tl.bfloat16)
            by_norm += tl.sum(tl.where(inside, share, 0.0), 1)
    if factors[2] is not None:
        grad *= _load(factors[2] + i, i, m, 1)
    coordinate = (first + tl.arange(0, span))[None, :]
    place = out + i[:, None].to(tl.int64) * multiply.dim + coordinate
    tl.store(place, grad, mask=(i < m)[:, None] & (coordinate < multiply.dim))
    if norm_grad is not None:
        tl.store(norm_grad + i, by_norm, mask=(i < m) & (first == 0))


@triton.jit(do_not_specialize=["m", "diagonal"])
def input_grads(
    tile,
    m,
    n,
    diagonal,
    eps,
    rows,
    cols,
    out,
    parameters,
    value: tl.constexpr,
    slope: tl.constexpr,
    formula: tl.constexpr,
    stage: tl.constexpr,
    swapped: tl.constexpr,
    inputs: tl.constexpr,
    multiply: tl.constexpr,
    row_counts: tl.constexpr,
    col_counts: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    s, labels, ref_labels, p, q, factors = tile
    i = tl.program_id(0) * height + tl.arange(0, height)
    label = _load(labels + i, i, m, 1)
    p_i = _norm(p, i, m, 1)
    mine = _read_side(rows, row_counts, i, m, 1)
    anchors = _resident(factors, i, m, multiply)
    lanes: tl.constexpr = width if multiply is None else 1
    totals = ()
    for _ in tl.static_range(inputs):
        totals += (_vector(0.0, height, lanes),)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        product = _product(s, factors, anchors, i, j, m, n, multiply)
        q_j = _norm(q, j, n, 0)
        theirs = _read_side(cols, col_counts, j, n, 0)
        masks = _masks(label, ref_labels, i, j, m, n, diagonal, factors)
        if swapped:
            v = value(product, q_j, p_i, eps)
            slopes = slope(v, *_inputs(theirs[0], mine[0], formula, stage), *parameters)
            totals = _add_slopes(totals, slopes, theirs[1], masks, lanes, formula, stage)
        else:
            v = value(product, p_i, q_j, eps)
            slopes = slope(v, *_inputs(mine[0], theirs[0], formula, stage), *parameters)
            totals = _add_slopes(totals, slopes, mine[1], masks, lanes, formula, stage)
    for r in tl.static_range(inputs):
        tl.store(_at(out, r, i), totals[r] if lanes == 1 else tl.sum(totals[r], 1), mask=i < m)
