"""No time for a wrong answer: a provider is timed only if its loss and gradient agree with the formula in float64.

That is the one of dense.py, or for triplets, quadruplets and histograms of exact.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Case, loss_step
from benchmarks.dense import DENSE
from benchmarks.exact import EXACT

LOSS_TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 3e-2, "float16": 3e-2}
# Products in half precision cost the dense formulas and PML up to 5 % of the gradient: their choice, not a mistake.
GRAD_TOLERANCE = {"float32": 1e-4, "tf32": 5e-2, "bfloat16": 1e-1, "float16": 1e-1}
# A triplet that rounding carries over its margin changes the gradient by a whole unit, whoever computes it; so does another one
# of two negatives that are nearly as far, and there are many.
TERM_GRAD_TOLERANCE = dict.fromkeys(EXACT, 1e-3) | {"SemiHardTripletLoss": 5e-2}


class Truth(NamedTuple):
    loss: float
    grad: Tensor


class Errors(NamedTuple):
    """Relative error of the loss and, in the L2 norm, of the gradient."""

    loss: float
    grad: float


def truth(case: Case) -> Truth:
    """Loss and gradient of the (rounded) inputs in float64."""
    x, labels = case.inputs()
    x = x.detach().double().requires_grad_()
    formula = EXACT[case.loss](case.batch, case.per_class) if case.loss in EXACT else DENSE[case.loss]
    loss = loss_step(formula, x, labels)()
    return Truth(loss.item(), x.grad)


def errors(true: Truth, loss: Tensor, grad: Tensor) -> Errors:
    off = torch.linalg.vector_norm(grad.double() - true.grad) / torch.linalg.vector_norm(true.grad)
    return Errors(abs(loss.item() - true.loss) / abs(true.loss), off.item())


def verdict(case: Case, found: Errors) -> str | None:
    """Why there is no time, or None. Written so that a NaN fails."""
    if not found.loss <= LOSS_TOLERANCE[case.dtype]:
        return f"another loss than in float64: relative error {found.loss:.1e}"
    jumps = TERM_GRAD_TOLERANCE.get(case.loss, 0.0)
    if not found.grad <= max(jumps, GRAD_TOLERANCE[case.dtype]):
        return f"another gradient than in float64: relative error {found.grad:.1e}"
    return None
