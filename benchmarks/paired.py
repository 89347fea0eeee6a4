"""Losses between two sets of which the points i belong together, such as images and their texts, and no others do.

Other libraries have kernels for two of them, on embeddings that are normalised already: siglip-kernel for the sigmoid loss,
Inf-CL for the cross entropy over the points of the other set (InfoNCE, in one direction). Each is written here as the dense
formula of a PyTorch user, and as a loss of this package; both sets get gradients.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metric_kernels import fn, losses
from metric_kernels.distances import DotProductSimilarity
from metric_kernels.language import total
from metric_kernels.reducers import MeanReducer

# Where SigLIP's parameters begin.
SCALE, BIAS = 10.0, -10.0
TEMPERATURE = 0.07
# Of points that belong together; more would leave nothing to learn at the smaller batches.
_COSINE = 0.6


class SigmoidLoss(losses.PairLoss):
    """``1/B sum_ij log(1 + e^{-z_ij (scale s_ij + bias)})``, z_ij = 1 for a positive pair and -1 for a negative one.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
    """

    scale, bias, stats = SCALE, BIAS, (total("pos"), total("neg"))

    def pair(v, scale, bias):
        return fn.softplus(-scale * v - bias), fn.softplus(scale * v + bias)

    def dpair(v, scale, bias):
        return -scale * fn.sigmoid(-scale * v - bias), scale * fn.sigmoid(scale * v + bias)

    def row(positives, negatives):
        return positives + negatives


def logits(x: Tensor, y: Tensor, scale: float, bias: float = 0.0) -> Tensor:
    s = x @ y.T
    return scale * s.to(torch.promote_types(s.dtype, torch.float32)) + bias


def sigmoid(x: Tensor, y: Tensor) -> Tensor:
    z = logits(x, y, SCALE, BIAS)
    # log(1 + e^-z) = log(1 + e^z) - z
    return (F.softplus(z).sum() - z.diagonal().sum()) / len(x)


def info_nce(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits(x, y, 1 / TEMPERATURE), torch.arange(len(x), device=x.device))


def sets(batch: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = F.normalize(torch.randn(2, batch, dim, generator=generator), dim=2)
    return x, F.normalize(_COSINE * x + (1 - _COSINE**2) ** 0.5 * noise)


def between(loss: losses.Loss, number: int, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss as a function of two sets."""
    # Two tensors: of one and the same the pairs (i, i) would be points with themselves.
    labels, others = (torch.arange(number, device=device) for _ in range(2))
    return lambda x, y: loss(x, labels, ref_emb=y, ref_labels=others)


class Paired(NamedTuple):
    dense: Callable[[Tensor, Tensor], Tensor]
    ours: Callable[..., losses.Loss]
    inputs: Callable[[int, int], tuple[Tensor, Tensor]] = sets


def _ours(make: Callable[..., losses.Loss]) -> Callable[..., losses.Loss]:
    return partial(make, distance=DotProductSimilarity(normalize_embeddings=False))


PAIRED = {
    "SigmoidLoss": Paired(sigmoid, _ours(SigmoidLoss)),
    # With one positive an anchor, SupCon is the cross entropy.
    "InfoNCELoss": Paired(info_nce, _ours(partial(losses.SupConLoss, temperature=TEMPERATURE, reducer=MeanReducer()))),
}
