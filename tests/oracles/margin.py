"""Margin loss (Wu et al. 2017): positives within beta - margin, negatives beyond beta + margin.

    l_apn = [d_ap - beta + margin]+ + [beta - d_an + margin]+

The sum over the triplets is divided by the number of brackets above 0. beta is a number or, one for each class, that of the
anchor's class. A learned beta adds nu * beta, or nu * sum over the triplets of beta_a, divided by the same number. 0 without
triplets. Similarities change sign. With a reducer, the brackets of a triplet are one term, and so is nu * beta_a; nu * beta
alone is not reduced.
"""

import torch

from ._common import Batch


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
    margin=0.2,
    nu=0,
    beta=1.2,
    learn_beta=False,
    num_classes=None,
):
    batch = Batch(x, labels, ref, ref_labels, indices_tuple, distance or "euclidean", normalize, exclude_diagonal)
    # A tensor stays itself, so that it has a gradient.
    beta = torch.as_tensor(beta, dtype=torch.float64).flatten()
    if num_classes is not None and len(beta) == 1:
        beta = beta.expand(num_classes)
    triplets = batch.triplets()
    if not triplets:
        return batch.zero + 0 * beta.sum()

    terms, penalties, divisor = [], [], 0
    for a, p, n in triplets:
        boundary = beta[batch.labels[a]] if len(beta) > 1 else beta[0]
        pull = torch.relu(batch.gap(batch.value[a][p], boundary) + margin)
        push = torch.relu(batch.gap(boundary, batch.value[a][n]) + margin)
        divisor += (not pull <= 0) + (not push <= 0)
        terms.append((a, pull + push))
        penalties.append((a, nu * boundary))

    def reduce(terms, by):
        if reducer is not None:
            return by(terms, reducer)
        return sum(loss for _, loss in terms) / divisor if divisor else batch.zero + 0 * beta.sum()

    loss = reduce(terms, batch.reduce_pairs)
    if learn_beta:
        loss = loss + (reduce(penalties, batch.reduce) if len(beta) > 1 else nu * beta[0])
    return loss
