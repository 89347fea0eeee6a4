"""Triplet margin loss over all triplets (Weinberger and Saul 2009, Schroff et al. 2015).

    l = [t]+  or  [t]+^2  or  log(1 + exp(t)),   t = d_ap - d_an + margin

Mean over the triplets with l > 0. With swap, the smaller of d_an and d_pn takes the place of d_an; both share the gradient
if they are equal. With a reference set p and n are two of its points. Similarities change sign: s_an - s_ap, and the larger.
"""

import torch

from ._common import Batch, softplus


def oracle(
    x,
    labels,
    ref=None,
    ref_labels=None,
    *,
    indices_tuple=None,
    distance=None,
    normalize=True,
    reducer=None,
    exclude_diagonal=None,
    margin=0.05,
    swap=False,
    smooth_loss=False,
    squared=False,
):
    if smooth_loss and squared:
        raise ValueError("the loss is either smooth or squared")
    distance = distance or "euclidean"
    batch = Batch(x, labels, ref, ref_labels, indices_tuple, distance, normalize, exclude_diagonal)
    between = batch.value
    if swap and ref is not None:
        between = Batch(ref, ref_labels, None, None, ([], [], []), distance, normalize, None).value
    nearer = torch.maximum if batch.similarity else torch.minimum
    terms = []
    for a, p, n in batch.triplets():
        to_negative = nearer(batch.value[a][n], between[p][n]) if swap else batch.value[a][n]
        excess = batch.gap(batch.value[a][p], to_negative) + margin
        loss = softplus(excess) if smooth_loss else torch.relu(excess)
        terms.append((a, loss**2 if squared else loss))
    return batch.reduce_pairs(terms, reducer or "avg_non_zero")
