"""The farthest and nearest positive and negative of every point, with their indices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels import distances
from metric_kernels.batch import Batch
from metric_kernels.language import Formula, largest, smallest, stages_of
from metric_kernels.rowstats import Call, row_stats


class Extremes:
    stats = (largest("pos"), smallest("pos"), largest("neg"), smallest("neg"))

    def pair(v):
        return v, v, v, v

    def dpair(v):
        return 1.0, 1.0, 1.0, 1.0


FORMULA = Formula(f"{__name__}.Extremes", stages_of(Extremes))


class RowExtremes(NamedTuple):
    """Values (B,), differentiable, and indices (B,) into the other side.

    Without a positive (negative) the maximum is -inf, the minimum inf and the index -1. Ties go to the first index.
    """

    largest_positive: Tensor
    smallest_positive: Tensor
    largest_negative: Tensor
    smallest_negative: Tensor
    indices: Tensor


def row_extremes(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    distance: object | None = None,
    backend: str | None = None,
) -> RowExtremes:
    """Largest and smallest pair value of each embedding over its positives and over its negatives.

    Args:
        embeddings: (B, D), any floating type.
        labels: (B,), integer.
        ref_emb: (R, D), the other side; the batch itself, without the pairs (i, i), by default.
        ref_labels: (R,), its labels.
        distance: as for a loss; LpDistance() by default.
        backend: as for a loss.
    Returns:
        :class:`RowExtremes`; ``indices`` is (4, B), in the order of the values.

    Example:
        >>> import torch
        >>> from metric_kernels import row_extremes
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> row_extremes(x, torch.tensor([0, 0, 1])).smallest_negative
        tensor([2.0000, 1.4142, 1.4142])
    """
    distance = distances.LpDistance() if distance is None else distances.adopt(distance)
    batch = Batch(embeddings, labels, None, ref_emb, ref_labels)
    *values, index = extremes_of(batch, distance, backend)
    return RowExtremes(*(v.to(embeddings.dtype) for v in values), index)


def extremes_of(batch: Batch, distance: distances.Distance, backend: str | None) -> RowExtremes:
    """For the checked arguments of a loss, in the arithmetic type."""
    if not len(batch.x) or not len(batch.y):
        nothing = batch.nothing().expand(len(batch.x))
        index = torch.full((4, len(batch.x)), -1, device=batch.x.device)
        return RowExtremes(nothing - torch.inf, nothing + torch.inf, nothing - torch.inf, nothing + torch.inf, index)
    values, index = row_stats(Call.of(FORMULA, ((),), distance, batch, backend))
    return RowExtremes(*values, index)
