"""Supervised contrastive loss, "out" form (Khosla et al. 2020).

    l_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip / T) / sum_{j in P(i) or N(i)} exp(s_ij / T) )

0 for a row without positives; the mean is over the rows with l_i > 0. Distances enter as s = -d. The loss is 0 unless
the batch holds a positive pair and a negative pair somewhere.
"""

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
    temperature=0.1,
):
    batch = Batch(x, labels, ref, ref_labels, pairs, distance or "cosine", normalize, exclude_diagonal)
    if not batch.positives or not batch.negatives:
        return batch.zero
    rows = []
    for i in range(batch.size):
        positive = [batch.closeness(i, p) / temperature for p in batch.positives_of(i)]
        negative = [batch.closeness(i, n) / temperature for n in batch.negatives_of(i)]
        loss = batch.zero
        if positive:
            loss = -sum(logit - lse(positive + negative) for logit in positive) / len(positive)
        rows.append((i, loss))
    return batch.reduce(rows, reducer or "avg_non_zero")
