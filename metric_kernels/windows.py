"""Sums of the losses of all triplets or quadruplets that lie inside a reducer's window."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels.batch import Batch
from metric_kernels.distances import Distance
from metric_kernels.ordered import BatchAllTriplets
from metric_kernels.quadruplets import BatchAllQuadruplets, valid_quadruplets
from metric_kernels.swap import swapped_sums
from metric_kernels.terms import evaluate

EVERYTHING = (-math.inf, math.inf)


class WindowSums(NamedTuple):
    """Sums (float64) of the losses inside a window, their number, and the number of those of them above 0.

    The last is the derivative of a sum of hinges with respect to the margin.
    """

    totals: Tensor
    counts: Tensor
    active: Tensor


def triplet_sums(
    window: tuple[float, float],
    shape: str,
    margin: float,
    batch: Batch,
    distance: Distance,
    backend: str | None,
    swap: bool = False,
    summed: bool = False,
) -> WindowSums:
    """For each anchor, (B,); with ``summed`` there may be their sums (1,) instead."""

    def between(low: float, high: float) -> tuple[Tensor, Tensor]:
        term = BatchAllTriplets(shape, distance.sign, low, high, (margin,))
        if swap:
            values, counts = swapped_sums(term, batch, distance)
        else:
            values, counts = evaluate(term, batch, distance, backend, summed)
        return values[0], counts[0]

    # No loss is below 0, and a loss of 0 adds nothing.
    low, high = window
    summed &= low >= 0.0 or high == math.inf
    totals, active = between(max(low, 0.0), high)
    if low >= 0.0:
        return WindowSums(totals, active, active)
    positives, negatives = batch.numbers()
    count = positives * negatives
    if high < math.inf:
        with torch.no_grad():
            count = count - between(0.0, math.inf)[1] + active
    return WindowSums(totals, count, active)


def quadruplet_sums(
    window: tuple[float, float], margin: float, negatives: str, batch: Batch, distance: Distance, backend: str | None
) -> WindowSums:
    """For the batch. A hinge above c is c more than that of a margin smaller by c.

    A loss that equals the upper bound of the window is inside.
    """

    def above(bound: float) -> tuple[Tensor, Tensor]:
        term = BatchAllQuadruplets(distance.sign, margin - bound, negatives)
        values, counts = evaluate(term, batch, distance, backend)
        return values[0] + bound * counts[0].double(), counts[0]

    low, high = window
    total, active = above(max(low, 0.0))
    count = active if low >= 0.0 else valid_quadruplets(batch.labels, negatives)
    if high < math.inf:
        beyond, number = above(max(high, 0.0))
        total, count, active = total - beyond, count - number, active - number
    return WindowSums(total, count, active)
