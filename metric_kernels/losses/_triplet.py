"""The base of losses on triplets: sums over all triplets of a batch, or a list of them."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels import reducers
from metric_kernels.batch import Batch
from metric_kernels.losses._base import Loss
from metric_kernels.triplets import Triplets
from metric_kernels.tuples import Pairs, values


class TripletLoss(Loss):
    """Base class of losses on triplets (anchor, positive, negative).

    A subclass says what each triplet of a list costs (``_costs``) and, for all triplets of a batch, the sums and numbers (B,)
    of the losses inside a reducer's window (``_sums``), or (1,) if the reducer needs no more.
    """

    def _evaluate(self, batch: Batch):
        (reducer,) = self._reducers()
        if self._listed(batch, reducer):
            triplets = self._triplets(batch)
            return self._each({"loss": (self._costs(batch, triplets), tuple(triplets), "triplet")}, [reducer], batch)
        totals, counts = self._sums(batch, reducer)
        return reducer.of_pairs(totals, counts.double(), batch.labels)

    def _listed(self, batch: Batch, reducer: reducers.Reducer) -> bool:
        """Whether the triplets have to be listed one by one."""
        return batch.pairs is not None or reducer.needs_each

    def _triplets(self, batch: Batch) -> Triplets:
        return Triplets.of(batch)

    def _costs(self, batch: Batch, triplets: Triplets) -> Tensor:
        raise NotImplementedError

    def _sums(self, batch: Batch, reducer: reducers.Reducer) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _values(self, batch: Batch, triplets: Triplets) -> tuple[Tensor, Tensor]:
        """The pair values of anchors with positives and with negatives."""
        a, p, n = triplets
        both = values(self.distance, batch.x, batch.y, Pairs(torch.cat((a, a)), torch.cat((p, n))))
        return both[: len(a)], both[len(a) :]


class SampledTripletLoss(TripletLoss):
    """With an integer as ``triplets_per_anchor``, that many random triplets of each anchor instead of all."""

    def __init__(self, triplets_per_anchor: int | str, **kwargs):
        super().__init__(**kwargs)
        number = triplets_per_anchor
        if number != "all" and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ValueError(f"triplets_per_anchor: expected 'all' or an integer from 1, got {number!r}")
        self.triplets_per_anchor = triplets_per_anchor

    def _listed(self, batch, reducer):
        return super()._listed(batch, reducer) or self.triplets_per_anchor != "all"

    def _triplets(self, batch):
        if batch.pairs is None and self.triplets_per_anchor != "all":
            return Triplets.sampled(batch, self.triplets_per_anchor)
        return super()._triplets(batch)
