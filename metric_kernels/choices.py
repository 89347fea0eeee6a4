"""Choices of a ``with`` block and a thread, and how they reach the backward pass of a call."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

import torch

_choices: list[ContextVar] = []


def choice(name: str) -> ContextVar[Any]:
    """A variable that is None until something is chosen."""
    _choices.append(ContextVar(f"metric_kernels_{name}", default=None))
    return _choices[-1]


def keeps_choices(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The Function, whose backward pass sees what had been chosen in the forward pass.

    The backward pass comes later, perhaps after the ``with`` block, and on a GPU on a thread of autograd's own.
    """
    forward, backward = function.forward, function.backward

    @functools.wraps(forward)
    def keeping(ctx, *arguments):
        ctx.choices = [variable.get() for variable in _choices]
        return forward(ctx, *arguments)

    @functools.wraps(backward)
    def kept(ctx, *grads):
        tokens = [variable.set(value) for variable, value in zip(_choices, ctx.choices)]
        try:
            return backward(ctx, *grads)
        finally:
            for variable, token in zip(_choices, tokens):
                variable.reset(token)

    function.forward, function.backward = staticmethod(keeping), staticmethod(kept)
    return function
