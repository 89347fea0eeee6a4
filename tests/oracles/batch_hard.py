"""Batch-hard triplet loss (Hermans et al. 2017): the farthest positive and the nearest negative of each anchor.

    l_a = [t]+  or, with soft_margin, log(1 + exp(t)),   t = max_{p in P(a)} d_ap - min_{n in N(a)} d_an + margin

Mean over the anchors that have both. With lone_anchors="zero" those without a positive count too, with the value of themselves:
0, or 1 for the cosine; there must be no reference set then. The gradient goes to the first of equals. Similarities:
max s_an - min s_ap + margin.
"""

import torch

from ._common import Batch, no_reference, softplus


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
    soft_margin=False,
    lone_anchors="skip",
):
    if lone_anchors not in ("skip", "zero"):
        raise ValueError(f"unknown lone_anchors {lone_anchors!r}")
    if lone_anchors == "zero":
        no_reference(ref, ref_labels)
    batch = Batch(x, labels, ref, ref_labels, indices_tuple, distance or "euclidean", normalize, exclude_diagonal)
    terms = []
    for a in range(batch.size):
        positives, negatives = batch.positives_of(a), batch.negatives_of(a)
        if not negatives or not positives and lone_anchors == "skip":
            continue
        to_positive = batch.farthest(a, positives) if positives else batch.value[a][a]
        excess = batch.gap(to_positive, batch.nearest(a, negatives)) + margin
        terms.append((a, softplus(excess) if soft_margin else torch.relu(excess)))
    return batch.reduce_pairs(terms, reducer or "mean")
