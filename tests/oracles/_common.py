"""Pair values, pair lists and reducers for the oracles, as plain loops over float64 rows."""

from __future__ import annotations

import torch

SIMILARITIES = ("cosine", "dot")


def normalized(row):
    return row / row.norm().clamp_min(1e-12)


def sum_of_squares(row):
    return (row * row).sum()


def pair_value(u, v, distance):
    if distance in SIMILARITIES:
        return (u * v).sum()
    if distance == "snr":
        noise, signal = sum_of_squares((u - v) - (u - v).mean()), sum_of_squares(u - u.mean())
        # An anchor without variance has no defined ratio: 0, rather than a NaN.
        return 0 * noise if signal == 0 else noise / signal
    squared = sum_of_squares(u - v)
    # At distance 0 the square is 0 with gradient 0, which is the subgradient wanted.
    return squared.sqrt() if distance == "euclidean" and squared != 0 else squared


def no_reference(*given):
    if any(t is not None for t in given):
        raise ValueError("this loss takes no reference set")


def shares(value, low, step, nodes):
    """(node, share) of the two nodes low + step * node that a value lies between; beyond them all goes to the last one."""
    place = ((value - low) / step).clamp(0, nodes - 1)
    if place.isnan():
        return [(node, place) for node in range(nodes)]
    left = min(int(place), nodes - 2)
    return [(left, left + 1 - place), (left + 1, place - left)]


def soft_histogram(values, low, step, nodes):
    """The sums (nodes,) of the shares of values."""
    sums = [torch.zeros((), dtype=torch.float64)] * nodes
    for value in values:
        for node, share in shares(value, low, step, nodes):
            sums[node] = sums[node] + share
    return torch.stack(sums)


def unordered(pairs):
    """Pairs (i, j) with i < j, each of them once."""
    return sorted({(min(pair), max(pair)) for pair in pairs})


def lse(values):
    """log(sum(exp(values))) of a non-empty list."""
    return torch.logsumexp(torch.stack(values), dim=0)


def softplus(value):
    """log(1 + exp(value)), without the linear branch of torch.nn.functional.softplus."""
    return torch.logaddexp(value, torch.zeros_like(value))


class Batch:
    """Values and labelled pairs of a batch against itself or against a reference set.

    value[i][j]   similarity or distance of row i and column j
    positives     list of (anchor, positive), negatives: list of (anchor, negative), both possibly with repetitions
    zero          a 0 connected to every input, the result where no pair is valid

    Listed pairs are (a1, p, a2, n), or (a, p, n) for triplets.
    """

    def __init__(self, x, labels, ref, ref_labels, pairs, distance, normalize, exclude_diagonal):
        if distance not in (*SIMILARITIES, "euclidean", "squared_euclidean", "snr"):
            raise ValueError(f"unknown distance {distance!r}")
        x = x.double()
        ref_x = x if ref is None else ref.double()
        self.size = len(x)
        self.has_ref = ref is not None
        self.zero = (0 * x).sum() + (0 * ref_x).sum()
        self.similarity = distance in SIMILARITIES
        rows, columns = x.unbind(0), ref_x.unbind(0)
        if normalize or distance == "cosine":
            rows, columns = [normalized(row) for row in rows], [normalized(row) for row in columns]
        self.value = [[pair_value(u, v, distance) for v in columns] for u in rows]

        self.labels = None if labels is None else [int(y) for y in labels]
        self.listed_triplets = None
        if pairs is not None:
            pairs = [[int(i) for i in indices] for indices in pairs]
            if len(pairs) == 3:
                self.listed_triplets = list(zip(*pairs, strict=True))
                pairs.insert(2, pairs[0])
            a1, p, a2, n = pairs
            self.positives, self.negatives = list(zip(a1, p, strict=True)), list(zip(a2, n, strict=True))
            return
        column_labels = self.labels if ref is None else [int(y) for y in ref_labels]
        if exclude_diagonal is None:
            exclude_diagonal = ref is None
        self.positives, self.negatives = [], []
        for i, row_label in enumerate(self.labels):
            for j, column_label in enumerate(column_labels):
                if i == j and exclude_diagonal:
                    continue
                (self.positives if row_label == column_label else self.negatives).append((i, j))

    def gap(self, a, b):
        """How much farther a is than b: a - b for distances, b - a for similarities."""
        return b - a if self.similarity else a - b

    def closeness(self, i, j):
        """The value with the sign that grows with similarity."""
        return self.value[i][j] if self.similarity else -self.value[i][j]

    def positives_of(self, i):
        return sorted({p for a, p in self.positives if a == i})

    def negatives_of(self, i):
        return sorted({n for a, n in self.negatives if a == i})

    def triplets(self):
        """(anchor, positive, negative) as listed, or each positive of an anchor with each of its negatives."""
        if self.listed_triplets is not None:
            return self.listed_triplets
        return [(a, p, n) for a, p in self.positives for anchor, n in self.negatives if anchor == a]

    def nearest(self, i, columns):
        """The value of row i and the column nearest to it: the first of equals, or a NaN if there is one."""
        return self.value[i][columns[torch.stack([self.closeness(i, j) for j in columns]).argmax()]]

    def farthest(self, i, columns):
        return self.value[i][columns[torch.stack([self.closeness(i, j) for j in columns]).argmin()]]

    def mean(self, losses):
        return torch.stack(losses).mean() if losses else self.zero

    def reduce(self, terms, reducer):
        """Reduce (anchor, loss) terms. A NaN loss passes every filter, so that it is never hidden."""
        losses = [loss for _, loss in terms]
        match reducer:
            case "mean" | "per_anchor":
                return self.mean(losses)
            case "sum":
                return torch.stack(losses).sum() if losses else self.zero
            case "avg_non_zero":
                return self.mean([loss for loss in losses if not loss <= 0])
            case ("threshold", low, high):
                if low is not None:
                    losses = [loss for loss in losses if not loss <= low]
                if high is not None:
                    losses = [loss for loss in losses if not loss >= high]
                return self.mean(losses)
            case ("class_weighted", weights):
                return self.mean([float(weights[self.labels[a]]) * loss for a, loss in terms])
        raise ValueError(f"unknown reducer {reducer!r}")

    def reduce_pairs(self, terms, reducer):
        """As reduce, for terms that are pairs or triplets: "per_anchor" averages within each anchor first."""
        if reducer == "per_anchor":
            rows = [self.mean([loss for a, loss in terms if a == i]) for i in range(self.size)]
            return self.mean(rows)
        return self.reduce(terms, reducer)
