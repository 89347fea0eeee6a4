"""Logarithm of the sum of exponentials over all quadruplets (CoSENT, Su 2022).

    L = log(1 + sum_{i,j} sum_{k,m} exp(scale (s_km - s_ij)))

over unordered positive pairs {i, j} and unordered negative pairs {k, m}; 0 without a pair of either kind. Distances enter as
s = -d.
"""

from ._common import Batch, lse, no_reference, softplus, unordered


def oracle(x, labels, ref=None, ref_labels=None, *, distance=None, normalize=True, scale=20.0):
    no_reference(ref, ref_labels)
    if distance == "snr":
        raise ValueError("an unordered pair needs a symmetric distance")
    batch = Batch(x, labels, None, None, None, distance or "cosine", normalize, None)
    exponents = [
        scale * (batch.closeness(k, m) - batch.closeness(i, j))
        for i, j in unordered(batch.positives)
        for k, m in unordered(batch.negatives)
    ]
    return softplus(lse(exponents)) if exponents else batch.zero
