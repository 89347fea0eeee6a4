"""Explicit pairs: the same statistics over listed (anchor, other) pairs, at O(pairs x D).

A formula is run by torch on one vector of pair values per side, and its statistics are reduced by anchor with scatter
operations, so that torch's autograd does the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels.core import arithmetic
from metric_kernels.distances import Distance
from metric_kernels.language import Formula, Stage
from metric_kernels.tile import finite


class Pairs(NamedTuple):
    """Indices of anchors and others, both (P,)."""

    anchors: Tensor
    others: Tensor

    def unique(self, columns: int) -> Pairs:
        """Each pair once."""
        code = torch.unique(self.anchors * max(columns, 1) + self.others)
        return Pairs(code // max(columns, 1), code % max(columns, 1))


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
    anchors = (0, 2) if len(parts) == 4 else (0,)
    for number, part in enumerate(parts):
        size = rows if number in anchors else columns
        if part.numel() and not (0 <= int(part.min()) and int(part.max()) < size):
            raise IndexError(
                f"indices_tuple[{number}]: expected indices from 0 to {size - 1}, got {int(part.min())} to {int(part.max())}"
            )
    a1, p, a2, n = (part.long() for part in (parts if len(parts) == 4 else (*parts[:2], parts[0], parts[2])))
    for one, other, what in ((a1, p, "anchors and positives"), (a2, n, "anchors and negatives")):
        if len(one) != len(other):
            raise ValueError(f"indices_tuple: expected as many {what} as each other, got {len(one)} and {len(other)}")
    return Pairs(a1, p), Pairs(a2, n)


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
) -> tuple[Tensor, list[tuple[Pairs, Tensor]]]:
    """Statistics (K, N), and for the last stage the values of each ``total`` pair by pair (its ``pair`` values)."""
    dtype = arithmetic(torch.promote_types(x.dtype, y.dtype))
    x = x.to(dtype)
    y = x if same else y.to(dtype)
    sides = {"pos": positives, "neg": negatives}
    values = {side: distance.rowwise(x[pairs.anchors], y[pairs.others]) for side, pairs in sides.items()}
    size = len(x), len(y)
    rows: list[Tensor] = []
    cols: list[Tensor] = rows if same else []
    each: list[tuple[Pairs, Tensor]] = []
    for number, (stage, numbers) in enumerate(zip(formula.stages, params)):
        found, each = _stage(stage, numbers, sides, values, rows, cols, size[0])
        if not same and formula.two_sided and number == 0:
            mirrored = {side: Pairs(*reversed(pairs)) for side, pairs in sides.items()}
            cols, _ = _stage(stage, numbers, mirrored, values, rows, cols, size[1])
        rows += found
    return torch.stack(rows), each


def _stage(stage: Stage, params, sides, values, rows, cols, size):
    """Statistics of one stage, and the values and pairs of its totals."""
    found, each = [], []
    computed = {}
    for side in {s.side for s in stage.stats}:
        pairs, v = sides[side], values[side]
        mine = [finite(rows[k])[pairs.anchors] for k in stage.rows]
        other = [finite(cols[k])[pairs.others] for k in stage.cols]
        computed[side] = stage.pair(v, *mine, *other, *params)
    for k, stat in enumerate(stage.stats):
        pairs = sides[stat.side]
        t = torch.as_tensor(computed[stat.side][k], dtype=values[stat.side].dtype, device=values[stat.side].device)
        t = t.expand_as(values[stat.side])
        found.append(_reduce(stat.kind, t, pairs.anchors, size))
        if stat.kind == "total":
            each.append((pairs, t))
    return found, each


def _reduce(kind: str, t: Tensor, anchors: Tensor, size: int) -> Tensor:
    zero = t.new_zeros(size)
    if kind == "total":
        return zero.index_add(0, anchors, t)
    if kind == "count":
        return zero.index_add(0, anchors, (t != 0).to(t.dtype))
    if kind == "lse":
        top = zero.scatter_reduce(0, anchors, t.detach(), "amax", include_self=False)
        has = zero.index_add(0, anchors, torch.ones_like(t)) > 0
        # An anchor whose every value is -inf has no finite reference; 0 leaves its sum at 0.
        top = torch.where(torch.isneginf(top), 0.0, top)
        mass = zero.index_add(0, anchors, torch.exp(t - top[anchors]))
        return torch.where(has, top + torch.log(torch.where(has, mass, 1.0)), -torch.inf)
    sign = 1.0 if kind == "largest" else -1.0
    return sign * zero.fill_(-torch.inf).scatter_reduce(0, anchors, sign * t, "amax")
