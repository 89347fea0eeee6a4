from __future__ import annotations

import torch
from torch import Tensor, nn

from metric_kernels import fn
from metric_kernels.checks import of_classes, whole_number
from metric_kernels.distances import LpDistance
from metric_kernels.language import Formula, count, stages_of, total
from metric_kernels.losses._base import of_elements
from metric_kernels.losses._triplet import SampledTripletLoss
from metric_kernels.reducers import AvgNonZeroReducer, DivisorReducer, Reducer, SumReducer
from metric_kernels.rowstats import Call, row_stats
from metric_kernels.windows import EVERYTHING


class Hinges:
    """The two hinges about a threshold that each anchor has of its own, known before."""

    class Threshold:
        stats = (total("pos"),)

        def pair(v):
            return (0.0,)

        def dpair(v):
            return (0.0,)

    class Sides:
        stats = (total("pos"), count("pos"), total("neg"), count("neg"))

        def pair(v, row0, sign, margin):
            far, near = fn.relu(sign * (v - row0) + margin), fn.relu(sign * (row0 - v) + margin)
            return far, fn.step(far), near, fn.step(near)

        def dpair(v, row0, sign, margin):
            return sign * fn.step(sign * (v - row0) + margin), 0.0, -sign * fn.step(sign * (row0 - v) + margin), 0.0


FORMULA = Formula(f"{__name__}.Hinges", stages_of(Hinges))


class MarginLoss(SampledTripletLoss):
    """Margin loss: positives nearer and negatives farther than a threshold that may be learned.

    ``sum over triplets of [d_ap - beta_a + margin]_+ + [beta_a - d_an + margin]_+``, divided by the number of hinges above 0.
    With a similarity the differences change sign. beta_a is one number or that of the anchor's class.

    Wu, Manmatha, Smola and Krähenbühl, "Sampling Matters in Deep Embedding Learning", ICCV 2017. Over all triplets each
    positive pair counts as often as its anchor has negatives and the other way round, so that no triplet is ever formed.

    Args:
        margin: half the distance that is kept between positives and negatives.
        nu: weight of the regularisation of a learned beta: ``nu * beta``, for one beta a class averaged over the triplets and
            divided like the loss.
        beta: initial threshold.
        triplets_per_anchor: "all", or the number of random triplets of each anchor, drawn with replacement.
        learn_beta: whether ``loss.beta`` is a parameter.
        num_classes: for one beta a class; labels are then below it.
        **kwargs: ``distance`` (LpDistance), ``reducer`` (DivisorReducer, applied to "margin_loss" and "beta_reg_loss"), and
            the others of :class:`~metric_kernels.losses.Loss`. Another reducer gets the sum of both hinges of each triplet.

    Triplets in ``indices_tuple`` are taken as they are; of pairs, every positive pair is joined with every negative pair of
    its anchor. Without triplets, or with no hinge above 0, the loss is 0.

    Raises:
        ValueError: a wrong ``triplets_per_anchor``; no labels although there is a beta for each class.
        IndexError: a label that has no beta.

    Example:
        >>> import torch
        >>> from metric_kernels.losses import MarginLoss
        >>> loss = MarginLoss()
        >>> loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.4142)
    """

    default_distance = LpDistance
    default_reducer = DivisorReducer
    kernels = FORMULA
    sub_losses = ("margin_loss", "beta_reg_loss")

    def __init__(
        self,
        margin: float = 0.2,
        nu: float = 0,
        beta: float = 1.2,
        triplets_per_anchor: int | str = "all",
        learn_beta: bool = False,
        num_classes: int | None = None,
        **kwargs,
    ):
        super().__init__(triplets_per_anchor, **kwargs)
        self.margin = margin
        self.nu = nu
        self.learn_beta = learn_beta
        number = whole_number("num_classes", num_classes) if num_classes else 1
        beta = torch.full((number,), float(beta))
        if learn_beta:
            self.beta = nn.Parameter(beta)
        else:
            self.register_buffer("beta", beta, persistent=False)

    def _evaluate(self, batch):
        reducer = self._reducers()
        if self._listed(batch, reducer[0]) or reducer[1].needs_each or not self._closed(reducer[0]):
            return self._of_list(batch, reducer)
        beta = self._thresholds(batch)
        number = [n.double() for n in batch.numbers()]
        sums, counts, active = self._sums_of(batch, beta, number)
        main, regular = _divided(reducer, active.sum())
        everything = number[0] * number[1]
        loss = main.of_pairs(sums, counts if isinstance(main, AvgNonZeroReducer) else everything, batch.labels)
        if not self.learn_beta:
            return loss
        penalty = self._number("nu") * beta.double()
        if len(self.beta) == 1:
            return loss + torch.where(everything.sum() > 0, penalty[0], 0.0)
        inside = everything * regular.inside(penalty)
        return loss + of_elements(regular).of_pairs(penalty * inside, inside, batch.labels)

    def _closed(self, reducer) -> bool:
        """Whether sums over the pairs of each anchor are all that a reducer needs."""
        return isinstance(reducer, AvgNonZeroReducer) or reducer.window == EVERYTHING

    def _sums_of(self, batch, beta: Tensor, number: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """For each anchor the sum over its triplets, how many of them cost something, and the number of hinges above 0."""
        known = beta.detach().to(batch.x.dtype).contiguous()
        params = (), (self.sign, self._number("margin"))
        (_, far, far_count, near, near_count), _ = row_stats(
            Call.of(FORMULA, params, self.distance, batch, self.backend, known)
        )
        far, far_count, near, near_count = (t.double() for t in (far, far_count.detach(), near, near_count.detach()))
        if beta.requires_grad:  # both sums are piecewise linear in beta
            change = self.sign * (beta.double() - known.double())
            far, near = far - far_count * change, near + near_count * change
        positives, negatives = number
        counts = positives * negatives - (positives - far_count) * (negatives - near_count)
        return negatives * far + positives * near, counts, negatives * far_count + positives * near_count

    def _thresholds(self, batch) -> Tensor:
        """The beta of each of the anchors."""
        beta, labels = self.beta.to(batch.x.device), batch.labels
        if len(beta) == 1:
            return beta.expand(len(batch.x))
        if labels is None:
            raise ValueError("labels: expected them, since there is a beta for each class, got None")
        return of_classes(beta, labels, "beta")

    def _of_list(self, batch, reducer):
        triplets = self._triplets(batch)
        margin = self._number("margin")
        positive, negative = self._values(batch, triplets)
        beta = self._thresholds(batch).to(positive.dtype)[triplets.anchors]
        far = torch.relu(self.sign * (positive - beta) + margin)
        near = torch.relu(self.sign * (beta - negative) + margin)
        found = {"margin_loss": (far + near, tuple(triplets), "triplet")}
        if self.learn_beta and len(self.beta) == 1:
            penalty = self._number("nu") * self.beta.to(positive)[0]
            found["beta_reg_loss"] = (penalty if len(triplets.anchors) else penalty * 0.0, None, "already_reduced")
        elif self.learn_beta:
            found["beta_reg_loss"] = (self._number("nu") * beta, triplets.anchors, "element")
        return self._each(found, _divided(reducer, (far > 0).sum() + (near > 0).sum()), batch)


class _Divided(SumReducer):
    """The sum over a number; 0 if that is 0."""

    def __init__(self, divisor: Tensor):
        super().__init__()
        self.divisor = divisor

    def of_pairs(self, totals, counts, labels):
        total = totals.sum()
        return torch.where(self.divisor > 0, total, total * 0.0) / self.divisor.clamp(min=1)


def _divided(reducer: list[Reducer], divisor: Tensor) -> list[Reducer]:
    return [_Divided(divisor) if isinstance(r, DivisorReducer) else r for r in reducer]
