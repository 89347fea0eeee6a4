from metric_kernels import fn
from metric_kernels.language import count, lse, total
from metric_kernels.losses._pair import PairLoss


class NTXentLoss(PairLoss):
    """Normalised temperature-scaled cross entropy (InfoNCE) over every positive pair.

    ``l_ap = -log( e^{s_ap/T} / (e^{s_ap/T} + sum_{n in N(a)} e^{s_an/T}) )``, mean over positive pairs; the other positives
    of an anchor are not in its denominator.

    Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NeurIPS 2016; van den Oord et al., 2018;
    Chen et al., "SimCLR", ICML 2020. With a distance, s is -d.

    Args:
        temperature: T.
        **kwargs: ``distance`` (CosineSimilarity), ``reducer`` (MeanReducer), and the others of
            :class:`~metric_kernels.losses.PairLoss`.

    A positive pair whose anchor has no negatives costs 0 and is averaged over; a batch without positive pairs or without
    negative pairs has loss 0. Computed as a difference of logarithms: it does not saturate near 87 in float32 or near 10 in
    float16 as pytorch-metric-learning's does.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import NTXentLoss
        >>> loss = NTXentLoss(temperature=0.5)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.0986)
    """

    counts_repetitions = True

    def __init__(self, temperature: float = 0.07, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    class Negatives:
        stats = (lse("neg"),)

        def pair(v, sign, temperature):
            return (-sign * v / temperature,)

        def dpair(v, sign, temperature):
            return (-sign / temperature,)

    class Positives:
        stats = (total("pos"), count("pos"))

        def pair(v, row0, sign, temperature, low0, high0):
            loss = fn.softplus(row0 + sign * v / temperature)
            counted = fn.within(loss, low0, high0)
            return counted * loss, counted

        def dpair(v, row0, sign, temperature, low0, high0):
            z = row0 + sign * v / temperature
            counted = fn.within(fn.softplus(z), low0, high0)
            return counted * fn.sigmoid(z) * sign / temperature, 0.0

        def drow(v, row0, sign, temperature, low0, high0):
            z = row0 + sign * v / temperature
            return fn.within(fn.softplus(z), low0, high0) * fn.sigmoid(z), 0.0
