"""FastAP (Cakir et al. 2019): one less the average precision of each anchor, by soft histograms of its distances.

    l_i = w_i (1 - 1/|P(i)| sum_b h+_b H+_b / H_b)

h+ and h- count the squared Euclidean distances of positives and negatives, shared linearly between the num_bins + 1 nodes from
0 to 4 (to 2 for distances), H+ and H are the cumulative sums of h+ and of h+ + h-. Mean over the anchors with a positive.
indices_tuple gives weights: w_i is how often i is listed, over that of the point listed most; 1 if nothing is.
"""

from collections import Counter

from ._common import Batch, no_reference, soft_histogram

LARGEST = {"squared_euclidean": 4, "euclidean": 2}


def oracle(
    x,
    labels,
    ref=None,
    ref_labels=None,
    *,
    indices_tuple=None,
    distance=None,
    reducer=None,
    num_bins=10,
):
    no_reference(ref, ref_labels)
    distance = distance or "squared_euclidean"
    if distance not in LARGEST:
        raise ValueError("the histogram is one of Euclidean distances")
    batch = Batch(x, labels, None, None, None, distance, True, None)
    listed = Counter(int(i) for indices in indices_tuple or () for i in indices)
    terms = []
    for i in range(batch.size):
        positives, negatives = batch.positives_of(i), batch.negatives_of(i)
        if not positives:
            continue
        positive, negative = (
            soft_histogram([batch.value[i][j] for j in columns], 0, LARGEST[distance] / num_bins, num_bins + 1)
            for columns in (positives, negatives)
        )
        precision = batch.zero
        for b in range(num_bins + 1):
            hits = positive[: b + 1].sum()
            if not positive[b] * hits <= 0:
                precision = precision + positive[b] * hits / (hits + negative[: b + 1].sum())
        weight = listed[i] / max(listed.values()) if listed else 1.0
        terms.append((i, weight * (1 - precision / len(positives))))
    return batch.reduce(terms, reducer or "mean")
