"""The kernels of the Triton backend: HEIGHT rows of products a program, WIDTH columns at a time.

Row numbers i are of shape (HEIGHT, 1) and column numbers j of shape (1, WIDTH), so that what is known of the points of
either side broadcasts over the block of pairs. A matrix of statistics is a pair (pointer, stride of its rows), and a side is
three of them: values, gradients, columns of extremes.

The formula is given as functions in the vocabulary of :mod:`.triton_fn`, and its structure by constants, stage by stage:

    KINDS, SIDES    of each statistic; a side is 0 for the positives and 1 for the negatives
    ROWS, COLS      numbers of the statistics that the stage reads of the anchor and of the other point
    FIRST           number of its first statistic

COUNTS says how many statistics of each matrix are read.
"""

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
# Positions in metric_kernels.language.KINDS.
TOTAL, LSE, COUNT, LARGEST, SMALLEST = map(tl.constexpr, range(5))
NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def _read(matrix, COUNT: tl.constexpr, points, inside):
    pointer, stride = matrix
    found = ()
    for k in tl.static_range(COUNT):
        found += (tl.load(pointer + k * tl.cast(stride, tl.int64) + points, mask=inside, other=0),)
    return found


@triton.jit
def _read_side(side, COUNTS: tl.constexpr, points, inside):
    values = _read(side[0], COUNTS[0], points, inside)
    grads = _read(side[1], COUNTS[1], points, inside)
    return values, grads, _read(side[2], COUNTS[2], points, inside)


@triton.jit
def _norm(squares, points, inside):
    """Squared norms of the points, if the metric asks for any."""
    if squares is None:
        return 0.0
    else:
        return tl.load(squares + points, mask=inside, other=0.0)


@triton.jit
def _masks(label, ref_labels, i, j, m, n, diagonal):
    """Which pairs are positive, and which negative."""
    inside = (i < m) & (j < n)
    same = label == tl.load(ref_labels + j, mask=j < n, other=0)
    own = (i + diagonal == j) & (diagonal >= 0)
    return inside & same & ~own, inside & ~same


@triton.jit
def _inputs(anchor, other, ROWS: tl.constexpr, COLS: tl.constexpr, stage: tl.constexpr):
    """The statistics that a stage reads, from all values of either point."""
    found = ()
    for k in tl.static_range(len(ROWS[stage])):
        found += (anchor[ROWS[stage][k]],)
    for k in tl.static_range(len(COLS[stage])):
        found += (other[COLS[stage][k]],)
    return found


@triton.jit
def _start(KINDS: tl.constexpr, stage: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """What is known of each statistic before the first column. Every lane reduces its own columns."""
    zero = tl.full((HEIGHT, WIDTH), 0.0, tl.float32)
    lowest = tl.full((HEIGHT, WIDTH), float("-inf"), tl.float32)
    states = ()
    for k in tl.static_range(len(KINDS[stage])):
        if KINDS[stage][k] == TOTAL:
            states += (zero,)
        elif KINDS[stage][k] == COUNT:
            states += (zero.to(tl.int32),)
        elif KINDS[stage][k] == LSE:
            states += ((lowest, zero),)
        else:
            states += (_ranked(lowest, NO_COLUMN),)
    return states


@triton.jit
def _after(states, values, masks, j, KINDS: tl.constexpr, SIDES: tl.constexpr, stage: tl.constexpr):
    """The same after the columns j."""
    after = ()
    for k in tl.static_range(len(KINDS[stage])):
        inside = masks[SIDES[stage][k]]
        if KINDS[stage][k] == TOTAL:
            after += (states[k] + tl.where(inside, values[k], 0.0),)
        elif KINDS[stage][k] == COUNT:
            after += (states[k] + (tl.where(inside, values[k], 0.0) != 0.0).to(tl.int32),)
        elif KINDS[stage][k] == LSE:
            after += (_add_exp(states[k], tl.where(inside, values[k], float("-inf")), inside),)
        else:
            value = values[k] if KINDS[stage][k] == LARGEST else -values[k]
            ranked = _ranked(tl.where(inside, value, float("-inf")), tl.where(inside, j, NO_COLUMN))
            after += (tl.maximum(states[k], ranked),)
    return after


@triton.jit
def _add_exp(state, value, inside):
    """Largest value so far and the sum of the exponentials relative to it, by one exponential."""
    top, total = state
    # Two equal infinities have no difference.
    ratio = tl.exp(tl.where(value == top, 0.0, -tl.abs(value - top)))
    after = tl.where(value > top, total * ratio + 1.0, total + ratio)
    return tl.where(value > top, value, top), tl.where(inside, after, total)


@triton.jit
def _log_sum_exp(state):
    """Over all lanes; -inf if they are empty."""
    top, total = state
    highest = tl.max(top, 1, keep_dims=True)
    ratio = tl.exp(tl.where(top == highest, 0.0, top - highest))
    return highest + tl.log(tl.sum(total * ratio, 1, keep_dims=True))


@triton.jit
def _ranked(value, column):
    """Integers in the order of (value, -column), in which NaN is the largest value and -0 equals 0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    order = tl.where(value == value, order, 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) | (NO_COLUMN - column)


@triton.jit
def _unranked(ranked):
    order = (ranked >> 32).to(tl.int32)
    bits = tl.where(order < 0, order ^ 0x7FFFFFFF, order)
    column = NO_COLUMN - (ranked & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True), tl.where(column == NO_COLUMN, -1, column)


@triton.jit
def _pair_grad(
    v,
    masks,
    anchor,
    other,
    column,
    parameters,
    pairs,
    dpairs,
    KINDS: tl.constexpr,
    SIDES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    FIRST: tl.constexpr,
):
    """dL/dv of each pair, where the anchor knows the other point as ``column``."""
    values, grads, index = anchor
    total = tl.zeros_like(v)
    for n in tl.static_range(len(KINDS)):
        inputs = _inputs(values, other[0], ROWS, COLS, n)
        t = pairs[n](v, *inputs, *parameters[n])
        slope = dpairs[n](v, *inputs, *parameters[n])
        for k in tl.static_range(len(KINDS[n])):
            if KINDS[n][k] != COUNT:
                term = grads[FIRST[n] + k] * slope[k]
                if KINDS[n][k] == LSE:
                    term *= tl.exp(t[k] - values[FIRST[n] + k])
                elif KINDS[n][k] != TOTAL:
                    term = tl.where(index[FIRST[n] + k] == column, term, 0.0)
                total += tl.where(masks[SIDES[n][k]], term, 0.0)
    return total


@triton.jit(do_not_specialize=["m", "diagonal"])
def stats(
    s,
    labels,
    ref_labels,
    p,
    q,
    m,
    n,
    diagonal,
    eps,
    rows,
    cols,
    out,
    index,
    parameters,
    VALUE: tl.constexpr,
    PAIR: tl.constexpr,
    STAGE: tl.constexpr,
    COUNTS: tl.constexpr,
    KINDS: tl.constexpr,
    SIDES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    FIRST: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    i = (tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT))[:, None]
    label = tl.load(labels + i, mask=i < m, other=0)
    p_i = _norm(p, i, i < m)
    row = _read(rows, COUNTS[0], i, i < m)
    states = _start(KINDS, STAGE, HEIGHT, WIDTH)
    for start in range(0, n, WIDTH):
        j = (start + tl.arange(0, WIDTH))[None, :]
        product = tl.load(s + i.to(tl.int64) * n + j, mask=(i < m) & (j < n), other=0.0)
        v = VALUE(product, p_i, _norm(q, j, j < n), eps)
        col = _read(cols, COUNTS[1], j, j < n)
        values = PAIR(v, *_inputs(row, col, ROWS, COLS, STAGE), *parameters)
        states = _after(states, values, _masks(label, ref_labels, i, j, m, n, diagonal), j, KINDS, SIDES, STAGE)
    for k in tl.static_range(len(KINDS[STAGE])):
        if KINDS[STAGE][k] == LSE:
            found = _log_sum_exp(states[k])
        elif KINDS[STAGE][k] == TOTAL or KINDS[STAGE][k] == COUNT:
            found = tl.sum(states[k], 1, keep_dims=True).to(tl.float32)
        else:
            extreme, column = _unranked(tl.max(states[k], 1, keep_dims=True))
            tl.store(index[0] + k * tl.cast(index[1], tl.int64) + i, column, mask=i < m)
            found = extreme if KINDS[STAGE][k] == LARGEST else -extreme
        tl.store(out[0] + k * tl.cast(out[1], tl.int64) + i, found, mask=i < m)


@triton.jit(do_not_specialize=["m", "diagonal", "row"])
def weights(
    s,
    labels,
    ref_labels,
    p,
    q,
    m,
    n,
    diagonal,
    eps,
    rows,
    cols,
    norm_grad,
    row,
    parameters,
    pairs,
    dpairs,
    VALUE: tl.constexpr,
    DVALUE: tl.constexpr,
    BOTH: tl.constexpr,
    ROW_COUNTS: tl.constexpr,
    COL_COUNTS: tl.constexpr,
    KINDS: tl.constexpr,
    SIDES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    FIRST: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    i = (tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT))[:, None]
    label = tl.load(labels + i, mask=i < m, other=0)
    p_i = _norm(p, i, i < m)
    mine = _read_side(rows, ROW_COUNTS, i, i < m)
    by_norm = tl.full((HEIGHT, WIDTH), 0.0, tl.float32)
    for start in range(0, n, WIDTH):
        j = (start + tl.arange(0, WIDTH))[None, :]
        inside = (i < m) & (j < n)
        place = s + i.to(tl.int64) * n + j
        product = tl.load(place, mask=inside, other=0.0)
        q_j = _norm(q, j, j < n)
        theirs = _read_side(cols, COL_COUNTS, j, j < n)
        masks = _masks(label, ref_labels, i, j, m, n, diagonal)
        v = VALUE(product, p_i, q_j, eps)
        there = _pair_grad(v, masks, mine, theirs, j, parameters, pairs, dpairs, KINDS, SIDES, ROWS, COLS, FIRST)
        slope, norm_slope = DVALUE(product, p_i, q_j, eps)
        w = there * slope
        share = there * norm_slope
        if BOTH:
            v = VALUE(product, q_j, p_i, eps)
            back = _pair_grad(v, masks, theirs, mine, row + i, parameters, pairs, dpairs, KINDS, SIDES, ROWS, COLS, FIRST)
            slope, norm_slope = DVALUE(product, q_j, p_i, eps)
            w += back * slope
            # An anchor's value depends on the other norm through q - 2 s.
            share -= 0.5 * back * slope
        by_norm += tl.where(inside, share, 0.0)
        tl.store(place, w, mask=inside)
    if norm_grad is not None:
        tl.store(norm_grad + i, tl.sum(by_norm, 1, keep_dims=True), mask=i < m)


@triton.jit(do_not_specialize=["m", "diagonal"])
def input_grads(
    s,
    labels,
    ref_labels,
    p,
    q,
    m,
    n,
    diagonal,
    eps,
    rows,
    cols,
    out,
    parameters,
    VALUE: tl.constexpr,
    SLOPE: tl.constexpr,
    STAGE: tl.constexpr,
    SWAPPED: tl.constexpr,
    WANTED: tl.constexpr,
    ROW_COUNTS: tl.constexpr,
    COL_COUNTS: tl.constexpr,
    KINDS: tl.constexpr,
    SIDES: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    FIRST: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    i = (tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT))[:, None]
    label = tl.load(labels + i, mask=i < m, other=0)
    p_i = _norm(p, i, i < m)
    mine = _read_side(rows, ROW_COUNTS, i, i < m)
    totals = ()
    for r in tl.static_range(WANTED):
        totals += (tl.full((HEIGHT, WIDTH), 0.0, tl.float32),)
    for start in range(0, n, WIDTH):
        j = (start + tl.arange(0, WIDTH))[None, :]
        product = tl.load(s + i.to(tl.int64) * n + j, mask=(i < m) & (j < n), other=0.0)
        q_j = _norm(q, j, j < n)
        theirs = _read_side(cols, COL_COUNTS, j, j < n)
        masks = _masks(label, ref_labels, i, j, m, n, diagonal)
        if SWAPPED:
            v = VALUE(product, q_j, p_i, eps)
            slopes = SLOPE(v, *_inputs(theirs[0], mine[0], ROWS, COLS, STAGE), *parameters)
            totals = _with_slopes(totals, theirs[1], slopes, masks, KINDS, SIDES, FIRST, STAGE)
        else:
            v = VALUE(product, p_i, q_j, eps)
            slopes = SLOPE(v, *_inputs(mine[0], theirs[0], ROWS, COLS, STAGE), *parameters)
            totals = _with_slopes(totals, mine[1], slopes, masks, KINDS, SIDES, FIRST, STAGE)
    for r in tl.static_range(WANTED):
        tl.store(out[0] + r * tl.cast(out[1], tl.int64) + i, tl.sum(totals[r], 1, keep_dims=True), mask=i < m)


@triton.jit
def _with_slopes(
    totals,
    grads,
    slopes,
    masks,
    KINDS: tl.constexpr,
    SIDES: tl.constexpr,
    FIRST: tl.constexpr,
    stage: tl.constexpr,
):
    """``totals`` and what each statistic of the stage adds to them by its slope in each input."""
    after = ()
    for r in tl.static_range(len(totals)):
        total = totals[r]
        for k in tl.static_range(len(KINDS[stage])):
            term = grads[FIRST[stage] + k] * slopes[k * len(totals) + r]
            total += tl.where(masks[SIDES[stage][k]], term, 0.0)
        after += (total,)
    return after
