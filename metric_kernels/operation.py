"""A differentiable operation on tensors: an autograd.Function in eager mode, library operators under torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metric_kernels.caller import Caller, as_called
from metric_kernels.core import no_autocast
from metric_kernels.once import once

_library = torch.library.Library("metric_kernels", "FRAGMENT")


class Operation:
    """``operation(*tensors, *numbers)`` are the outputs, of which the first is differentiable once in every tensor.

    Args:
        name: of the operator.
        tensors: names of the tensors; one that ends in "?" may be None, but not the first.
        numbers: what follows them, as the schema of an operator says it.
        outputs: how many there are.
        choose: ``choose(tensor)`` are the kernels for a first tensor. Eager mode keeps them for the backward pass.
        forward: ``forward(kernels, *tensors, *numbers)`` is the tuple of outputs.
        backward: ``backward(kernels, grad, outputs, tensors, numbers, wanted)`` is the tuple of gradients, None where it is
            not wanted.
        fake: ``fake(*tensors, *numbers)`` are outputs of the right shape and type.
    """

    def __init__(
        self,
        name: str,
        tensors: Sequence[str],
        numbers: str,
        outputs: int,
        choose: Callable[[Tensor], Any],
        forward: Callable[..., tuple[Tensor, ...]],
        backward: Callable[..., tuple[Tensor | None, ...]],
        fake: Callable[..., tuple[Tensor, ...]],
    ):
        self.arity, self.choose, self.forward, self.backward = len(tensors), choose, forward, backward
        optional = [f"Tensor? {t[:-1]}" if t.endswith("?") else f"Tensor {t}" for t in tensors]
        arguments = ", ".join([*optional, numbers])
        kept = ", ".join(f"Tensor output{k}" for k in range(outputs))
        self.operator = _defined(name, arguments, outputs)
        gradients = _defined(f"{name}_backward", f"Tensor grad, {kept}, {arguments}, bool[] wanted", self.arity)
        self._implement(gradients, name, outputs, fake)

    def __call__(self, *arguments) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            outputs = self.operator(*arguments)
            return (outputs,) if isinstance(outputs, Tensor) else outputs
        return _Eager.apply(self, *arguments)

    def run(self, kernels: Any, arguments: Sequence) -> tuple[Tensor, ...]:
        tensors = [t if t is None else t.detach() for t in arguments[: self.arity]]
        with no_autocast(arguments[0].device.type):
            return self.forward(kernels, *tensors, *arguments[self.arity :])

    def pull(self, kernels: Any, grad: Tensor, outputs, tensors, numbers, wanted) -> tuple[Tensor | None, ...]:
        with torch.no_grad(), no_autocast(grad.device.type):
            return self.backward(kernels, grad, outputs, tensors, numbers, wanted)

    def _implement(self, gradients: Any, name: str, outputs: int, fake: Callable) -> None:
        def split(arguments):
            return arguments[:outputs], arguments[outputs : outputs + self.arity], arguments[outputs + self.arity :]

        def forward(*arguments):
            return _unpacked(self.run(self.choose(arguments[0]), arguments))

        def backward(grad, *arguments):
            kept, tensors, (*numbers, wanted) = split(arguments)
            grads = self.pull(self.choose(tensors[0]), grad, kept, tensors, numbers, wanted)
            return _unpacked([grad.new_empty(0) if g is None else g for g in grads])

        def backward_fake(grad, *arguments):
            _, tensors, (*_, wanted) = split(arguments)
            return _unpacked(
                [
                    torch.empty_like(t, memory_format=torch.contiguous_format) if w else grad.new_empty(0)
                    for t, w in zip(tensors, wanted)
                ]
            )

        def keep(ctx, inputs, output):
            ctx.numbers = inputs[self.arity :]
            ctx.save_for_backward(*((output,) if outputs == 1 else output), *inputs[: self.arity])

        def derivative(ctx, grad, *_):
            wanted = list(ctx.needs_input_grad[: self.arity])
            grads = gradients(grad, *ctx.saved_tensors, *ctx.numbers, wanted)
            grads = (grads,) if self.arity == 1 else grads
            return *(g if w else None for g, w in zip(grads, wanted)), *(None for _ in ctx.numbers)

        _library.impl(name, forward, "CompositeExplicitAutograd")
        _library.impl(f"{name}_backward", backward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"metric_kernels::{name}", lambda *a: _unpacked(fake(*a)), lib=_library)
        torch.library.register_fake(f"metric_kernels::{name}_backward", backward_fake, lib=_library)
        torch.library.register_autograd(f"metric_kernels::{name}", derivative, setup_context=keep, lib=_library)


def _defined(name: str, arguments: str, results: int) -> Any:
    _library.define(f"{name}({arguments}) -> ({', '.join(['Tensor'] * results)})")
    return getattr(torch.ops.metric_kernels, name).default


def _unpacked(results: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """Results as an operator returns them: a single one by itself."""
    return results[0] if len(results) == 1 else tuple(results)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx, operation, *arguments):
        tensors, ctx.numbers = arguments[: operation.arity], arguments[operation.arity :]
        ctx.operation, ctx.kernels, ctx.caller = operation, operation.choose(tensors[0]), Caller()
        outputs = operation.run(ctx.kernels, arguments)
        ctx.save_for_backward(*tensors, *outputs)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @as_called
    def backward(ctx, grad, *_):
        tensors, outputs = ctx.saved_tensors[: ctx.operation.arity], ctx.saved_tensors[ctx.operation.arity :]
        wanted = ctx.needs_input_grad[1 : 1 + len(tensors)]
        grads = ctx.operation.pull(ctx.kernels, grad, outputs, tensors, ctx.numbers, wanted)
        return None, *(once(g, *tensors) for g in grads), *(None for _ in ctx.numbers)
