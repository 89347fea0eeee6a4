"""Dense formulas of the losses with a reference set, for more columns than the loops of the oracles can visit.

In float64 they are the truth there, in float32 the plain formula that tells how well the problem is conditioned.
"""

import torch
import torch.nn.functional as F


def similarities(x, ref):
    return F.normalize(x) @ F.normalize(ref).T


def distances(x, ref):
    return (2 - 2 * similarities(x, ref)).clamp_min(0).sqrt()


def mean_non_zero(losses):
    return losses.sum() / losses.count_nonzero().clamp_min(1)


def lse(values, mask):
    return values.masked_fill(~mask, -torch.inf).logsumexp(1)


def softplus(x):
    return torch.logaddexp(x, torch.zeros_like(x))


def contrastive(x, ref, same):
    d = distances(x, ref)
    return mean_non_zero(d[same]) + mean_non_zero(torch.relu(1 - d[~same]))


def multi_similarity(x, ref, same):
    s = similarities(x, ref)
    return (softplus(lse(2 * (0.5 - s), same)) / 2 + softplus(lse(50 * (s - 0.5), ~same)) / 50).mean()


def supcon(x, ref, same):
    log_prob = F.log_softmax(similarities(x, ref) / 0.1, dim=1)
    return mean_non_zero(-torch.where(same, log_prob, 0).sum(1) / same.sum(1).clamp_min(1))


def circle(x, ref, same):
    s = similarities(x, ref)
    pull = 80 * torch.relu(1.4 - s.detach()) * (0.6 - s)
    push = 80 * torch.relu(s.detach() + 0.4) * (s - 0.4)
    return mean_non_zero(softplus(lse(pull, same) + lse(push, ~same)))


def ntxent(x, ref, same):
    logits = similarities(x, ref) / 0.07
    return softplus(lse(logits, ~same)[:, None] - logits)[same].mean()


def lifted_structure(x, ref, same):
    d = distances(x, ref)
    push = torch.where(same, 0, (1 - d).exp())
    return torch.relu((push.sum(1)[:, None] + push.sum(0)).log() + d)[same].square().mean() / 2


_FORMULAS = {
    "ContrastiveLoss": contrastive,
    "MultiSimilarityLoss": multi_similarity,
    "SupConLoss": supcon,
    "CircleLoss": circle,
    "NTXentLoss": ntxent,
    "LiftedStructureLoss": lifted_structure,
}


def dense_reference(name, x, labels, ref, ref_labels):
    """The loss at its default parameters. Every row must have a positive and a negative."""
    return _FORMULAS[name](x, ref, labels[:, None] == ref_labels)
