"""Quadruplet loss (Chen et al. 2017): a triplet term and a term of quadruplets with a negative pair of two other classes.

    [v_ap - v_an + margin1]+   over triplets (a, p, n)
    [v_ij - v_km + margin2]+   over positive pairs (i, j) and negative pairs (k, m) without a point of the class of i and j

All pairs are ordered. Each term is reduced on its own, by default to its mean, and the two are added. v is the squared
Euclidean distance of normalised rows, or metric(x_i, x_j) for i < j on the rows as they are, which grows with distance.
Similarities change sign. indices_tuple: quadruplets (a, p, n1, n2), with v_an1 in the first term and v_n1n2 in the second.

adaptive: margin1 = gap and margin2 = gap / 2, gap = mean of v over the negative pairs - mean of v over the positive pairs,
constants unless detach_margins is False.
"""

import torch

from ._common import Batch, no_reference
from .quadruplet_margin import quadruplets, reduce_quadruplets


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
    margin1=1.0,
    margin2=0.5,
    adaptive=False,
    detach_margins=True,
    metric=None,
):
    no_reference(ref, ref_labels)
    if metric is not None and distance is not None:
        raise ValueError("the metric takes the place of the distance")
    if adaptive and indices_tuple is not None:
        raise ValueError("adaptive margins are means over the pairs of a batch")
    listed = None if indices_tuple is None else [[int(i) for i in indices] for indices in indices_tuple]
    batch = Batch(x, labels, None, None, listed and ([], [], []), distance or "squared_euclidean", normalize, None)
    if metric is not None:
        batch.value = symmetric_values(x.double(), metric)

    def excess(i, j, k, m):
        return batch.gap(batch.value[i][j], batch.value[k][m])

    if listed is not None:
        found = list(zip(*listed, strict=True))
        first = [excess(a, p, a, n1) for a, p, n1, _ in found]
        second = [excess(a, p, n1, n2) for a, p, n1, n2 in found]
    else:
        first = [excess(a, p, a, n) for a, p, n in batch.triplets()]
        second = [excess(*points) for points in quadruplets(batch, batch.positives, batch.negatives, "other_class")]
    if adaptive and batch.positives and batch.negatives:
        kinds = batch.positives, batch.negatives
        of_positives, of_negatives = (batch.mean([batch.value[i][j] for i, j in pairs]) for pairs in kinds)
        margin1 = batch.gap(of_negatives, of_positives)
        margin1 = margin1.detach() if detach_margins else margin1
        margin2 = 0.5 * margin1
    return sum(
        reduce_quadruplets(batch, [torch.relu(t + margin) for t in terms], reducer or "mean")
        for terms, margin in ((first, margin1), (second, margin2))
    )


def symmetric_values(x, metric):
    """metric of each two rows i < j, as a matrix without a diagonal."""
    values = [[None] * len(x) for _ in x]
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            values[i][j] = values[j][i] = metric(x[i : i + 1], x[j : j + 1])[0]
    return values
