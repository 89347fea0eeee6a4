"""How close a result must be to the exact one: an error budget for each type instead of a tolerance for each test.

An error is ||actual - exact|| / ||exact|| over the whole tensor, the exact result being one of float64 arithmetic on
the same inputs, already rounded to the type under test.
"""

from __future__ import annotations

import torch
from torch import Tensor

BUDGET = {torch.float64: 1e-12, torch.float32: 2e-6}
HALVES = (torch.bfloat16, torch.float16)
# How much worse than the plain formula in the same type we may be, where that formula exceeds the budget itself.
FACTOR = 2.0


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Relative L2 error; 0 or inf where the exact result is 0, NaN where either has a NaN."""
    difference, size = (actual.double() - exact).norm().item(), exact.norm().item()
    if size == 0:
        return difference if difference == 0 or difference != difference else float("inf")
    return difference / size


def budget(exact: Tensor, dtype: torch.dtype, plain: Tensor | None = None) -> float:
    """The error that a result of ``dtype`` may have.

    In half precision that of rounding the exact result to it, and twice that of float32: arithmetic in float32 moves a
    number across the middle between two halves only if it is as close to it as its error.

    Args:
        plain: result of the plain formula in ``dtype``, which tells how well the problem is conditioned.
    """
    if dtype in HALVES:
        return relative_error(exact.to(dtype), exact) + 2 * budget(exact, torch.float32, plain)
    return max(BUDGET[dtype], 0.0 if plain is None else FACTOR * relative_error(plain, exact))


def assert_accurate(actual: Tensor, exact: Tensor, plain: Tensor | None = None, within: float | None = None) -> None:
    """Fails unless ``actual`` is the exact result up to the error budget of its type, or up to ``within``."""
    assert exact.dtype == torch.float64, f"the exact result must be of float64, got {exact.dtype}"
    assert actual.shape == exact.shape, f"expected shape {tuple(exact.shape)}, got {tuple(actual.shape)}"
    assert exact.isfinite().all(), "the exact result must be finite"
    error = relative_error(actual, exact)
    allowed = budget(exact, actual.dtype, plain) if within is None else within
    assert error <= allowed, f"relative error {error:.2e} of a {actual.dtype} result exceeds {allowed:.2e}"


def assert_accurate_where_terms_cancel(
    value: Tensor,
    exact: Tensor,
    points: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    exact_grads: tuple[Tensor, ...],
    within: float | None = None,
) -> None:
    """Fails unless value and gradients are exact up to the error budget of their type, or up to ``within``, times the
    largest entry or 1.

    For batches in which all terms of a gradient may cancel, so that nothing but their rounding is left. A gradient is
    measured by what it does to a row of length 1, since a row near 0 has a huge one.
    """
    lengths = [1.0, *(point.double().norm(dim=1, keepdim=True) for point in points)]
    for length, actual, expected in zip(lengths, (value, *grads), (exact, *exact_grads), strict=True):
        assert actual.shape == expected.shape, f"expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
        error, scale = (length * (actual.double() - expected)).abs(), (length * expected).abs().amax().clamp_min(1)
        allowed = (within or BUDGET[actual.dtype]) * scale
        assert (error <= allowed).all(), f"error {error.max():.2e} of a {actual.dtype} result exceeds {allowed:.2e}"
