"""The losses as functions: ``functional.circle_loss(embeddings, labels, gamma=64)``.

Each takes the arguments of a call of the loss, then those of its constructor by name; see the class for their meaning.
``triplet_margin`` is that of torch.nn.functional, fused.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

from torch import Tensor

from metric_kernels import losses
from metric_kernels.triplet_margin import triplet_margin

__all__ = [
    "circle_loss",
    "contrastive_loss",
    "lifted_structure_loss",
    "multi_similarity_loss",
    "npairs_loss",
    "ntxent_loss",
    "supcon_loss",
    "triplet_margin",
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


def _function(name: str, cls: type[losses.PairLoss]) -> LossFunction:
    def function(embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None, **options):
        return cls(**options)(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    call = inspect.signature(losses.PairLoss.forward)
    shared = inspect.signature(losses.PairLoss).parameters
    own = {name: p for name, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD}
    options = [p.replace(kind=p.KEYWORD_ONLY) for p in {**own, **shared}.values()]
    signature = call.replace(parameters=[*list(call.parameters.values())[1:], *options])
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__name__ = function.__qualname__ = name
    # No docstring under python -OO.
    meaning = (inspect.getdoc(cls) or "").replace("**kwargs:", f"{', '.join(shared)}:")
    function.__doc__ = f":class:`metric_kernels.losses.{cls.__name__}` as a function.\n\n{meaning}"
    return function


circle_loss = _function("circle_loss", losses.CircleLoss)
contrastive_loss = _function("contrastive_loss", losses.ContrastiveLoss)
lifted_structure_loss = _function("lifted_structure_loss", losses.LiftedStructureLoss)
multi_similarity_loss = _function("multi_similarity_loss", losses.MultiSimilarityLoss)
npairs_loss = _function("npairs_loss", losses.NPairsLoss)
ntxent_loss = _function("ntxent_loss", losses.NTXentLoss)
supcon_loss = _function("supcon_loss", losses.SupConLoss)
