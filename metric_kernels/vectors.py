"""Distances of vectors that are no function of inner products, between all rows of two sets and between triplets of rows.

They are computed from the differences of coordinates, pair by pair, and the differences again in the backward pass: no tensor
has a place for each coordinate of each pair.

What the ``vectors`` kernels of a backend do, on sets and rows that are not empty. A ``kind`` is "lp", with p > 0 or inf, or
"jensen_shannon", which has no p:

    lp                 (sum_k |x_k - y_k| ** p) ** (1 / p), or max_k |x_k - y_k|
    jensen_shannon     sqrt(1/2 sum_k (x_k log(x_k / m_k) + y_k log(y_k / m_k))), m = (x + y) / 2, of numbers >= 0

``distances(kind, p, x, y, out)``
    writes the distance of each row of x (N, D) from each row of y (M, D) to out (N, M). A NaN in either row makes it NaN.
``distance_grads(kind, p, x, y, d, g, out)``
    writes sum_j g_ij * d d_ij / d x_i to out (N, D), given the distances d and the gradient g with respect to them, (N, M).
    Each term is 0 at d_ij = 0 and at a coordinate where x and y are equal or, for Jensen-Shannon, x is 0. Of equal largest
    differences each has the whole gradient, as in torch.cdist.
``triplet_losses(p, margin, eps, swap, anchor, positive, negative, distances, losses)``
    for each row of three (N, D): writes the p-norms of anchor - positive + eps, of anchor - negative + eps and, with ``swap``,
    of positive - negative + eps to the rows of distances (2 or 3, N), and max(margin + the first - the smaller one of the
    others, 0) to losses (N,).
``triplet_grads(p, margin, eps, swap, anchor, positive, negative, distances, g, grads)``
    writes the gradients with respect to each of the three to ``grads``, a tensor (N, D) or None each, given the gradient g (N,)
    with respect to the losses. At a kink it is that of torch.nn.functional.triplet_margin_loss: as above, but equal largest
    differences share it, as equal distances do, and a loss of exactly 0 has the gradient of one above.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from metric_kernels import backends
from metric_kernels.once import once
from metric_kernels.operation import Operation

# A long sum is one of sums of so many, whatever the number of threads.
_BLOCK = 1024


def check_order(p: object) -> float:
    try:
        order = float(p)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        order = -1.0
    if not order > 0:
        raise ValueError(f"p: expected a number above 0, got {p!r}")
    return order


def distance_matrix(x: Tensor, y: Tensor | None, kind: str, p: float) -> Tensor:
    """Distances (N, M) between the rows of x (N, D) and y (M, D), or of x and itself if y is None. Of one arithmetic type."""
    return _distances(x, y, kind, check_order(p))[0]


def triplet_loss(
    anchor: Tensor, positive: Tensor, negative: Tensor, margin: float, p: float, eps: float, swap: bool, reduction: str
) -> Tensor:
    """Losses (N,) of three (N, D) of one arithmetic type, or with a ``reduction`` other than "none" their mean or sum."""
    return _triplets(anchor, positive, negative, margin, p, eps, swap, reduction)[0]


def _kernels(x: Tensor):
    return backends.kernels("vectors", x.device, x.dtype)


def _distances_forward(kernels, x, y, kind, p):
    y = x if y is None else y
    if not x.numel() or not y.numel():
        return (x.new_zeros(len(x), len(y)),)
    out = x.new_empty(len(x), len(y))
    kernels.distances(kind, p, x, y, out)
    return (out,)


def _distances_backward(kernels, grad, outputs, tensors, numbers, wanted):
    (d,), (x, y) = outputs, tensors

    def pulled(mine, other, d, g):
        if not mine.numel() or not other.numel():
            return torch.zeros_like(mine, memory_format=torch.contiguous_format)
        out = torch.empty_like(mine, memory_format=torch.contiguous_format)
        kernels.distance_grads(*numbers, mine, other, d, g, out)
        return out

    if y is None:  # a row is on either side, and d is symmetric
        return pulled(x, x, d, grad + grad.t()) if wanted[0] else None, None
    return pulled(x, y, d, grad) if wanted[0] else None, pulled(y, x, d.t(), grad.t()) if wanted[1] else None


_distances = Operation(
    "vector_distances",
    ("x", "y?"),
    "str kind, float p",
    1,
    _kernels,
    _distances_forward,
    _distances_backward,
    lambda x, y, kind, p: (x.new_empty(x.shape[0], (x if y is None else y).shape[0]),),
)


def _triplets_forward(kernels, anchor, positive, negative, margin, p, eps, swap, reduction):
    number = len(anchor)
    distances, losses = anchor.new_empty(3 if swap else 2, number), anchor.new_empty(number)
    if anchor.numel():
        kernels.triplet_losses(p, margin, eps, swap, anchor, positive, negative, distances, losses)
    else:
        distances.zero_()
        losses.fill_(margin)
    if reduction == "none":
        return losses, distances
    if number > _BLOCK:
        losses = pad(losses, (0, -number % _BLOCK)).view(-1, _BLOCK).sum(1)
    return losses.sum().div_(_divisor(number, reduction)), distances


def _triplets_backward(kernels, grad, outputs, tensors, numbers, wanted):
    margin, p, eps, swap, reduction = numbers
    number = len(tensors[0])
    grads = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) if w else None for t, w in zip(tensors, wanted))
    if tensors[0].numel():
        g = (grad / _divisor(number, reduction)).expand(number)
        kernels.triplet_grads(p, margin, eps, swap, *tensors, outputs[1], g, grads)
    return grads


def _divisor(number: int, reduction: str) -> int:
    return max(number, 1) if reduction == "mean" else 1


_triplets = Operation(
    "triplet_loss",
    ("anchor", "positive", "negative"),
    "float margin, float p, float eps, bool swap, str reduction",
    2,
    _kernels,
    _triplets_forward,
    _triplets_backward,
    lambda anchor, positive, negative, margin, p, eps, swap, reduction: (
        anchor.new_empty(anchor.shape[:1] if reduction == "none" else ()),
        anchor.new_empty(3 if swap else 2, anchor.shape[0]),
    ),
)


def jensen_shannon(x: Tensor, y: Tensor) -> Tensor:
    """Twice x log(x / m) + y log(y / m) of numbers >= 0, elementwise, exact where x and y are nearly equal too."""
    t, u, w = _beside_one(x, y)
    near = t * 2.0 * torch.atanh(t) + torch.log1p(-t.square())
    return (x + y) * torch.where(t.abs() < 0.25, near, torch.xlogy(u, u) + torch.xlogy(w, w))


def jensen_shannon_slope(x: Tensor, y: Tensor) -> Tensor:
    """log(x / m), half the derivative of the above with respect to x; 0 where x is 0."""
    t, u, _ = _beside_one(x, y)
    return torch.where(u == 0, 0.0, torch.where(t.abs() < 0.25, torch.log1p(t), torch.log(u)))


def _beside_one(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t, 1 + t and 1 - t for t = (x - y) / (x + y), each exact by itself."""
    both = x + y
    inverse = torch.where(both < torch.finfo(x.dtype).tiny, 0.0, 1.0 / both)
    return (x - y) * inverse, 2.0 * x * inverse, 2.0 * y * inverse


class JensenShannonRows(torch.autograd.Function):
    """Jensen-Shannon distances (N,) between corresponding rows."""

    @staticmethod
    def forward(ctx, x, y):
        d = 0.5 * jensen_shannon(x, y).sum(1).sqrt()
        ctx.save_for_backward(x, y, d)
        return d

    @staticmethod
    def backward(ctx, grad):
        x, y, d = ctx.saved_tensors
        with torch.no_grad():
            w = torch.where(d == 0, 0.0, grad / (4.0 * d))[:, None]
            gx, gy = w * jensen_shannon_slope(x, y), w * jensen_shannon_slope(y, x)
        return once(gx, x, y), once(gy, x, y)
