import torch

from metric_kernels import fn
from metric_kernels.core import fits, queued
from metric_kernels.distances import DotProductSimilarity
from metric_kernels.language import Op, lse, total
from metric_kernels.losses._pair import PairLoss
from metric_kernels.metrics import Dot
from metric_kernels.reducers import ClassWeightedReducer, PerAnchorReducer
from metric_kernels.rowstats import Call, pair_matrix, row_stats


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

    def __init__(self, **kwargs) -> None:
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
        pairs, first = _pairs(batch)
        if queued(batch.x) and (reducer := self._masking()) is not None:
            # The number of classes is not known here, but each has two samples or else a listed anchor.
            most = len(batch.x) // 2 if batch.pairs is None else len(batch.x)
            if torch.compiler.is_compiling() or fits(most, most, batch.x.dtype):
                at = torch.sort(first, stable=True, descending=True).indices[:most]
                return self._masked(batch.pairing(pairs.index_select(1, at)), first[at], reducer)
        return super()._evaluate(batch.pairing(pairs.index_select(1, first.nonzero()[:, 0])))

    def _masking(self):
        """The reducer, if it can leave losses out."""
        (reducer,) = self._reducers()
        if isinstance(reducer, PerAnchorReducer):
            reducer = reducer.reducer  # an anchor has one loss here
        return reducer if reducer.plain is not None or type(reducer) is ClassWeightedReducer else None

    def _masked(self, batch, used, reducer):
        """The loss over the pairs that are ``used``, in a batch of them and others."""
        matrix = torch.where(used, pair_matrix(self.distance, batch.x, batch.y), self.sign * torch.inf)
        op = Op(self.formula, Dot, self._params())
        call = Call(op, matrix, None, batch.targets, batch.targets, None, False, False, True, False, None, self.backend)
        losses = self._rows(row_stats(call)[0])
        inside = used & reducer.inside(losses)
        return reducer.of_pairs(torch.where(inside, losses, 0.0), inside, batch.labels)


def _pairs(batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive pairs (anchor, positive) as columns in the order of the labels, and which is the first of its class."""
    if batch.pairs is not None:
        pairs = torch.stack(batch.pairs[0][:2])
        labels, order = torch.sort(batch.labels[pairs[0]], stable=True)
        return pairs[:, order], labels.diff(prepend=labels[:1] - 1) != 0
    labels, order = torch.sort(batch.labels, stable=True)
    first = labels[1:] == labels[:-1]
    first[1:] &= labels[2:] != labels[:-2]
    return torch.stack((order[:-1], order[1:])), first
