"""The kernels of :mod:`metric_kernels.vectors` in C++; the arguments are described there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metric_kernels.backends.native import extension


def distances(kind: str, p: float, x: Tensor, y: Tensor, out: Tensor):
    extension().distances(kind, p, _threads(), _rows(x), y.t().contiguous().numpy(), out.numpy())


def distance_grads(kind: str, p: float, x: Tensor, y: Tensor, d: Tensor, g: Tensor, out: Tensor):
    extension().distance_grads(kind, p, _threads(), _rows(x), _rows(y), _rows(d), _rows(g), out.numpy())


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
    rows = _rows(anchor), _rows(positive), _rows(negative), p, margin, eps, swap, _threads()
    extension().triplet_losses(*rows, distances.numpy(), losses.numpy())


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
    rows = _rows(anchor), _rows(positive), _rows(negative), p, margin, eps, swap, _threads()
    out = [None if grad is None else grad.numpy() for grad in grads]
    extension().triplet_grads(*rows, distances.numpy(), g.contiguous().numpy(), *out)


def _rows(t: Tensor):
    """Rows may lie anywhere, or be one and the same, as long as each is contiguous."""
    return (t if t.stride(1) == 1 else t.contiguous()).numpy()


def _threads() -> int:
    return min(torch.get_num_threads(), 1024)
