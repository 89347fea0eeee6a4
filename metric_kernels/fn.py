"""The vocabulary of a formula, in its torch spelling.

A loss is written with these names (``from metric_kernels import fn``), arithmetic, comparisons, ``&``, ``|`` and assignments.
The same source is run by torch with this module, compiled by Numba and Triton with ``backends/numba_fn.py`` and
``backends/triton_fn.py``, and printed as C++ for ``csrc/fn.h``. Every spelling lets a NaN through.
"""

import torch
from torch import Tensor, exp, log, sigmoid, sqrt, where
from torch.nn import functional as F

__all__ = [
    "abs",
    "exp",
    "log",
    "logaddexp",
    "maximum",
    "minimum",
    "relu",
    "sigmoid",
    "softplus",
    "sqrt",
    "step",
    "stop",
    "where",
    "within",
]

abs = torch.abs
relu = torch.relu


def _both(a, b):
    """Either may be a number."""
    if not isinstance(a, Tensor):
        a = b.new_full((), a)
    return a, b if isinstance(b, Tensor) else a.new_full((), b)


def maximum(a, b):
    return torch.maximum(*_both(a, b))


def minimum(a, b):
    return torch.minimum(*_both(a, b))


def logaddexp(a, b):
    """log(e^a + e^b)."""
    return torch.logaddexp(*_both(a, b))


def softplus(x):
    """log(1 + e^x); torch's own is linear above 20, which is 2e-9 off."""
    return F.softplus(x, threshold=60.0)


def step(x):
    """1 where x > 0, else 0."""
    return (x > 0).to(x.dtype)


def within(x, low, high):
    """1 where low < x < high, else 0."""
    return ((x > low) & (x < high)).to(x.dtype)


def stop(x):
    """x as a constant for differentiation."""
    return x.detach()
