"""The registry of cases: which loss, at which shape, run by which provider, and which of them cannot be run."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.dense import DENSE
from benchmarks.dense_terms import TERMS
from benchmarks.paired import PAIRED, between
from metric_kernels import backends, core, distances, losses
from metric_kernels.demo.batch import clustered

# More would take tens of gigabytes where the libraries below build several such tensors.
_PML_MATRIX_ENTRIES = 50_000_000
_DENSE_ENTRIES = 8192**2
_TRIPLETS_AS_COLUMNS = 2_000_000

# What another library computes by default under another name, as a loss of ours.
_THEIRS = {
    "BatchAllTripletLoss": partial(
        losses.TripletMarginLoss, margin=5, distance=distances.LpDistance(normalize_embeddings=False)
    )
}


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

    def of_class_size(self, per_class: int) -> Case:
        return replace(self, per_class=per_class)

    @property
    def shape(self) -> str:
        return f"{self.batch}x{self.dim}-{self.dtype}-{self.per_class}"

    def inputs(self) -> tuple[Tensor, ...]:
        """Embeddings and labels, or two sets of embeddings; the same for every provider."""
        if self.loss in PAIRED:
            sets = PAIRED[self.loss].inputs(self.batch, self.dim)
            return tuple(x.to(getattr(torch, self.dtype)).requires_grad_() for x in sets)
        # Triplets of classes that are well apart would cost nothing.
        apart = 0.1 if self.loss in TERMS else 0.3
        x, labels = clustered(self.batch, self.dim, self.per_class, apart)
        return x.to(getattr(torch, self.dtype)).requires_grad_(), labels


Step = Callable[[], Tensor | None]


class Provider(NamedTuple):
    """``step(case, *inputs)`` makes the function to be timed; ``refuse(case)`` is why there is none, or None."""

    step: Callable[..., Step]
    refuse: Callable[[Case], str | None]


def leaves(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Those inputs that get a gradient."""
    return [t for t in inputs if t.requires_grad]


def loss_step(loss: Callable[..., Tensor], *inputs: Tensor) -> Step:
    found = leaves(inputs)

    def step():
        for leaf in found:
            leaf.grad = None
        value = loss(*inputs)
        value.backward()
        return value

    return step


def ours(case: Case, **options) -> losses.Loss:
    if case.loss in PAIRED:
        return PAIRED[case.loss].ours(**options)
    return (_THEIRS.get(case.loss) or losses.REGISTRY[case.loss])(**options)


def our_step(loss: losses.Loss, case: Case, *inputs: Tensor) -> Step:
    return loss_step(between(loss, len(inputs[0]), inputs[0].device) if case.loss in PAIRED else loss, *inputs)


def _ours(backend: str) -> Provider:
    def step(case, *inputs):
        return our_step(ours(case, backend=backend), case, *inputs)

    return Provider(step, lambda case: our_refusal(case, backend, "cpu"))


def our_refusal(case: Case, backend: str, device: str) -> str | None:
    loss, dtype = ours(case), core.arithmetic(getattr(torch, case.dtype, torch.float32))
    try:
        backends.choose_for(loss.kernels, loss.distance.metric, torch.device(device), dtype, backend)
    except ImportError as error:
        return f"ImportError: {error}"
    except RuntimeError as error:
        return str(error)
    return None


def formula(case: Case, device: str = "cpu") -> Callable[..., Tensor]:
    """The dense formula of a loss, function of its inputs on a device."""
    if case.loss in PAIRED:
        return PAIRED[case.loss].dense
    if case.loss not in TERMS:
        return DENSE[case.loss]
    with torch.device(device):
        return TERMS[case.loss](case.batch, case.per_class)


def largest(case: Case) -> tuple[int, ...]:
    """The shape of the largest tensor of the dense formula."""
    size, k = case.batch, case.per_class
    if case.loss == "NPairsLoss":
        return size // k, size // k
    if case.loss in ("QuadrupletMarginLoss", "QuadrupletLoss"):
        return size * (k - 1) // 2, size * (size - k) // 2
    if case.loss in ("TripletMarginLoss", "BatchAllTripletLoss", "SemiHardTripletLoss", "DynamicSoftMarginLoss"):
        return size, k - 1, size
    return size, size


def _eager_refuse(case: Case) -> str | None:
    if case.loss not in DENSE | TERMS | PAIRED:
        return "no formula in benchmarks/dense.py or dense_terms.py"
    entries = math.prod(largest(case))
    if entries > _DENSE_ENTRIES:
        return f"several temporaries of {' x '.join(map(str, largest(case)))} numbers, {4e-9 * entries:.1f} GB each"
    return None


_compiled: tuple[Case, Callable] | None = None


def _compile_step(case: Case, *inputs: Tensor) -> Step:
    """One compiled function at a time: entries of earlier shapes would lengthen the guard checks of later ones."""
    global _compiled
    if _compiled is None or _compiled[0] != case:
        torch.compiler.reset()
        _compiled = case, torch.compile(formula(case), fullgraph=True, dynamic=False)
    return loss_step(_compiled[1], *inputs)


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
    triplets = case.batch * (case.per_class - 1) * (case.batch - case.per_class)
    if case.loss == "HistogramLoss" and triplets > _TRIPLETS_AS_COLUMNS:
        return f"sorts the {triplets / 1e6:.0f} million triplets as columns of a matrix, minutes a step"
    if case.loss in ("TripletMarginLoss", "MarginLoss", "DynamicSoftMarginLoss") and triplets > _PML_MATRIX_ENTRIES:
        return f"lists {triplets / 1e6:.0f} million triplets, three indices each"
    if case.batch**2 > _DENSE_ENTRIES:
        return f"several tensors with {case.batch}^2 indices"
    return None


def _sentence_transformers_step(case: Case, x: Tensor, labels: Tensor) -> Step:
    from sentence_transformers.sentence_transformer import losses as theirs

    # The model would make the embeddings, which are there already.
    loss = getattr(theirs, case.loss)(model=None)
    return loss_step(lambda x, labels: loss.compute_loss_from_embeddings([x], labels), x, labels)


def _sentence_transformers_refuse(case: Case) -> str | None:
    if case.loss not in _THEIRS:
        return "not in sentence-transformers with these parameters"
    if importlib.util.find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed"
    return _eager_refuse(case)


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
    "eager": Provider(lambda case, *inputs: loss_step(formula(case), *inputs), _eager_refuse),
    "compile": Provider(_compile_step, _compile_refuse),
    "pml": Provider(_pml_step, _pml_refuse),
    "st": Provider(_sentence_transformers_step, _sentence_transformers_refuse),
    "floor": Provider(_floor_step, lambda case: None),
}
OURS = ("native", "numba", "reference")
# The reference backend is eager PyTorch as well, only tile by tile, and is timed on request; "st" has one loss for us.
DEFAULT_PROVIDERS = tuple(p for p in PROVIDERS if p not in ("reference", "st"))

PAIR_LOSSES = tuple(name for name, loss in losses.REGISTRY.items() if issubclass(loss, losses.PairLoss))
# Those over triplets, quadruplets and histograms.
TERM_LOSSES = tuple(name for name in losses.REGISTRY if name not in PAIR_LOSSES)
LOSSES = (*PAIR_LOSSES, *TERM_LOSSES, *_THEIRS)
_SHAPES = ((128, 128), (512, 128), (2048, 128), (2048, 512))
_TERM_SHAPES = ((256, 128), (2048, 128), (2048, 512))
_MORE_SHAPES = ((1024, 128), (4096, 128), (8192, 128))
_HALF = ("MultiSimilarityLoss", "SupConLoss")
_LARGE_CLASSES = ("ContrastiveLoss", "NTXentLoss")
# Batches whose times are compared, to see how they grow, and the losses of which there is a bar for that.
GROWTH = (4096, 8192)
GROWING = ("TripletMarginLoss", "MarginLoss", "HistogramLoss", "FastAPLoss", "QuadrupletMarginLoss")
# Losses that are timed for classes of several sizes.
BY_CLASS_SIZE = ("TripletMarginLoss", "QuadrupletMarginLoss")
CLASS_SIZES = tuple(2**n for n in range(1, 9))


class Run(NamedTuple):
    """Cases that take turns, and the only providers to run them, if not those of the session."""

    cases: tuple[Case, ...]
    providers: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return "+".join([self.cases[0].loss, *(case.shape for case in self.cases)])


def timed(full: bool) -> list[Run]:
    more = _MORE_SHAPES if full else ()
    found = []
    for loss in PAIR_LOSSES:
        found += [Run((Case(loss, *shape),)) for shape in _SHAPES + more]
        if loss in _HALF:
            found.append(Run((Case(loss, 2048, 128, dtype="bfloat16"),)))
        if loss in _LARGE_CLASSES:
            found.append(Run((Case(loss, 2048, 128, per_class=64),)))
    for loss in TERM_LOSSES:
        found += [Run((Case(loss, *shape),)) for shape in _TERM_SHAPES + more]
        if loss in GROWING or full:
            found.append(Run(tuple(Case(loss, batch, 128) for batch in GROWTH), ("native", "floor")))
    found += [Run((Case(loss, 256, 128),), (*DEFAULT_PROVIDERS, "st")) for loss in _THEIRS]
    return found + by_class_size()


def by_class_size() -> list[Run]:
    found = []
    for loss in BY_CLASS_SIZE:
        for dim in (128, 512):
            # Those of the usual size are there already.
            cases = [Case(loss, 2048, dim, per_class=k) for k in CLASS_SIZES if k != Case.per_class]
            found += [Run((case,), ("native", "floor")) for case in cases]
    cases = [Case("TripletMarginLoss", 512, 128, per_class=k) for k in CLASS_SIZES]
    return found + [Run((case,), ("native", "eager", "pml", "floor")) for case in cases]


def weighed(full: bool) -> list[Case]:
    """Cases, provider included, whose peak memory is measured."""
    shapes = [(2048, 128), (16384, 128)] + ([(8192, 128)] if full else [])
    measured = PAIR_LOSSES + TERM_LOSSES
    return [Case(loss, *s, provider=p) for loss in measured for s in shapes for p in ("native", "eager", "pml")]
