"""Dense PyTorch formulas of the losses at their default parameters, the baselines of the benchmark.

Each is written on the B x B matrix as an experienced PyTorch user would: no index tuples, no tensor larger than B x B,
no data-dependent shape (except in npairs), so that torch.compile(fullgraph=True) traces it. Half-precision inputs are
multiplied in half precision and go on in float32, as under autocast. Batches must hold a positive and a negative pair.
"""

import torch
import torch.nn.functional as F


def similarities(x, temperature=1.0):
    """Cosine similarities over temperature; scaling B x D instead of B x B saves a pass."""
    x = F.normalize(x)
    s = (x / temperature) @ x.T
    return s.to(torch.promote_types(s.dtype, torch.float32))


def distances(x):
    """Euclidean distances of unit vectors. The clamp keeps the gradient finite at 0."""
    s = similarities(x)
    return (2 - 2 * s).clamp_min(torch.finfo(s.dtype).eps).sqrt()


def masks(labels):
    same = labels[:, None] == labels
    negative = ~same
    return same.fill_diagonal_(False), negative


def mean_non_zero(losses):
    return losses.sum() / losses.count_nonzero().clamp_min(1)


def contrastive(x, labels):
    d = distances(x)
    positive, negative = masks(labels)
    return mean_non_zero(torch.where(positive, d, 0)) + mean_non_zero(torch.where(negative, F.relu(1 - d), 0))


def multi_similarity(x, labels, alpha=2, beta=50, base=0.5):
    s = similarities(x)
    positive, negative = masks(labels)
    # Cosines bound the exponents by 25, so no maximum has to be subtracted.
    pull = torch.where(positive, torch.exp(alpha * (base - s)), 0).sum(1)
    push = torch.where(negative, torch.exp(beta * (s - base)), 0).sum(1)
    return (pull.log1p() / alpha + push.log1p() / beta).mean()


def supcon(x, labels, temperature=0.1):
    logits = similarities(x, temperature)
    positive, _ = masks(labels)
    log_prob = F.log_softmax(logits.fill_diagonal_(torch.finfo(logits.dtype).min), dim=1)
    return mean_non_zero(-torch.where(positive, log_prob, 0).sum(1) / positive.sum(1).clamp_min(1))


def circle(x, labels, m=0.4, gamma=80):
    s = similarities(x)
    positive, negative = masks(labels)
    weight = s.detach()
    # Masked with a finite minimum: a row without one kind gets softplus(about -1e38) = 0 and no NaN gradient.
    lowest = torch.finfo(s.dtype).min
    pull = torch.where(positive, gamma * F.relu(1 + m - weight) * (1 - m - s), lowest).logsumexp(1)
    push = torch.where(negative, gamma * F.relu(weight + m) * (s - m), lowest).logsumexp(1)
    return mean_non_zero(F.softplus(pull + push))


def ntxent(x, labels, temperature=0.07):
    logits = similarities(x, temperature)
    positive, negative = masks(labels)
    # Logits are at most 1 / 0.07, so the sum of exponentials needs no maximum subtracted.
    total = torch.where(negative, logits.exp(), 0).sum(1, keepdim=True)
    push = total.clamp_min(torch.finfo(total.dtype).tiny).log()
    return torch.where(positive, F.softplus(push - logits), 0).sum() / positive.sum().clamp_min(1)


def npairs(x, labels):
    order = labels.argsort(stable=True)
    ordered = labels[order]
    start = torch.ones_like(ordered, dtype=torch.bool)
    start[1:] = ordered[1:] != ordered[:-1]
    # A run of length 2 or more gives its first two rows; the number of such runs depends on the data.
    first = (start[:-1] & ~start[1:]).nonzero().squeeze(1)
    x = F.normalize(x)
    logits = x[order[first]] @ x[order[first + 1]].T
    targets = torch.arange(len(first), device=x.device)
    return F.cross_entropy(logits.to(torch.promote_types(x.dtype, torch.float32)), targets)


def lifted_structure(x, labels, neg_margin=1):
    d = distances(x)
    positive, negative = masks(labels)
    total = torch.where(negative, torch.exp(neg_margin - d), 0).sum(1)
    push = (total[:, None] + total).clamp_min(torch.finfo(d.dtype).tiny).log()
    return torch.where(positive, F.relu(push + d).square(), 0).sum() / (2 * positive.sum().clamp_min(1))


DENSE = {
    "ContrastiveLoss": contrastive,
    "MultiSimilarityLoss": multi_similarity,
    "SupConLoss": supcon,
    "CircleLoss": circle,
    "NTXentLoss": ntxent,
    "NPairsLoss": npairs,
    "LiftedStructureLoss": lifted_structure,
}
