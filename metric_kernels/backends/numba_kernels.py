"""Row kernels, printed as Python for one formula and metric, and compiled by Numba for one float type.

A thread works on one row at a time. Nearly all columns are negatives, so a formula for negatives is evaluated on the
whole row without a branch, and then corrected at the columns of the anchor's own label, which were found before:

    for j in range(t.shape[0]):
        t[j] = pair0(value(s[i, j], zero, zero, eps), sign_0, temperature_0)[0]
    for c in range(excluded):
        t[here[c]] = lse_of_none
    out[0, i] = lse(t)

For positives, what a formula reads is gathered from these columns. Nothing is kept on disk: Numba's cache does not see a
change in a function that a cached one calls.
"""

from __future__ import annotations

import functools
import itertools
import linecache
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numba
import numpy as np
from numba import types

from metric_kernels.backends import numba_fn
from metric_kernels.backends.numba_jit import EXACT, formula_function, jit, jit_sum, matrix, pointer, take
from metric_kernels.language import Formula

_LABEL_BLOCK, _SUM_BLOCK = 64, 4096


@jit
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


@jit
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
def _reductions(dtype: type) -> dict[str, Callable]:
    """A function of an array for each kind of statistic."""
    integer = {np.float32: np.int32, np.float64: np.int64}[dtype]
    limits = np.iinfo(integer)
    magnitude, places, plus, minus = integer(limits.max), integer(limits.bits - 1), integer(0), integer(limits.min)
    zero, one, inf = dtype(0), dtype(1), dtype(np.inf)
    lowest = (-inf).view(integer) ^ magnitude
    exp, log = numba_fn.exp, numba_fn.log

    @jit_sum
    def total(t):
        everything = 0.0
        for start in range(0, t.shape[0], _SUM_BLOCK):
            block, part = t[start : start + _SUM_BLOCK], zero
            for j in range(block.shape[0]):
                part += block[j]
            everything += part
        return dtype(everything)

    @jit
    def count(t):
        number = 0
        for j in range(t.shape[0]):
            number += t[j] != zero
        return dtype(number)

    @jit
    def extreme(t, flip):
        # The bits of floats, those behind a minus inverted, are integers in the same order.
        bits = t.view(integer)
        top = lowest
        for j in range(t.shape[0]):
            key = bits[j] ^ flip
            key ^= (key >> places) & magnitude
            top = max(top, magnitude if t[j] != t[j] else key)
        top ^= (top >> places) & magnitude
        return integer(top ^ flip).view(dtype)

    @jit
    def largest(t):
        return extreme(t, plus)

    @jit
    def smallest(t):
        return extreme(t, minus)

    @jit_sum
    def mass(t, top):
        everything = 0.0
        for start in range(0, t.shape[0], _SUM_BLOCK):
            block, part = t[start : start + _SUM_BLOCK], zero
            for j in range(block.shape[0]):
                part += exp(block[j] - top)
            everything += part
        return everything

    @jit
    def lse(t):
        """The value and its scale."""
        top = extreme(t, plus)
        top = zero if abs(top) == inf else top
        rest = log(mass(t, top))
        value = dtype(top + rest)
        return value, exp(dtype(np.float64(value) - top - rest)) if abs(value) < inf else one

    return {"total": total, "count": count, "lse": lse, "largest": largest, "smallest": smallest}


# A kernel is given a table of three integers a row: its counters, where the tile is, and for each array its address,
# number of rows and the distance between them. A vector is one row.
_OF_POINTS = tuple(f"{side}_{array}" for side in ("row", "col") for array in ("norms", "values", "grads"))
_REALS = ("s", "numbers", *_OF_POINTS, "out", "scale", "scratch")
_INTEGERS = ("labels", "ref_labels", "row_index", "col_index", "index")
_TYPES = {**dict.fromkeys(_REALS, "real"), **dict.fromkeys(_INTEGERS, "int64"), "found": "uint32"}
TABLE = ("counters", "tile", *_TYPES)

_FRAME = """\
def kernel(address):
    table = carray(address, shape, int64)
    next_row, next_thread = table.ctypes.data, table.ctypes.data + 8
    first, diagonal, step = table[1, 0], table[1, 1], table[1, 2]
    {arrays}
    {numbers}
    thread = take(pointer(next_thread, int64), 1)
    here = found[thread]
    {buffers}
    begin = take(pointer(next_row, int64), step)
    while begin < s.shape[0]:
        for i in range(begin, min(begin + step, s.shape[0])):
            own = diagonal + i if diagonal >= 0 else -1
            positives = find(ref_labels[0], labels[0, i], own, here)
            excluded = positives + (own >= 0)
            {constants}
            for c in range(positives):
                {gather}
            {body}
        begin = take(pointer(next_row, int64), step)
"""
_POINT = {"pos": "c", "neg": "j"}
_COLUMN = {"c": "here[c]", "j": "j"}
_LOOP = {"c": "for c in range(positives):", "j": "for j in range(t.shape[0]):"}


class Kernel(NamedTuple):
    """A C function of the address of a table, and the rows of scratch that each thread needs."""

    function: object
    buffers: int


class _Printer:
    """Prints what a kernel does with row i. Its c-th positive is in column ``here[c]``; j is any column.

    A pair is an anchor and another point, "i" and "c" or "i" and "j" or the other way round.
    """

    def __init__(self, formula: Formula, metric: type):
        self.formula, self.metric = formula, metric
        self.params = [[f"{name}_{number}" for name in stage.params] for number, stage in enumerate(formula.stages)]
        self.constants: dict[str, str] = {}
        self.gathered: dict[str, str] = {}
        self.buffers = ["t"]

    def buffer(self, name: str) -> str:
        self.buffers.append(name)
        return name

    def read(self, array: str, k: int, point: str) -> str:
        """An entry of an array that there is for rows and for columns."""
        if point == "i":
            self.constants[f"{array}_{k}_i"] = f"row_{array}[{k}, i]"
            return f"{array}_{k}_i"
        return self.of_column(f"col_{array}", k, point)

    def of_column(self, array: str, k: int | str, point: str) -> str:
        entry = f"{array}[{k}, {_COLUMN[point]}]"
        # LLVM does not vectorise loops that read from scattered places.
        if point == "j" or array == "col_index":
            return entry
        if entry not in self.gathered:
            self.gathered[entry] = self.buffer(f"gathered{len(self.gathered)}") + "[c]"
        return self.gathered[entry]

    def of_metric(self, function: str, anchor: str, other: str) -> str:
        s = self.of_column("s", "i", other if anchor == "i" else anchor)
        p, q = (self.read("norms", 0, point) if self.metric.norms else "zero" for point in (anchor, other))
        return f"{function}({s}, {p}, {q}, eps)"

    def of_stage(self, function: str, number: int, v: str, anchor: str, other: str) -> str:
        stage = self.formula.stages[number]
        inputs = [self.read("values", k, anchor) for k in stage.rows]
        inputs += [self.read("values", k, other) for k in stage.cols]
        return f"{function}{number}({', '.join([v, *inputs, *self.params[number]])})"

    def stats(self, number: int) -> Iterator[str]:
        for k, (kind, side) in enumerate(self.formula.stages[number].stats):
            pair = ("i", _POINT[side])
            t = self.of_stage("pair", number, self.of_metric("value", *pair), *pair)
            yield from self.reduce(k, kind, side, f"{t}[{k}]")

    def input_grads(self, number: int, swapped: bool) -> Iterator[str]:
        stage, first = self.formula.stages[number], self.formula.first[number]
        function, inputs = ("dcol", stage.cols) if swapped else ("drow", stage.rows)
        for r in range(len(inputs)):
            yield f"out[{r}, i] = zero"
            for side, point in _POINT.items():
                pair = (point, "i") if swapped else ("i", point)
                slopes = self.of_stage(function, number, self.of_metric("value", *pair), *pair)
                terms = [
                    f"{self.read('grads', first + k, pair[0])} * {slopes}[{k * len(inputs) + r}]"
                    for k, stat in enumerate(stage.stats)
                    if stat.side == side
                ]
                if terms:
                    yield from self.reduce(r, "total", side, " + ".join(terms), "+=")

    def reduce(self, k: int, kind: str, side: str, term: str, assign: str = "=") -> Iterator[str]:
        """A statistic of the terms of one side."""
        yield _LOOP[_POINT[side]]
        yield f"    t[{_POINT[side]}] = {term}"
        terms, skipped = "t[:positives]", "0"
        if side == "neg":
            yield "for c in range(excluded):"
            yield f"    t[here[c]] = {kind}_of_none"
            terms, skipped = "t", "excluded"
        scale = f", scale[{k}, i]" if kind == "lse" else ""
        yield f"out[{k}, i]{scale} {assign} {kind}({terms})"
        if kind in ("largest", "smallest"):
            yield f"c = first_of({terms}, out[{k}, i], here, {skipped})"
            yield f"index[{k}, i] = {'c' if side == 'neg' else 'here[c]'} if c >= 0 else -1"

    def weights(self, both: bool, norms: bool) -> Iterator[str]:
        by_norm = {"j": "t[j]", "c": self.buffer("norms") + "[c]"} if norms else {}
        for side, point in _POINT.items():
            yield _LOOP[point]
            yield from (f"    {line}" for line in self.weight(side, both))
            yield f"    {self.of_column('s', 'i', point)} = w"
            if norms:
                yield f"    {by_norm[point]} = by_norm"
        yield _LOOP["c"]
        yield f"    s[i, here[c]] = {self.of_column('s', 'i', 'c')}"
        if norms:
            yield f"    t[here[c]] = {by_norm['c']}"
        yield "if own >= 0:"
        yield "    s[i, own] = zero"
        if norms:
            yield "    t[own] = zero"
            yield "out[0, i] = total(t)"

    def weight(self, side: str, both: bool) -> Iterator[str]:
        """Sets w to the derivative with respect to s, and ``by_norm`` to that with respect to the squared norm of i."""
        there, back = ("i", _POINT[side]), (_POINT[side], "i")
        yield f"v = {self.of_metric('value', *there)}"
        yield f"slope, norm_slope = {self.of_metric('dvalue', *there)}"
        yield f"grad = {self.pair_grad(side, *there)}"
        yield "w, by_norm = grad * slope, grad * norm_slope"
        if both:
            if not self.metric.symmetric:
                yield f"v = {self.of_metric('value', *back)}"
                yield f"slope, norm_slope = {self.of_metric('dvalue', *back)}"
            yield f"grad = ({self.pair_grad(side, *back)}) * slope"
            yield "w, by_norm = w + grad, by_norm - half * grad"

    def pair_grad(self, side: str, anchor: str, other: str) -> str:
        """The derivative with respect to v, through the statistics of one side."""
        terms = []
        for number, stage in enumerate(self.formula.stages):
            for k, stat in enumerate(stage.stats):
                if stat.side != side or stat.kind == "count":
                    continue
                g = self.formula.first[number] + k
                term = f"{self.read('grads', g, anchor)} * {self.of_stage('dpair', number, 'v', anchor, other)}[{k}]"
                if stat.kind == "lse":
                    t = self.of_stage("pair", number, "v", anchor, other)
                    term += f" * exp({t}[{k}] - {self.read('values', g, anchor)})"
                elif stat.kind in ("largest", "smallest"):
                    place = _COLUMN.get(other, "first + i")
                    term = f"where({self.read('index', g, anchor)} == {place}, {term}, zero)"
                terms.append(term)
        return " + ".join(terms) or "zero"


@functools.cache
def kernel(formula: Formula, metric: type, dtype: type, what: str, *arguments: object) -> Kernel:
    """``what(*arguments)`` is a method of the printer: ``stats``, ``input_grads`` or ``weights``."""
    printer = _Printer(formula, metric)
    parts = {"body": list(getattr(printer, what)(*arguments))}
    numbers = ["eps", *itertools.chain.from_iterable(printer.params)]
    parts["numbers"] = [f"{name} = numbers[0, {k}]" for k, name in enumerate(numbers)]
    size = len(printer.buffers)
    parts["buffers"] = [f"{name} = scratch[{size} * thread + {k}]" for k, name in enumerate(printer.buffers)]
    parts["constants"] = [f"{name} = {value}" for name, value in printer.constants.items()]
    parts["gather"] = [f"{buffer} = {entry}" for entry, buffer in printer.gathered.items()] or ["pass"]
    used = set(re.findall(r"\w+", " ".join([_FRAME, *itertools.chain(*parts.values())])))
    parts["arrays"] = [f"{name} = matrix(table[{TABLE.index(name)}], {kind})" for name, kind in _TYPES.items() if name in used]
    source = re.sub(r"( *)\{(\w+)\}", lambda m: "\n".join(m[1] + line for line in parts[m[2]]), _FRAME)
    zero, inf = dtype(0), dtype(np.inf)
    scope = {
        **{"carray": numba.carray, "shape": (len(TABLE), 3), "matrix": matrix, "pointer": pointer, "take": take},
        **{"real": dtype, "int64": np.int64, "uint32": np.uint32},
        **{"find": _find, "first_of": _first, "exp": numba_fn.exp, "where": numba_fn.where},
        **{"zero": zero, "half": dtype(0.5), "total_of_none": zero, "count_of_none": zero},
        **{"lse_of_none": -inf, "largest_of_none": -inf, "smallest_of_none": inf},
        **_reductions(dtype),
        **{name: formula_function(getattr(metric, name), dtype) for name in ("value", "dvalue")},
    }
    for number, stage in enumerate(formula.stages):
        functions = {name: getattr(stage, name) for name in ("pair", "dpair", "drow", "dcol")}
        scope.update({f"{name}{number}": formula_function(f, dtype) for name, f in functions.items() if f is not None})
    # Numba quotes the lines that it cannot compile.
    where = f"<{what}{arguments} of {formula.key} on {metric.__name__} in {dtype.__name__}>"
    linecache.cache[where] = (len(source), None, source.splitlines(keepends=True), where)
    exec(compile(source, where, "exec"), scope)
    return Kernel(numba.cfunc(types.void(types.voidptr), **EXACT)(scope["kernel"]), size)


def reason_against(formula: Formula, dtype: type) -> str | None:
    """Why Numba cannot compile the formula, if it cannot."""
    real = numba.from_dtype(np.dtype(dtype))
    for stage in formula.stages:
        arguments = (real,) * (1 + len(stage.rows) + len(stage.cols) + len(stage.params))
        for function in filter(None, (stage.pair, stage.dpair, stage.drow, stage.dcol)):
            try:
                formula_function(function, dtype).compile(arguments)
            except numba.core.errors.NumbaError as error:
                lines = [line for line in str(error).splitlines() if not line.startswith("Failed in nopython mode")]
                return f"{function.__qualname__} does not compile: {lines[0]}"
    return None
