from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metric_kernels.distances import Distance, LpDistance
from metric_kernels.language import Formula, count, stages_of, total
from metric_kernels.losses._base import Loss, check_unanchored
from metric_kernels.rowstats import Call, row_stats
from metric_kernels.tuples import Pairs, values
from metric_kernels.windows import quadruplet_sums, triplet_sums

# Pairs that a learned metric is given at a time.
_CHUNK = 1 << 16


class Sides:
    """Sums of the positive and of the negative pair values."""

    stats = (total("pos"), count("pos"), total("neg"), count("neg"))

    def pair(v):
        return v, 1.0, v, 1.0

    def dpair(v):
        return 1.0, 0.0, 1.0, 0.0


FORMULA = Formula(f"{__name__}.Sides", stages_of(Sides))


class QuadrupletLoss(Loss):
    """Quadruplet loss: a triplet term and one of pairs that have no class in common, with a smaller margin.

    ``mean [g_ij - g_ik + margin1]_+`` over the triplets (i, j, k) plus ``mean [g_ij - g_kl + margin2]_+`` over positive pairs
    (i, j) and negative pairs (k, l) of other classes, g being the pair value, by default the squared distance.

    Chen, Chen, Zhang and Huang, "Beyond Triplet Loss: A Deep Quadruplet Network for Person Re-identification", CVPR 2017.
    All tuples of a batch are summed exactly in O(B^2 log B) time. ``reducer=SumReducer()`` gives the sums over ordered tuples
    that the paper prints.

    Args:
        margin1: margin of the triplets.
        margin2: margin of the quadruplets.
        adaptive: margins 1 and 0.5 times the mean of the negative pair values less that of the positive ones, instead.
        detach_margins: whether adaptive margins are constants for differentiation.
        metric: a learned metric, a callable on two tensors (P, D) that returns (P,) values, small for similar pairs. It is
            called once for each pair i < j, 65536 at a time, and again in the backward pass, in place of ``distance``.
        **kwargs: ``distance`` (LpDistance(power=2)), ``reducer`` (MeanReducer, applied to "triplet_loss" and "quadruplet_loss"
            separately and added), and the others of :class:`~metric_kernels.losses.Loss`.

    ``indices_tuple`` lists quadruplets (a, p, n1, n2); then the terms are ``[g_ap - g_an1 + margin1]_+`` and
    ``[g_ap - g_n1n2 + margin2]_+``, and adaptive margins are those of the listed pairs. A side without tuples adds
    0. With a similarity all differences change sign. A reference set raises ValueError.

    Raises:
        ValueError: an indices_tuple of other than four parts, a distance that is not symmetric, or a reducer that needs
            anchors.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import QuadrupletLoss
        >>> loss = QuadrupletLoss(margin1=0.5, margin2=0.25)
        >>> loss(torch.eye(6), torch.tensor([0, 0, 1, 1, 2, 2]))
        tensor(0.7500)
    """

    default_distance = partial(LpDistance, power=2)
    kernels = "ordered"
    sub_losses = ("triplet_loss", "quadruplet_loss")

    def __init__(
        self,
        margin1: float = 1.0,
        margin2: float = 0.5,
        adaptive: bool = False,
        detach_margins: bool = True,
        metric: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if metric is not None and not callable(metric):
            raise TypeError(f"metric: expected a callable, got {type(metric).__name__}")
        if metric is not None and kwargs.get("distance") is not None:
            raise ValueError(f"metric: expected None with a distance, got {metric!r}")
        self.margin1 = margin1
        self.margin2 = margin2
        self.adaptive = adaptive
        self.detach_margins = detach_margins
        self.metric = metric

    def _evaluate(self, batch):
        self._refuse(batch)
        if batch.pairs is not None:
            return self._of_list(batch)
        distance = self.distance if self.metric is None else Learned(self.metric, batch.x)
        margins = self._margins(self._gap(batch, distance)) if self.adaptive else self._fixed()
        first, second = self._reducers()
        for reducer in (first, second):
            check_unanchored(reducer)
        distance.check_symmetric(type(self).__name__)
        known = [float(m.detach()) if self.adaptive else m for m in margins]
        triplets = triplet_sums(first.window, "hinge", known[0], batch, distance, self.backend, summed=True)
        quadruplets = quadruplet_sums(second.window, known[1], "other_class", batch, distance, self.backend)
        loss = 0.0
        # An unordered quadruplet stands for four ordered ones.
        for reducer, sums, margin, times in ((first, triplets, margins[0], 1), (second, quadruplets, margins[1], 4)):
            totals, counts = sums.totals.sum()[None], sums.counts.sum()[None].double()
            if self.adaptive:
                totals = totals + sums.active.sum() * (margin - margin.detach())
            loss = loss + reducer.of_pairs(times * totals, times * counts, batch.labels)
        return loss

    def _fixed(self) -> tuple[float, float]:
        return self._number("margin1"), self._number("margin2")

    def _margins(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        gap = gap.detach() if self.detach_margins else gap
        return gap, 0.5 * gap

    def _gap(self, batch, distance) -> Tensor:
        """How much farther a negative pair is than a positive one, on average."""
        found, _ = row_stats(Call.of(FORMULA, ((),), distance, batch, self.backend))
        positive, number, negative, others = (t.double().sum() for t in found)
        return distance.sign * (negative / others.detach().clamp(min=1.0) - positive / number.detach().clamp(min=1.0))

    def _of_list(self, batch):
        if batch.listed != 4:
            raise ValueError(f"indices_tuple: expected quadruplets (a, p, n1, n2), got {batch.listed} parts")
        (a, p, _), (n1, n2, _) = batch.pairs
        if len(a) != len(n1):
            raise ValueError(f"indices_tuple: expected as many anchors as negatives, got {len(a)} and {len(n1)}")
        pairs = Pairs(torch.cat((a, a, n1)), torch.cat((p, n1, n2)))
        if self.metric is None:
            found = values(self.distance, batch.x, batch.y, pairs)
        else:
            found = _called(self.metric, batch.x, *pairs[:2])
        sign = self.distance.sign if self.metric is None else 1.0
        positive, negative, other = (sign * found).unflatten(0, (3, len(a))).unbind(0)
        if self.adaptive and len(a):
            margin1, margin2 = self._margins(0.5 * (negative.mean() + other.mean()) - positive.mean())
        else:
            margin1, margin2 = self._fixed()
        found = {
            "triplet_loss": (torch.relu(positive - negative + margin1), (a, p, n1), "triplet"),
            "quadruplet_loss": (torch.relu(positive - other + margin2), a, "element"),
        }
        return self._each(found, self._reducers(), batch)


class Learned(Distance):
    """A metric that is given pairs of embeddings, as a matrix."""

    symmetric = True  # each pair is called once

    def __init__(self, metric: Callable[[Tensor, Tensor], Tensor], x: Tensor):
        super().__init__(normalize_embeddings=False)
        i, j = torch.triu_indices(len(x), len(x), 1, device=x.device)
        v = _called(metric, x, i, j)
        upper = v.new_zeros(len(x), len(x)).index_put((i, j), v)
        self.known = upper + upper.T

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        return self.known.to(x.dtype)


def _called(metric: Callable[[Tensor, Tensor], Tensor], x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    found = []
    for first, second in zip(i.split(_CHUNK), j.split(_CHUNK)):
        value = checkpoint(lambda a, b: metric(x[a], x[b]), first, second, use_reentrant=False)
        if not isinstance(value, Tensor) or value.shape != first.shape:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"metric: expected it to return shape ({len(first)},), got {given}")
        found.append(value)
    return torch.cat(found) if found else x.new_zeros(0)
