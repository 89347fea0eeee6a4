"""Gradients against finite differences in float64."""

import pytest
import torch
from cases import LOSSES, PARAMS, QUICK_BACKENDS, SLOW_NUMBA, WITH_REF, backend_params, embeddings, unbalanced_labels
from term_cases import CASES, takes_ref

from metric_kernels import distances, losses

# Weights or margins are constants for differentiation, so that the gradient is not that of the value.
DIFFERENTIABLE = [name for name in LOSSES if name != "CircleLoss"]
TERMS = [
    pytest.param(name, params, with_ref, id=f"{case.id}-{'reference' if with_ref else 'self'}")
    for case in CASES
    for name, params in [case.values]
    for with_ref in (False, True)
    if (takes_ref(name, params) or not with_ref)
    and name != "DynamicSoftMarginLoss"
    and (not params.get("adaptive") or "detach_margins" in params)
]


def check(name, backend, with_ref, params=None, **options):
    x, labels = embeddings(7, 3).requires_grad_(), unbalanced_labels(7, classes=2)
    loss = getattr(losses, name)(**(PARAMS[name] if params is None else params), backend=backend, **options)
    if not with_ref:
        return torch.autograd.gradcheck(lambda x: loss(x, labels), (x,))
    ref, ref_labels = embeddings(5, 3, seed=1).requires_grad_(), torch.tensor([0, 1, 0, 1, 5])
    return torch.autograd.gradcheck(lambda x, ref: loss(x, labels, None, ref, ref_labels), (x, ref))


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_batch(name, backend):
    assert check(name, backend, False)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name in WITH_REF])
def test_reference_set(name, backend):
    assert check(name, backend, True)


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name, params, with_ref", TERMS)
def test_terms(name, params, with_ref, backend):
    assert check(name, backend, with_ref, params)


@pytest.mark.parametrize("num_classes", [None, 5])
def test_learned_thresholds(num_classes):
    x, labels = embeddings(7, 3).requires_grad_(), unbalanced_labels(7, classes=2)
    loss = losses.MarginLoss(beta=0.9, nu=0.3, learn_beta=True, num_classes=num_classes).double()

    def value(x, beta):
        return torch.func.functional_call(loss, {"beta": beta}, (x, labels))

    assert torch.autograd.gradcheck(value, (x, loss.beta))


@pytest.mark.slow
@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("backend", backend_params("numba"))
@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name in WITH_REF])
def test_numba(name, backend, with_ref):
    """Apart, since it compiles everything for float64."""
    assert check(name, backend, with_ref)


@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("options", [{"normalize_embeddings": False}, {"power": 2}, {"p": 1}, {"power": 3}], ids=str)
@pytest.mark.parametrize("kind", [distances.LpDistance, distances.DotProductSimilarity, distances.SNRDistance])
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_distances(backend, kind, options, with_ref):
    assert check("NTXentLoss", backend, with_ref, distance=kind(**options))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_listed_pairs(name):
    x, labels = embeddings(7, 3).requires_grad_(), torch.tensor([0, 0, 0, 1, 1, 2, 3])
    indices = tuple(torch.tensor(i) for i in ([0, 1, 2, 3], [1, 0, 1, 4], [0, 1, 3, 5], [3, 4, 6, 0]))
    loss = getattr(losses, name)(**PARAMS[name])
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, indices), (x,))
