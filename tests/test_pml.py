"""pytorch-metric-learning as a second opinion: same arguments, same values, same gradients."""

import inspect

import pytest
import torch
from accuracy import assert_accurate
from cases import LOSSES, PARAMS, PEER_WITH_REF, QUICK_BACKENDS, embeddings, unbalanced_labels, value_and_grads
from pytorch_metric_learning import losses as peer_losses
from term_cases import PARAMS as TERM_PARAMS
from term_cases import PEERS as PEER_TERMS

from metric_kernels import losses

SIZES = [4, 20, 90]
# torch.nn.functional.softplus, in the peer's circle loss, is 2e-9 off above 20.
WITHIN = 1e-8


def parameters(function):
    return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", LOSSES)
def test_constructor(name):
    assert parameters(getattr(losses, name).__init__) == parameters(getattr(peer_losses, name).__init__)


@pytest.mark.parametrize("name", LOSSES + PEER_TERMS)
def test_call(name):
    assert parameters(getattr(losses, name).forward) == parameters(getattr(peer_losses, name).forward)


@pytest.mark.parametrize("name", LOSSES + PEER_TERMS)
def test_default_distance_and_reducer(name):
    ours, peer = getattr(losses, name)(), getattr(peer_losses, name)()
    assert type(ours.distance).__name__ == type(peer.distance).__name__
    for option in ("normalize_embeddings", "p", "power", "is_inverted"):
        assert getattr(ours.distance, option) == getattr(peer.distance, option)
    # The peer wraps its default reducer where it has two sub-losses.
    assert type(ours.reducer).__name__ == type(peer.get_default_reducer()).__name__


def labels_of(size, seed=0):
    return unbalanced_labels(size, seed, classes=1 + size // 5)


@pytest.mark.parametrize("options", ["defaults", "params"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_batch(name, backend, size, options):
    options = PARAMS[name] if options == "params" else {}
    x, labels = embeddings(size, 16), labels_of(size)
    expected = value_and_grads(lambda x: getattr(peer_losses, name)(**options)(x, labels), x)
    actual = value_and_grads(lambda x: getattr(losses, name)(**options, backend=backend)(x, labels), x)
    assert_accurate(actual[0], expected[0], within=WITHIN)
    assert_accurate(actual[1][0], expected[1][0], within=WITHIN)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", PEER_WITH_REF)
def test_reference_set(name, backend, size):
    labels, ref_labels = labels_of(size), labels_of(31, seed=1)
    loss, peer = getattr(losses, name)(backend=backend), getattr(peer_losses, name)()
    actual, expected = (
        value_and_grads(lambda x, ref, f=f: f(x, labels, None, ref, ref_labels), embeddings(size, 16), embeddings(31, 16, 1))
        for f in (loss, peer)
    )
    assert_accurate(actual[0], expected[0], within=WITHIN)
    for grad, expected_grad in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, expected_grad, within=WITHIN)


# The peer's histogram has the default type, and its dynamic soft margin no second step.
@pytest.mark.parametrize("name", [*LOSSES, "TripletMarginLoss", "MarginLoss", "FastAPLoss"])
def test_float32(name):
    """The peer's own error, from cdist for instance, is larger than ours."""
    x, labels = embeddings(60, 32, dtype=torch.float32), labels_of(60)
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)()(x, labels), x)
    peer, (peer_grad,) = value_and_grads(lambda x: getattr(peer_losses, name)()(x, labels), x)
    torch.testing.assert_close(value, peer, rtol=1e-5, atol=0)
    assert (grad - peer_grad).norm() <= 2e-5 * peer_grad.norm()


@pytest.mark.parametrize("name", [*LOSSES, "TripletMarginLoss", "MarginLoss", "FastAPLoss"])
def test_training_steps(name):
    """A linear embedding trained with either ends with the same weights."""
    x, labels = embeddings(48, 10, dtype=torch.float64), torch.arange(48) // 4
    weights = []
    for module in (losses, peer_losses):
        layer = torch.nn.Linear(10, 6, dtype=torch.float64)
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        loss, optimizer = getattr(module, name)(**{**PARAMS, **TERM_PARAMS}[name]), torch.optim.SGD(layer.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            loss(layer(x), labels).backward()
            optimizer.step()
        weights.append(layer.weight.detach())
    assert not torch.equal(weights[0], torch.eye(6, 10, dtype=torch.float64))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-8)
