"""Explicit pairs: the same statistics over listed (anchor, other) pairs, at O(pairs x D).

A formula is run by torch on one vector of pair values per side, and its statistics are reduced by anchor with scatter
operations, so that torch's autograd does the rest. The values are entries of the matrix where that is quicker than the
products of the listed rows, and these are gathered a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels.caller import Caller, as_called
from metric_kernels.core import NOISE, arithmetic, no_autocast, workspace
from metric_kernels.distances import Distance
from metric_kernels.language import Formula, Stage
from metric_kernels.metrics import Dot
from metric_kernels.once import once
from metric_kernels.pairwise import gram_matrix
from metric_kernels.rowstats import pair_matrix
from metric_kernels.tile import finite

# Bytes of rows gathered at once on a processor: what its cache holds.
_CHUNK_BYTES = 1 << 20
# Measured, forward and backward: a term of the product of gathered rows takes as long as 50 of a matrix product, and an
# entry of a matrix as long as 128 terms besides its product.
_GATHERED, _ENTRY = 50, 128


class Pairs(NamedTuple):
    """Indices of anchors and others, both (P,), and which of them count; all if ``kept`` is None."""

    anchors: Tensor
    others: Tensor
    kept: Tensor | None = None

    def codes(self, columns: int) -> Tensor:
        """Each pair as one number, its place in the matrix."""
        return self.anchors * columns + self.others

    def mirrored(self) -> Pairs:
        return Pairs(self.others, self.anchors, self.kept)

    def counted(self, t: Tensor) -> tuple[Pairs, Tensor]:
        """The pairs that count, and their part of t (P,)."""
        return (self, t) if self.kept is None else (Pairs(self.anchors[self.kept], self.others[self.kept]), t[self.kept])

    def unique(self, rows: int, columns: int) -> Pairs:
        """Each pair once, in the order of the matrix."""
        code = self.codes(columns)
        if torch.compiler.is_compiling() or code.is_cuda:  # the number of different pairs is not known without waiting
            code = code.sort().values
            kept = code.diff(prepend=code.new_full((1,), -1)) != 0
            return Pairs(code // columns, code % columns, kept)
        if rows * columns <= code.nbytes:
            listed = torch.zeros(rows * columns, dtype=torch.bool).index_fill_(0, code, True)
            return Pairs(*listed.view(rows, columns).nonzero().t().contiguous())
        code = torch.unique(code)
        return Pairs(code // columns, code % columns)


def listed(indices_tuple: tuple, rows: int, columns: int, device: torch.device) -> tuple[Pairs, Pairs]:
    """Positive and negative pairs from (a1, p, a2, n), or from triplets (a, p, n) as (a, p) and (a, n).

    Anchors are below ``rows``, others below ``columns``.
    """
    if not isinstance(indices_tuple, (tuple, list)) or len(indices_tuple) not in (3, 4):
        raise ValueError(
            "indices_tuple: expected (anchors, positives, negatives) or (anchors, positives, anchors, negatives), "
            f"got {type(indices_tuple).__name__}"
            + (f" of length {len(indices_tuple)}" if hasattr(indices_tuple, "__len__") else "")
        )
    parts = [torch.as_tensor(part, device=device) for part in indices_tuple]
    for number, part in enumerate(parts):
        if part.ndim != 1 or part.is_floating_point() and part.numel():
            raise ValueError(
                f"indices_tuple[{number}]: expected a 1-D tensor of integers, got {part.dtype} {tuple(part.shape)}"
            )
    parts = [part.long() for part in parts]
    sizes = (rows, columns, rows, columns) if len(parts) == 4 else (rows, columns, columns)
    if not torch.compiler.is_compiling():  # a graph cannot raise for a value
        _check_range(parts, sizes)
    a1, p, a2, n = parts if len(parts) == 4 else (*parts[:2], parts[0], parts[2])
    for one, other, what in ((a1, p, "anchors and positives"), (a2, n, "anchors and negatives")):
        if len(one) != len(other):
            raise ValueError(f"indices_tuple: expected as many {what} as each other, got {len(one)} and {len(other)}")
    return Pairs(a1, p), Pairs(a2, n)


def _check_range(parts: list[Tensor], sizes: tuple[int, ...]) -> None:
    numbers = [number for number, part in enumerate(parts) if part.numel()]
    if not numbers:
        return
    # One list, since reading a number of a GPU waits for it.
    ends = torch.stack([end for number in numbers for end in torch.aminmax(parts[number])]).tolist()
    for number, low, high in zip(numbers, ends[::2], ends[1::2]):
        if low < 0 or high >= sizes[number]:
            raise IndexError(f"indices_tuple[{number}]: expected indices from 0 to {sizes[number] - 1}, got {low} to {high}")


def distinct(positives: Pairs, negatives: Pairs, rows: int, columns: int) -> tuple[Pairs, Pairs]:
    """Each pair once, and none as both; indices of the matrix (``rows``, ``columns``)."""
    positives, negatives = positives.unique(rows, columns), negatives.unique(rows, columns)
    if not torch.compiler.is_compiling() and len(positives.anchors) and len(negatives.anchors):
        mine, others = positives.codes(columns), negatives.codes(columns)
        both = others[torch.searchsorted(others, mine).clamp_(max=len(others) - 1)] == mine
        if both.any():
            pair = divmod(int(mine[both][0]), columns)
            raise ValueError(f"indices_tuple: expected each pair to be positive or negative, got {pair} as both")
    return positives, negatives


def all_pairs(labels: Tensor, ref_labels: Tensor, exclude_self: bool) -> tuple[Pairs, Pairs]:
    """Every positive and negative pair in row-major order."""
    same = labels[:, None] == ref_labels[None, :]
    different = ~same
    if exclude_self:
        same.fill_diagonal_(False)
    return Pairs(*torch.where(same)), Pairs(*torch.where(different))


def statistics(
    formula: Formula,
    params: tuple[tuple[float, ...], ...],
    distance: Distance,
    x: Tensor,
    y: Tensor,
    same: bool,
    positives: Pairs,
    negatives: Pairs,
    each: bool,
    summed: bool,
) -> tuple[tuple[Tensor, ...], list[tuple[str, Pairs, Tensor]]]:
    """Statistics (N,) each, and with ``each`` for every ``total`` of the last stage its side, pairs and ``pair`` values.

    With ``summed``, the statistics of the last stage, which are totals and counts, are (1,): over all anchors.
    """
    sides = {"pos": positives, "neg": negatives}
    both = Pairs(*(torch.cat(indices) for indices in zip(positives[:2], negatives[:2])))
    with no_autocast(x.device.type):
        found = values(distance, x, y, both).split([len(pairs.anchors) for pairs in sides.values()])
        by_side = dict(zip(sides, found))
        rows: list[Tensor] = []
        cols: list[Tensor] = rows if same else []
        totals: list[tuple[str, Tensor]] = []
        for number, (stage, numbers) in enumerate(zip(formula.stages, params)):
            size = None if summed and number == len(params) - 1 else len(x)
            found, totals = _stage(stage, numbers, sides, by_side, rows, cols, size)
            if not same and formula.two_sided and number == 0:
                mirrored = {side: pairs.mirrored() for side, pairs in sides.items()}
                cols, _ = _stage(stage, numbers, mirrored, by_side, rows, cols, len(y))
            rows += found
        return tuple(rows), [(side, *sides[side].counted(t)) for side, t in totals if each]


def _stage(stage: Stage, params, sides, values, rows, cols, size):
    """Statistics (size,) of one stage, or over all anchors if that is None, and the side and values of each total."""
    found, totals = [], []
    computed = {}
    for side in {s.side for s in stage.stats}:
        pairs, v = sides[side], values[side]
        mine = [_take(finite(rows[k]), pairs.anchors) for k in stage.rows]
        other = [_take(finite(cols[k]), pairs.others) for k in stage.cols]
        computed[side] = stage.pair(v, *mine, *other, *params)
    for k, stat in enumerate(stage.stats):
        pairs, v = sides[stat.side], values[stat.side]
        t = torch.as_tensor(computed[stat.side][k], dtype=v.dtype, device=v.device).expand_as(v)
        if stat.kind == "total":
            totals.append((stat.side, t))
        if pairs.kept is not None:
            t = torch.where(pairs.kept, t, _NEUTRAL[stat.kind])
        found.append(_reduce(stat.kind, t, pairs.anchors, size))
    return found, totals


_NEUTRAL = {"total": 0.0, "count": 0.0, "lse": -torch.inf, "largest": -torch.inf, "smallest": torch.inf}


def _reduce(kind: str, t: Tensor, anchors: Tensor, size: int | None) -> Tensor:
    if kind == "count":
        t = (t != 0).to(t.dtype)
    if size is None:
        return t.sum(0, keepdim=True)
    zero = t.new_zeros(size)
    if kind in ("total", "count"):
        return _add(zero, anchors, t)
    lowest = torch.full_like(zero, -torch.inf)
    if kind == "lse":
        top = lowest.scatter_reduce(0, anchors, t.detach(), "amax")
        some = ~torch.isneginf(top)
        top = torch.where(some, top, 0.0)
        mass = _add(zero, anchors, torch.exp(t - _take(top, anchors)))
        return torch.where(some, top + torch.log(torch.where(some, mass, 1.0)), -torch.inf)
    sign = 1.0 if kind == "largest" else -1.0
    return sign * lowest.scatter_reduce(0, anchors, sign * t, "amax")


# A GPU adds in any order by index_add, which index_select's gradient is too, but in a fixed one by index_put; a processor the
# other way round.
def _take(t: Tensor, index: Tensor) -> Tensor:
    return t[index] if t.is_cuda else t.index_select(0, index)


def _add(t: Tensor, index: Tensor, source: Tensor) -> Tensor:
    return t.index_put_((index,), source, accumulate=True) if t.is_cuda else t.index_add_(0, index, source)


def values(distance: Distance, x: Tensor, y: Tensor, pairs: Pairs) -> Tensor:
    """The pair values (P,), in the arithmetic type."""
    metric, same, dtype = distance.metric, y is x, arithmetic(torch.promote_types(x.dtype, y.dtype))
    whole = _as_matrix(len(x), len(y), x.shape[1], len(pairs.anchors), dtype.itemsize)
    if metric is None:
        if not whole:
            try:
                return _of_rows(distance.rowwise, x.to(dtype), x if same else y.to(dtype), pairs)
            except NotImplementedError:  # a distance that has its matrix only
                pass
        return _take(pair_matrix(distance, x, y).flatten(), pairs.codes(len(y)))
    x = _prepared(distance, x.to(dtype))
    y = x if same else _prepared(distance, y.to(dtype))
    if whole:
        s = _take(gram_matrix(x, None if same else y, Dot, False).flatten(), pairs.codes(len(y)))
    else:
        s = _of_rows(_dot, x, y, pairs)
    if not metric.norms:
        return metric.value(s, None, None, None)
    # The gradient through the norm of a normalised embedding is radial, and its normalisation removes it.
    fixed = distance.normalize_embeddings and not metric.centred
    p = _dot(x.detach(), x.detach()) if fixed else _dot(x, x)
    q = p if same else _dot(y.detach(), y.detach()) if fixed else _dot(y, y)
    return metric.value(s, _take(p, pairs.anchors), _take(q, pairs.others), NOISE * torch.finfo(dtype).eps)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(1)


def _prepared(distance: Distance, x: Tensor) -> Tensor:
    z = distance.normalized(x)
    return z - z.mean(1, keepdim=True) if distance.metric.centred else z


def _as_matrix(n: int, m: int, dim: int, number: int, itemsize: int) -> bool:
    """Whether ``number`` pairs are quicker as entries of the matrix, and it is no larger than the budget or their list."""
    size = n * m * itemsize
    if size <= _CHUNK_BYTES:
        return True
    quicker = n * m * (_ENTRY + dim) <= _GATHERED * number * dim
    return quicker and size <= max(workspace(), 16 * number)


def _of_rows(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, pairs: Pairs) -> Tensor:
    if torch.compiler.is_compiling():  # which keeps what it likes
        return function(_take(x, pairs.anchors), _take(y, pairs.others))
    return _OfRows.apply(x, None if y is x else y, function, pairs.anchors, pairs.others)


class _OfRows(torch.autograd.Function):
    """``function(x[anchors], y[others])``, y being x if None, by chunks of rows, gathered again in the backward pass."""

    @staticmethod
    def forward(ctx, x, y, function, anchors, others):
        ctx.function, ctx.caller = function, Caller()
        ctx.save_for_backward(x, y, anchors, others)
        out = x.new_empty(len(anchors))
        for at in _chunks(x, len(anchors)):
            out[at] = function(*_gathered(x, y, anchors[at], others[at]))
        return out

    @staticmethod
    @as_called
    def backward(ctx, grad):
        x, y, anchors, others = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        gx = torch.zeros_like(x) if wanted[0] else None
        gy = torch.zeros_like(y) if wanted[1] else None
        sums = gx, gx if y is None else gy
        with no_autocast(x.device.type):
            for at in _chunks(x, len(anchors)):
                index = anchors[at], others[at]
                rows = [t.detach().requires_grad_(s is not None) for t, s in zip(_gathered(x, y, *index), sums)]
                with torch.enable_grad():
                    value = ctx.function(*rows)
                value.backward(grad[at].detach())
                for total, i, row in zip(sums, index, rows):
                    if row.grad is not None:
                        _add(total, i, row.grad)
        return once(gx, x, y), once(gy, x, y), None, None, None


def _gathered(x: Tensor, y: Tensor | None, anchors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    return _take(x, anchors), _take(x if y is None else y, others)


def _chunks(x: Tensor, number: int) -> Iterator[slice]:
    size = workspace() // 4 if x.is_cuda else _CHUNK_BYTES
    step = max(size // max(x.shape[1] * x.element_size(), 1), 16)
    for start in range(0, number, step):
        yield slice(start, start + step)
