"""The same loss several times: this library, its reference backend, which is plain PyTorch, and PML where it has the loss."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from pytorch_metric_learning import losses as pml
from torch import nn

from metric_kernels import backends, losses

OURS = "metric_kernels"
PLAIN = "plain PyTorch (reference backend)"
PML = "PML"
DTYPES = ("float32", "float64")
# PML places the bins of a histogram in float32, whatever the type of the embeddings.
_ALWAYS_FLOAT32 = ((PML, "HistogramLoss"),)


@dataclass(frozen=True)
class Contenders:
    """Who computes a loss, the peer at the end, and the reasons of those that do not, {contender: reason}.

    The peer is the contender whose training ours is compared with.
    """

    names: tuple[str, ...]
    left_out: dict[str, str]

    @property
    def peer(self) -> str:
        return self.names[-1]

    def without(self, name: str, reason: str) -> Contenders:
        return Contenders(tuple(n for n in self.names if n != name), {**self.left_out, name: reason})


def of(loss: str) -> Contenders:
    everyone = Contenders((OURS, PLAIN, PML), {})
    return everyone if hasattr(pml, loss) else everyone.without(PML, f"it has no {loss}")


def names() -> list[str]:
    """The losses that can be made without arguments."""
    return sorted(n for n in losses.REGISTRY if not _needs_arguments(losses.REGISTRY[n]))


def build(contender: str, loss: str, backend: str | None = None) -> nn.Module:
    """A loss with default arguments; ``backend`` concerns only OURS."""
    if contender == PML:
        return getattr(pml, loss)()
    return losses.REGISTRY[loss](backend="reference" if contender == PLAIN else backend)


def precision(contender: str, loss: str, dtype: str) -> str:
    """The type in which a contender computes the loss of embeddings of a type."""
    return "float32" if (contender, loss) in _ALWAYS_FLOAT32 else dtype


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
