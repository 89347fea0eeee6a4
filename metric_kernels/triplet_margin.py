"""The triplet margin loss of rows that are triplets already, in one pass over them forward and one backward."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels.core import arithmetic
from metric_kernels.vectors import check_order, triplet_loss

_REDUCTIONS = ("none", "mean", "sum")


def triplet_margin(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    *,
    reduction: str = "mean",
) -> Tensor:
    """``max(margin + d(anchor, positive) - d(anchor, negative), 0)`` for each row, with ``d(a, b) = ||a - b + eps||_p``.

    torch.nn.functional.triplet_margin_loss in one pass: the differences are not kept but computed again for the gradient.

    Balntas et al., "Learning local feature descriptors with triplets and shallow convolutional neural networks", BMVC 2016.

    Args:
        anchor: (N, D) or (D,), any floating type; more leading dimensions are rows too.
        positive: of as many dimensions; sizes of 1 are expanded.
        negative: likewise.
        margin: above 0.
        p: order of the norm, above 0; inf for the largest difference.
        eps: added to each difference.
        swap: whether d(positive, negative) takes the place of d(anchor, negative) where it is smaller.
        reduction: "none", "mean" or "sum".
    Returns:
        A scalar, or with "none" (N,), in the promoted type of the three (float32 for half precision in an autocast region),
        computed in float32 (float64 for float64). No rows cost 0, where torch has a mean of NaN.
    Raises:
        ValueError: margin or p that is not above 0, an unknown reduction, shapes or devices that do not match.
        TypeError: what is no tensor of a floating type.
        RuntimeError: the backend that was asked for cannot compute it.

    NaN reaches the loss. Gradients at kinks are those of torch: 0 at a distance of 0, shared by equal largest differences and
    by equal distances of a swap, and that of an active triplet at a loss of exactly 0. A second derivative raises.

    Example:
        >>> import torch
        >>> from metric_kernels.functional import triplet_margin
        >>> anchor, positive, negative = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[0.0, 2.0]]])
        >>> triplet_margin(anchor, positive, negative, eps=0.0)
        tensor(4.)
    """
    if not margin > 0:
        raise ValueError(f"margin: expected a number above 0, got {margin!r}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    points = {"anchor": anchor, "positive": positive, "negative": negative}
    shape = _checked_shape(points)
    dtype = torch.promote_types(torch.promote_types(anchor.dtype, positive.dtype), negative.dtype)
    computed = arithmetic(dtype)
    anchor, positive, negative = (_rows(t.to(computed), shape) for t in points.values())
    loss = triplet_loss(anchor, positive, negative, float(margin), check_order(p), float(eps), bool(swap), reduction)
    if reduction == "none":
        loss = loss.view(shape[:-1])
    # As torch's own losses are, it is float32 in an autocast region.
    return loss if computed != dtype and torch.is_autocast_enabled(anchor.device.type) else loss.to(dtype)


def _rows(t: Tensor, shape: torch.Size) -> Tensor:
    t = t if t.shape == shape else t.expand(shape)
    return t if t.ndim == 2 else t.reshape(shape[:-1].numel(), shape[-1])


def _checked_shape(points: dict[str, Tensor]) -> torch.Size:
    """The shape that all are expanded to."""
    first = points["anchor"]
    for name, value in points.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: expected a tensor of a floating type, got {getattr(value, 'dtype', type(value))}")
        if not value.ndim or value.ndim != first.ndim:
            expected = f"{first.ndim} dimensions" if first.ndim else "at least 1 dimension"
            raise ValueError(f"{name}: expected {expected}, got shape {tuple(value.shape)}")
        if value.device != first.device:
            raise ValueError(f"{name}: expected device {first.device}, got {value.device}")
    try:
        return torch.broadcast_shapes(*(t.shape for t in points.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in points.items())
        raise ValueError(f"anchor, positive, negative: expected shapes that expand to one, got {shapes}") from None
