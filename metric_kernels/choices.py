"""What was chosen for a call, kept for its backward pass."""

from __future__ import annotations

import functools
from contextvars import copy_context

import torch


def keeps_choices(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The Function, whose backward pass sees what ``use_backend`` and ``use_workspace`` said in the forward pass.

    They belong to a ``with`` block and a thread, and the backward pass comes later, on a GPU on a thread of autograd's own.
    """
    forward, backward = function.forward, function.backward

    @functools.wraps(forward)
    def keeping(ctx, *arguments):
        ctx.choices = copy_context()
        return forward(ctx, *arguments)

    @functools.wraps(backward)
    def kept(ctx, *grads):
        return ctx.choices.copy().run(backward, ctx, *grads)  # a copy, since only one pass can be in a context

    function.forward, function.backward = staticmethod(keeping), staticmethod(kept)
    return function
