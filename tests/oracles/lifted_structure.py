"""Lifted structured loss, smooth form (Oh Song et al. 2016).

    J_ap = log( sum_{n in N(a)} exp(neg_margin - d_an) + sum_{n in N(p)} exp(neg_margin - d_pn) ) + d_ap - pos_margin
    l_ap = [J_ap]+^2 / 2

Mean over the ordered positive pairs; the log is 0 if neither end has a negative, the loss is 0 for a batch without any
positive or any negative pair. Listed pairs count as often as listed. N(p) needs the negative pairs of the positive:
the listed ones with anchor p, or with a reference set those that end in column p. Similarities change sign.
"""

import torch

from ._common import Batch, lse


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
    neg_margin=1,
    pos_margin=0,
):
    batch = Batch(x, labels, ref, ref_labels, pairs, distance or "euclidean", normalize, exclude_diagonal)
    if not batch.positives or not batch.negatives:
        return batch.zero
    terms = []
    for a, p in batch.positives:
        negative = []
        for anchor, n in batch.negatives:
            end_of_p = n if batch.has_ref else anchor
            if anchor == a or end_of_p == p:
                negative.append(batch.gap(neg_margin, batch.value[anchor][n]))
        push = lse(negative) if negative else batch.zero
        pull = batch.gap(batch.value[a][p], pos_margin)
        terms.append((a, torch.relu(push + pull) ** 2 / 2))
    return batch.reduce_pairs(terms, reducer or "mean")
