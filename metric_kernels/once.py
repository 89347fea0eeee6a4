"""A gradient that cannot be differentiated again, and says so."""

from __future__ import annotations

import torch
from torch import Tensor


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, *inputs):
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("metric_kernels has first derivatives only: a second derivative of a loss was asked for")


def once(grad: Tensor | None, *inputs: Tensor | None) -> Tensor | None:
    """``grad`` as it is, but if a graph of the backward pass is being made, one that raises where it is used.

    Without the dependence on the inputs, the share of such a loss in a penalty on gradients would silently be missing.
    """
    return grad if grad is None or not torch.is_grad_enabled() else _Once.apply(grad, *inputs)
