"""The batch on which a loss step is measured, here and in benchmarks/."""

from __future__ import annotations

import torch
from torch import Tensor


def clustered(size: int, width: int, per_class: int, apart: float = 0.3) -> tuple[Tensor, Tensor]:
    """Embeddings (size, width) and labels, always the same.

    Cosines are about 0.4 + ``apart`` within a class and 0.4 between classes, as in training: random vectors would leave every
    negative pair of a margin loss at zero. Labels are shuffled, since sorted ones would flatter branch predictors.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(size, generator=generator)
    labels = (torch.arange(size) // per_class)[order]

    def random(rows):
        return torch.randn(rows, width, generator=generator)

    x = 0.4**0.5 * random(1) + apart**0.5 * random(int(labels.max()) + 1)[labels] + (0.6 - apart) ** 0.5 * random(size)
    return x, labels
