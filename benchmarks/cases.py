"""The registry of cases: which loss, at which shape, run by which provider, and which of them cannot be run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.dense import DENSE
from metric_kernels import backends, core, losses
from metric_kernels.demo.batch import clustered

# More would take tens of gigabytes where the libraries below build several such tensors.
_PML_MATRIX_ENTRIES = 50_000_000
_DENSE_BATCH = 8192


@dataclass(frozen=True)
class Case:
    loss: str
    batch: int
    dim: int
    dtype: str = "float32"
    per_class: int = 4
    provider: str = "native"

    def by(self, provider: str) -> Case:
        """The same work done by another provider."""
        return replace(self, provider=provider)

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.dim}-{self.dtype}-{self.per_class}"

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Embeddings and labels, the same for every provider."""
        x, labels = clustered(self.batch, self.dim, self.per_class)
        return x.to(getattr(torch, self.dtype)).requires_grad_(), labels


Step = Callable[[], Tensor | None]


class Provider(NamedTuple):
    """``step(case, x, labels)`` makes the function to be timed; ``refuse(case)`` is why there is none, or None."""

    step: Callable[[Case, Tensor, Tensor], Step]
    refuse: Callable[[Case], str | None]


def loss_step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, labels: Tensor) -> Step:
    def step():
        x.grad = None
        value = loss(x, labels)
        value.backward()
        return value

    return step


def _ours(backend: str) -> Provider:
    def step(case, x, labels):
        return loss_step(losses.REGISTRY[case.loss](backend=backend), x, labels)

    def refuse(case):
        loss, arithmetic = losses.REGISTRY[case.loss](), core.arithmetic(getattr(torch, case.dtype))
        try:
            return backends.load(backend).supports(loss.formula, loss.distance.metric, "cpu", arithmetic)
        except ImportError as error:
            return f"ImportError: {error}"

    return Provider(step, refuse)


def _eager_refuse(case: Case) -> str | None:
    if case.loss not in DENSE:
        return "no formula in benchmarks/dense.py"
    rows = case.batch // case.per_class if case.loss == "NPairsLoss" else case.batch
    if rows > _DENSE_BATCH:
        return f"several temporaries of {rows} x {rows} numbers, {4e-9 * rows**2:.1f} GB each"
    return None


_compiled: tuple[str, str, Callable] | None = None


def _compile_step(case: Case, x: Tensor, labels: Tensor) -> Step:
    """One compiled function at a time: entries of earlier shapes would lengthen the guard checks of later ones."""
    global _compiled
    if _compiled is None or _compiled[:2] != (case.loss, f"{case.batch}x{case.dim}-{case.dtype}"):
        torch.compiler.reset()
        function = torch.compile(DENSE[case.loss], fullgraph=True, dynamic=False)
        _compiled = case.loss, f"{case.batch}x{case.dim}-{case.dtype}", function
    return loss_step(_compiled[2], x, labels)


def _compile_refuse(case: Case) -> str | None:
    if case.loss == "NPairsLoss":
        return "the number of classes is a shape that depends on the data"
    return _eager_refuse(case)


def _pml_step(case: Case, x: Tensor, labels: Tensor) -> Step:
    from pytorch_metric_learning import losses as pml

    return loss_step(getattr(pml, case.loss)(), x, labels)


def _pml_refuse(case: Case) -> str | None:
    try:
        from pytorch_metric_learning import losses as pml
    except ImportError:
        return "pytorch-metric-learning is not installed"
    if not hasattr(pml, case.loss):
        return "not in pytorch-metric-learning"
    if case.loss in ("NTXentLoss", "LiftedStructureLoss"):
        positives, negatives = case.batch * (case.per_class - 1), case.batch * (case.batch - case.per_class)
        if positives * negatives > _PML_MATRIX_ENTRIES:
            return f"builds matrices of |positive pairs| x |negative pairs|, {4e-9 * positives * negatives:.1f} GB each"
    if case.batch > _DENSE_BATCH:
        return f"several tensors with {case.batch}^2 indices"
    return None


def _floor_step(case: Case, x: Tensor, labels: Tensor) -> Step:
    """The three products of a forward and a backward pass over B x B values, into memory that is already there."""
    x = x.detach()
    s, gx, gy = x.new_empty(case.batch, case.batch), torch.empty_like(x), torch.empty_like(x)
    g = torch.randn(case.batch, case.batch).to(x.dtype)

    def step():
        torch.mm(x, x.t(), out=s)
        torch.mm(g, x, out=gx)
        torch.mm(g.t(), x, out=gy)

    return step


PROVIDERS = {
    "native": _ours("native"),
    "numba": _ours("numba"),
    "reference": _ours("reference"),
    "eager": Provider(lambda case, x, labels: loss_step(DENSE[case.loss], x, labels), _eager_refuse),
    "compile": Provider(_compile_step, _compile_refuse),
    "pml": Provider(_pml_step, _pml_refuse),
    "floor": Provider(_floor_step, lambda case: None),
}
OURS = ("native", "numba", "reference")
# The reference backend is eager PyTorch as well, only tile by tile, and is timed on request.
DEFAULT_PROVIDERS = tuple(p for p in PROVIDERS if p != "reference")

LOSSES = tuple(losses.REGISTRY)
_SHAPES = ((128, 128), (512, 128), (2048, 128), (2048, 512))
_MORE_SHAPES = ((1024, 128), (4096, 128), (8192, 128))
_HALF = ("MultiSimilarityLoss", "SupConLoss")
_LARGE_CLASSES = ("ContrastiveLoss", "NTXentLoss")


def timed(full: bool) -> list[Case]:
    shapes = _SHAPES + (_MORE_SHAPES if full else ())
    found = []
    for loss in LOSSES:
        found += [Case(loss, *shape) for shape in shapes]
        if loss in _HALF:
            found.append(Case(loss, 2048, 128, dtype="bfloat16"))
        if loss in _LARGE_CLASSES:
            found.append(Case(loss, 2048, 128, per_class=64))
    return found


def weighed(full: bool) -> list[Case]:
    """Cases, provider included, whose peak memory is measured."""
    shapes = [(2048, 128), (16384, 128)] + ([(8192, 128)] if full else [])
    return [Case(loss, *s, provider=p) for loss in LOSSES for s in shapes for p in ("native", "eager", "pml")]
