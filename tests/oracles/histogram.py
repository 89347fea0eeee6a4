"""Histogram loss (Ustinova and Lempitsky 2016): how probable it is that a negative pair is as similar as a positive pair.

    L = sum_rq h+_r L_rq h-_q,   nodes t_r = -1 + r delta,   delta = 2 / n_bins

h+ and h- are the distributions of the similarities of positive and of negative pairs, each shared linearly between its two
nodes. The kernel L_rq is 1 where t_r <= t_q ("step"), [margin - t_r + t_q]+ ("linear"), or
log(1 + exp(alpha (margin - t_r + t_q))) ("exp").

pairs: unordered pairs that are part of a triplet ("triplets"), or "all". 0 without a pair of either kind.
"""

import math

from ._common import Batch, no_reference, soft_histogram, unordered


def cost(kernel, gap, margin, alpha):
    """The kernel, a function of gap = t_q - t_r."""
    match kernel:
        case "step":
            return float(gap >= 0)
        case "linear":
            return max(margin + gap, 0.0)
        case "exp":
            exponent = alpha * (margin + gap)
            return max(exponent, 0.0) + math.log1p(math.exp(-abs(exponent)))
    raise ValueError(f"unknown kernel {kernel!r}")


def oracle(
    x,
    labels,
    ref=None,
    ref_labels=None,
    *,
    indices_tuple=None,
    distance=None,
    normalize=True,
    n_bins=None,
    delta=None,
    pairs="triplets",
    kernel="step",
    margin=0.0,
    alpha=1.0,
):
    no_reference(ref, ref_labels)
    if distance not in (None, "cosine", "dot"):
        raise ValueError("the histogram is one of similarities")
    if pairs not in ("triplets", "all"):
        raise ValueError(f"unknown pairs {pairs!r}")
    batch = Batch(x, labels, None, None, indices_tuple, distance or "cosine", normalize, None)
    positives, negatives = batch.positives, batch.negatives
    if pairs == "triplets":
        triplets = batch.triplets()
        positives, negatives = [(a, p) for a, p, _ in triplets], [(a, n) for a, _, n in triplets]
    positives, negatives = unordered(positives), unordered(negatives)
    if not positives or not negatives:
        return batch.zero

    if delta is None:
        delta = 2 / (100 if n_bins is None else n_bins)
    nodes = round(1 + 2 / delta)
    of_positives, of_negatives = (
        soft_histogram([batch.value[i][j] for i, j in pairs], -1, delta, nodes) / len(pairs) for pairs in (positives, negatives)
    )
    loss = batch.zero
    for r, positive in enumerate(of_positives):
        for q, negative in enumerate(of_negatives):
            loss = loss + positive * cost(kernel, (q - r) * delta, margin, alpha) * negative
    return loss
