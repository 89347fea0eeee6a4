"""The kernels of :mod:`metric_kernels.vectors` in plain torch, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from metric_kernels import core
from metric_kernels.vectors import jensen_shannon, jensen_shannon_slope

# Bytes of coordinates of pairs at a time that stay in a processor's cache.
_CHUNK = 4 << 20


def distances(kind: str, p: float, x: Tensor, y: Tensor, out: Tensor):
    for rows in _chunks(x, y):
        if kind == "lp":
            out[rows] = _length(x[rows, None] - y, p)
        else:
            out[rows] = 0.5 * jensen_shannon(x[rows, None], y).sum(2).sqrt()


def distance_grads(kind: str, p: float, x: Tensor, y: Tensor, d: Tensor, g: Tensor, out: Tensor):
    for rows in _chunks(x, y):
        if kind == "lp":
            difference, length = x[rows, None] - y, d[rows, :, None]
            slope = _largest(difference, length) if p == math.inf else _slope(difference, length, p)
            out[rows] = (g[rows, :, None] * slope).sum(1)
        else:
            scale = torch.where(d[rows] == 0, 0.0, g[rows] / (4.0 * d[rows]))
            out[rows] = (scale[:, :, None] * jensen_shannon_slope(x[rows, None], y)).sum(1)


def triplet_losses(
    p: float,
    margin: float,
    eps: float,
    swap: bool,
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distances: Tensor,
    losses: Tensor,
):
    for k, (a, b) in enumerate(_pairs(anchor, positive, negative, swap)):
        distances[k] = _length(a - b + eps, p)
    losses.copy_(_hinge(margin, distances).relu())


def triplet_grads(
    p: float,
    margin: float,
    eps: float,
    swap: bool,
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distances: Tensor,
    g: Tensor,
    grads: Sequence[Tensor | None],
):
    g = torch.where(_hinge(margin, distances) < 0, 0.0, g)
    share = torch.ones_like(g)
    if swap:
        share = torch.where(distances[1] < distances[2], 1.0, torch.where(distances[1] == distances[2], 0.5, 0.0))
    slopes = []
    for a, b, length, by_length in zip(
        *zip(*_pairs(anchor, positive, negative, swap)), distances, (g, -g * share, g * share - g)
    ):
        difference, length = a - b + eps, length[:, None]
        if p == math.inf:
            slope = _largest(difference, length)
            slope = slope / slope.abs().sum(1, keepdim=True).clamp(min=1.0)
        else:
            slope = _slope(difference, length, p)
        slopes.append(torch.where(by_length == 0, 0.0, by_length)[:, None] * slope)
    to_positive, to_negative = slopes[:2]
    between = slopes[2] if swap else torch.zeros_like(to_positive)
    for out, grad in zip(grads, (to_positive + to_negative, between - to_positive, -to_negative - between)):
        if out is not None:
            out.copy_(grad)


def _chunks(x: Tensor, y: Tensor) -> Iterator[slice]:
    """Some rows at a time, one at least, whose pairs fit a processor's cache, or on a GPU the workspace."""
    size = _CHUNK if x.device.type == "cpu" else core.workspace() // 4
    size = max(1, size // max(1, y.numel() * y.itemsize))
    return (slice(i, i + size) for i in range(0, len(x), size))


def _pairs(anchor: Tensor, positive: Tensor, negative: Tensor, swap: bool) -> list[tuple[Tensor, Tensor]]:
    return [(anchor, positive), (anchor, negative), (positive, negative)][: 3 if swap else 2]


def _hinge(margin: float, distances: Tensor) -> Tensor:
    return margin + distances[0] - distances[1:].amin(0)


def _length(difference: Tensor, p: float) -> Tensor:
    """The p-norm along the last dimension. Powers are of ratios to the largest, so that they neither overflow nor vanish."""
    size = difference.abs()
    if p == 1:
        return size.sum(-1)
    top = size.amax(-1) if size.shape[-1] else size.sum(-1)
    if p == math.inf:
        return top
    scale = top.clamp(min=torch.finfo(top.dtype).tiny)
    return torch.where(top == math.inf, top, scale * (size / scale[..., None]).pow(p).sum(-1).pow(1.0 / p))


def _slope(difference: Tensor, length: Tensor, p: float) -> Tensor:
    """The gradient of the p-norm, of that length."""
    if p == 1:
        return difference.sign()
    ratio = difference / length.clamp(min=torch.finfo(length.dtype).tiny)
    return ratio.sign() * torch.where(ratio == 0, 0.0, ratio.abs().pow(p - 1.0))


def _largest(difference: Tensor, length: Tensor) -> Tensor:
    """The sign of each difference that is the largest."""
    return torch.where(difference.abs() == length, difference.sign(), 0.0)
