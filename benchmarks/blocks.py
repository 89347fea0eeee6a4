"""Losses as sums over blocks of rows, as the truth for the gate where no B x B tensor fits; see exact.py."""

import torch
import torch.nn.functional as F

from benchmarks.exact import in_blocks
from benchmarks.paired import BIAS, SCALE, TEMPERATURE, logits


def supcon(x, labels, temperature=0.1):
    z = F.normalize(x)
    points = torch.arange(len(x), device=x.device)

    def of_rows(rows):
        own = points[rows, None] == points
        s = logits(z[rows], z, 1 / temperature).masked_fill(own, -torch.inf)
        positive = (labels[rows, None] == labels) & ~own
        each = s.logsumexp(1) - torch.where(positive, s, 0).sum(1) / positive.sum(1).clamp_min(1)
        each = torch.where(positive.any(1), each, 0)
        return each.sum(), each.count_nonzero()

    total, number = in_blocks(of_rows, x, len(x))
    return total / number.clamp_min(1)


def sigmoid(x, y):
    def of_rows(rows):
        z = logits(x[rows], y, SCALE, BIAS)
        return (F.softplus(z).sum() - z.gather(1, rows[:, None]).sum(),)

    return in_blocks(of_rows, x, len(y))[0] / len(x)


def info_nce(x, y):
    def of_rows(rows):
        return (F.cross_entropy(logits(x[rows], y, 1 / TEMPERATURE), rows, reduction="sum"),)

    return in_blocks(of_rows, x, len(y))[0] / len(x)


BLOCKS = {"SupConLoss": supcon, "SigmoidLoss": sigmoid, "InfoNCELoss": info_nce}
