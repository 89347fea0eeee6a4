"""Contrastive loss, linear hinges with two margins (after Hadsell et al. 2006).

    positive pair   [d - pos_margin]+          negative pair   [neg_margin - d]+

Positive and negative pairs are reduced separately and the two results added. Similarities change sign:
[pos_margin - s]+ and [s - neg_margin]+.
"""

import torch

from ._common import Batch


def oracle(
    x,
    labels,
    ref=None,
    ref_labels=None,
    *,
    pairs=None,
    distance=None,
    normalize=True,
    reducer=None,
    exclude_diagonal=None,
    pos_margin=0,
    neg_margin=1,
):
    batch = Batch(x, labels, ref, ref_labels, pairs, distance or "euclidean", normalize, exclude_diagonal)
    reducer = reducer or "avg_non_zero"
    positive = [(a, torch.relu(batch.gap(batch.value[a][p], pos_margin))) for a, p in batch.positives]
    negative = [(a, torch.relu(batch.gap(neg_margin, batch.value[a][n]))) for a, n in batch.negatives]
    return batch.reduce_pairs(positive, reducer) + batch.reduce_pairs(negative, reducer)
