from metric_kernels import fn
from metric_kernels.language import count, lse, total
from metric_kernels.losses._pair import PairLoss
from metric_kernels.reducers import AvgNonZeroReducer


class SupConLoss(PairLoss):
    """Supervised contrastive loss, the form with the sum over positives outside the logarithm.

    ``l_a = -1/|P(a)| sum_p ( s_ap/T - log sum_{j in P(a) u N(a)} e^{s_aj/T} )``, mean over the anchors with a loss above 0.

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, without the factor of the base temperature. With a
    distance, s is -d.

    Args:
        temperature: T.
        **kwargs: ``distance`` (CosineSimilarity), ``reducer`` (AvgNonZeroReducer), and the others of
            :class:`~metric_kernels.losses.PairLoss`.

    Anchors without positives have loss 0 and are left out of the mean. A batch without any positive pair or without any
    negative pair has loss 0.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import SupConLoss
        >>> loss = SupConLoss(temperature=0.5)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.0986)
    """

    default_reducer = AvgNonZeroReducer
    required = 1

    def __init__(self, temperature: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    stats = (lse("pos"), lse("neg"), total("pos"), count("pos"))

    def pair(v, sign, temperature):
        logit = -sign * v / temperature
        return logit, logit, logit, 1.0

    def dpair(v, sign, temperature):
        slope = -sign / temperature
        return slope, slope, slope, 0.0

    def row(positives, negatives, logits, number):
        counts = number > 0.0
        everything = fn.logaddexp(fn.where(counts, positives, 0.0), negatives)
        return fn.where(counts, everything - logits / fn.where(counts, number, 1.0), 0.0)
