from metric_kernels import fn
from metric_kernels.language import lse
from metric_kernels.losses._pair import PairLoss


class MultiSimilarityLoss(PairLoss):
    """Multi-similarity loss without its mining step.

    ``l_a = 1/alpha log(1 + sum_p e^{alpha (base - s_ap)}) + 1/beta log(1 + sum_n e^{beta (s_an - base)})``, mean over all
    anchors.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019. Combine it with a
    miner through ``indices_tuple`` for the mined form. With a distance, ``base - s`` becomes ``d - base``.

    Args:
        alpha: weight of the exponent of positive pairs.
        beta: weight of the exponent of negative pairs.
        base: similarity at which a pair is neither attracted nor repelled.
        **kwargs: ``distance`` (CosineSimilarity), ``reducer`` (MeanReducer), and the others of
            :class:`~metric_kernels.losses.PairLoss`.

    An anchor without positives or negatives has a 0 in place of that term and is averaged over.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import MultiSimilarityLoss
        >>> loss = MultiSimilarityLoss()
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.6566)
    """

    def __init__(self, alpha: float = 2, beta: float = 50, base: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.alpha = alpha
        self.beta = beta
        self.base = base

    stats = (lse("pos"), lse("neg"))

    def pair(v, sign, alpha, beta, base):
        return alpha * sign * (v - base), beta * sign * (base - v)

    def dpair(v, sign, alpha, beta, base):
        return alpha * sign, -beta * sign

    def row(positives, negatives, alpha, beta):
        return fn.softplus(positives) / alpha + fn.softplus(negatives) / beta
