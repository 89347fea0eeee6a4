"""Plain formulas of the losses over triplets, quadruplets and histograms on a whole matrix of pair values.

In float64 they are the truth for more rows than the loops of the oracles can visit, in float32 the plain formula that tells how
well the problem is conditioned. ``DENSE[name](v, labels, ref_labels, sign, **params)`` takes pair values v (B, R), of a batch
with itself if ref_labels is None.
"""

import torch
import torch.nn.functional as F

from metric_kernels import fn


def pair_values(x, ref, kind, normalize):
    """By differences, which lose nothing to cancellation."""
    y = x if ref is None else ref
    if normalize:
        x, y = F.normalize(x), F.normalize(y)
    if kind in ("cosine", "dot"):
        return x @ y.T
    if kind == "snr":
        centred = [t - t.mean(1, keepdim=True) for t in (x, y)]
        return _squares(*centred) / centred[0].square().sum(1, keepdim=True)
    if kind == "manhattan":
        return (x[:, None] - y).abs().sum(-1)
    squared = _squares(x, y)
    return squared if kind == "squared_euclidean" else torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)


def _squares(x, y):
    return torch.stack([(row - y).square().sum(1) for row in x])


def masks(labels, ref_labels):
    """Of the positives and of the negatives."""
    positive = labels[:, None] == (labels if ref_labels is None else ref_labels)
    return positive if ref_labels is not None else positive & ~torch.eye(len(labels), dtype=torch.bool), ~positive


def triplets_of(labels, ref_labels):
    found = [
        torch.cartesian_prod(torch.tensor([a]), p.nonzero()[:, 0], n.nonzero()[:, 0])
        for a, (p, n) in enumerate(zip(*masks(labels, ref_labels)))
    ]
    return torch.cat(found).unbind(1)


def mean_non_zero(t):
    return t.sum() / (t > 0).sum().clamp(min=1)


def triplet_margin(v, labels, ref_labels, sign, margin, swap=False, smooth_loss=False, squared=False, between=None):
    a, p, n = triplets_of(labels, ref_labels)
    negative = v[a, n]
    if swap:
        negative = sign * torch.minimum(sign * negative, sign * (v if between is None else between)[p, n])
    t = sign * (v[a, p] - negative) + margin
    return mean_non_zero(fn.softplus(t) if smooth_loss else t.relu().square() if squared else t.relu())


def batch_hard(v, labels, ref_labels, sign, margin, soft_margin=False, lone_anchors="skip"):
    positive, negative = masks(labels, ref_labels)
    far = (sign * v).masked_fill(~positive, -torch.inf).amax(1)
    if lone_anchors == "zero":
        far = torch.where(positive.any(1), far, sign * v.diagonal())
    near = (sign * v).masked_fill(~negative, torch.inf).amin(1)
    t = (far - near + margin)[far.isfinite() & near.isfinite()]
    return (fn.softplus(t) if soft_margin else t.relu()).sum() / max(len(t), 1)


def semi_hard(v, labels, ref_labels, sign, margin, soft_margin=False):
    positive, negative = masks(labels, ref_labels)
    costs = [v.sum()[None] * 0.0]
    for u, p, n in zip(sign * v, positive, negative):
        if n.any():
            beyond = n & (u > u[p][:, None])
            nearest = u.masked_fill(~beyond, torch.inf).amin(1)
            chosen = torch.where(beyond.any(1), nearest, u[n].max())
            costs.append(u[p] - chosen + margin)
    t = torch.cat(costs)[1:]
    return (fn.softplus(t) if soft_margin else t.relu()).sum() / max(len(t), 1)


def margin_loss(v, labels, ref_labels, sign, margin, beta, nu=0, learn_beta=False, num_classes=None):
    a, p, n = triplets_of(labels, ref_labels)
    far, near = (sign * (v[a, p] - beta) + margin).relu(), (sign * (beta - v[a, n]) + margin).relu()
    number = ((far > 0).sum() + (near > 0).sum()).clamp(min=1).to(v.dtype)
    penalty = nu * beta * learn_beta * (len(a) / number if num_classes else float(len(a) > 0))
    return (far + near).sum() / number + penalty


def unordered(v, labels):
    """Pair values i < j of the positives and of the negatives, and their first points."""
    i, j = torch.triu_indices(len(labels), len(labels), 1)
    same = labels[i] == labels[j]
    return (v[i[same], j[same]], i[same], j[same]), (v[i[~same], j[~same]], i[~same], j[~same])


def hinges(positive, negative, margin):
    """Sum and number of [p - n + margin]_+ above 0 over all p and n, by ranks, which are constants."""
    below = torch.searchsorted(negative.detach().sort().values, positive.detach() + margin)
    above = len(positive) - torch.searchsorted(positive.detach().sort().values, negative.detach() - margin, right=True)
    return (below * (positive + margin)).sum() - (above * negative).sum(), below.sum()


def quadruplet_sums(v, labels, sign, margin, negatives):
    """Sum, number above 0, and number of all."""
    (positive, i, _), (negative, k, m) = unordered(sign * v, labels)
    found = [*hinges(positive, negative, margin), len(positive) * len(negative)]
    excluded = []
    if negatives == "disjoint":
        a, p, n = triplets_of(labels, None)
        t = sign * (v[a, p] - v[a, n]) + margin
        excluded = [(t.relu().sum(), (t > 0).sum(), len(t))]
    elif negatives == "other_class":
        for label in labels.unique():
            own, touching = labels[i] == label, (labels[k] == label) | (labels[m] == label)
            excluded.append((*hinges(positive[own], negative[touching], margin), int(own.sum() * touching.sum())))
    total, active, valid = (whole - sum(part[which] for part in excluded) for which, whole in enumerate(found))
    return (total if valid else 0.0 * total), active, valid


def quadruplet_margin(v, labels, ref_labels, sign, margin, negatives):
    total, active, _ = quadruplet_sums(v, labels, sign, margin, negatives)
    return total / max(int(active), 1)


def quadruplet(v, labels, ref_labels, sign, margin1, margin2, adaptive=False, detach_margins=True):
    positive, negative = masks(labels, None)
    if adaptive:
        margin1 = sign * (v[negative].mean() - v[positive].mean())
        margin1 = margin1.detach() if detach_margins else margin1
        margin2 = margin1 / 2
    a, p, n = triplets_of(labels, None)
    triplets = (sign * (v[a, p] - v[a, n]) + margin1).relu().mean()
    known = margin2.detach() if adaptive else margin2
    total, active, valid = quadruplet_sums(v, labels, sign, known, "other_class")
    return triplets + (total + active * (margin2 - known)) / max(valid, 1)


def quadruplet_log_sum_exp(v, labels, ref_labels, sign, scale):
    (positive, *_), (negative, *_) = unordered(sign * scale * v, labels)
    return fn.softplus(positive.logsumexp(0) + (-negative).logsumexp(0))


def shares(v, low, step, nodes):
    """(nodes, *v.shape), by triangles around the nodes."""
    at = low + step * torch.arange(nodes, dtype=v.dtype).view(-1, *[1] * v.dim())
    return (1 - (v.clamp(low, low + step * (nodes - 1)) - at).abs() / step).relu()


def histogram(v, labels, ref_labels, sign, n_bins, pairs="triplets", kernel="step", margin=0.0, alpha=1.0):
    (positive, *_), (negative, i, j) = unordered(v, labels)
    if pairs == "triplets":
        paired = masks(labels, None)[0].any(1)
        negative = negative[paired[i] | paired[j]]
    found = [shares(side, -1.0, 2 / n_bins, n_bins + 1).mean(1) for side in (positive, negative)]
    gap = 2 / n_bins * (torch.arange(n_bins + 1) - torch.arange(n_bins + 1)[:, None]).to(v.dtype)
    costs = {"step": (gap >= 0).to(v.dtype), "linear": (margin + gap).relu(), "exp": fn.softplus(alpha * (margin + gap))}
    return found[0] @ costs[kernel] @ found[1]


def fast_ap(v, labels, ref_labels, sign, num_bins, largest):
    positive, negative = masks(labels, None)
    used = positive.any(1)
    each = shares(v[used], 0.0, largest / num_bins, num_bins + 1)
    of_positives, of_negatives = ((each * side[used]).sum(2) for side in (positive, negative))
    hits = of_positives.cumsum(0)
    of_all = hits + of_negatives.cumsum(0)
    precision = torch.where(of_positives > 0, of_positives * hits / torch.where(of_all > 0, of_all, 1.0), 0.0).sum(0)
    return (1 - precision / positive[used].sum(1)).mean()


def dynamic_soft_margin(v, labels, ref_labels, sign, min_val, num_bins, momentum):
    a, p, n = triplets_of(labels, ref_labels)
    t = v[a, p] - v[a, n]
    step = -2 * min_val / num_bins
    place = (t.detach() - min_val) / step
    node, last = place.floor().long(), place.clamp(0, num_bins)
    left = last.long().clamp(max=num_bins - 1)
    counts = t.new_zeros(num_bins + 1).index_add(0, left, 1 - (last - left)).index_add(0, left + 1, last - left)
    below = F.pad((counts / counts.sum()).cumsum(0), (1, 0))
    return (below[node.clamp(-1, num_bins) + 1] * t).mean()


DENSE = {
    "TripletMarginLoss": triplet_margin,
    "BatchHardTripletLoss": batch_hard,
    "SemiHardTripletLoss": semi_hard,
    "MarginLoss": margin_loss,
    "QuadrupletMarginLoss": quadruplet_margin,
    "QuadrupletLoss": quadruplet,
    "QuadrupletLogSumExpLoss": quadruplet_log_sum_exp,
    "HistogramLoss": histogram,
    "FastAPLoss": fast_ap,
    "DynamicSoftMarginLoss": dynamic_soft_margin,
}
# The pair values of each by default.
DEFAULT = {
    "QuadrupletLoss": ("squared_euclidean", True),
    "QuadrupletLogSumExpLoss": ("cosine", True),
    "HistogramLoss": ("cosine", True),
    "FastAPLoss": ("squared_euclidean", True),
}


def dense(name, x, labels, ref=None, ref_labels=None, pair_value=None, **params):
    """The loss from embeddings."""
    kind, normalize = pair_value or DEFAULT.get(name, ("euclidean", True))
    if name == "FastAPLoss":
        params["largest"] = 4.0 if kind == "squared_euclidean" else 2.0
    if params.get("swap") and ref is not None:
        params["between"] = pair_values(ref, None, kind, normalize)
    sign = -1.0 if kind in ("cosine", "dot") else 1.0
    return DENSE[name](pair_values(x, ref, kind, normalize), labels, ref_labels, sign, **params)
