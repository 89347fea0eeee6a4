"""Dense PyTorch formulas of the losses over triplets, quadruplets and histograms at their default parameters.

As in dense.py they are what an experienced PyTorch user would write, here for classes of one known size: rows are put in the
order of their labels, so that positives are blocks on the diagonal, and masks and indices are made once, by
``TERMS[loss](batch, per_class)``, and not in every step. Triplets are tensors (B, K, B), quadruplets matrices of all positive
by all negative pairs.
"""

import torch
import torch.nn.functional as F

from benchmarks.dense import distances, mean_non_zero, similarities


def squared_distances(x):
    return 2 - 2 * similarities(x)


def raw_distances(x):
    """Euclidean distances of vectors that are not normalised."""
    s, norms = x @ x.T, x.square().sum(1)
    return (norms[:, None] + norms - 2 * s).clamp_min(torch.finfo(s.dtype).eps).sqrt()


def classes(batch, per_class, device=None):
    return torch.arange(batch, device=device) // per_class


def masks(batch, per_class):
    """Masks (B, B) of the positive and of the negative pairs."""
    c = classes(batch, per_class)
    negative = c[:, None] != c
    return (~negative).fill_diagonal_(False), negative


def by_class(metric, x, labels):
    return metric(x[labels.argsort()])


def own(v, per_class):
    """Values (B, K) of each point with the others of its class."""
    k = per_class
    blocks = v.view(-1, k, len(v) // k, k).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    # Between two numbers of the diagonal there are k others.
    return blocks.flatten(1)[:, 1:].view(-1, k - 1, k + 1)[..., :-1].reshape(len(v), k - 1)


def gaps(v, per_class):
    """v_ap - v_an (B, K, B); the mask of negatives is still to be applied."""
    return own(v, per_class)[:, :, None] - v[:, None]


def triplet_margin(batch, per_class, margin=0.05, metric=distances):
    _, negative = masks(batch, per_class)

    def loss(x, labels):
        gap = gaps(by_class(metric, x, labels), per_class)
        return mean_non_zero(torch.where(negative[:, None], F.relu(gap + margin), 0))

    return loss


def batch_all_triplet(batch, per_class):
    return triplet_margin(batch, per_class, margin=5, metric=raw_distances)


def batch_hard_triplet(batch, per_class, margin=0.05):
    _, negative = masks(batch, per_class)

    def loss(x, labels):
        d = by_class(distances, x, labels)
        near = torch.where(negative, d, torch.inf).min(1).values
        return F.relu(own(d, per_class).max(1).values - near + margin).mean()

    return loss


def semi_hard_triplet(batch, per_class, margin=0.2):
    _, negative = masks(batch, per_class)

    def loss(x, labels):
        d = by_class(distances, x, labels)
        positive, every = own(d, per_class), d[:, None]
        beyond = negative[:, None] & (every > positive[:, :, None])
        near = torch.where(beyond, every, torch.inf).min(2).values
        far = torch.where(negative, d, -torch.inf).max(1, keepdim=True).values
        return F.relu(positive - torch.where(near.isinf(), far, near) + margin).mean()

    return loss


def margin_loss(batch, per_class, margin=0.2, beta=1.2):
    positive, negative = masks(batch, per_class)
    number = batch - per_class

    def loss(x, labels):
        d = by_class(distances, x, labels)
        far = torch.where(positive, F.relu(d - beta + margin), 0)
        near = torch.where(negative, F.relu(beta - d + margin), 0)
        # Each positive pair is in as many triplets as there are negatives, and the other way round.
        total = number * far.sum() + (per_class - 1) * near.sum()
        active = number * far.count_nonzero() + (per_class - 1) * near.count_nonzero()
        return total / active.clamp_min(1)

    return loss


def pairs(batch, per_class, device=None):
    """Indices of the positive and of the negative pairs i < j."""
    i, j = torch.triu_indices(batch, batch, 1, device=device)
    c = classes(batch, per_class, device)
    positive = c[i] == c[j]
    return (i[positive], j[positive]), (i[~positive], j[~positive])


def disjoint(batch, per_class):
    (i, j), (m, n) = pairs(batch, per_class)
    i, j = i[:, None], j[:, None]
    return (i != m) & (i != n) & (j != m) & (j != n)


def of_other_classes(batch, per_class):
    c = classes(batch, per_class)
    (i, _), (m, n) = pairs(batch, per_class)
    return (c[i, None] != c[m]) & (c[i, None] != c[n])


def quadruplet_margin(batch, per_class, margin=0.2):
    positive, negative = pairs(batch, per_class)
    valid = disjoint(batch, per_class)

    def loss(x, labels):
        d = by_class(distances, x, labels)
        return mean_non_zero(torch.where(valid, F.relu(d[positive][:, None] - d[negative] + margin), 0))

    return loss


def quadruplet(batch, per_class, margin1=1.0, margin2=0.5):
    positive, negative = pairs(batch, per_class)
    _, apart = masks(batch, per_class)
    valid = of_other_classes(batch, per_class)
    triplets, quadruplets = apart.sum() * (per_class - 1), valid.sum()

    def loss(x, labels):
        d = by_class(squared_distances, x, labels)
        three = torch.where(apart[:, None], F.relu(gaps(d, per_class) + margin1), 0)
        four = torch.where(valid, F.relu(d[positive][:, None] - d[negative] + margin2), 0)
        return three.sum() / triplets + four.sum() / quadruplets

    return loss


def quadruplet_log_sum_exp(batch, per_class, scale=20.0):
    positive, negative = masks(batch, per_class)

    def loss(x, labels):
        s = by_class(similarities, x, labels)
        lowest = torch.finfo(s.dtype).min
        pull = torch.where(positive, -scale * s, lowest).flatten().logsumexp(0)
        push = torch.where(negative, scale * s, lowest).flatten().logsumexp(0)
        # Each pair is there from both its ends.
        return F.softplus(pull + push - torch.log(torch.tensor(4.0, dtype=s.dtype)))

    return loss


def nodes(v, low, step, number):
    """The lower node of each value, and the share of the upper one."""
    place = ((v - low) / step).clamp(0, number - 1)
    node = place.detach().long().clamp(max=number - 2)
    return node, place - node


def histogram(batch, per_class, bins=100):
    positive, negative = masks(batch, per_class)
    counted, side = positive | negative, (bins + 1) * negative

    def loss(x, labels):
        node, share = nodes(by_class(similarities, x, labels), -1, 2 / bins, bins + 1)
        node = (node + side).flatten()
        upper, lower = (torch.where(counted, part, 0).flatten() for part in (share, 1 - share))
        found = share.new_zeros(2 * (bins + 1)).scatter_add(0, node, lower).scatter_add(0, node + 1, upper).view(2, -1)
        h_positive, h_negative = found / found.sum(1, keepdim=True)
        return (h_negative * h_positive.cumsum(0)).sum()

    return loss


def fast_ap(batch, per_class, bins=10):
    positive, negative = masks(batch, per_class)
    counted, side = positive | negative, (bins + 1) * negative

    def loss(x, labels):
        node, share = nodes(by_class(squared_distances, x, labels), 0, 4 / bins, bins + 1)
        node = node + side
        upper, lower = (torch.where(counted, part, 0) for part in (share, 1 - share))
        found = share.new_zeros(batch, 2 * (bins + 1)).scatter_add(1, node, lower).scatter_add(1, node + 1, upper)
        h_positive, h_negative = found.view(batch, 2, -1).unbind(1)
        total = (h_positive + h_negative).cumsum(1).clamp_min(torch.finfo(share.dtype).tiny)
        return (1 - (h_positive * h_positive.cumsum(1) / total).sum(1) / (per_class - 1)).mean()

    return loss


def dynamic_soft_margin(batch, per_class, low=-2.0, bins=10):
    """The first batch, whose own distribution is that of the weights."""
    _, negative = masks(batch, per_class)
    counted = negative[:, None].expand(-1, per_class - 1, -1)
    number = counted.sum()

    def loss(x, labels):
        gap = gaps(by_class(distances, x, labels), per_class)
        node, share = (part.flatten() for part in nodes(gap.detach(), low, -2 * low / bins, bins + 1))
        # Sums of millions of shares are beyond float32.
        upper, lower = (torch.where(counted.flatten(), part, 0).double() for part in (share, 1 - share))
        found = lower.new_zeros(bins + 1).scatter_add(0, node, lower).scatter_add(0, node + 1, upper)
        weights = (found / number).cumsum(0).to(gap.dtype)
        return torch.where(counted, weights[node].view_as(gap) * gap, 0).sum() / number

    return loss


TERMS = {
    "TripletMarginLoss": triplet_margin,
    "BatchAllTripletLoss": batch_all_triplet,
    "BatchHardTripletLoss": batch_hard_triplet,
    "SemiHardTripletLoss": semi_hard_triplet,
    "MarginLoss": margin_loss,
    "QuadrupletMarginLoss": quadruplet_margin,
    "QuadrupletLoss": quadruplet,
    "QuadrupletLogSumExpLoss": quadruplet_log_sum_exp,
    "HistogramLoss": histogram,
    "FastAPLoss": fast_ap,
    "DynamicSoftMarginLoss": dynamic_soft_margin,
}
