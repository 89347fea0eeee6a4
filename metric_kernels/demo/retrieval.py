"""Recall@K and the similarities of pairs, by cosine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KS = (1, 2, 4, 8)


def recall(embeddings: Tensor, labels: Tensor, ks: tuple[int, ...] = KS) -> dict[int, float]:
    """The share of queries with a hit of their own class among the K nearest others, for each K.

    Every row is a query, all the others are its gallery. A query that has no other of its class cannot succeed and is
    left out; without any query the recall is 0.
    """
    similar = _cosines(embeddings).fill_diagonal_(-torch.inf)
    same = labels[:, None] == labels[None, :]
    answerable = same.sum(1) > 1
    if not answerable.any():
        return dict.fromkeys(ks, 0.0)
    nearest = similar.topk(min(max(ks), len(labels) - 1), dim=1).indices
    hit = same.gather(1, nearest)[answerable]
    return {k: hit[:, :k].any(1).double().mean().item() for k in ks}


def pairs(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines of all positive and of all negative pairs i < j."""
    similar = _cosines(embeddings)
    same = labels[:, None] == labels[None, :]
    upper = torch.ones_like(same).triu(1)
    return similar[same & upper], similar[~same & upper]


def auc(positive: Tensor, negative: Tensor) -> float:
    """The probability that a random positive pair is more similar than a random negative one; ties count one half."""
    negative = negative.sort().values
    below = torch.searchsorted(negative, positive)
    not_above = torch.searchsorted(negative, positive, right=True)
    return ((below + not_above).double().mean() / (2 * len(negative))).item()


def _cosines(embeddings: Tensor) -> Tensor:
    unit = F.normalize(embeddings.flatten(1))
    return unit @ unit.T
