import torch

from metric_kernels import fn
from metric_kernels.distances import DotProductSimilarity
from metric_kernels.language import lse, total
from metric_kernels.losses._base import PairLoss


class NPairsLoss(PairLoss):
    """Multi-class N-pair loss: one anchor and one positive per class, every other class's positive is a negative.

    ``l_i = log(1 + sum_{j != i} e^{a_i . p_j - a_i . p_i})``, mean over classes.

    Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS 2016, without the penalty on norms.
    The anchor of a class is its first sample and the positive its second, or the first pair that ``indices_tuple`` lists for
    the class.

    Args:
        **kwargs: ``distance`` (DotProductSimilarity, which normalises by default as in pytorch-metric-learning; pass
            ``DotProductSimilarity(normalize_embeddings=False)`` for the paper's), ``reducer`` (MeanReducer), and the others
            of :class:`~metric_kernels.losses.PairLoss`.

    A reference set raises ValueError. Without a class of two samples the loss is 0.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import NPairsLoss
        >>> loss = NPairsLoss()
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.6931)
    """

    default_distance = DotProductSimilarity

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    stats = (total("pos"), lse("neg"))

    def pair(v, sign):
        return -sign * v, -sign * v

    def dpair(v, sign):
        return -sign, -sign

    def row(positive, negatives):
        return fn.softplus(negatives - positive)

    def _evaluate(self, batch):
        if not batch.same:
            raise ValueError("ref_emb is not supported for NPairsLoss: it pairs the samples of one batch")
        if batch.labels is None:
            raise ValueError("labels: NPairsLoss expects them, got None")
        return super()._evaluate(batch.pairing(_first_pairs(batch)))


def _first_pairs(batch) -> torch.Tensor:
    """The first positive pair (anchor, positive) of each class as a column, in the order of the labels."""
    if batch.pairs is not None:
        anchors, positives = batch.pairs[0]
        order = torch.sort(batch.labels[anchors], stable=True)
        first = torch.ones_like(order.values, dtype=torch.bool)
        first[1:] = order.values[1:] != order.values[:-1]
        chosen = order.indices[first]
        return torch.stack((anchors[chosen], positives[chosen]))
    labels, order = torch.sort(batch.labels, stable=True)
    continues = labels[1:] == labels[:-1]
    first = continues.clone()
    first[1:] &= ~continues[:-1]
    at = first.nonzero()[:, 0]
    return order.index_select(0, torch.cat((at, at + 1))).view(2, -1)
