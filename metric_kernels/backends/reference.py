"""Plain torch on whole tiles: any device, any dtype, any formula. It is the fallback, and the eager baseline."""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from metric_kernels.language import Formula, Op, Stage
from metric_kernels.tile import Side, StageByStage, Tile


class ReferenceBackend(StageByStage):
    name = "reference"

    def unusable(self) -> str | None:
        return None

    @functools.cached_property
    def ordered(self):
        return importlib.import_module("metric_kernels.backends.reference_ordered")

    @functools.cached_property
    def binned(self):
        return importlib.import_module("metric_kernels.backends.reference_binned")

    @functools.cached_property
    def vectors(self):
        return importlib.import_module("metric_kernels.backends.reference_vectors")

    def unsuited(self, device: str, dtype: torch.dtype) -> str | None:
        return None

    def supports(self, formula: Formula, metric: type, device: str, dtype: torch.dtype) -> str | None:
        return None

    def values(self, metric: type, tile: Tile) -> Tensor:
        return metric.value(tile.s, *_norms(tile), tile.eps)

    def slopes(self, metric: type, tile: Tile, g: Tensor, norm_grad: Tensor | None) -> None:
        slope, by_norm = metric.dvalue(tile.s, *_norms(tile), tile.eps)
        if norm_grad is not None:
            norm_grad.copy_((g * by_norm).sum(1))
        torch.mul(g, slope, out=tile.s)

    def stage_stats(
        self, op: Op, stage: int, tile: Tile, rows: Tensor, cols: Tensor, out: Tensor, index: Tensor, scale: Tensor
    ) -> None:
        current = op.formula.stages[stage]
        v = op.metric.value(tile.s, *_norms(tile), tile.eps)
        masks = _masks(tile)
        values = current.pair(v, *_inputs(current, rows, cols), *op.params[stage])
        for k, (stat, t) in enumerate(zip(current.stats, _expand(values, v))):
            mask = masks[stat.side]
            if stat.kind == "total":
                out[k] = t.masked_fill(~mask, 0.0).sum(1)
            elif stat.kind == "count":
                out[k] = ((t != 0) & mask).sum(1).to(out.dtype)
            elif stat.kind == "lse":
                t = t.masked_fill(~mask, -torch.inf)
                out[k] = t.logsumexp(1)
                mass = torch.exp(t - out[k][:, None]).sum(1)
                scale[k] = torch.where(out[k].isfinite(), 1.0 / mass, 1.0)
            else:
                worst = -torch.inf if stat.kind == "largest" else torch.inf
                t = t.masked_fill(~mask, worst)
                out[k] = t.amax(1) if stat.kind == "largest" else t.amin(1)
                column = torch.arange(t.shape[1], device=t.device).expand_as(t)
                hit = mask & ((t == out[k][:, None]) | t.isnan())
                first = column.masked_fill(~hit, t.shape[1]).amin(1)
                index[k] = first.masked_fill(first == t.shape[1], -1)

    def weights(self, op: Op, tile: Tile, rows: Side, cols: Side, both: bool, norm_grad: Tensor | None):
        eps, (p, q) = tile.eps, _norms(tile)
        there = _pair_grad(op, tile, op.metric.value(tile.s, p, q, eps), rows, cols, swapped=False)
        slope, norm_slope = op.metric.dvalue(tile.s, p, q, eps)
        w = there * slope
        by_norm = there * norm_slope
        if both:
            back = _pair_grad(op, tile, op.metric.value(tile.s, q, p, eps), rows, cols, swapped=True)
            slope, _ = op.metric.dvalue(tile.s, q, p, eps)
            w = w + back * slope
            by_norm = by_norm - 0.5 * back * slope
        if norm_grad is not None:
            norm_grad.copy_(by_norm.sum(1))
        tile.s.copy_(w)

    def input_grads(self, op: Op, stage: int, tile: Tile, rows: Side, cols: Side, swapped: bool) -> Tensor:
        current = op.formula.stages[stage]
        p, q = _norms(tile)
        masks = _masks(tile)
        grads = cols.grads if swapped else rows.grads
        v = op.metric.value(tile.s, q, p, tile.eps) if swapped else op.metric.value(tile.s, p, q, tile.eps)
        slopes = (current.dcol if swapped else current.drow)(
            v, *_inputs(current, rows.values, cols.values, swapped), *op.params[stage]
        )
        wanted = current.cols if swapped else current.rows
        out = tile.s.new_zeros(len(wanted), tile.s.shape[0])
        slopes = _expand(slopes, v)
        first = op.formula.first[stage]
        for k, stat in enumerate(current.stats):
            grad = grads[first + k]
            grad = grad[None, :] if swapped else grad[:, None]
            for r in range(len(wanted)):
                out[r] += (grad * slopes[k * len(wanted) + r]).masked_fill(~masks[stat.side], 0.0).sum(1)
        return out


def _norms(tile: Tile) -> tuple[Tensor, Tensor]:
    return tile.p[:, None], tile.q[None, :]


def _masks(tile: Tile) -> dict[str, Tensor]:
    same = tile.labels[:, None] == tile.ref_labels[None, :]
    positive = same
    if tile.diagonal >= 0:
        row = torch.arange(same.shape[0], device=same.device)
        column = torch.arange(same.shape[1], device=same.device)
        positive = same & (row[:, None] + tile.diagonal != column[None, :])
    return {"pos": positive, "neg": ~same}


def _inputs(stage: Stage, rows: Tensor, cols: Tensor, swapped: bool = False) -> list[Tensor]:
    """The statistics that a formula reads, broadcast over the tile; ``swapped`` exchanges the roles of i and j."""
    row, col = (cols, rows) if swapped else (rows, cols)
    at = (slice(None), None)
    mine, other = ((None, slice(None)), at) if swapped else (at, (None, slice(None)))
    return [row[k][mine] for k in stage.rows] + [col[k][other] for k in stage.cols]


def _expand(values, like: Tensor) -> list[Tensor]:
    return [(t.to(like.dtype) if isinstance(t, Tensor) else like.new_full((), t)).expand_as(like) for t in values]


def _pair_grad(op: Op, tile: Tile, v: Tensor, rows: Side, cols: Side, swapped: bool) -> Tensor:
    """dL/dv_ij over a tile, or (``swapped``) dL/dv_ji laid out at [i, j]."""
    values, grads, index = cols if swapped else rows
    at = (None, slice(None)) if swapped else (slice(None), None)
    masks = _masks(tile)
    column = torch.arange(v.shape[1], device=v.device)[None, :]
    row = torch.arange(v.shape[0], device=v.device)[:, None] + tile.row
    out = torch.zeros_like(v)
    for number, stage in enumerate(op.formula.stages):
        arguments = (v, *_inputs(stage, rows.values, cols.values, swapped), *op.params[number])
        t, slope = _expand(stage.pair(*arguments), v), _expand(stage.dpair(*arguments), v)
        for k, stat in enumerate(stage.stats):
            g = op.formula.first[number] + k
            if stat.kind == "count":
                continue
            term = grads[g][at] * slope[k]
            if stat.kind == "lse":
                term = term * torch.exp(t[k] - values[g][at])
            elif stat.kind in ("largest", "smallest"):
                term = term.masked_fill(index[g][at] != (row if swapped else column), 0.0)
            out += term.masked_fill(~masks[stat.side], 0.0)
    return out


BACKEND = ReferenceBackend()
