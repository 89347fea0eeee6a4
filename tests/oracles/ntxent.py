"""NT-Xent (Sohn 2016, Chen et al. 2020): one softmax per positive pair, against the negatives of its anchor only.

    l_ap = -log( exp(s_ap / T) / (exp(s_ap / T) + sum_{n in N(a)} exp(s_an / T)) )
         = log(1 + exp(log sum_{n in N(a)} exp(s_an / T) - s_ap / T))

Mean over the positive pairs; the other positives of the anchor do not enter. 0 for an anchor without negatives, and
for a batch without any positive or any negative pair. Listed pairs count as often as listed. Distances enter as s = -d.
"""

from ._common import Batch, lse, softplus


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
    temperature=0.07,
):
    batch = Batch(x, labels, ref, ref_labels, pairs, distance or "cosine", normalize, exclude_diagonal)
    if not batch.positives or not batch.negatives:
        return batch.zero
    terms = []
    for a, p in batch.positives:
        positive = batch.closeness(a, p) / temperature
        negative = [batch.closeness(a, n) / temperature for anchor, n in batch.negatives if anchor == a]
        loss = softplus(lse(negative) - positive) if negative else batch.zero
        terms.append((a, loss))
    return batch.reduce_pairs(terms, reducer or "mean")
