"""Circle loss with pair labels (Sun et al. 2020), on cosine similarities.

    l_i = log(1 + sum_{p in P(i)} exp(-gamma w_p (s_ip - (1 - m))) * sum_{n in N(i)} exp(gamma w_n (s_in - m)))
    w_p = [1 + m - s_ip]+ and w_n = [s_in + m]+, constants for differentiation

0 for a row without positives or without negatives; the mean is over the rows with l_i > 0.
"""

import torch

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
    m=0.4,
    gamma=80,
):
    if distance not in (None, "cosine"):
        raise ValueError("the circle loss is defined on cosine similarities")
    batch = Batch(x, labels, ref, ref_labels, pairs, "cosine", normalize, exclude_diagonal)
    rows = []
    for i in range(batch.size):
        positive, negative = [], []
        for p in batch.positives_of(i):
            s = batch.value[i][p]
            positive.append(-gamma * torch.relu(1 + m - s.detach()) * (s - (1 - m)))
        for n in batch.negatives_of(i):
            s = batch.value[i][n]
            negative.append(gamma * torch.relu(s.detach() + m) * (s - m))
        loss = softplus(lse(positive) + lse(negative)) if positive and negative else batch.zero
        rows.append((i, loss))
    return batch.reduce(rows, reducer or "avg_non_zero")
