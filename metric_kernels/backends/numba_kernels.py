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

from metric_kernels.backends import numba_fn
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

    With ``swapped`` the anchor is j, and i is the other point.
    """

    def __init__(self, formula: Formula, dtype: type):
        self.formula, self.zero = formula, dtype(0)
        self.compiled = functools.cache(lambda function: _jit(typed(bind(function, numba_fn), dtype)))
        counts = [len(stage.params) for stage in formula.stages]
        self.offsets = [1 + sum(counts[:number]) for number in range(len(counts))]

    def call(self, number: int, name: str, swapped: bool) -> Callable:
        """``pair``, ``dpair``, ``drow`` or ``dcol`` of a stage."""
        stage, offset = self.formula.stages[number], self.offsets[number]
        function = self.compiled(getattr(stage, name))
        of_anchor, of_other = _pick(stage.rows), _pick(stage.cols)
        params = _pick(tuple(range(offset, offset + len(stage.params))))
        if swapped:
            return _jit(
                lambda v, rows, i, j: function(
                    v, *(of_anchor(rows.other.values, j) + of_other(rows.mine.values, i) + params(rows.numbers, 0))
                )
            )
        return _jit(
            lambda v, rows, i, j: function(
                v, *(of_anchor(rows.mine.values, i) + of_other(rows.other.values, j) + params(rows.numbers, 0))
            )
        )

    def statistic(self, number: int, k: int) -> Callable:
        pair = self.call(number, "pair", False)
        return _jit(lambda v, rows, i, j: pair(v, rows, i, j)[k])

    def input_grad(self, number: int, side: str, r: int, swapped: bool) -> Callable:
        """Gradient with respect to the r-th statistic that a stage reads, through its statistics of one side."""
        stage, first = self.formula.stages[number], self.formula.first[number]
        name, step = ("dcol", len(stage.cols)) if swapped else ("drow", len(stage.rows))
        slopes = self.call(number, name, swapped)

        def term(k):
            g, place = first + k, k * step + r
            if swapped:
                return _jit(lambda v, rows, i, j: rows.other.grads[g, j] * slopes(v, rows, i, j)[place])
            return _jit(lambda v, rows, i, j: rows.mine.grads[g, i] * slopes(v, rows, i, j)[place])

        return self._sum([term(k) for k, stat in enumerate(stage.stats) if stat.side == side])

    def pair_grad(self, side: str, swapped: bool) -> Callable:
        """dL/dv through the statistics of one side."""
        terms = []
        for number, stage in enumerate(self.formula.stages):
            pair, dpair = (self.call(number, name, swapped) for name in ("pair", "dpair"))
            for k, stat in enumerate(stage.stats):
                if stat.side == side and stat.kind != "count":
                    terms.append(self._pair_grad_of(stat.kind, self.formula.first[number] + k, k, pair, dpair, swapped))
        return self._sum(terms)

    def _pair_grad_of(self, kind, g, k, pair, dpair, swapped):
        exp, zero = numba_fn.exp, self.zero
        is_lse, is_extreme = kind == "lse", kind in ("largest", "smallest")

        @_jit
        def term(v, rows, i, j):
            if swapped:
                anchor, place, other = rows.other, j, rows.start + i
            else:
                anchor, place, other = rows.mine, i, j
            grad = anchor.grads[g, place] * dpair(v, rows, i, j)[k]
            if is_lse:
                grad *= exp(pair(v, rows, i, j)[k] - anchor.values[g, place])
            if is_extreme:
                grad = grad if anchor.index[g, place] == other else zero
            return grad

        return term

    def _sum(self, terms: list[Callable]) -> Callable:
        zero = self.zero
        if not terms:
            return _jit(lambda v, rows, i, j: zero)
        if len(terms) == 1:
            return terms[0]
        first, others = terms[0], self._sum(terms[1:])
        return _jit(lambda v, rows, i, j: first(v, rows, i, j) + others(v, rows, i, j))


def _metric(metric: type, dtype: type) -> tuple[Callable, Callable]:
    """``value`` and ``dvalue`` as compiled functions (s, rows, i, j, swapped)."""
    zero = dtype(0)
    norms = metric.norms

    def of(function):
        function = _jit(typed(bind(function, numba_fn), dtype))

        @_jit
        def call(s, rows, i, j, swapped):
            if norms:
                p, q = rows.p[0, i], rows.q[0, j]
            else:
                p, q = zero, zero
            if swapped:
                p, q = q, p
            return function(s, p, q, rows.numbers[0, 0])

        return call

    return of(metric.value), of(metric.dvalue)


def _chain(steps: list[Callable]) -> Callable:
    """One compiled function that calls others with the same arguments, one after the other."""
    if len(steps) == 1:
        return steps[0]
    first, others = steps[0], _chain(steps[1:])

    @_jit
    def both(rows, i, found, positives, excluded, v, t):
        first(rows, i, found, positives, excluded, v, t)
        others(rows, i, found, positives, excluded, v, t)

    return both


def _reduction(kind: str, side: str, k: int, term: Callable, dtype: type) -> Callable:
    neutral, reduce = _reductions(dtype)[kind]
    extreme, negative = kind in ("largest", "smallest"), side == "neg"

    @_jit
    def step(rows, i, found, positives, excluded, v, t):
        if negative:
            for j in range(t.shape[0]):
                t[j] = term(v[j], rows, i, j)
            for c in range(excluded):
                t[found[c]] = neutral
        else:
            t = t[:positives]
            for c in range(positives):
                t[c] = term(v[found[c]], rows, i, found[c])
        top = reduce(t)
        rows.out[k, i] = top
        if extreme:
            place = _first(t, top, found, excluded if negative else 0)
            rows.index[k, i] = place if negative or place < 0 else found[place]

    return step


def _reducer(metric, outputs, swapped, dtype):
    value, _ = _metric(metric, dtype)
    steps = _chain([_reduction(kind, side, k, term, dtype) for k, (kind, side, term) in enumerate(outputs)])
    sparse = all(side == "pos" for _, side, _ in outputs)

    @_jit
    def row(rows, i, found, positives, excluded, scratch):
        v, t = scratch[0], scratch[1]
        if sparse:
            for c in range(positives):
                v[found[c]] = value(rows.s[i, found[c]], rows, i, found[c], swapped)
        else:
            for j in range(v.shape[0]):
                v[j] = value(rows.s[i, j], rows, i, j, swapped)
        steps(rows, i, found, positives, excluded, v, t)

    return _kernel(row, dtype)


@functools.cache
def stats(formula: Formula, stage: int, metric: type, dtype: type):
    terms = _Terms(formula, dtype)
    return _reducer(
        metric,
        [(stat.kind, stat.side, terms.statistic(stage, k)) for k, stat in enumerate(formula.stages[stage].stats)],
        False,
        dtype,
    )


@functools.cache
def input_grads(formula: Formula, stage: int, metric: type, swapped: bool, dtype: type):
    terms = _Terms(formula, dtype)
    current = formula.stages[stage]
    wanted = current.cols if swapped else current.rows
    sides = sorted({s.side for s in current.stats})
    outputs = [("total", side, terms.input_grad(stage, side, r, swapped)) for side in sides for r in range(len(wanted))]
    return _reducer(metric, outputs, swapped, dtype)


@functools.cache
def weights(formula: Formula, metric: type, both: bool, norms: bool, dtype: type):
    terms = _Terms(formula, dtype)
    value, dvalue = _metric(metric, dtype)
    half = dtype(0.5)
    total = _reductions(dtype)["total"][1]

    def weight(side):
        there, back = terms.pair_grad(side, False), terms.pair_grad(side, True) if both else None

        @_jit
        def of(s, rows, i, j):
            slope, norm_slope = dvalue(s, rows, i, j, False)
            grad = there(value(s, rows, i, j, False), rows, i, j)
            w, by_norm = grad * slope, grad * norm_slope
            if both:
                slope, _ = dvalue(s, rows, i, j, True)
                grad = back(value(s, rows, i, j, True), rows, i, j) * slope
                w, by_norm = w + grad, by_norm - half * grad
            return w, by_norm

        return of

    of_positive, of_negative = weight("pos"), weight("neg")
    zero = dtype(0)

    @_jit
    def row(rows, i, found, positives, excluded, scratch):
        s, kept, by_norm = rows.s[i], scratch[0], scratch[1]
        for c in range(positives):
            kept[c] = s[found[c]]
        for j in range(s.shape[0]):
            w, grad = of_negative(s[j], rows, i, j)
            s[j] = w
            if norms:
                by_norm[j] = grad
        for c in range(positives):
            w, grad = of_positive(kept[c], rows, i, found[c])
            s[found[c]] = w
            if norms:
                by_norm[found[c]] = grad
        if excluded > positives:
            s[found[positives]] = zero
            by_norm[found[positives]] = zero
        if norms:
            rows.out[0, i] = total(by_norm)

    return _kernel(row, dtype)


@intrinsic
def _pointer(context, address, dtype):
    """An address as a pointer to numbers of a type."""
    signature = types.CPointer(dtype.dtype)(address, dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def _take(context, address, amount):
    """The number at an address, which is raised by ``amount`` in the same instant."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.int64)))
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


@_jit
def _matrix(table, k, dtype):
    return numba.carray(_pointer(table[k, 0], dtype), (table[k, 1], table[k, 2]), dtype)


def _kernel(row: Callable, dtype: type):
    """A C function of the address of a table: what it names in each of its rows is in :func:`table`."""

    @numba.cfunc(types.void(types.voidptr), **_OPTIONS)
    def kernel(address):
        table = numba.carray(address, (18, 3), np.int64)
        mine = _Points(_matrix(table, 8, dtype), _matrix(table, 9, dtype), _matrix(table, 10, np.int64))
        other = _Points(_matrix(table, 11, dtype), _matrix(table, 12, dtype), _matrix(table, 13, np.int64))
        rows = _Rows(
            _matrix(table, 2, dtype),
            _matrix(table, 3, np.int64),
            _matrix(table, 4, np.int64),
            _matrix(table, 5, dtype),
            _matrix(table, 6, dtype),
            _matrix(table, 7, dtype),
            mine,
            other,
            _matrix(table, 14, dtype),
            _matrix(table, 15, np.int64),
            table[1, 0],
        )
        diagonal, step = table[1, 1], table[1, 2]
        counter = table.ctypes.data
        thread = _take(counter + 8, 1)
        scratch = _matrix(table, 16, dtype)[2 * thread : 2 * thread + 2]
        found = _matrix(table, 17, np.uint32)[thread]
        number = rows.s.shape[0]
        labels, ref_labels = rows.labels[0], rows.ref_labels[0]
        begin = _take(counter, step)
        while begin < number:
            for i in range(begin, min(begin + step, number)):
                own = diagonal + i if diagonal >= 0 else -1
                positives = _find(ref_labels, labels[i], own, found)
                row(rows, i, found, positives, positives + (own >= 0), scratch)
            begin = _take(counter, step)

    return kernel
