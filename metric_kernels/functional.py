"""The losses as functions: ``functional.circle_loss(embeddings, labels, gamma=64)``.

Each takes the arguments of a call of the loss, then those of its constructor by name; see the class for their meaning.
DynamicSoftMarginLoss, which keeps a histogram from call to call, is a class only. ``triplet_margin`` takes rows that are
triplets already, as torch.nn.functional.triplet_margin_loss does.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from torch import Tensor

from metric_kernels import losses
from metric_kernels.triplet_margin import triplet_margin

__all__ = [
    "batch_hard_triplet_loss",
    "circle_loss",
    "contrastive_loss",
    "fast_ap_loss",
    "histogram_loss",
    "lifted_structure_loss",
    "margin_loss",
    "multi_similarity_loss",
    "npairs_loss",
    "ntxent_loss",
    "quadruplet_log_sum_exp_loss",
    "quadruplet_loss",
    "quadruplet_margin_loss",
    "semi_hard_triplet_loss",
    "supcon_loss",
    "triplet_margin",
    "triplet_margin_loss",
]


class LossFunction(Protocol):
    """What a type checker knows of a loss as a function; ``options`` are arguments of the constructor."""

    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        **options: Any,
    ) -> Tensor: ...


def _function(name: str, cls: type[losses.Loss]) -> LossFunction:
    def function(embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None, **options):
        return cls(**options)(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    call = inspect.signature(losses.Loss.forward)
    shared = inspect.signature(losses.Loss).parameters
    own = {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD}
    options = [p.replace(kind=p.KEYWORD_ONLY) for p in {**own, **shared}.values()]
    signature = call.replace(parameters=[*list(call.parameters.values())[1:], *options])
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = name
    # No docstring under python -OO.
    meaning = (inspect.getdoc(cls) or "").replace("**kwargs:", f"{', '.join(shared)}:")
    function.__doc__ = f":class:`metric_kernels.losses.{cls.__name__}` as a function.\n\n{meaning}"
    return function


batch_hard_triplet_loss = _function("batch_hard_triplet_loss", losses.BatchHardTripletLoss)
circle_loss = _function("circle_loss", losses.CircleLoss)
contrastive_loss = _function("contrastive_loss", losses.ContrastiveLoss)
fast_ap_loss = _function("fast_ap_loss", losses.FastAPLoss)
histogram_loss = _function("histogram_loss", losses.HistogramLoss)
lifted_structure_loss = _function("lifted_structure_loss", losses.LiftedStructureLoss)
margin_loss = _function("margin_loss", losses.MarginLoss)
multi_similarity_loss = _function("multi_similarity_loss", losses.MultiSimilarityLoss)
npairs_loss = _function("npairs_loss", losses.NPairsLoss)
ntxent_loss = _function("ntxent_loss", losses.NTXentLoss)
quadruplet_log_sum_exp_loss = _function("quadruplet_log_sum_exp_loss", losses.QuadrupletLogSumExpLoss)
quadruplet_loss = _function("quadruplet_loss", losses.QuadrupletLoss)
quadruplet_margin_loss = _function("quadruplet_margin_loss", losses.QuadrupletMarginLoss)
semi_hard_triplet_loss = _function("semi_hard_triplet_loss", losses.SemiHardTripletLoss)
supcon_loss = _function("supcon_loss", losses.SupConLoss)
triplet_margin_loss = _function("triplet_margin_loss", losses.TripletMarginLoss)
