from __future__ import annotations

from metric_kernels.distances import LpDistance
from metric_kernels.losses._triplet import SampledTripletLoss
from metric_kernels.ordered import SLOPES
from metric_kernels.reducers import AvgNonZeroReducer
from metric_kernels.swap import swapped_values
from metric_kernels.windows import triplet_sums


class TripletMarginLoss(SampledTripletLoss):
    """Triplet loss over all triplets of a batch ("batch all").

    ``mean+ [d_ap - d_an + margin]_+`` over all anchors a, their positives p and their negatives n, the mean being over the
    triplets with a loss above 0. With a similarity the difference changes sign.

    Schroff, Kalenichenko and Philbin, "FaceNet", CVPR 2015; Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for
    Person Re-Identification", 2017. Triplets are not listed: the hinge takes O(B^2 log K) time for K positives an anchor,
    the smooth and the squared form O(B^2 K), and memory is that of the product matrix or less. The number of triplets is
    exact, and so is the gradient with respect to distances.

    | same as | here |
    |---|---|
    | Hermans et al., "batch all" and "batch all, non-zero" | ``reducer=MeanReducer()`` and the default |
    | sentence-transformers BatchAllTripletLoss(margin=5) | ``margin=5, distance=LpDistance(normalize_embeddings=False)`` |
    | OML TripletLoss with AllTripletsMiner | the same, ``reducer=MeanReducer()``; ``smooth_loss=True`` if its margin is None |

    Args:
        margin: added to the difference of distances, inside the logarithm too.
        swap: replace d_an by d_pn where that is smaller. With a reference set this is the distance of two reference points
            (pytorch-metric-learning reads another entry). Takes K further products, in torch
            whatever the backend.
        smooth_loss: ``log(1 + e^t)`` instead of ``[t]_+``.
        triplets_per_anchor: "all", or the number of random triplets of each anchor, drawn with replacement.
        squared: ``[t]_+^2`` instead of ``[t]_+``.
        **kwargs: ``distance`` (LpDistance), ``reducer`` (AvgNonZeroReducer), and the others of
            :class:`~metric_kernels.losses.Loss`. A reducer of pytorch-metric-learning without an equal here gets the loss of
            every triplet; PerAnchorReducer averages over the triplets of each anchor.

    Triplets in ``indices_tuple`` are taken as they are; of pairs, every positive pair is joined with every negative pair of
    its anchor. Without triplets the loss is 0. Pairs at distance 0 have a zero subgradient.

    Raises:
        ValueError: ``smooth_loss`` together with ``squared``, or a wrong ``triplets_per_anchor``.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import TripletMarginLoss
        >>> loss = TripletMarginLoss(margin=0.5)
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.5000)
    """

    default_distance = LpDistance
    default_reducer = AvgNonZeroReducer
    kernels = "ordered"

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: int | str = "all",
        squared: bool = False,
        **kwargs,
    ):
        super().__init__(triplets_per_anchor, **kwargs)
        if smooth_loss and squared:
            raise ValueError("squared: expected False with smooth_loss, which is no hinge, got True")
        self.margin = margin
        self.swap = swap
        self.smooth_loss = smooth_loss
        self.squared = squared

    @property
    def shape(self) -> str:
        return "softplus" if self.smooth_loss else "squared_hinge" if self.squared else "hinge"

    def _costs(self, batch, triplets):
        positive, negative = self._values(batch, triplets)
        if self.swap:
            negative = swapped_values(self.distance, batch, triplets, negative)
        return SLOPES[self.shape][0](self.sign * (positive - negative) + self._number("margin"))

    def _sums(self, batch, reducer):
        margin, summed = self._number("margin"), reducer.plain is not None
        sums = triplet_sums(reducer.window, self.shape, margin, batch, self.distance, self.backend, self.swap, summed)
        return sums.totals, sums.counts
