"""The losses of dense_terms.py by another way, as the truth for the gate, at sizes where dense tensors do not fit too.

Sums of hinges come from sorted lists, their cumulative sums and ``torch.searchsorted``, differentiated by autograd; what has no
such form goes through the dense tensor a block of rows at a time. Each block is computed again in the backward pass.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.dense import distances
from benchmarks.dense_terms import TERMS, by_class, classes, nodes, own, pairs, raw_distances, squared_distances

# Numbers in the largest tensor of a block.
_BLOCK = 1 << 24


def in_blocks(of_rows, v, width):
    """The sum of ``of_rows(rows)`` over all rows of v, in blocks whose largest tensor has about ``width`` numbers a row."""
    blocks = torch.arange(len(v), device=v.device).split(max(1, _BLOCK // width))
    found = [checkpoint(of_rows, rows, use_reentrant=False) for rows in blocks]
    return [sum(parts) for parts in zip(*found)]


def hinges(lists, u):
    """For each u the sum of [t - u]_+ over the values t of its row's sorted list, and the number of those above 0."""
    lists, u = lists.contiguous(), u.contiguous()
    above = lists.shape[-1] - torch.searchsorted(lists.detach(), u.detach(), right=True)
    sums = F.pad(lists.flip(-1).cumsum(-1), (1, 0))
    return sums.expand(*u.shape[:-1], -1).gather(-1, above) - above * u, above


def triplet_sums(v, per_class, margin):
    """Sum and number of the hinges of all triplets."""
    c, lists = classes(len(v), per_class, v.device), own(v, per_class).sort(1).values

    def of_rows(rows):
        cost, above = hinges(lists[rows], v[rows] - margin)
        negative = c[rows, None] != c
        return torch.where(negative, cost, 0).sum(), torch.where(negative, above, 0).sum()

    return in_blocks(of_rows, v, len(v))


def quadruplet_sums(v, per_class, margin, negatives):
    """Sum and number of the hinges of all unordered pairs of pairs that are disjoint, or of other classes."""
    c, (positive, _) = (f(len(v), per_class, v.device) for f in (classes, pairs))
    u = v[positive]
    cost, above = hinges((-v[(c[:, None] != c).triu()]).sort().values, -u - margin)
    total, number = cost.sum(), above.sum()
    if negatives == "disjoint":
        # A negative pair meets a positive pair in one point at most, the anchor of a triplet.
        met = triplet_sums(v, per_class, margin)
    else:
        # A negative pair has one end at most in a class.
        of_class = u.view(c[-1] + 1, -1).sort(1).values

        def of_rows(rows):
            cost, above = hinges(of_class[c[rows]], v[rows] - margin)
            touching = c[rows, None] != c
            return torch.where(touching, cost, 0).sum(), torch.where(touching, above, 0).sum()

        met = in_blocks(of_rows, v, len(v))
    return total - met[0], number - met[1]


def triplet_margin(batch, per_class, margin=0.05, metric=distances):
    def loss(x, labels):
        total, number = triplet_sums(by_class(metric, x, labels), per_class, margin)
        return total / number.clamp_min(1)

    return loss


def batch_all_triplet(batch, per_class):
    return triplet_margin(batch, per_class, margin=5, metric=raw_distances)


def quadruplet_margin(batch, per_class, margin=0.2):
    def loss(x, labels):
        total, number = quadruplet_sums(by_class(distances, x, labels), per_class, margin, "disjoint")
        return total / number.clamp_min(1)

    return loss


def quadruplet(batch, per_class, margin1=1.0, margin2=0.5):
    k, others = per_class, batch - per_class
    triplets = batch * (k - 1) * others
    quadruplets = batch * (k - 1) // 2 * (others * (others - k) // 2)

    def loss(x, labels):
        v = by_class(squared_distances, x, labels)
        three, _ = triplet_sums(v, k, margin1)
        four, _ = quadruplet_sums(v, k, margin2, "other_class")
        return three / triplets + four / quadruplets

    return loss


def semi_hard_triplet(batch, per_class, margin=0.2):
    c = classes(batch, per_class)

    def loss(x, labels):
        v = by_class(distances, x, labels)
        positives = own(v, per_class)

        def of_rows(rows):
            d, positive = v[rows], positives[rows]
            negative = (c[rows, None] != c)[:, None]
            near = torch.where(negative & (d[:, None] > positive[..., None]), d[:, None], torch.inf).min(2).values
            far = torch.where(negative[:, 0], d, -torch.inf).max(1, keepdim=True).values
            return (F.relu(positive - torch.where(near.isinf(), far, near) + margin).sum(),)

        return in_blocks(of_rows, v, batch * (per_class - 1))[0] / (batch * (per_class - 1))

    return loss


def dynamic_soft_margin(batch, per_class, low=-2.0, bins=10):
    c = classes(batch, per_class)
    number = batch * (per_class - 1) * (batch - per_class)

    def loss(x, labels):
        v = by_class(distances, x, labels)
        positives = own(v, per_class)

        def gaps_of(rows):
            """Differences, 0 where there is no negative, and the mask of these."""
            negative = (c[rows, None] != c)[:, None]
            return torch.where(negative, positives[rows][..., None] - v[rows][:, None], 0), negative

        def count(rows):
            gap, negative = gaps_of(rows)
            node, share = nodes(gap, low, -2 * low / bins, bins + 1)
            upper, lower = (torch.where(negative, part, 0).flatten() for part in (share, 1 - share))
            return (F.pad(node.flatten().bincount(lower, bins), (0, 1)) + F.pad(node.flatten().bincount(upper, bins), (1, 0)),)

        width = batch * (per_class - 1)
        with torch.no_grad():
            weights = in_blocks(count, v, width)[0].cumsum(0) / number

        def of_rows(rows):
            gap, _ = gaps_of(rows)
            return ((weights[nodes(gap.detach(), low, -2 * low / bins, bins + 1)[0]] * gap).sum(),)

        return in_blocks(of_rows, v, width)[0] / number

    return loss


# Where the dense formula needs no tensor larger than B x B, it is the truth itself.
EXACT = TERMS | {
    "TripletMarginLoss": triplet_margin,
    "BatchAllTripletLoss": batch_all_triplet,
    "SemiHardTripletLoss": semi_hard_triplet,
    "QuadrupletMarginLoss": quadruplet_margin,
    "QuadrupletLoss": quadruplet,
    "DynamicSoftMarginLoss": dynamic_soft_margin,
}
