"""Multi-class N-pair loss (Sohn 2016): one positive pair per class, softmax over the positives of all classes.

    l_i = log sum_j exp(s(anchor_i, positive_j)) - s(anchor_i, positive_i)

Mean over the classes with a positive pair. The pair of a class is the first positive pair whose anchor has that label:
its first two rows, or the first one listed. Distances enter as s = -d.
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
):
    if ref is not None or ref_labels is not None:
        raise ValueError("the N-pair loss takes no reference set")
    batch = Batch(x, labels, None, None, pairs, distance or "dot", normalize, exclude_diagonal)
    first_pair = {}
    for a, p in batch.positives:
        first_pair.setdefault(batch.labels[a], (a, p))
    positives = [p for _, p in first_pair.values()]
    terms = []
    for a, p in first_pair.values():
        loss = lse([batch.closeness(a, other) for other in positives]) - batch.closeness(a, p)
        terms.append((a, loss))
    return batch.reduce(terms, reducer or "mean")
