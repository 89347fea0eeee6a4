from __future__ import annotations

import math

import torch

from metric_kernels import fn
from metric_kernels.language import Formula, lse, stages_of
from metric_kernels.losses._base import Loss
from metric_kernels.rowstats import Call, row_stats
from metric_kernels.tuples import Pairs, values


class Exponents:
    """Log-sum-exps that grow with the distance of positives and the nearness of negatives."""

    stats = (lse("pos"), lse("neg"))

    def pair(v, sign, scale):
        return sign * scale * v, -sign * scale * v

    def dpair(v, sign, scale):
        return sign * scale, -sign * scale


FORMULA = Formula(f"{__name__}.Exponents", stages_of(Exponents))


class QuadrupletLogSumExpLoss(Loss):
    """Smooth maximum over every positive pair with every negative pair of a batch.

    ``log(1 + sum_{(i,j), (k,l)} e^{scale (s_kl - s_ij)})`` over unordered positive pairs (i, j) and negative pairs (k, l). With
    a distance the difference changes sign.

    The sum over quadruplets is the product of a sum over negative and one over positive pairs, so that it costs no more than
    a loss on pairs. It is what CoSENT (Su, 2022; CoSENTLoss of sentence-transformers) is for labels of two kinds.

    Args:
        scale: factor of the similarities.
        **kwargs: ``distance`` (CosineSimilarity; symmetric), ``reducer`` (MeanReducer; the loss is one number, which no reducer
            changes), and the others of :class:`~metric_kernels.losses.Loss`.

    Pairs in ``indices_tuple`` count as they are listed, and so does each pair with a reference set. Without a positive or
    without a negative pair the loss is 0.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import QuadrupletLogSumExpLoss
        >>> loss = QuadrupletLogSumExpLoss()
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(2.1972)
    """

    kernels = FORMULA

    def __init__(self, scale: float = 20.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def _evaluate(self, batch):
        if batch.same:
            self.distance.check_symmetric(type(self).__name__)
        if batch.pairs is not None:
            exponents = [side * self._values(batch, p) for side, p in zip((self.sign, -self.sign), batch.pairs)]
            halved = 0.0
        else:
            params = ((self.sign, self._number("scale")),)
            exponents, _ = row_stats(Call.of(FORMULA, params, self.distance, batch, self.backend))
            halved = 2.0 * math.log(2.0) if batch.same else 0.0  # each pair was seen from both its ends
        return self._whole(fn.softplus(sum(_lse(t.double()) for t in exponents) - halved), batch)

    def _values(self, batch, pairs: Pairs):
        return self._number("scale") * values(self.distance, batch.x, batch.y, pairs)


def _lse(t: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp, the lowest number instead of -inf, whose gradient would be NaN."""
    return torch.cat((t, t.new_full((1,), -1e30))).clamp(min=-1e30).logsumexp(0)
