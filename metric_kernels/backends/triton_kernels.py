"""The kernels of the Triton backend: HEIGHT rows of products a program, WIDTH columns at a time.

Row numbers i have the shape (HEIGHT, 1) and column numbers j (1, WIDTH), so that what is known of the points of either side
broadcasts over the block of pairs. A matrix of statistics is a pair (pointer, stride of its rows), and a side is three of
them: values, gradients, columns of extremes. COUNTS says how many statistics of each to read.

FORMULA is the :class:`~metric_kernels.backends.triton.Structure` of the formula; its functions come beside it, in the
vocabulary of :mod:`.triton_fn`.
"""

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
NO_COLUMN = tl.constexpr(2**31 - 1)


@triton.jit
def _read(matrix, COUNT: tl.constexpr, points, inside):
    found = ()
    for k in tl.static_range(COUNT):
        found += (tl.load(_at(matrix, k, points), mask=inside, other=0),)
    return found


@triton.jit
def _at(matrix, k, points):
    pointer, stride = matrix
    return pointer + k * tl.cast(stride, tl.int64) + points


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
def _inputs(anchor, other, FORMULA: tl.constexpr, stage: tl.constexpr):
    """The statistics that a stage reads, from all values of either point."""
    found = ()
    for k in tl.static_range(len(FORMULA.rows[stage])):
        found += (anchor[FORMULA.rows[stage][k]],)
    for k in tl.static_range(len(FORMULA.cols[stage])):
        found += (other[FORMULA.cols[stage][k]],)
    return found


@triton.jit
def _start(FORMULA: tl.constexpr, stage: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """What is known of each statistic before the first column. Every lane reduces its own columns."""
    zero = tl.full((HEIGHT, WIDTH), 0.0, tl.float32)
    lowest = tl.full((HEIGHT, WIDTH), float("-inf"), tl.float32)
    states = ()
    for k in tl.static_range(len(FORMULA.kinds[stage])):
        if FORMULA.kinds[stage][k] == "total":
            states += (zero,)
        elif FORMULA.kinds[stage][k] == "count":
            states += (zero.to(tl.int32),)
        elif FORMULA.kinds[stage][k] == "lse":
            states += ((lowest, zero),)
        else:
            states += (_ranked(lowest, NO_COLUMN),)
    return states


@triton.jit
def _after(states, values, masks, j, FORMULA: tl.constexpr, stage: tl.constexpr):
    """The same after the columns j."""
    after = ()
    for k in tl.static_range(len(FORMULA.kinds[stage])):
        inside = masks[FORMULA.sides[stage][k]]
        if FORMULA.kinds[stage][k] == "total":
            after += (states[k] + tl.where(inside, values[k], 0.0),)
        elif FORMULA.kinds[stage][k] == "count":
            after += (states[k] + (tl.where(inside, values[k], 0.0) != 0.0).to(tl.int32),)
        elif FORMULA.kinds[stage][k] == "lse":
            after += (_add_exp(states[k], tl.where(inside, values[k], float("-inf")), inside),)
        else:
            value = values[k] if FORMULA.kinds[stage][k] == "largest" else -values[k]
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
def _pair_grad(v, masks, anchor, other, column, parameters, pairs, dpairs, FORMULA: tl.constexpr):
    """dL/dv of each pair, where the anchor knows the other point as ``column``."""
    values, grads, index = anchor
    total = tl.zeros_like(v)
    for n in tl.static_range(len(FORMULA.kinds)):
        inputs = _inputs(values, other[0], FORMULA, n)
        t = pairs[n](v, *inputs, *parameters[n])
        slope = dpairs[n](v, *inputs, *parameters[n])
        for k in tl.static_range(len(FORMULA.kinds[n])):
            if FORMULA.kinds[n][k] != "count":
                term = grads[FORMULA.first[n] + k] * slope[k]
                if FORMULA.kinds[n][k] == "lse":
                    term *= tl.exp(t[k] - values[FORMULA.first[n] + k])
                elif FORMULA.kinds[n][k] != "total":
                    term = tl.where(index[FORMULA.first[n] + k] == column, term, 0.0)
                total += tl.where(masks[FORMULA.sides[n][k]], term, 0.0)
    return total


@triton.jit
def _add_slopes(totals, slopes, grads, masks, FORMULA: tl.constexpr, stage: tl.constexpr):
    """For each input of a stage the gradient that comes through its statistics, added up lane by lane."""
    after = ()
    for r in tl.static_range(len(totals)):
        total = totals[r]
        for k in tl.static_range(len(FORMULA.kinds[stage])):
            term = grads[FORMULA.first[stage] + k] * slopes[k * len(totals) + r]
            total += tl.where(masks[FORMULA.sides[stage][k]], term, 0.0)
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
    parameters,
    VALUE: tl.constexpr,
    PAIR: tl.constexpr,
    FORMULA: tl.constexpr,
    STAGE: tl.constexpr,
    COUNTS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    s, labels, ref_labels, p, q = tile
    i = (tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT))[:, None]
    label = tl.load(labels + i, mask=i < m, other=0)
    p_i = _norm(p, i, i < m)
    mine = _read(rows, COUNTS[0], i, i < m)
    states = _start(FORMULA, STAGE, HEIGHT, WIDTH)
    for start in range(0, n, WIDTH):
        j = (start + tl.arange(0, WIDTH))[None, :]
        product = tl.load(s + i.to(tl.int64) * n + j, mask=(i < m) & (j < n), other=0.0)
        theirs = _read(cols, COUNTS[1], j, j < n)
        v = VALUE(product, p_i, _norm(q, j, j < n), eps)
        values = PAIR(v, *_inputs(mine, theirs, FORMULA, STAGE), *parameters)
        states = _after(states, values, _masks(label, ref_labels, i, j, m, n, diagonal), j, FORMULA, STAGE)
    for k in tl.static_range(len(FORMULA.kinds[STAGE])):
        if FORMULA.kinds[STAGE][k] == "lse":
            found = _log_sum_exp(states[k])
        elif FORMULA.kinds[STAGE][k] == "total" or FORMULA.kinds[STAGE][k] == "count":
            found = tl.sum(states[k], 1, keep_dims=True).to(tl.float32)
        else:
            extreme, column = _unranked(tl.max(states[k], 1, keep_dims=True))
            found = extreme if FORMULA.kinds[STAGE][k] == "largest" else -extreme
            tl.store(_at(index, k, i), column, mask=i < m)
        tl.store(_at(out, k, i), found, mask=i < m)


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
    row,
    parameters,
    pairs,
    dpairs,
    VALUE: tl.constexpr,
    DVALUE: tl.constexpr,
    FORMULA: tl.constexpr,
    BOTH: tl.constexpr,
    ROW_COUNTS: tl.constexpr,
    COL_COUNTS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    s, labels, ref_labels, p, q = tile
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
        there = _pair_grad(v, masks, mine, theirs, j, parameters, pairs, dpairs, FORMULA)
        slope, norm_slope = DVALUE(product, p_i, q_j, eps)
        w = there * slope
        share = there * norm_slope
        if BOTH:
            v = VALUE(product, q_j, p_i, eps)
            back = _pair_grad(v, masks, theirs, mine, row + i, parameters, pairs, dpairs, FORMULA)
            slope, norm_slope = DVALUE(product, q_j, p_i, eps)
            w += back * slope
            # Here the row is the other point, on whose norm a value depends as on -s/2.
            share -= 0.5 * back * slope
        tl.store(place, w, mask=inside)
        by_norm += tl.where(inside, share, 0.0)
    if norm_grad is not None:
        tl.store(norm_grad + i, tl.sum(by_norm, 1, keep_dims=True), mask=i < m)


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
    VALUE: tl.constexpr,
    SLOPE: tl.constexpr,
    FORMULA: tl.constexpr,
    STAGE: tl.constexpr,
    SWAPPED: tl.constexpr,
    INPUTS: tl.constexpr,
    ROW_COUNTS: tl.constexpr,
    COL_COUNTS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    s, labels, ref_labels, p, q = tile
    i = (tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT))[:, None]
    label = tl.load(labels + i, mask=i < m, other=0)
    p_i = _norm(p, i, i < m)
    mine = _read_side(rows, ROW_COUNTS, i, i < m)
    totals = ()
    for r in tl.static_range(INPUTS):
        totals += (tl.full((HEIGHT, WIDTH), 0.0, tl.float32),)
    for start in range(0, n, WIDTH):
        j = (start + tl.arange(0, WIDTH))[None, :]
        product = tl.load(s + i.to(tl.int64) * n + j, mask=(i < m) & (j < n), other=0.0)
        q_j = _norm(q, j, j < n)
        theirs = _read_side(cols, COL_COUNTS, j, j < n)
        masks = _masks(label, ref_labels, i, j, m, n, diagonal)
        if SWAPPED:
            v = VALUE(product, q_j, p_i, eps)
            slopes = SLOPE(v, *_inputs(theirs[0], mine[0], FORMULA, STAGE), *parameters)
            totals = _add_slopes(totals, slopes, theirs[1], masks, FORMULA, STAGE)
        else:
            v = VALUE(product, p_i, q_j, eps)
            slopes = SLOPE(v, *_inputs(mine[0], theirs[0], FORMULA, STAGE), *parameters)
            totals = _add_slopes(totals, slopes, mine[1], masks, FORMULA, STAGE)
    for r in tl.static_range(INPUTS):
        tl.store(_at(out, r, i), tl.sum(totals[r], 1, keep_dims=True), mask=i < m)
