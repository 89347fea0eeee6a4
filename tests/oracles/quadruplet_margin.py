"""Hinge over quadruplets: every positive pair closer than every negative pair by a margin.

    l = [d_ij - d_km + margin]+   over unordered positive pairs {i, j} and unordered negative pairs {k, m}

negatives: "all" of them, those "disjoint" from {i, j}, or those without a point of the class of i and j ("other_class",
Chen et al. 2017). Mean over the quadruplets with l > 0. Similarities change sign.
"""

import torch

from ._common import Batch, no_reference, unordered


def quadruplets(batch, positives, negatives, among):
    """(i, j, k, m) of positive pairs (i, j) and negative pairs (k, m)."""
    if among not in ("all", "disjoint", "other_class"):
        raise ValueError(f"unknown negatives {among!r}")
    for i, j in positives:
        for k, m in negatives:
            disjoint = not {i, j} & {k, m}
            other_class = batch.labels[i] not in (batch.labels[k], batch.labels[m])
            if among == "all" or among == "disjoint" and disjoint or among == "other_class" and other_class:
                yield i, j, k, m


def reduce_quadruplets(batch, losses, reducer):
    match reducer:
        case "per_anchor" | ("class_weighted", _):
            raise ValueError("a quadruplet has no anchor")
    return batch.reduce([(None, loss) for loss in losses], reducer)


def oracle(
    x,
    labels,
    ref=None,
    ref_labels=None,
    *,
    distance=None,
    normalize=True,
    reducer=None,
    margin=0.2,
    negatives="disjoint",
):
    no_reference(ref, ref_labels)
    if distance == "snr":
        raise ValueError("an unordered pair needs a symmetric distance")
    batch = Batch(x, labels, None, None, None, distance or "euclidean", normalize, None)
    losses = []
    for i, j, k, m in quadruplets(batch, unordered(batch.positives), unordered(batch.negatives), negatives):
        losses.append(torch.relu(batch.gap(batch.value[i][j], batch.value[k][m]) + margin))
    return reduce_quadruplets(batch, losses, reducer or "avg_non_zero")
