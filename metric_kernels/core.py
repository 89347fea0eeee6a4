"""The one differentiable operation: row statistics of a pair-value matrix that is never kept longer than it must.

    z = prepared embeddings      tile = z[rows] z^T      T = stats(tile)              forward
    W = weights(tile, dL/dT)     dz = W z                                             backward

When y is x, ``weights`` adds the two directions of a pair at once, so that one product serves for both sides.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metric_kernels.choices import choice
from metric_kernels.language import Formula, Op
from metric_kernels.metrics import Metric
from metric_kernels.tile import Epilogue, Factors, Side, Tile, finite, overwritten, weight_type

NORM_FLOOR = 1e-12
# Unit roundoffs that cover the error of p + q - 2 s, where z of length D is summed in blocks; below it a distance is 0.
NOISE = 4.0
_TILE_BYTES = 4 << 20
# Devices that work while the host goes on.
QUEUED = {"cuda"}


def _positive_bytes(name: str, value: object) -> int:
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise ValueError(f"{name}: expected a number of bytes >= 0, got {value!r}")
    return number


_default_workspace = _positive_bytes("METRIC_KERNELS_WORKSPACE", os.environ.get("METRIC_KERNELS_WORKSPACE") or 256 << 20)
_workspace = choice("workspace")


def workspace() -> int:
    """Bytes of product matrix that may be kept between forward and backward."""
    size = _workspace.get()
    return _default_workspace if size is None else size


def set_workspace(size: int) -> None:
    """Set the workspace budget in bytes (default 256 MiB, or the variable ``METRIC_KERNELS_WORKSPACE``).

    A product matrix that fits is kept from forward to backward; a larger one is computed twice, tile by tile, and the
    extra memory is O(B D) plus one tile of a quarter of the budget (at least 16 rows). On a GPU that of pairs takes all of it.
    """
    global _default_workspace
    _default_workspace = _positive_bytes("size", size)


@contextmanager
def use_workspace(size: int) -> Iterator[None]:
    """Another budget for the duration of a ``with`` block, in this thread only."""
    token = _workspace.set(_positive_bytes("size", size))
    try:
        yield
    finally:
        _workspace.reset(token)


class Problem(NamedTuple):
    """Everything about a call that is not differentiated."""

    op: Op
    normalize: bool
    labels: Tensor
    ref_labels: Tensor
    exclude_self: bool
    backend: object
    known: Tensor | None = None
    fused: bool = False  # the backend makes the products itself

    @property
    def free_norms(self) -> bool:
        """Whether the norms of the points matter and are not fixed."""
        return self.op.metric.norms and (not self.normalize or self.op.metric.centred)

    def mirrored(self) -> Problem:
        """The same pairs seen from the other side."""
        return self._replace(labels=self.ref_labels, ref_labels=self.labels)


class Points:
    """Embeddings in the arithmetic type, normalised and centred as the metric wants, and the way back.

    With ``given``, the matrix of pair values comes from elsewhere and the points are only as many. Embeddings that were of
    type ``half`` have ``factor``: themselves in that type, and ``scale``, which makes them z; for others it is z.
    """

    given = False

    def __init__(self, x: Tensor, metric: type[Metric], normalize: bool, dtype: torch.dtype, half: torch.dtype | None = None):
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
        self.factor, self.scale = self.z, None
        if half is not None and not metric.centred:
            self.factor = x.detach().to(half).contiguous()
            self.scale = None if self.norm is None else self.norm.reciprocal().squeeze(1)

    @functools.cached_property
    def operand(self) -> Tensor:
        """The factor as weights multiply it."""
        return self.factor.to(weight_type(self.factor.dtype))

    @classmethod
    def counted(cls, number: int, like: Tensor) -> Points:
        points = cls.__new__(cls)
        points.z, points.squares, points.given = like.new_empty(number, 0), like.new_empty(0), True
        points.factor, points.scale = points.z, None
        return points

    def pull(self, grad: Tensor, norm_grad: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Gradient with respect to the embeddings from the one with respect to the factor and to the squared norms of z."""
        if norm_grad is not None:
            grad.addcmul_(self.z, norm_grad[:, None], value=2.0)
        if self.centred:
            grad -= grad.mean(1, keepdim=True)
        if self.norm is not None:
            radial = (grad * self.unit).sum(1, keepdim=True)
            grad.addcmul_(self.unit, radial, value=-1.0)
            if self.scale is None:  # the weights had it in them
                grad.div_(self.norm)
        return grad.to(dtype)


def _tile_rows(columns: int, itemsize: int, size: int) -> int:
    """Rows of a tile of about so many bytes."""
    return max(16, max(size, 1) // max(1, columns * itemsize))


def _mm(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """out = a b, or out + a b if ``add``. Half precision is summed in float32."""
    options: dict[str, Any] = {}
    if a.dtype != out.dtype:
        if a.is_cuda:
            options["out_dtype"] = out.dtype
        else:  # where torch has no such product, that of the widened halves is the same
            a, b = a.to(out.dtype), b.to(out.dtype)
    if add:
        torch.addmm(out, a, b, out=out, **options)
    else:
        torch.mm(a, b, out=out, **options)


def _product(x: Tensor, y: Tensor, out: Tensor, precise: bool) -> None:
    """out = x y^T. As a sum of two halves it is up to half as wrong, at the cost of another pass over ``out``."""
    half = x.shape[1] // 2
    if not precise or half < 32 or x.dtype != out.dtype:
        _mm(x, y.t(), out)
    else:
        torch.mm(x[:, :half], y[:, :half].t(), out=out).addmm_(x[:, half:], y[:, half:].t())


class Sweep:
    """The tiles of one forward or backward pass. Products are written to ``kept`` when there is one, else to a scratch."""

    def __init__(self, problem: Problem, x: Points, y: Points, kept: Tensor | None, filled: bool):
        self.problem, self.x, self.y, self.kept, self.filled = problem, x, y, kept, filled
        self.eps = NOISE * torch.finfo(x.z.dtype).eps
        self.step = len(x.z) if problem.fused else _tile_rows(len(y.z), x.z.element_size(), self._tile_bytes())
        self.single = len(x.z) <= self.step

    def _tile_bytes(self) -> int:
        """A tile of a processor stays in its cache from one pass to the next where products are kept. A GPU wants few tiles, as
        large as the budget lets it; terms hold some more arrays of that size.
        """
        cuda = self.x.z.is_cuda
        if self.kept is not None and not cuda:
            return _TILE_BYTES
        return workspace() if cuda and isinstance(self.problem.op.formula, Formula) else workspace() // 4

    def __iter__(self) -> Iterator[tuple[slice, Tile]]:
        problem, x, y = self.problem, self.x, self.y
        n, m = len(x.z), len(y.z)
        if problem.fused:
            yield slice(0, n), self._whole()
            return
        target = x.z.new_empty(min(self.step, n), m) if self.kept is None else self.kept
        for start in range(0, n, self.step):
            rows = slice(start, min(n, start + self.step))
            s, f, labels, p, scale = target, x.factor, problem.labels, x.squares, x.scale
            if not self.single:
                s = target[rows] if self.kept is not None else target[: rows.stop - start]
                f, labels, p = f[rows], labels[rows], p[rows] if problem.op.metric.norms else p
                scale = None if scale is None else scale[rows]
            if not self.filled:
                _product(f, y.factor, s, problem.op.formula.magnifies)
            factors = None if x.factor is x.z else Factors(f, y.factor, scale, y.scale)
            diagonal = start if problem.exclude_self else -1
            yield rows, Tile(s, labels, problem.ref_labels, start, diagonal, p, y.squares, self.eps, factors)
        self.filled = self.kept is not None

    def _whole(self) -> Tile:
        """The matrix as one tile without products."""
        problem, x, y = self.problem, self.x, self.y
        factors, diagonal = Factors(x.factor, y.factor, x.scale, y.scale), 0 if problem.exclude_self else -1
        s = x.z.new_empty(0)
        return Tile(s, problem.labels, problem.ref_labels, 0, diagonal, x.squares, y.squares, self.eps, factors)

    def mirrored(self) -> Sweep:
        """The sweep over the transposed matrix."""
        if self.x is self.y and not self.x.given:
            return self
        kept = self.kept.t().contiguous() if self.x.given else None
        return Sweep(self.problem.mirrored(), self.y, self.x, kept, filled=self.x.given)


def queued(t: Tensor) -> bool:
    """Whether its numbers are not known without waiting for them, or not at all."""
    return torch.compiler.is_compiling() or t.device.type in QUEUED


def no_autocast(device: str):
    """The arithmetic type is ours to choose; an autocast region would turn the products into half precision."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


_NOTHING = nullcontext()


def fits(n: int, m: int, dtype: torch.dtype) -> bool:
    return n * m * torch.finfo(dtype).bits // 8 <= workspace()


def fusible(problem: Problem, x: Points, y: Points) -> bool:
    """Whether the backend makes the products of a call itself, so that no matrix of them exists."""
    n, m, dim, backend = len(x.z), len(y.z), x.z.shape[1], problem.backend
    return bool(n and m and dim and hasattr(backend, "multiplies") and backend.multiplies(n, m, dim, x.factor.dtype))


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The type in which embeddings of ``dtype`` are computed with."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Statistics(NamedTuple):
    """Values (K, N) of the points of one side, and the columns of extremes and the scales of log-sum-exps, (K, N) or
    (0, N) if there are none.
    """

    values: Tensor
    index: Tensor
    scale: Tensor

    @classmethod
    def empty(cls, formula: Formula, points: Points) -> Statistics:
        number, n, z = len(formula.stats), len(points.z), points.z
        index = torch.empty(number if formula.extremes else 0, n, dtype=torch.int64, device=z.device)
        return cls(z.new_empty(number, n), index, z.new_ones(number if formula.logarithms else 0, n))

    def side(self, grads: Tensor) -> Side:
        return Side(finite(self.values), grads, self.index)


def forward(problem: Problem, x: Points, y: Points, kept: Tensor | None) -> tuple[Statistics, Statistics | None]:
    """Statistics of the rows, and of the columns where a stage reads them.

    The products are left in ``kept`` (N, M), or taken from there if the matrix is given.
    """
    formula, skipped = problem.op.formula, 0
    rows = Statistics.empty(formula, x)
    if problem.known is not None:
        rows.values[0], skipped = problem.known, 1
    cols = rows if x is y else None
    sweep = Sweep(problem, x, y, kept, filled=x.given)
    if cols is rows and sweep.single:
        _fill(sweep, range(skipped, len(formula.stages)), rows, rows)
        return rows, rows
    for number, group in enumerate(formula.groups):
        if number and cols is None:
            cols = columns(sweep)
        _fill(sweep, group if number else group[skipped:], rows, cols)
    return rows, cols


def columns(sweep: Sweep) -> Statistics:
    """Statistics of the columns as far as a later stage of the rows reads them: those of the first group of stages."""
    formula = sweep.problem.op.formula
    cols = Statistics.empty(formula, sweep.y)
    cols.values.fill_(torch.inf)  # exponentials of differences from what is missing are 0
    _fill(sweep.mirrored(), formula.groups[0], cols, None)
    return cols


def _fill(sweep: Sweep, stages: Sequence[int], rows: Statistics, cols: Statistics | None) -> None:
    """The statistics of some stages, by one sweep."""
    op, backend = sweep.problem.op, sweep.problem.backend
    others = rows if cols is None else cols
    for at, tile in sweep:
        if sweep.single:
            backend.stats(op, stages, tile, rows.values, others.values, rows.index, rows.scale)
        else:
            values, index, scale = (t[:, at] for t in rows)
            backend.stats(op, stages, tile, values, others.values, index, scale)


class Step(NamedTuple):
    """A forward pass that has done all of the backward pass but its products, for a loss whose own gradient is 1."""

    loss: Tensor
    weights: Tensor
    norm_grad: Tensor | None

    @classmethod
    def of(cls, problem: Problem, x: Points, y: Points, kept: Tensor, epilogue: Epilogue) -> Step | None:
        """None if the backend has no such step, or the call is too large for it."""
        sweep = Sweep(problem, x, y, kept, filled=False)
        same, two_sided = x is y, problem.op.formula.two_sided
        if not len(x.z) or not sweep.single or x.given or two_sided and not same or not hasattr(problem.backend, "step"):
            return None
        ((_, tile),) = sweep
        norm_grad = x.z.new_empty(len(x.z)) if problem.free_norms else None
        return cls(problem.backend.step(problem.op, epilogue, tile, same, norm_grad), kept, norm_grad)

    def backward(self, x: Points, y: Points, grad: Tensor, wanted: tuple[bool, bool], dtypes: tuple[torch.dtype, torch.dtype]):
        """Gradients with respect to the embeddings of either side."""
        w, norm_x, gx, gy = self.weights, self.norm_grad, None, None
        if wanted[0]:
            gx = x.pull(torch.mm(w, y.z).mul_(grad), None if norm_x is None else norm_x * grad, dtypes[0])
        if wanted[1] and y is not x:
            norm_y = None if norm_x is None else w.sum(0).mul_(-0.5 * grad)
            gy = y.pull(torch.mm(w.t(), x.z).mul_(grad), norm_y, dtypes[1])
        return gx, gy


def backward(
    problem: Problem,
    x: Points,
    y: Points,
    rows: Statistics,
    cols: Statistics | None,
    grads: Tensor,
    kept: Tensor | None,
    wanted: tuple[bool, bool],
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to the embeddings of either side. ``grads`` and a kept matrix are overwritten."""
    op, same = problem.op, x is y
    sweep = Sweep(problem, x, y, kept, filled=kept is not None)
    mine = other = rows.side(grads)
    if op.formula.two_sided and not same:
        cols = columns(sweep) if cols is None else cols
        other = cols.side(torch.zeros_like(cols.values))
    if any(stage.drow or stage.dcol for stage in op.formula.stages):
        _add_input_grads(sweep, mine, other)
    if op.formula.logarithms:
        mine.grads.mul_(rows.scale)
        if other is not mine:
            other.grads.mul_(cols.scale)
    both = same or op.formula.two_sided
    if x.given:  # the two directions of a pair are two entries of the matrix
        for at, tile in sweep:
            problem.backend.weights(op, tile, mine.at(at), other, both and not same, None)
        return kept.to(dtypes[0]), None
    if problem.fused:
        return _fused_grads(sweep, mine, other, both, wanted, dtypes)
    free = problem.free_norms
    gx = torch.empty_like(x.z) if wanted[0] else None
    gy = None
    if wanted[1] and not same:
        gy = torch.zeros_like(y.z) if kept is None else torch.empty_like(y.z)
    norm_x = x.z.new_empty(len(x.z)) if free else None
    norm_y = y.z.new_zeros(len(y.z)) if free and gy is not None else None
    for at, tile in sweep:
        problem.backend.weights(op, tile, mine.at(at), other, both, None if norm_x is None else norm_x[at])
        w = tile.weights
        if gx is not None:
            _mm(w, y.operand, gx[at])
        if gy is not None and kept is None:
            _mm(w.t(), x.operand[at], gy, add=True)
        if norm_y is not None:
            norm_y.add_(w.sum(0, dtype=norm_y.dtype), alpha=-0.5)
    if gy is not None and kept is not None:
        _mm(overwritten(kept, x.operand.dtype).t(), x.operand, gy)
    return (
        None if gx is None else x.pull(gx, norm_x, dtypes[0]),
        None if gy is None else y.pull(gy, norm_y, dtypes[1]),
    )


def _fused_grads(
    sweep: Sweep, rows: Side, cols: Side, both: bool, wanted: tuple[bool, bool], dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor | None, Tensor | None]:
    """The same by a backend that makes the products itself, one side after the other."""
    problem, found = sweep.problem, [None, None]
    sides = (sweep, rows, cols, True, both), (sweep.mirrored(), cols, rows, both, True)
    for k in range(1 if sweep.x is sweep.y else 2):
        (seen, mine, other, there, back), points = sides[k], (sweep.x, sweep.y)[k]
        if wanted[k]:
            ((_, tile),) = seen
            grad, norm_grad = torch.empty_like(points.z), points.z.new_empty(len(points.z)) if problem.free_norms else None
            problem.backend.gradients(problem.op, tile, mine, other, grad, norm_grad, there, back)
            found[k] = points.pull(grad, norm_grad, dtypes[k])
    return found[0], found[1]


def _add_input_grads(sweep: Sweep, rows: Side, cols: Side) -> None:
    """Adds to the gradients of the statistics of a stage what reaches them through a later one."""
    op, backend = sweep.problem.op, sweep.problem.backend
    for number in range(len(op.formula.stages) - 1, 0, -1):
        stage = op.formula.stages[number]
        if stage.drow:
            for at, tile in sweep:
                shares = backend.input_grads(op, number, tile, rows.at(at), cols, False)
                for j, k in enumerate(stage.rows):
                    rows.grads[k, at].add_(shares[j])
        if stage.dcol:
            for at, tile in sweep.mirrored():
                shares = backend.input_grads(op, number, tile, cols.at(at), rows, True)
                for j, k in enumerate(stage.cols):
                    cols.grads[k, at].add_(shares[j])
