from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels import fn
from metric_kernels.binned import PairHistogram, soft_histogram
from metric_kernels.checks import whole_number
from metric_kernels.losses._base import Loss
from metric_kernels.terms import evaluate, running_sums
from metric_kernels.tuples import Pairs, values

PAIRS = ("triplets", "all")
KERNELS = ("step", "linear", "exp")


class HistogramLoss(Loss):
    """Histogram loss: the probability that a negative pair is more similar than a positive one.

    ``sum_r h-_r sum_{q <= r} h+_q`` for soft histograms h+ and h- of the similarities of positive and of negative pairs, with
    nodes t_r from -1 to 1. In general ``h+^T L h-`` with

    - "step": L_qr = 1 if t_q <= t_r,
    - "linear": ``[margin - t_q + t_r]_+``, the quadruplet hinge up to the width of a bin,
    - "exp": ``log(1 + e^{alpha (margin - t_q + t_r)})``, the smooth quadruplet loss up to the width of a bin.

    Ustinova and Lempitsky, "Learning Deep Embeddings with Histogram Loss", NeurIPS 2016, with the kernels of its published
    layers. One sweep over the pairs forward, one table look-up for each pair backward. Histograms are sums of integers, the
    same in any order; where a pair lies between two nodes is known as well as its similarity.

    Args:
        n_bins: number of bins, 100 if ``delta`` is None too.
        delta: their width, 2 / n_bins.
        pairs: "triplets", unordered pairs that occur in a triplet, as pytorch-metric-learning has it: a negative pair of two
            points without a positive does not count. "all" is the paper's.
        kernel: "step", "linear" or "exp".
        margin: of the other kernels.
        alpha: of "exp".
        **kwargs: ``distance`` (CosineSimilarity), ``reducer`` (MeanReducer; the loss is one number, which no reducer changes),
            and the others of :class:`~metric_kernels.losses.Loss`.

    Similarities beyond -1 and 1, 1 among them, belong to the last bin on their side (pytorch-metric-learning raises). Pairs in
    ``indices_tuple`` are counted once each. Without a positive or a negative pair the loss is 0. A reference set raises
    ValueError.

    Raises:
        AssertionError: ``n_bins`` and ``delta`` that do not fit each other, as in pytorch-metric-learning.
        ValueError: an unknown ``pairs`` or ``kernel``, fewer than one bin, or a distance that is no similarity.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import HistogramLoss
        >>> loss = HistogramLoss()
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.)
    """

    kernels = "binned"

    def __init__(
        self,
        n_bins: int | None = None,
        delta: float | None = None,
        pairs: str = "triplets",
        kernel: str = "step",
        margin: float = 0.0,
        alpha: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, known in (("pairs", pairs, PAIRS), ("kernel", kernel, KERNELS)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        bins = 100 if n_bins is None else whole_number("n_bins", n_bins)
        if delta is None:
            delta = 2 / bins
        elif n_bins is not None and delta != 2 / bins:
            raise AssertionError(f"delta: expected 2 / n_bins = {2 / bins}, got {delta!r}")
        if not isinstance(delta, (int, float)) or not 0 < delta <= 2:
            raise ValueError(f"delta: expected a width above 0 and up to 2, got {delta!r}")
        if not self.distance.is_inverted:
            raise ValueError(
                "distance: expected a similarity, such as CosineSimilarity(), since the nodes are from -1 to 1, "
                f"got {type(self.distance).__name__}"
            )
        self.delta = delta
        self.pairs = pairs
        self.kernel = kernel
        self.margin = margin
        self.alpha = alpha

    @property
    def nodes(self) -> int:
        return round(1 + 2 / self.delta)

    def _evaluate(self, batch):
        self._refuse(batch)
        positive, negative = self._listed(batch) if batch.pairs is not None else self._counted(batch)
        numbers = [h.detach().sum() for h in (positive, negative)]
        loss = self._compared(*(h / n.clamp(min=1e-30) for h, n in zip((positive, negative), numbers)))
        nothing = (positive.sum() + negative.sum()) * 0.0
        return self._whole(torch.where((numbers[0] == 0) | (numbers[1] == 0), nothing, loss), batch)

    def _compared(self, positive: Tensor, negative: Tensor) -> Tensor:
        if self.kernel == "step":
            return (negative * running_sums(positive)).sum()
        node = -1.0 + self.delta * torch.arange(self.nodes, dtype=positive.dtype, device=positive.device)
        gap = self._number("margin") - node[:, None] + node
        cost = torch.relu(gap) if self.kernel == "linear" else fn.softplus(self._number("alpha") * gap)
        return positive @ cost @ negative

    def _counted(self, batch) -> tuple[Tensor, Tensor]:
        """By class, where points without a positive have negatives among the others only, or as it is."""
        lone = self.pairs == "triplets"
        term = PairHistogram(-1.0, self.delta, self.nodes, False, lone)
        (found,), _ = evaluate(term, batch.merged() if lone else batch, self.distance, self.backend)
        return found.unbind(0)

    def _listed(self, batch) -> tuple[Tensor, Tensor]:
        sides = batch.pairs
        if self.pairs == "triplets":
            used = [p.anchors.bincount(minlength=len(batch.x)) > 0 for p in sides]
            both = used[0] & used[1]
            sides = [Pairs(p.anchors[both[p.anchors]], p.others[both[p.anchors]]) for p in sides]
        return tuple(self._once(batch, p) for p in sides)

    def _once(self, batch, pairs: Pairs) -> Tensor:
        size = len(batch.x)
        low, high = torch.minimum(pairs.anchors, pairs.others), torch.maximum(pairs.anchors, pairs.others)
        code = torch.unique(low * size + high)
        v = values(self.distance, batch.x, batch.y, Pairs(code // size, code % size))
        return soft_histogram(v, -1.0, self.delta, self.nodes)
