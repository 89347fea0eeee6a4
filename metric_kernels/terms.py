"""Terms of a loss that are no sums over single pairs: over triplets, over pairs of pairs, and histograms.

They share the products and tiles of the row statistics. Besides kernels for a term, a backend has ``values(metric, tile)``, the
pair values (m, n), and ``slopes(metric, tile, g, norm_grad)``, which overwrites the products with g * dv/ds, and norm_grad (m,)
with the sums of g * dv/dp unless that is None. A term reads tiles of pair values, forward as often as it likes,
and in the backward pass says what dL/dv_ij is; products, metrics and embeddings are dealt with here.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels import core
from metric_kernels.once import once
from metric_kernels.rowstats import Call, Run
from metric_kernels.tile import Tile


class ValueTile(NamedTuple):
    """Pair values v (m, n) of the anchors ``rows`` with every point; the fields are those of a tile of products."""

    v: Tensor
    labels: Tensor
    ref_labels: Tensor
    rows: slice
    diagonal: int


class Term:
    """A term is a frozen dataclass of the numbers that define it.

    ``family`` is what a backend must have: an attribute of that name, with the kernels that the term calls. ``symmetric``
    tells whether dL/dv_ij = dL/dv_ji for a batch with itself and a symmetric metric.
    """

    family: str
    symmetric = False
    magnifies = False

    def shapes(self, n: int, m: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the values (float64, differentiable) and of the counts (int64) for n anchors and m others."""
        raise NotImplementedError

    def forward(self, kernels: ModuleType, tiles: Tiles, values: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        """Writes values and counts, which are 0, and returns what the backward pass needs."""
        raise NotImplementedError

    def backward(self, kernels: ModuleType, tile: ValueTile, g: Tensor, grads: Tensor, saved: tuple[Tensor, ...]) -> None:
        """Adds dL/dv_ij to g for the anchors of a tile, ``grads`` being the gradient with respect to all values."""
        raise NotImplementedError


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


def evaluate(call: Call) -> tuple[Tensor, Tensor]:
    """Values (float64, differentiable once in x and y) and counts (int64) of the term of a call."""
    return _Evaluate.apply(call.x, call.y, call)


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, call):
        with core.no_autocast(x.device.type):
            run = _TermRun(call)
            values, counts, saved = run.forward(keep=any(ctx.needs_input_grad[:2]))
        ctx.call, ctx.held = call.emptied(), run
        ctx.save_for_backward(x, y, *saved)
        ctx.mark_non_differentiable(counts)
        return values, counts

    @staticmethod
    def backward(ctx, grads, _):
        x, y, *saved = ctx.saved_tensors
        with torch.no_grad(), core.no_autocast(x.device.type):
            run, ctx.held = ctx.held, None  # a second backward pass begins again
            run = run or _TermRun(ctx.call._replace(x=x, y=y))
            gx, gy = run.backward(grads, saved, ctx.needs_input_grad[:2])
        return once(gx, x, y), once(gy, x, y), None


class _TermRun(Run):
    def __init__(self, call: Call):
        super().__init__(call)
        self.term, self.metric = call.op.formula, call.op.metric
        self.kernels = getattr(self.problem.backend, self.term.family)

    def forward(self, keep: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        n, m, z = len(self.x.z), len(self.y.z), self.x.z
        if keep and self.kept is None and core.fits(n, m, z.dtype):
            self.kept = z.new_empty(n, m)
        shape, counted = self.term.shapes(n, m)
        values, counts = z.new_zeros(shape, dtype=torch.float64), torch.zeros(counted, dtype=torch.int64, device=z.device)
        sweep = core.Sweep(self.problem, self.x, self.y, self.kept, filled=self.x.given)
        saved = self.term.forward(self.kernels, Tiles(sweep), values, counts)
        return values, counts, saved

    def backward(
        self, grads: Tensor, saved: tuple[Tensor, ...], wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        x, y, term, metric = self.x, self.y, self.term, self.metric
        if x.given:
            return self._given(grads, saved), None
        kept = self.kept
        sweep = core.Sweep(self.problem, x, y, kept, filled=kept is not None)
        same, free = x is y, self.problem.free_norms
        mirrored = same and term.symmetric and metric.symmetric
        gx = torch.zeros_like(x.z)
        gy = gx if same else torch.zeros_like(y.z)
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
            if kept is None or not same:
                gx[rows] += tile.s @ y.z
                gy.addmm_(tile.s.t(), x.z[rows])
        if kept is not None and same:
            torch.mm(kept if mirrored else add_transposed_(kept), x.z, out=gx)
            if mirrored:
                gx *= 2.0
        return (
            x.pull(gx, norm_x, self.dtypes[0]) if wanted[0] else None,
            y.pull(gy, norm_y, self.dtypes[1]) if wanted[1] and not same else None,
        )

    def _given(self, grads: Tensor, saved: tuple[Tensor, ...]) -> Tensor:
        out = torch.zeros_like(self.kept)
        for tile in Tiles(core.Sweep(self.problem, self.x, self.y, self.kept, filled=True)):
            self.term.backward(self.kernels, tile, out[tile.rows], grads, saved)
        return out.to(self.dtypes[0])


def add_transposed_(matrix: Tensor, block: int = 256) -> Tensor:
    """matrix + its transpose, in place, block by block so that both stay in cache."""
    size = len(matrix)
    for i in range(0, size, block):
        for j in range(i, size, block):
            upper, lower = matrix[i : i + block, j : j + block], matrix[j : j + block, i : i + block]
            total = upper + lower.t()
            upper.copy_(total)
            lower.copy_(total.t())
    return matrix


def sides(tile: ValueTile) -> tuple[Tensor, Tensor]:
    """Masks (m, n) of the positives and of the negatives."""
    same = tile.labels[:, None] == tile.ref_labels
    if tile.diagonal < 0:
        return same, ~same
    row, column = (torch.arange(size, device=same.device) for size in same.shape)
    return same & (row[:, None] + tile.diagonal != column), ~same
