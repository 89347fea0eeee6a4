"""The same loss three times: this library, plain PyTorch operations on whole matrices, and PML."""

from __future__ import annotations

import inspect

from pytorch_metric_learning import losses as pml
from torch import nn

from metric_kernels import losses

OURS = "metric_kernels"
EAGER = "eager PyTorch (reference backend)"
PML = "PML"
CONTENDERS = (OURS, EAGER, PML)


def names() -> list[str]:
    """The losses that PML has too and that can be made without arguments."""
    return sorted(n for n in losses.REGISTRY if hasattr(pml, n) and not _needs_arguments(losses.REGISTRY[n]))


def build(contender: str, loss: str, backend: str | None = None) -> nn.Module:
    """A loss with default arguments; ``backend`` concerns only OURS."""
    if contender == PML:
        return getattr(pml, loss)()
    return losses.REGISTRY[loss](backend="reference" if contender == EAGER else backend)


def _needs_arguments(loss: type) -> bool:
    parameters = inspect.signature(loss).parameters.values()
    named = (p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return any(p.default is p.empty for p in named)
