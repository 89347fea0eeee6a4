"""The vocabulary of :mod:`metric_kernels.fn` in Triton spelling."""

import triton
import triton.language as tl

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


# The builtins are wrapped, because the interpreter replaces them in triton.language itself only.


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def sqrt(x):
    return tl.sqrt(x)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def maximum(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu(x):
    return maximum(x, 0.0)


@triton.jit
def _log1p(u):
    """log(1 + u) for 0 <= u <= 1, by the logarithm of the rounded w = 1 + u, corrected for what w has lost of u."""
    w = 1.0 + u
    return tl.where(w == 1.0, u, tl.log(w) * (u / (w - 1.0)))


@triton.jit
def softplus(x):
    return relu(x) + _log1p(tl.exp(-tl.abs(x)))


@triton.jit
def logaddexp(x, y):
    # Two equal infinities have no difference.
    gap = tl.where(x == y, 0.0, tl.abs(x - y))
    return maximum(x, y) + _log1p(tl.exp(-gap))


@triton.jit
def step(x):
    return tl.where(x > 0, 1.0, 0.0)


@triton.jit
def within(x, low, high):
    return tl.where((x > low) & (x < high), 1.0, 0.0)


@triton.jit
def stop(x):
    return x
