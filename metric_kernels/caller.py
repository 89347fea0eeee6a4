"""The backward pass sees what was chosen around the forward pass: on a GPU autograd runs it on a thread of its own.

Context variables, here the backend and the workspace, belong to a thread.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any


class Caller:
    """The thread that made it, and the context that it was made in."""

    def __init__(self) -> None:
        self.thread, self.context = threading.get_ident(), copy_context()

    def run(self, function: Callable, *arguments: Any) -> Any:
        """In the same thread what is in force now counts, in another one what was in force then."""
        if threading.get_ident() == self.thread:
            return function(*arguments)
        # A context can be entered once at a time.
        return self.context.copy().run(function, *arguments)


def as_called(backward: Callable) -> Callable:
    """The ``backward`` of an autograd.Function whose ``forward`` sets ``ctx.caller = Caller()``."""

    @functools.wraps(backward)
    def run(ctx, *grads):
        return ctx.caller.run(backward, ctx, *grads)

    return run
