"""The kernels of :mod:`metric_kernels.binned` in C++; the arguments are described there."""

from __future__ import annotations

from torch import Tensor

from metric_kernels.backends.native import extension
from metric_kernels.backends.native_ordered import values
from metric_kernels.terms import ValueTile


def histogram(tile: ValueTile, low: float, step: float, lone: bool, bits: int, out: Tensor, spoiled: Tensor):
    extension().histogram(*values(tile), low, step, lone, bits, out.flatten(1).numpy(), spoiled.numpy())


def histogram_grads(tile: ValueTile, low: float, step: float, lone: bool, tables: Tensor, g: Tensor):
    extension().histogram_grads(*values(tile), low, step, lone, tables.flatten(1).contiguous().numpy(), g.numpy())
