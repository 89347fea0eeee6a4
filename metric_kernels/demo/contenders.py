"""The same loss three times: this library, its reference backend, which is plain PyTorch, and PML."""

from __future__ import annotations

import inspect

import torch
from pytorch_metric_learning import losses as pml
from torch import nn

from metric_kernels import backends, losses

OURS = "metric_kernels"
PLAIN = "plain PyTorch (reference backend)"
PML = "PML"
CONTENDERS = (OURS, PLAIN, PML)
DTYPES = ("float32", "float64")


def names() -> list[str]:
    """The losses that PML has too and that can be made without arguments."""
    return sorted(n for n in losses.REGISTRY if hasattr(pml, n) and not _needs_arguments(losses.REGISTRY[n]))


def build(contender: str, loss: str, backend: str | None = None) -> nn.Module:
    """A loss with default arguments; ``backend`` concerns only OURS."""
    if contender == PML:
        return getattr(pml, loss)()
    return losses.REGISTRY[loss](backend="reference" if contender == PLAIN else backend)


def ran(loss: str, backend: str | None) -> dict[str, str]:
    """The backend that runs OURS for each of DTYPES.

    Raises:
        ValueError, RuntimeError: the backend that was asked for, here or by METRIC_KERNELS_BACKEND, is not known or cannot
            run the loss.
    """
    module = build(OURS, loss, backend)
    wanted, metric = module.kernels, module.distance.metric
    return {d: backends.choose_for(wanted, metric, torch.device("cpu"), getattr(torch, d), backend).name for d in DTYPES}


def _needs_arguments(loss: type) -> bool:
    parameters = inspect.signature(loss).parameters.values()
    named = (p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return any(p.default is p.empty for p in named)
