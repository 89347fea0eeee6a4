"""Batches, backends and constructor arguments that the tests share."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from metric_kernels import backends
from metric_kernels.losses import REGISTRY, PairLoss

LOSSES = sorted(name for name, cls in REGISTRY.items() if issubclass(cls, PairLoss))
# Those over triplets, quadruplets and histograms; term_cases.py has more about them.
TERM_LOSSES = sorted(set(REGISTRY) - set(LOSSES))
ALL_LOSSES = LOSSES + TERM_LOSSES
WITH_REF = [name for name in LOSSES if name != "NPairsLoss"]
# LiftedStructureLoss of pytorch-metric-learning mixes up row and column indices with a reference set.
PEER_WITH_REF = [name for name in WITH_REF if name != "LiftedStructureLoss"]
# Each loss with and without a reference set, for tests of (name, with_ref).
SELF_AND_REF = [
    pytest.param(name, with_ref, id=f"{name}-{'reference' if with_ref else 'self'}")
    for name in LOSSES
    for with_ref in (False, True)
    if name in WITH_REF or not with_ref
]
PER_PAIR = ["ContrastiveLoss", "LiftedStructureLoss", "NTXentLoss"]
PER_ROW = ["CircleLoss", "MultiSimilarityLoss", "SupConLoss"]

# Arguments other than the defaults; mild ones, so that no exponent is large.
PARAMS = {
    "ContrastiveLoss": {"pos_margin": 0.3, "neg_margin": 1.2},
    "MultiSimilarityLoss": {"alpha": 3.0, "beta": 20.0, "base": 0.3},
    "SupConLoss": {"temperature": 0.3},
    "CircleLoss": {"m": 0.25, "gamma": 10},
    "NTXentLoss": {"temperature": 0.4},
    "NPairsLoss": {},
    "LiftedStructureLoss": {"neg_margin": 0.8, "pos_margin": 0.1},
}
# What one row or pair of a random batch costs with these arguments.
TYPICAL = {
    "ContrastiveLoss": 1.0,
    "MultiSimilarityLoss": 1.0,
    "SupConLoss": 3.5,
    "CircleLoss": 30.0,
    "NTXentLoss": 2.9,
    "NPairsLoss": 0.7,
    "LiftedStructureLoss": 6.7,
}


def reason_against(name: str) -> str | None:
    try:
        return backends.load(name).unusable()
    except ImportError as error:
        return str(error)


def backend_params(*names: str, marks: tuple = ()) -> list:
    """Parameters of a test, skipped with their reason where a backend is not usable."""
    reasons = {name: reason_against(name) for name in names}
    return [
        pytest.param(name, marks=[pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}"), *marks], id=name)
        for name, reason in reasons.items()
    ]


# The backend of compiled C++ for the device of the run, see conftest.py.
COMPILED = "native" if os.environ.get("METRIC_KERNELS_TEST_DEVICE", "cpu") == "cpu" else "cuda"
# Numba takes seconds to compile a formula for a metric and a type: it takes part in float32 on the default metric.
BACKENDS = backend_params(COMPILED, "reference", *["numba"] * (COMPILED == "native"))
QUICK_BACKENDS = backend_params(COMPILED, "reference")
# Where it has to compile more than that, it runs with the slow sweeps.
SLOW_NUMBA = [*QUICK_BACKENDS, *backend_params(*["numba"] * (COMPILED == "native"), marks=(pytest.mark.slow,))]


def embeddings(size: int, dim: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, dim, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(torch.get_default_device(), dtype)


def unbalanced_labels(size: int, seed: int = 0, classes: int = 4) -> Tensor:
    """Classes of very different sizes; the last two rows are alone in theirs."""
    generator = torch.Generator().manual_seed(seed)
    weights = 0.5 ** torch.arange(classes, dtype=torch.float64, device="cpu")
    labels = torch.multinomial(weights, size, replacement=True, generator=generator).to(torch.get_default_device())
    labels[-2:] = torch.tensor([classes, classes + 1])
    return labels


LAYOUTS = {
    "unbalanced": unbalanced_labels,
    "pairs": lambda size: torch.arange(size) // 2,
    "halves": lambda size: torch.arange(size) % 2,
    "one_class": lambda size: torch.zeros(size, dtype=torch.int64),
    "all_different": torch.arange,
}


def listed_pairs(labels: Tensor, ref_labels: Tensor | None = None, number: int = 30) -> tuple[Tensor, ...]:
    """Random positive and negative pairs with repetitions, not in order of the anchor."""
    generator = torch.Generator().manual_seed(0)
    same = labels[:, None] == (labels if ref_labels is None else ref_labels)
    negative = ~same
    if ref_labels is None:
        same.fill_diagonal_(False)
    result = []
    for mask in (same, negative):
        pairs = mask.nonzero()
        pick = torch.randint(len(pairs), (number,), generator=generator, device="cpu")
        result += list(pairs[pick.to(pairs.device)].unbind(1))
    return tuple(result)


def value_and_grads(loss, *inputs: Tensor | None, connected: bool = True) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Value and gradients; the value must depend on every input unless ``connected`` is False."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs if t is not None]
    value = loss(*leaves)
    grads = torch.autograd.grad(value, leaves, allow_unused=not connected, materialize_grads=not connected)
    return value.detach(), grads
