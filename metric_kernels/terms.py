"""Terms of a loss that are no sums over single pairs: over triplets, over pairs of pairs, and histograms.

They share the products and tiles of the row statistics. Besides kernels for a term, a backend has ``values(metric, tile)``, the
pair values (m, n), and ``slopes(metric, tile, g, norm_grad)``, which overwrites the products with g * dv/ds, and norm_grad (m,)
with the sums of g * dv/dp unless that is None. It may have ``add_transposed(matrix)``, in place, which torch does otherwise.
A term reads tiles of pair values, forward as often as it likes, and in the backward pass says what dL/dv_ij is; products,
metrics and embeddings are dealt with here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from metric_kernels import core
from metric_kernels.batch import Batch
from metric_kernels.choices import keeps_choices
from metric_kernels.once import once
from metric_kernels.rowstats import (
    ARGUMENTS,
    TENSORS,
    Call,
    Run,
    called,
    fake_grads,
    input_grads,
    library,
    setup_context,
    spelled,
)
from metric_kernels.tile import Tile


class ValueTile(NamedTuple):
    """Pair values v (m, n) of the anchors ``rows`` with every point; the fields are those of a tile of products."""

    v: Tensor
    labels: Tensor
    ref_labels: Tensor
    rows: slice
    diagonal: int


class Term:
    """A term is a frozen dataclass of strings and numbers that define it; only the last field may be a tuple of numbers.

    ``family`` is what a backend must have: an attribute of that name, with the kernels that the term calls. ``symmetric``
    tells whether dL/dv_ij = dL/dv_ji for a batch with itself and a symmetric metric, ``mirrors`` whether v_ij and v_ji should
    be the same bits, which a product does not promise, and ``saves`` whether the backward pass needs what the forward pass
    returns.
    """

    family: str
    symmetric = False
    mirrors = False
    magnifies = False
    saves = False
    __match_args__: tuple[str, ...]

    @property
    def key(self) -> str:
        """Its name and strings, which with ``flat`` say all that there is to know."""
        return ":".join([type(self).__name__, *[v for v in self._fields() if isinstance(v, str)]])

    @property
    def flat(self) -> list[float]:
        numbers = [v if isinstance(v, tuple) else (v,) for v in self._fields() if not isinstance(v, str)]
        return [float(v) for group in numbers for v in group]

    def _fields(self) -> list:
        return [getattr(self, name) for name in self.__match_args__]

    def shapes(self, n: int, m: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the values (float64, differentiable) and of the counts (int64) for n anchors and m others."""
        raise NotImplementedError

    def at_once(self, kernels: ModuleType) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """A function (metric, tile, both=, norm_grad=) that does all between the products of a small batch at once, for the
        sum of all values, or None. It returns the sum and that of the counts; products become the derivatives.
        """
        return None

    def forward(self, kernels: ModuleType, tiles: Tiles, values: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        """Writes values and counts, which are 0, and returns what the backward pass needs."""
        raise NotImplementedError

    def backward(self, kernels: ModuleType, tile: ValueTile, g: Tensor, grads: Tensor, saved: tuple[Tensor, ...]) -> None:
        """Adds dL/dv_ij to g for the anchors of a tile, ``grads`` being the gradient with respect to all values."""
        raise NotImplementedError


def term(key: str, flat: list[float]) -> Term:
    """The term with that key and these numbers."""
    name, *words = key.split(":")
    cls = next(c for c in Term.__subclasses__() if c.__name__ == name)
    strings, numbers, values = iter(words), list(flat), []
    for field in cls.__match_args__:
        kind = cls.__annotations__[field]
        if kind == "str":
            values.append(next(strings))
        elif kind.startswith("tuple"):
            values.append(tuple(numbers))
        else:
            values.append(_NUMBERS[kind](numbers.pop(0)))
    return cls(*values)


_NUMBERS = {"float": float, "int": int, "bool": bool}


class Tiles:
    """The tiles of a sweep, to be gone through as often as one likes."""

    def __init__(self, sweep: core.Sweep):
        self.sweep, self.labels = sweep, sweep.problem.labels

    def __iter__(self) -> Iterator[ValueTile]:
        for rows, tile in self.sweep:
            yield value_tile(self.sweep.problem, rows, tile)


def value_tile(problem: core.Problem, rows: slice, tile: Tile) -> ValueTile:
    metric = problem.op.metric
    v = problem.backend.values(metric, tile) if metric.norms else tile.s
    return ValueTile(v, tile.labels, tile.ref_labels, rows, tile.diagonal)


def evaluate(term: Term, batch: Batch, distance: object, backend: str | None, summed: bool = False) -> tuple[Tensor, Tensor]:
    """Values (float64, differentiable once in the embeddings) and counts (int64) of a term, 0 for an empty batch.

    With ``summed`` the caller wants no more than their sums: there may be one of each instead.
    """
    if not len(batch.x) or not len(batch.y):
        values, counts = term.shapes(len(batch.x), len(batch.y))
        zero = batch.nothing().double()
        return zero.expand(values) if values else zero, torch.zeros(counts, dtype=torch.int64, device=batch.x.device)
    call = Call.of(term, (term.flat,), distance, batch, backend)
    if torch.compiler.is_compiling():
        return torch.ops.metric_kernels.term(*spelled(call))
    return _Evaluate.apply(call.x, call.y, call, summed)


@keeps_choices
class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, call, summed):
        wanted = any(ctx.needs_input_grad[:2])
        with core.no_autocast(x.device.type):
            run = _TermRun(call)
            stepped = run.step() if summed and wanted else None
            values, counts, saved = (*stepped, ()) if stepped else run.forward(keep=wanted)
        ctx.call, ctx.held, ctx.stepped = call.emptied(), run, stepped is not None
        ctx.save_for_backward(x, y, *saved)
        ctx.mark_non_differentiable(counts)
        return values, counts

    @staticmethod
    def backward(ctx, grads, _):
        x, y, *saved = ctx.saved_tensors
        with torch.no_grad(), core.no_autocast(x.device.type):
            run, ctx.held = ctx.held, None  # a second backward pass begins again
            if run is None:
                run = _TermRun(ctx.call._replace(x=x, y=y))
                if ctx.stepped and run.step() is None:  # the workspace has become smaller since
                    grads = grads.expand(run.term.shapes(len(run.x.z), len(run.y.z))[0])
            gx, gy = run.backward(grads, saved, ctx.needs_input_grad[:2])
        return once(gx, x, y), once(gy, x, y), None, None


class _TermRun(Run):
    def __init__(self, call: Call):
        super().__init__(call)
        self.term, self.metric = call.op.formula, call.op.metric
        self.kernels = getattr(self.problem.backend, self.term.family)
        self.filled = self.x.given
        self.stepped: core.Step | None = None

    def step(self) -> tuple[Tensor, Tensor] | None:
        """The sums of all values and counts, if a small batch can be done at once."""
        step = None if self.x.given else self.term.at_once(self.kernels)
        if step is None or not core.fits(len(self.x.z), len(self.y.z), self.x.z.dtype):
            return None
        self._keep()
        sweep = core.Sweep(self.problem, self.x, self.y, self.kept, filled=False)
        if not sweep.single:
            return None
        ((_, tile),) = sweep
        norm_grad = self.x.z.new_empty(len(self.x.z)) if self.problem.free_norms else None
        total, count = step(self.metric, tile, both=self.x is self.y, norm_grad=norm_grad)
        self.stepped = core.Step(total, self.kept, norm_grad)
        return total.view(1, 1), count.view(1, 1)

    def forward(self, keep: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        n, m, z = len(self.x.z), len(self.y.z), self.x.z
        if keep or self.term.saves:  # such a term sweeps more than once
            self._keep()
        shape, counted = self.term.shapes(n, m)
        values, counts = z.new_zeros(shape, dtype=torch.float64), torch.zeros(counted, dtype=torch.int64, device=z.device)
        sweep = self._sweep()
        saved = self.term.forward(self.kernels, Tiles(sweep), values, counts)
        self.filled = sweep.filled
        return values, counts, saved

    def _keep(self) -> None:
        """Room for the whole matrix, if it fits."""
        n, m, z = len(self.x.z), len(self.y.z), self.x.z
        if self.kept is None and core.fits(n, m, z.dtype):
            self.kept = z.new_empty(n, m)

    def _sweep(self) -> core.Sweep:
        sweep = core.Sweep(self.problem, self.x, self.y, self.kept, filled=self.filled)
        if self.term.mirrors and self.kept is not None and self.x is self.y and not self.filled:
            for _ in sweep:
                pass
            getattr(self.problem.backend, "mirror", mirror)(self.kept)
        return sweep

    def backward(
        self, grads: Tensor, saved: tuple[Tensor, ...], wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        x, y, term, metric = self.x, self.y, self.term, self.metric
        if self.stepped is not None:
            return self.stepped.backward(x, y, grads.view(()), wanted, self.dtypes)
        if x.given:
            return self._given(grads, saved), None
        self._keep()  # so that a second pass takes the same way
        kept = self.kept
        sweep = self._sweep()
        same, free = x is y, self.problem.free_norms
        mirrored = same and term.symmetric and metric.symmetric
        gx = torch.zeros_like(x.z) if wanted[0] else None
        gy = gx if same else torch.zeros_like(y.z) if wanted[1] else None
        norm_x = x.z.new_zeros(len(x.z)) if free else None
        norm_y = norm_x if same or not free else y.z.new_zeros(len(y.z))
        for rows, tile in sweep:
            values = value_tile(self.problem, rows, tile)
            g = torch.zeros_like(values.v)
            term.backward(self.kernels, values, g, grads, saved)
            own = torch.empty_like(tile.p) if free else None
            self.problem.backend.slopes(metric, tile, g, own)
            if free:
                norm_x[rows] += own
                norm_y.add_(tile.s.sum(0), alpha=-0.5)
            if kept is not None and same:
                continue
            if gx is not None:
                gx[rows] += tile.s @ y.z
            if gy is not None:
                gy.addmm_(tile.s.t(), x.z[rows])
        if kept is not None and same:
            if not mirrored:
                getattr(self.problem.backend, "add_transposed", add_transposed)(kept)
            torch.mm(kept, x.z, out=gx)
            if mirrored:
                gx *= 2.0
        return (
            None if gx is None else x.pull(gx, norm_x, self.dtypes[0]),
            None if gy is None or same else y.pull(gy, norm_y, self.dtypes[1]),
        )

    def _given(self, grads: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        out = torch.zeros_like(self.kept)
        for tile in Tiles(core.Sweep(self.problem, self.x, self.y, self.kept, filled=True)):
            self.term.backward(self.kernels, tile, out[tile.rows], grads, saved)
        return out.to(self.dtypes[0])


def mirror(matrix: Tensor, block: int = 256) -> None:
    """Overwrites what is below the diagonal with what is above it, block by block."""
    size = len(matrix)
    for i in range(0, size, block):
        own = matrix[i : i + block, i : i + block]
        own.copy_(own.triu() + own.triu(1).t())
        for j in range(i + block, size, block):
            matrix[j : j + block, i : i + block].copy_(matrix[i : i + block, j : j + block].t())


def add_transposed(matrix: Tensor, block: int = 256) -> None:
    """matrix + its transpose, in place, block by block so that both stay in cache."""
    size = len(matrix)
    for i in range(0, size, block):
        for j in range(i, size, block):
            upper, lower = matrix[i : i + block, j : j + block], matrix[j : j + block, i : i + block]
            total = upper + lower.t()
            upper.copy_(total)
            lower.copy_(total.t())


def running_sums(values: Tensor) -> Tensor:
    """Cumulative sums over the last dimension, the same bits on every run.

    torch.cumsum of floats promises no order on a GPU, and raises there under torch.use_deterministic_algorithms(True).
    """
    return _doubled(values) if values.is_cuda else values.cumsum(-1)


def _doubled(sums: Tensor) -> Tensor:
    """Sums of two neighbours, of four, and so on."""
    reach = 1
    while reach < sums.shape[-1]:
        sums = sums + pad(sums[..., :-reach], (reach, 0))
        reach *= 2
    return sums


def spoiled(tile: ValueTile) -> Tensor:
    """Which rows (m,) have a NaN, which must reach their sums and has no place in an order."""
    return tile.v.amax(1).isnan()


def sides(tile: ValueTile) -> tuple[Tensor, Tensor]:
    """Masks (m, n) of the positives and of the negatives."""
    same = tile.labels[:, None] == tile.ref_labels
    if tile.diagonal < 0:
        return same, ~same
    row, column = (torch.arange(size, device=same.device) for size in same.shape)
    return same & (row[:, None] + tile.diagonal != column), ~same


# Under torch.compile the kernels are operators, which may not overwrite what they are given: products are computed again.
library.define(f"term({ARGUMENTS}) -> (Tensor, Tensor)")
library.define(f"term_backward(Tensor grads, {ARGUMENTS}, bool want_x, bool want_y) -> (Tensor, Tensor)")


def _made(key: str, flat: list[float]) -> tuple[Term, tuple[list[float]]]:
    return term(key, flat), (flat,)


@torch.library.impl(library, "term", "CompositeExplicitAutograd")
def _term(x, *options):
    with core.no_autocast(x.device.type):
        return _TermRun(called(_made, x, *options)).forward(keep=False)[:2]


@torch.library.impl(library, "term_backward", "CompositeExplicitAutograd")
def _term_backward(grads, x, *options):
    *options, want_x, want_y = options
    with core.no_autocast(x.device.type):
        run = _TermRun(called(_made, x, *options))
        gx, gy = run.backward(grads.contiguous(), run.forward(keep=True)[2] if run.term.saves else (), (want_x, want_y))
    return x.new_empty(0) if gx is None else gx, x.new_empty(0) if gy is None else gy


@torch.library.register_fake("metric_kernels::term", lib=library)
def _(x, y, labels, ref_labels, known, key, metric, flat, *options):
    n = len(x)
    shape, counted = term(key, flat).shapes(n, len(ref_labels))
    return x.new_empty(shape, dtype=torch.float64), x.new_empty(counted, dtype=torch.int64)


@torch.library.register_fake("metric_kernels::term_backward", lib=library)
def _(grads, x, y, *options):
    return fake_grads(x, y, *options[-2:])


def _derivative(ctx, grads, _):
    wanted = ctx.needs_input_grad[:2]
    gx, gy = torch.ops.metric_kernels.term_backward(grads, *ctx.saved_tensors[:TENSORS], *ctx.options, *wanted)
    return input_grads(gx, gy, ctx)


torch.library.register_autograd("metric_kernels::term", _derivative, setup_context=setup_context, lib=library)
