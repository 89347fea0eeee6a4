"""The losses as functions: ``functional.circle_loss(embeddings, labels, gamma=64)``.

Each takes the arguments of a call of the loss, then those of its constructor by name; see the class for their meaning.
"""

from __future__ import annotations

import re

from metric_kernels.losses import REGISTRY, PairLoss


def _function(cls: type[PairLoss], name: str):
    def function(embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None, **options):
        return cls(**options)(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f":class:`metric_kernels.losses.{cls.__name__}` as a function.\n\n{cls.__doc__}"
    return function


def _name(cls: type[PairLoss]) -> str:
    """ContrastiveLoss -> contrastive_loss, NTXentLoss -> ntxent_loss, SupConLoss -> supcon_loss."""
    words = cls.__name__.removesuffix("Loss")
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z]{4})", "_", words).lower() + "_loss"


__all__ = [_name(cls) for cls in REGISTRY.values()]
globals().update({_name(cls): _function(cls, _name(cls)) for cls in REGISTRY.values()})
