"""The differentiable matrix of pair values itself, by the Gram identity: one product forward, one or two backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metric_kernels.core import NOISE, Points, arithmetic, no_autocast
from metric_kernels.metrics import Metric
from metric_kernels.once import once


class _GramMatrix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor | None, metric: type[Metric], normalize: bool) -> Tensor:
        dtype = arithmetic(x.dtype if y is None else torch.promote_types(x.dtype, y.dtype))
        rows = Points(x, metric, normalize, dtype)
        cols = rows if y is None else Points(y, metric, normalize, dtype)
        with no_autocast(x.device.type):
            s = torch.mm(rows.z, cols.z.t())
        ctx.points, ctx.metric, ctx.free = (rows, cols), metric, metric.norms and (metric.centred or not normalize)
        ctx.dtypes = x.dtype, None if y is None else y.dtype
        ctx.save_for_backward(x, y, s)
        v = metric.value(s, *_norms(rows, cols), NOISE * torch.finfo(dtype).eps)
        if y is None and metric.norms:
            v.diagonal().copy_(rows.squares * 0.0)  # 0, or NaN where the embedding is not finite
        return v.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, y, s = ctx.saved_tensors
        with torch.no_grad(), no_autocast(s.device.type):
            gx, gy = _GramMatrix._pulled(ctx, s, grad, ctx.needs_input_grad[:2])
        return once(gx, x, y), once(gy, x, y), None, None

    @staticmethod
    def _pulled(ctx, s: Tensor, grad: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
        rows, cols = ctx.points
        slope, norm_slope = ctx.metric.dvalue(s, *_norms(rows, cols), NOISE * torch.finfo(s.dtype).eps)
        grad = grad.to(s.dtype)
        if rows is cols and ctx.metric.norms:
            grad = grad.clone().fill_diagonal_(0.0)
        w = grad * slope
        norm_x = (grad * norm_slope).sum(1) if ctx.free else None
        norm_y = -0.5 * w.sum(0) if ctx.free else None
        if rows is cols:
            total = None if norm_x is None else norm_x + norm_y
            return rows.pull((w + w.t()) @ cols.z, total, ctx.dtypes[0]), None
        gx = rows.pull(w @ cols.z, norm_x, ctx.dtypes[0]) if wanted[0] else None
        gy = cols.pull(w.t() @ rows.z, norm_y, ctx.dtypes[1]) if wanted[1] else None
        return gx, gy


def _norms(rows: Points, cols: Points) -> tuple[Tensor, Tensor]:
    return rows.squares[:, None], cols.squares[None, :]


def gram_matrix(x: Tensor, y: Tensor | None, metric: type[Metric], normalize: bool) -> Tensor:
    """Matrix (N, M) of ``metric`` between the rows of x (N, D) and y (M, D), or of x with itself if y is None."""
    return _GramMatrix.apply(x, y, metric, normalize)
