"""Semi-hard triplet loss (Schroff et al. 2015): for each positive pair one negative, the nearest one beyond the positive.

    l_ap = [t]+  or, with soft_margin, log(1 + exp(t)),   t = d_ap - d_an + margin
    n = the nearest negative with d_an > d_ap, or the farthest negative if there is none

Mean over the positive pairs whose anchor has a negative. The first of equals is taken. Similarities change sign.
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
    margin=0.2,
    soft_margin=False,
):
    batch = Batch(x, labels, ref, ref_labels, indices_tuple, distance or "euclidean", normalize, exclude_diagonal)
    terms = []
    for a in range(batch.size):
        negatives = batch.negatives_of(a)
        if not negatives:
            continue
        # A NaN is never beyond anything, but must reach the loss.
        nothing = sum(0 * batch.value[a][n] for n in negatives)
        for p in batch.positives_of(a):
            beyond = [n for n in negatives if batch.closeness(a, n) < batch.closeness(a, p)]
            to_negative = batch.nearest(a, beyond) if beyond else batch.farthest(a, negatives)
            excess = batch.gap(batch.value[a][p], to_negative) + margin + nothing
            terms.append((a, softplus(excess) if soft_margin else torch.relu(excess)))
    return batch.reduce_pairs(terms, reducer or "mean")
