"""Row kernels, printed as Python for one formula and metric, and compiled by Numba for one float type.

A thread works on one row at a time. Nearly all columns are negatives, so a formula for negatives is evaluated on the whole row
without a branch and then corrected at the columns of the anchor's own label, which are found first; a formula for positives is
evaluated at these columns only. In the printed text i is the row, j the column, ``row_`` and ``col_`` are the statistics of
either point, and everything that belongs to i is read before the loop over j.
"""

from __future__ import annotations

import functools
import linecache
import re
from typing import Callable, Iterator

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from metric_kernels.backends import numba_fn
from metric_kernels.backends.numba_fn import OPTIONS, typed
from metric_kernels.language import Formula, Stage, bind

# The rows of the table that a kernel is given: address, rows and row pitch of each matrix, a vector being one row.
FLOATS = ("s", "p", "q", "numbers", "row_values", "row_grads", "col_values", "col_grads", "out", "scratch")
INTEGERS = ("labels", "ref_labels", "row_index", "col_index", "index")
TABLE = ("counters", "place", *FLOATS, *INTEGERS, "found")
BUFFERS = 2

_jit = numba.njit(**OPTIONS)
_jit_sum = numba.njit(**{**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})
_LABEL_BLOCK, _SUM_BLOCK = 64, 4096


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
def _reductions(dtype: type) -> dict[str, Callable]:
    """A function of an array for each kind of statistic."""
    integer = {np.float32: np.int32, np.float64: np.int64}[dtype]
    limits = np.iinfo(integer)
    magnitude, sign, places = integer(limits.max), integer(limits.min), integer(limits.bits - 1)
    zero, inf = dtype(0), dtype(np.inf)
    lowest = (-inf).view(integer) ^ magnitude
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
    def largest(t, flip=integer(0)):
        # The bits of floats, those behind a minus inverted, are integers in the same order.
        bits = t.view(integer)
        top = lowest
        for j in range(t.shape[0]):
            key = bits[j] ^ flip
            key ^= (key >> places) & magnitude
            top = max(top, magnitude if t[j] != t[j] else key)
        top ^= (top >> places) & magnitude
        return integer(top ^ flip).view(dtype)

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

    return {"total": total, "count": count, "lse": lse, "largest": largest, "smallest": smallest}


@intrinsic
def _pointer(context, address, dtype):
    """An address as a pointer to numbers of a type."""
    signature = types.CPointer(dtype.dtype)(address, dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def _take(context, pointer, amount):
    """The number at a pointer, which is raised by ``amount`` in the same instant."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", *arguments, "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), generate


@functools.cache
def _unpack(dtype):
    kinds = [dtype if n in FLOATS else np.uint32 if n == "found" else np.int64 for n in TABLE[2:]]
    scope = {"matrix": _matrix, **{f"d{k}": v for k, v in enumerate(kinds)}}
    exec("def unpack(table):\n    return (" + ", ".join(f"matrix(table[{k+2}], d{k})" for k in range(len(kinds))) + ")", scope)
    return _jit(scope["unpack"])


@_jit
def _matrix(entry, dtype):
    return numba.carray(_pointer(entry[0], dtype), (entry[1], entry[2]), dtype)


_FRAME = """\
def kernel(address):
    table = carray(address, SHAPE, int64)
    {arrays}
    first, diagonal, step = table[1, 0], table[1, 1], table[1, 2]
    {numbers}
    next_row, next_thread = table.ctypes.data, table.ctypes.data + 8
    thread = take(pointer(next_thread, int64), 1)
    v, t, here = scratch[2 * thread], scratch[2 * thread + 1], found[thread]
    begin = take(pointer(next_row, int64), step)
    while begin < s.shape[0]:
        for i in range(begin, min(begin + step, s.shape[0])):
            own = diagonal + i if diagonal >= 0 else -1
            positives = find(ref_labels[0], labels[0, i], own, here)
            excluded = positives + (own >= 0)
            {hoisted}
            {body}
        begin = take(pointer(next_row, int64), step)
"""


class _Printer:
    """Prints the kernels of one formula and metric."""

    def __init__(self, formula: Formula, metric: type):
        self.formula, self.metric = formula, metric
        self.hoisted: dict[str, str] = {}
        self.numbers = [
            [f"{name}_{number}" for name in stage.params] for number, stage in enumerate(formula.stages)
        ]

    def hoist(self, name: str, value: str) -> str:
        self.hoisted[name] = value
        return name

    def points(self, j: str, swapped: bool) -> tuple[Callable, Callable]:
        """How to print a statistic of the anchor, and of the other point: (i, j), or (j, i) if ``swapped``."""
        row = lambda array, k: self.hoist(f"{array}_{k}", f"row_{array}[{k}, i]")
        col = lambda array, k: f"col_{array}[{k}, {j}]"
        return (col, row) if swapped else (row, col)

    def of_metric(self, function: str, s: str, j: str, swapped: bool) -> str:
        p, q = (self.hoist("p_i", "p[0, i]"), f"q[0, {j}]") if self.metric.norms else ("zero", "zero")
        return f"{function}({s}, {q}, {p}, eps)" if swapped else f"{function}({s}, {p}, {q}, eps)"

    def of_pair(self, function: str, number: int, v: str, j: str, swapped: bool = False) -> str:
        stage = self.formula.stages[number]
        anchor, other = self.points(j, swapped)
        inputs = [anchor("values", k) for k in stage.rows] + [other("values", k) for k in stage.cols]
        return f"{function}_{number}({', '.join([v, *inputs, *self.numbers[number]])})"

    def statistic(self, number: int, k: int) -> Callable[[str, str], str]:
        return lambda v, j: f"{self.of_pair('pair', number, v, j)}[{k}]"

    def input_grad(self, number: int, side: str, r: int, swapped: bool) -> Callable[[str, str], str]:
        """The gradient with respect to the r-th statistic that a stage reads, through its statistics of one side."""
        stage, first = self.formula.stages[number], self.formula.first[number]
        name, wanted = ("dcol", stage.cols) if swapped else ("drow", stage.rows)

        def print_(v, j):
            grad, _ = self.points(j, swapped)
            slopes = self.of_pair(name, number, v, j, swapped)
            return " + ".join(
                f"{grad('grads', first + k)} * {slopes}[{k * len(wanted) + r}]"
                for k, stat in enumerate(stage.stats)
                if stat.side == side
            )

        return print_

    def pair_grad(self, side: str, v: str, j: str, swapped: bool) -> str:
        """The gradient with respect to the pair value through the statistics of one side."""
        anchor, _ = self.points(j, swapped)
        place = "first + i" if swapped else j
        terms = []
        for number, stage in enumerate(self.formula.stages):
            pair, dpair = (self.of_pair(name, number, v, j, swapped) for name in ("pair", "dpair"))
            for k, stat in enumerate(stage.stats):
                g = self.formula.first[number] + k
                if stat.side != side or stat.kind == "count":
                    continue
                term = f"{anchor('grads', g)} * {dpair}[{k}]"
                if stat.kind == "lse":
                    term += f" * exp({pair}[{k}] - {anchor('values', g)})"
                elif stat.kind != "total":
                    term = f"where({anchor('index', g)} == {place}, {term}, zero)"
                terms.append(term)
        return " + ".join(terms) or "zero"

    def reduce(self, outputs, swapped: bool) -> Iterator[str]:
        """Lines that reduce each output over the positives or negatives of row i."""
        for k, (kind, side, expression) in enumerate(outputs):
            extreme = kind in ("largest", "smallest")
            if side == "neg":
                v = self.of_metric("value", "s[i, j]", "j", swapped)
                yield "for j in range(t.shape[0]):"
                yield f"    t[j] = {expression(v, 'j')}"
                yield "for c in range(excluded):"
                yield f"    t[here[c]] = {kind}_of_none"
                yield f"out[{k}, i] = {kind}(t)"
                if extreme:
                    yield f"index[{k}, i] = first_of(t, out[{k}, i], here, excluded)"
            else:
                v = self.of_metric("value", "s[i, here[c]]", "here[c]", swapped)
                yield "for c in range(positives):"
                yield f"    t[c] = {expression(v, 'here[c]')}"
                yield f"out[{k}, i] = {kind}(t[:positives])"
                if extreme:
                    yield f"c = first_of(t[:positives], out[{k}, i], here, 0)"
                    yield f"index[{k}, i] = -1 if c < 0 else here[c]"

    def weigh(self, side: str, s: str, j: str, both: bool) -> Iterator[str]:
        """Lines that set w to dL/ds and ``by_norm`` to the share of the pair in the gradient of the squared norm."""
        yield f"v_ = {self.of_metric('value', s, j, False)}"
        yield f"slope, norm_slope = {self.of_metric('dvalue', s, j, False)}"
        yield f"grad = {self.pair_grad(side, 'v_', j, False)}"
        yield "w, by_norm = grad * slope, grad * norm_slope"
        if both:
            yield f"v_ = {self.of_metric('value', s, j, True)}"
            yield f"slope, norm_slope = {self.of_metric('dvalue', s, j, True)}"
            yield f"grad = ({self.pair_grad(side, 'v_', j, True)}) * slope"
            yield "w, by_norm = w + grad, by_norm - half * grad"

    def replace(self, both: bool, norms: bool) -> Iterator[str]:
        """Lines that overwrite row i of the products with the weights."""
        store = ["t[{j}] = by_norm"] if norms else []
        yield "for c in range(positives):"
        yield "    v[c] = s[i, here[c]]"
        yield "for j in range(t.shape[0]):"
        yield from _indented([*self.weigh("neg", "s[i, j]", "j", both), "s[i, j] = w", *(["t[j] = by_norm"] * norms)])
        yield "for c in range(positives):"
        yield from _indented([*self.weigh("pos", "v[c]", "here[c]", both), "s[i, here[c]] = w", *(["t[here[c]] = by_norm"] * norms)])
        yield "if own >= 0:"
        yield "    s[i, own] = zero"
        if norms:
            yield "    t[own] = zero"
            yield "out[0, i] = total(t)"

    def compile(self, lines: Iterator[str], dtype: type):
        body = list(lines)
        text = "\n".join(body)
        used = lambda name: re.search(rf"\b{name}\b", "\n".join([text, *self.hoisted.values()]))
        arrays = [", ".join(TABLE[2:]) + " = unpack(table)"]
        numbers = ["eps", *(name for names in self.numbers for name in names)]
        source = _FRAME.format(
            arrays="\n    ".join(arrays),
            numbers="\n    ".join(f"{name} = numbers[0, {k}]" for k, name in enumerate(numbers)),
            hoisted="\n            ".join(f"{name} = {value}" for name, value in self.hoisted.items()),
            body="\n            ".join(body),
        )
        compiled = functools.cache(lambda function: _jit(typed(bind(function, numba_fn), dtype)))
        zero, inf = dtype(0), dtype(np.inf)
        scope = {
            "carray": numba.carray,
            "SHAPE": (len(TABLE), 3),
            "int64": np.int64,
            "unpack": _unpack(dtype),
            "real": dtype,
            "matrix": _matrix,
            "pointer": _pointer,
            "take": _take,
            "find": _find,
            "first_of": _first,
            "zero": zero,
            "half": dtype(0.5),
            "total_of_none": zero,
            "count_of_none": zero,
            "lse_of_none": -inf,
            "largest_of_none": -inf,
            "smallest_of_none": inf,
            "exp": numba_fn.exp,
            "where": numba_fn.where,
            "value": compiled(self.metric.value),
            "dvalue": compiled(self.metric.dvalue),
            **_reductions(dtype),
        }
        for number, stage in enumerate(self.formula.stages):
            for name in ("pair", "dpair", "drow", "dcol"):
                if getattr(stage, name):
                    scope[f"{name}_{number}"] = compiled(getattr(stage, name))
        exec(source, scope)
        kernel = numba.cfunc(types.void(types.voidptr), **OPTIONS)(scope["kernel"])
        kernel.source = source
        return kernel


def _indented(lines):
    return [f"    {line}" for line in lines]


@functools.cache
def stats(formula: Formula, stage: int, metric: type, dtype: type):
    printer = _Printer(formula, metric)
    outputs = [(stat.kind, stat.side, printer.statistic(stage, k)) for k, stat in enumerate(formula.stages[stage].stats)]
    return printer.compile(printer.reduce(outputs, False), dtype)


@functools.cache
def input_grads(formula: Formula, stage: int, metric: type, swapped: bool, dtype: type):
    printer = _Printer(formula, metric)
    current = formula.stages[stage]
    wanted = current.cols if swapped else current.rows
    outputs = [
        ("total", side, printer.input_grad(stage, side, r, swapped))
        for side in sorted({s.side for s in current.stats})
        for r in range(len(wanted))
    ]
    return printer.compile(printer.reduce(outputs, swapped), dtype)


@functools.cache
def weights(formula: Formula, metric: type, both: bool, norms: bool, dtype: type):
    printer = _Printer(formula, metric)
    return printer.compile(printer.replace(both, norms), dtype)
