"""Multi-similarity loss without mining (Wang et al. 2019).

    l_i = 1/alpha log(1 + sum_{p in P(i)} exp(alpha (base - s_ip)))
        + 1/beta  log(1 + sum_{n in N(i)} exp(beta (s_in - base)))

Mean over all rows; an empty side contributes 0. Distances change sign: d - base and base - d.
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
    alpha=2,
    beta=50,
    base=0.5,
):
    batch = Batch(x, labels, ref, ref_labels, pairs, distance or "cosine", normalize, exclude_diagonal)
    rows = []
    for i in range(batch.size):
        positive = [alpha * batch.gap(batch.value[i][p], base) for p in batch.positives_of(i)]
        negative = [beta * batch.gap(base, batch.value[i][n]) for n in batch.negatives_of(i)]
        loss = batch.zero
        if positive:
            loss = loss + softplus(lse(positive)) / alpha
        if negative:
            loss = loss + softplus(lse(negative)) / beta
        rows.append((i, loss))
    return batch.reduce(rows, reducer or "mean")
