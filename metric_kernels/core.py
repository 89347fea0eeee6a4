"""The one differentiable operation: row statistics of a pair-value matrix that is never kept longer than it must.

    z = prepared embeddings      tile = z[rows] z^T      T = stats(tile)              forward
    W = weights(tile, dL/dT)     dz = W z                                             backward

When y is x, ``weights`` adds the two directions of a pair at once, so that one product serves for both sides.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Iterator

import torch
from torch import Tensor

from metric_kernels.language import Op
from metric_kernels.metrics import Metric
from metric_kernels.tile import Side, Tile

NORM_FLOOR = 1e-12
# Unit roundoffs that cover the error of p + q - 2 s, where z of length D is summed in blocks; below it a distance is 0.
NOISE = 4.0
_TILE_BYTES = 4 << 20


def _positive_bytes(name: str, value: object) -> int:
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ValueError(f"{name}: expected a number of bytes >= 0, got {value!r}")
    return number


_workspace = _positive_bytes("METRIC_KERNELS_WORKSPACE", os.environ.get("METRIC_KERNELS_WORKSPACE", 256 << 20))


def workspace() -> int:
    """Bytes of product matrix that may be kept between forward and backward."""
    return _workspace


def set_workspace(size: int) -> None:
    """Set the workspace budget in bytes (default 256 MiB, or the variable ``METRIC_KERNELS_WORKSPACE``).

    A product matrix that fits is kept from forward to backward; a larger one is computed twice, tile by tile, and the
    extra memory is O(B D) plus one tile of a quarter of the budget (at least 16 rows).
    """
    global _workspace
    _workspace = _positive_bytes("size", size)


@contextmanager
def use_workspace(size: int) -> Iterator[None]:
    """:func:`set_workspace` for the duration of a ``with`` block."""
    before = _workspace
    set_workspace(size)
    try:
        yield
    finally:
        set_workspace(before)


@dataclass(frozen=True)
class Problem:
    """Everything about a call that is not differentiated."""

    op: Op
    normalize: bool
    labels: Tensor
    ref_labels: Tensor
    exclude_self: bool
    backend: object

    def mirrored(self) -> Problem:
        """The same pairs seen from the other side."""
        return replace(self, labels=self.ref_labels, ref_labels=self.labels)


class Points:
    """Embeddings in the arithmetic type, normalised and centred as the metric wants, and the way back.

    With ``given``, the matrix of pair values comes from elsewhere and the points are only as many.
    """

    given = False

    def __init__(self, x: Tensor, metric: type[Metric], normalize: bool, dtype: torch.dtype):
        z = x.detach().to(dtype)
        self.unit = self.norm = None
        if normalize:
            self.norm = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(NORM_FLOOR)
            z = self.unit = z / self.norm
        if metric.centred:
            z = z - z.mean(1, keepdim=True)
        self.z = z.contiguous()
        self.squares = self.z.square().sum(1) if metric.norms else z.new_empty(0)
        self.centred = metric.centred

    @classmethod
    def counted(cls, number: int, like: Tensor) -> Points:
        points = cls.__new__(cls)
        points.z, points.squares, points.given = like.new_empty(number, 0), like.new_empty(0), True
        return points

    def pull(self, grad: Tensor, norm_grad: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Gradient with respect to the embeddings from the one with respect to z and to the squared norms of z."""
        if norm_grad is not None:
            grad.addcmul_(self.z, norm_grad[:, None], value=2.0)
        if self.centred:
            grad -= grad.mean(1, keepdim=True)
        if self.norm is not None:
            radial = (grad * self.unit).sum(1, keepdim=True)
            grad.addcmul_(self.unit, radial, value=-1.0).div_(self.norm)
        return grad.to(dtype)


def _tiles(rows: int, columns: int, itemsize: int, kept: bool) -> Iterator[slice]:
    """Row ranges whose tile is small enough to stay in the cache from one pass to the next, or to fit the budget."""
    size = _TILE_BYTES if kept else max(_workspace // 4, 1)
    step = max(16, size // max(1, columns * itemsize))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


class Sweep:
    """The tiles of one forward or backward pass. Products are written to ``kept`` when there is one, else to a scratch."""

    def __init__(self, problem: Problem, x: Points, y: Points, kept: Tensor | None, filled: bool):
        self.problem, self.x, self.y, self.kept, self.filled = problem, x, y, kept, filled
        self.eps = NOISE * torch.finfo(x.z.dtype).eps

    def __iter__(self) -> Iterator[tuple[slice, Tile]]:
        problem, x, y = self.problem, self.x, self.y
        n, m = len(x.z), len(y.z)
        scratch = None
        for rows in _tiles(n, m, x.z.element_size(), self.kept is not None):
            if self.kept is not None:
                s = self.kept[rows]
            else:
                if scratch is None:
                    scratch = x.z.new_empty(rows.stop - rows.start, m)
                s = scratch[: rows.stop - rows.start]
            if not self.filled:
                torch.mm(x.z[rows], y.z.t(), out=s)
            p = x.squares[rows] if len(x.squares) else x.squares
            diagonal = rows.start if problem.exclude_self else -1
            yield rows, Tile(s, problem.labels[rows], problem.ref_labels, rows.start, diagonal, p, y.squares, self.eps)
        self.filled = self.kept is not None

    def mirrored(self) -> Sweep:
        """The sweep over the transposed matrix."""
        if self.x is self.y:
            return self
        kept = self.kept.t().contiguous() if self.x.given else None
        return Sweep(self.problem.mirrored(), self.y, self.x, kept, filled=self.x.given)


def fits(n: int, m: int, dtype: torch.dtype) -> bool:
    return n * m * torch.finfo(dtype).bits // 8 <= _workspace


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type in which embeddings of ``dtype`` are computed with."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def forward(problem: Problem, x: Points, y: Points, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Statistics (K, N) and columns of extremes (K, N). The products are left in ``kept`` (N, M), or taken from there."""
    op, backend = problem.op, problem.backend
    formula, n = op.formula, len(x.z)
    values = x.z.new_empty(len(formula.stats), n)
    index = torch.empty(len(formula.stats) if formula.extremes else 0, n, dtype=torch.int64, device=x.z.device)
    sweep = Sweep(problem, x, y, kept, filled=x.given)
    for group in formula.groups:
        for rows, tile in sweep:
            for number in group:
                first, last = formula.first[number], formula.first[number] + len(formula.stages[number].stats)
                inputs = finite(values[:first, rows])
                cols = finite(values[:first]) if formula.stages[number].cols else inputs
                backend.stats(op, number, tile, inputs, cols, values[first:last, rows], index[first:last, rows])
    return values, index


def backward(
    problem: Problem,
    x: Points,
    y: Points,
    values: Tensor,
    index: Tensor,
    grads: Tensor,
    kept: Tensor | None,
    wanted: tuple[bool, bool],
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to the embeddings of either side. A kept matrix is overwritten."""
    op, both = problem.op, x is y
    side = Side(finite(values), grads.contiguous(), index)
    sweep = Sweep(problem, x, y, kept, filled=kept is not None)
    if any(stage.drow or stage.dcol for stage in op.formula.stages):
        side = side._replace(grads=_with_input_grads(problem, side, sweep))
    if x.given:
        for rows, tile in sweep:
            problem.backend.weights(op, tile, side.at(rows), side, False, None)
        return kept.to(dtypes[0]), None
    free = op.metric.norms and (not problem.normalize or op.metric.centred)
    gx = torch.empty_like(x.z) if wanted[0] else None
    gy = torch.zeros_like(y.z) if wanted[1] and not both else None
    norm_x = x.z.new_empty(len(x.z)) if free else None
    norm_y = y.z.new_zeros(len(y.z)) if free and gy is not None else None
    for rows, tile in sweep:
        norm_grad = norm_x[rows] if norm_x is not None else None
        problem.backend.weights(op, tile, side.at(rows), side, both, norm_grad)
        if gx is not None:
            torch.mm(tile.s, y.z, out=gx[rows])
        if gy is not None and kept is None:
            gy.addmm_(tile.s.t(), x.z[rows])
        if norm_y is not None:
            norm_y.add_(tile.s.sum(0), alpha=-0.5)
    if gy is not None and kept is not None:
        torch.mm(kept.t(), x.z, out=gy)
    return (
        None if gx is None else x.pull(gx, norm_x, dtypes[0]),
        None if gy is None else y.pull(gy, norm_y, dtypes[1]),
    )


def _with_input_grads(problem: Problem, side: Side, sweep: Sweep) -> Tensor:
    """The gradients of all statistics, those included that reach an earlier stage through a later one."""
    op, backend = problem.op, problem.backend
    side = side._replace(grads=side.grads.clone())
    for number in range(len(op.formula.stages) - 1, 0, -1):
        stage = op.formula.stages[number]
        if stage.drow:
            for rows, tile in sweep:
                part = backend.input_grads(op, number, tile, side.at(rows), side, False)
                for k, share in zip(stage.rows, part):
                    side.grads[k, rows] += share
        if stage.dcol:
            for rows, tile in sweep.mirrored():
                part = backend.input_grads(op, number, tile, side.at(rows), side, True)
                for k, share in zip(stage.cols, part):
                    side.grads[k, rows] += share
    return side.grads


def finite(values: Tensor) -> Tensor:
    """Statistics as formulas read them: an empty log-sum-exp is the lowest number, so that differences stay defined."""
    return values.clamp(min=torch.finfo(values.dtype).min) if values.numel() else values
