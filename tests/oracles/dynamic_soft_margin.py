"""Dynamic soft margin loss (Zhang and Rusinkiewicz 2019): each triplet weighted by how many are easier.

    L = mean of w(t) t,   t = d_ap - d_an,   w(t) = sum of the histogram h over the nodes up to t

h counts t, shared linearly between num_bins + 1 nodes from min_val to -min_val; those beyond count as the last node of their
side and weigh 0 or 1. It is a running average, h <- (1 - momentum) h + momentum * counts, then divided by its sum; the counts
alone at first. h and thereby w are constants.

Triplets are all of a labelled batch. Without labels row i goes with row i of the reference set, and
t_i = d_ii - min over k != i of d_ki and d_ik. No triplet: 0, and h stays.
"""

import math

import torch

from ._common import Batch, soft_histogram


def oracle(
    x,
    labels,
    ref=None,
    ref_labels=None,
    *,
    histogram=None,
    indices_tuple=None,
    distance=None,
    exclude_diagonal=None,
    min_val=-2.0,
    num_bins=10,
    momentum=0.01,
):
    """(loss, histogram), the histogram to be passed with the next batch."""
    if distance not in (None, "euclidean", "squared_euclidean"):
        raise ValueError("the margins are those of Euclidean distances")
    if labels is None and indices_tuple is None:
        batch = Batch(x, None, ref, None, ([], [], []), distance or "euclidean", True, None)
        differences = differences_of_matches(batch)
    else:
        batch = Batch(x, labels, ref, ref_labels, indices_tuple, distance or "euclidean", True, exclude_diagonal)
        differences = [batch.value[a][p] - batch.value[a][n] for a, p, n in batch.triplets()]
    if not differences:
        return batch.zero, histogram

    step = 2 * abs(min_val) / num_bins
    counts = soft_histogram([t.detach() for t in differences], min_val, step, num_bins + 1)
    if histogram is None or not histogram.any():
        histogram = counts
    else:
        histogram = (1 - momentum) * histogram.double() + momentum * counts
    histogram = histogram / histogram.sum()
    terms = [weight(t.item(), min_val, step, histogram) * t for t in differences]
    return batch.mean(terms), histogram


def weight(t, min_val, step, histogram):
    if not math.isfinite(t):
        return math.nan
    node = math.floor((t - min_val) / step)
    return histogram[: max(node + 1, 0)].sum()


def differences_of_matches(batch):
    """A pair is compared with the nearest point to either of its two; if equally near, both share the gradient."""
    value, size = batch.value, batch.size
    if any(len(row) != size for row in value):
        raise ValueError("without labels every row needs a match")
    if size < 2:
        return []
    differences = []
    for i in range(size):
        others = [k for k in range(size) if k != i]
        in_row = torch.stack([value[i][k] for k in others]).min(0).values
        in_column = torch.stack([value[k][i] for k in others]).min(0).values
        differences.append(value[i][i] - torch.minimum(in_row, in_column))
    return differences
