"""Checks of numbers that are given as arguments, and of labels that number classes."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from metric_kernels.core import queued


def finite_number(name: str, value: object) -> float:
    """Raises TypeError for what is no number, and ValueError for one that is not finite."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise TypeError(name) from error
    if not -math.inf < number < math.inf:  # torch.compile can trace this
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def whole_number(name: str, value: object) -> int:
    """A number of something as an integer, which is 1 or more."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name}: expected an integer from 1, got {value!r}")
    return number


def of_classes(values: Tensor, labels: Tensor, what: str) -> Tensor:
    """The one of the ``values``, a ``what`` for each class, that belongs to each label.

    On a GPU it is torch that refuses a label beyond them, when it comes to it.
    """
    if queued(labels):
        labels = torch.where(labels < 0, len(values), labels)  # which would be counted from the end
    elif len(labels):
        low, high = (int(v) for v in torch.aminmax(labels))
        if low < 0 or high >= len(values):
            raise IndexError(f"labels: expected classes from 0 to {len(values) - 1}, one for each {what}, got {low} to {high}")
    return values[labels]
