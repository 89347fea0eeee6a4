"""Checks of numbers that are given as arguments."""

from __future__ import annotations

import math
import operator


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
