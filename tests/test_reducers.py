"""Every reducer with every loss against the oracles, and those of pytorch-metric-learning in the place of ours."""

import math

import pytest
import torch
from accuracy import assert_accurate
from cases import (
    BACKENDS,
    LOSSES,
    PARAMS,
    PER_PAIR,
    QUICK_BACKENDS,
    TYPICAL,
    WITH_REF,
    embeddings,
    listed_pairs,
    unbalanced_labels,
    value_and_grads,
)
from oracles import ORACLES
from pytorch_metric_learning import losses as peer_losses
from pytorch_metric_learning import reducers as peer_reducers
from term_cases import OVER_TRIPLETS
from torch import nn

from metric_kernels import losses, reducers

SIZE = 14
WEIGHTS = torch.linspace(0.2, 3.0, 12, dtype=torch.float64)
# Ours, and what the oracles call it; bounds are in units of the typical loss.
REDUCERS = {
    "mean": (reducers.MeanReducer, "mean"),
    "sum": (reducers.SumReducer, "sum"),
    "divisor": (reducers.DivisorReducer, "sum"),
    "avg_non_zero": (reducers.AvgNonZeroReducer, "avg_non_zero"),
    "low": (reducers.ThresholdReducer, (0.8, None)),
    "high": (reducers.ThresholdReducer, (None, 1.2)),
    "low_high": (reducers.ThresholdReducer, (0.8, 1.2)),
    "nothing_inside": (reducers.ThresholdReducer, (100.0, None)),
    "per_anchor": (reducers.PerAnchorReducer, "per_anchor"),
    "class_weighted": (lambda: reducers.ClassWeightedReducer(WEIGHTS), ("class_weighted", WEIGHTS)),
}


def build(kind, name):
    """A reducer and its oracle's, with bounds fit for a loss."""
    make, key = REDUCERS[kind]
    if isinstance(key, tuple) and key[0] != "class_weighted":
        low, high = (bound and bound * TYPICAL[name] for bound in key)
        return make(low, high), ("threshold", low, high)
    return make(), key


def check(name, kind, backend, ref_size=None, pairs=None, dtype=torch.float64):
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8, dtype=dtype)
    ref, ref_labels = None, None
    if ref_size:
        ref, ref_labels = embeddings(ref_size, 8, seed=2, dtype=dtype), unbalanced_labels(ref_size, seed=3)
    reducer, key = build(kind, name)
    loss = getattr(losses, name)(**PARAMS[name], reducer=reducer, backend=backend)
    actual = value_and_grads(lambda x, ref=None: loss(x, labels, pairs, ref, ref_labels), x, ref)
    exact = value_and_grads(
        lambda x, ref=None: ORACLES[name](x, labels, ref, ref_labels, pairs=pairs, reducer=key, **PARAMS[name]),
        x.double(),
        None if ref is None else ref.double(),
    )
    assert_accurate(actual[0], exact[0])
    for grad, exact_grad in zip(actual[1], exact[1], strict=True):
        assert_accurate(grad, exact_grad)
    return actual[0]


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("name", LOSSES)
def test_batch(name, kind, backend):
    value = check(name, kind, backend)
    assert (value == 0) == (kind == "nothing_inside")


@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("name", LOSSES)
def test_batch_in_float32(name, kind):
    check(name, kind, "native", dtype=torch.float32)


@pytest.mark.parametrize("kind", ["low_high", "per_anchor"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PER_PAIR)
def test_windows_of_pairs(name, backend, kind):
    """A window is part of the formula that the backends run."""
    check(name, kind, backend, dtype=torch.float32)


@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("name", WITH_REF)
def test_reference_set(name, kind):
    check(name, kind, None, ref_size=9)


@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("name", LOSSES)
def test_listed_pairs(name, kind):
    check(name, kind, None, pairs=listed_pairs(unbalanced_labels(SIZE)))


PEERS = {
    "mean": peer_reducers.MeanReducer,
    "sum": peer_reducers.SumReducer,
    "divisor": peer_reducers.DivisorReducer,
    "avg_non_zero": peer_reducers.AvgNonZeroReducer,
    "threshold": lambda: peer_reducers.ThresholdReducer(low=0.1, high=5.0),
    "per_anchor": lambda: peer_reducers.PerAnchorReducer(peer_reducers.AvgNonZeroReducer()),
    "class_weighted": lambda: peer_reducers.ClassWeightedReducer(WEIGHTS),
    "multiple": lambda: peer_reducers.MultipleReducers(
        {"pos_loss": peer_reducers.SumReducer(), "loss": peer_reducers.SumReducer()}, peer_reducers.MeanReducer()
    ),
}
OURS = {
    "mean": reducers.MeanReducer,
    "sum": reducers.SumReducer,
    "divisor": reducers.DivisorReducer,
    "avg_non_zero": reducers.AvgNonZeroReducer,
    "threshold": lambda: reducers.ThresholdReducer(low=0.1, high=5.0),
    "per_anchor": lambda: reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()),
    "class_weighted": lambda: reducers.ClassWeightedReducer(WEIGHTS),
    "multiple": lambda: reducers.MultipleReducers(
        {"pos_loss": reducers.SumReducer(), "loss": reducers.SumReducer()}, reducers.MeanReducer()
    ),
}


# Losses of one number are changed by no reducer, and those over quadruplets do not take all of them.
REDUCED = LOSSES + [*OVER_TRIPLETS, "FastAPLoss"]


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("name", REDUCED)
def test_a_reducer_of_the_peer_is_ours(name, kind):
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8)
    given, own = (getattr(losses, name)(reducer=make()) for make in (PEERS[kind], OURS[kind]))
    assert type(given.reducer) is type(own.reducer)
    assert not given.reducer.needs_each
    actual, expected = (value_and_grads(lambda x, loss=loss: loss(x, labels), x) for loss in (given, own))
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1][0], expected[1][0])


@pytest.mark.parametrize("kind", [kind for kind in PEERS if kind != "divisor"])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "NTXentLoss", "SupConLoss", "NPairsLoss"])
def test_the_peer_with_its_reducer(name, kind):
    """The losses whose shapes the peer's reducers can take; its divisor needs a loss that brings one."""
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8)
    expected = value_and_grads(lambda x: getattr(peer_losses, name)(reducer=PEERS[kind]())(x, labels), x)
    actual = value_and_grads(lambda x: getattr(losses, name)(reducer=OURS[kind]())(x, labels), x)
    assert_accurate(actual[0], expected[0], within=1e-9)
    assert_accurate(actual[1][0], expected[1][0], within=1e-8)


class Largest(nn.Module):
    """A reducer that neither package knows, with the interface of the peer's."""

    def forward(self, loss_dict, embeddings, labels):
        (info,) = loss_dict.values()
        return info["losses"].max()


@pytest.mark.parametrize("with_tuples", [False, True], ids=["all_pairs", "listed"])
@pytest.mark.parametrize("name", [*LOSSES, "TripletMarginLoss", "FastAPLoss"])
def test_a_reducer_of_the_user(name, with_tuples):
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8)
    pairs = listed_pairs(labels) if with_tuples else None
    peer = getattr(peer_losses, name)(reducer=peer_reducers.DoNothingReducer())
    actual = value_and_grads(lambda x: getattr(losses, name)(reducer=Largest())(x, labels, pairs), x)
    expected = value_and_grads(lambda x: sum(i["losses"].max() for i in peer(x, labels, pairs).values()), x)
    assert_accurate(actual[0], expected[0], within=1e-9)
    assert_accurate(actual[1][0], expected[1][0], within=1e-8)


@pytest.mark.parametrize("given", [reducers.DoNothingReducer, peer_reducers.DoNothingReducer], ids=["ours", "peer"])
@pytest.mark.parametrize("with_tuples", [False, True], ids=["all_pairs", "listed"])
@pytest.mark.parametrize("name", [*LOSSES, "TripletMarginLoss", "FastAPLoss"])
def test_the_losses_themselves(name, with_tuples, given):
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8).requires_grad_()
    pairs = listed_pairs(labels) if with_tuples else None
    actual = getattr(losses, name)(reducer=given())(x, labels, pairs)
    expected = getattr(peer_losses, name)(reducer=peer_reducers.DoNothingReducer())(x, labels, pairs)
    assert list(actual) == list(expected)
    for part, info in expected.items():
        assert set(actual[part]) >= {"losses", "indices", "reduction_type"}
        assert actual[part]["reduction_type"] == info["reduction_type"]
        torch.testing.assert_close(actual[part]["losses"], info["losses"].flatten(), rtol=1e-8, atol=1e-12)
        got, want = (torch.stack(tuple(i)) if isinstance(i, tuple) else i for i in (actual[part]["indices"], info["indices"]))
        assert torch.equal(got, want)
        assert actual[part]["losses"].requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_for_each_of_two_sub_losses(backend):
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8, dtype=torch.float32)
    parts = {"pos_loss": reducers.ThresholdReducer(0.9, 1.3), "neg_loss": reducers.ThresholdReducer(None, 0.25)}
    loss = losses.ContrastiveLoss(reducer=reducers.MultipleReducers(parts), backend=backend)
    value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)

    def exact(x):
        d = torch.cdist(*2 * [torch.nn.functional.normalize(x)], compute_mode="donot_use_mm_for_euclid_dist")
        same = labels[:, None] == labels
        positive = d[same & ~torch.eye(SIZE, dtype=torch.bool)]
        negative = torch.relu(1 - d[~same])
        return positive[(positive > 0.9) & (positive < 1.3)].mean() + negative[negative < 0.25].mean()

    expected, (expected_grad,) = value_and_grads(exact, x.double())
    assert_accurate(value, expected)
    assert_accurate(grad, expected_grad)


@pytest.mark.parametrize("kind", ["mean", "avg_non_zero", "low_high", "per_anchor", "class_weighted"])
def test_a_reducer_of_the_user_beside_one_of_ours(kind):
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8)
    ours, _ = build(kind, "ContrastiveLoss")

    def value(**parts):
        default = reducers.SumReducer()
        return losses.ContrastiveLoss(reducer=reducers.MultipleReducers(parts, default))(x, labels)

    expected = value(pos_loss=ours) + value(neg_loss=Largest()) - value()
    torch.testing.assert_close(value(pos_loss=ours, neg_loss=Largest()), expected)


@pytest.mark.parametrize("inner", [reducers.SumReducer(), peer_reducers.SumReducer()], ids=["ours", "peer"])
def test_means_per_anchor_go_to_another_reducer(inner):
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8)
    mean = losses.NTXentLoss(reducer=reducers.PerAnchorReducer())(x, labels)
    total = losses.NTXentLoss(reducer=reducers.PerAnchorReducer(inner))(x, labels)
    torch.testing.assert_close(total, SIZE * mean)


def softmax_weighted(values, number):
    """Hard pairs count more; columns without a pair are zero and must not count."""
    weights = torch.where(values > 0, values.exp(), 0)
    return (weights * values).sum(1) / weights.sum(1).clamp_min(1e-9) * (number > 0)


@pytest.mark.parametrize("name", ["ContrastiveLoss", "NTXentLoss"])
@pytest.mark.parametrize("kind", [reducers.PerAnchorReducer, peer_reducers.PerAnchorReducer], ids=["ours", "peer"])
def test_an_aggregation_of_the_user(name, kind):
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8)
    loss = getattr(losses, name)(reducer=kind(aggregation_func=softmax_weighted))
    peer = getattr(peer_losses, name)(reducer=peer_reducers.PerAnchorReducer(aggregation_func=softmax_weighted))
    actual, expected = (value_and_grads(lambda x, f=f: f(x, labels), x) for f in (loss, peer))
    assert_accurate(actual[0], expected[0], within=1e-9)
    assert_accurate(actual[1][0], expected[1][0], within=1e-8)


@pytest.mark.parametrize("name", ["TripletMarginLoss", "BatchHardTripletLoss"])
def test_an_aggregation_needs_pairs(name):
    loss = getattr(losses, name)(reducer=reducers.PerAnchorReducer(aggregation_func=softmax_weighted))
    with pytest.raises(ValueError, match="aggregation_func: expected None for losses of triplets, .*, got <function softmax_w"):
        loss(embeddings(6), torch.tensor([0, 0, 1, 1, 2, 2]))


@pytest.mark.parametrize("kind", REDUCERS)
@pytest.mark.parametrize("name", ["ContrastiveLoss", "NTXentLoss", "SupConLoss", "NPairsLoss"])
def test_nan_reaches_the_loss(name, kind):
    """Losses of two parts, of pairs, of rows, and of chosen rows."""
    x = embeddings(6)
    x[1, 0] = math.nan
    reducer, _ = build(kind, name)
    assert getattr(losses, name)(reducer=reducer)(x, torch.tensor([0, 0, 1, 1, 2, 2])).isnan()


def test_class_weights_need_labels():
    x, pairs = embeddings(4), ([0], [1], [0], [2])
    loss = losses.ContrastiveLoss(reducer=reducers.ClassWeightedReducer(torch.ones(2)))
    with pytest.raises((TypeError, ValueError), match="labels"):
        loss(x, None, tuple(map(torch.tensor, pairs)))


def test_class_weights_follow_the_module():
    """They move and convert with the loss, and are no part of its state as in the peer."""
    loss = losses.ContrastiveLoss(reducer=reducers.ClassWeightedReducer(torch.ones(3)))
    assert loss.to(torch.float64).reducer.weights.dtype == torch.float64
    assert not loss.state_dict()


@pytest.mark.parametrize(
    "build, error, message",
    [
        (reducers.ThresholdReducer, ValueError, "low, high: expected at least one bound"),
        (
            lambda: reducers.PerAnchorReducer(reducers.DoNothingReducer()),
            ValueError,
            "reducer: .* got DoNothingReducer",
        ),
        (
            lambda: losses.SupConLoss(reducer="mean"),
            TypeError,
            "reducer: expected an object of metric_kernels.reducers",
        ),
        (lambda: losses.SupConLoss(reducer=3), TypeError, "reducer: expected an object of metric_kernels.reducers"),
    ],
    ids=["no_bound", "per_anchor", "string", "number"],
)
def test_wrong_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_a_subclass_that_reduces_otherwise(backend):
    class Most(reducers.MeanReducer):
        def of_anchors(self, losses, labels):
            return losses.max()

    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8)
    found = losses.CircleLoss(reducer=Most(), backend=backend)(x, labels)
    torch.testing.assert_close(found, losses.CircleLoss(reducer=reducers.DoNothingReducer())(x, labels)["loss"]["losses"].max())


def test_a_subclass_with_the_methods_of_the_peer_is_refused():
    with pytest.raises(TypeError, match="Wrong: expected of_pairs or of_anchors, got element_reduction"):
        type("Wrong", (reducers.MeanReducer,), {"element_reduction": lambda self, *_: None})


def test_a_class_without_a_weight_is_refused():
    loss = losses.CircleLoss(reducer=reducers.ClassWeightedReducer(torch.ones(3)))
    for label in (3, -1):
        with pytest.raises(IndexError, match="labels: expected classes from 0 to 2, one for each weight, got .*-?[13]"):
            loss(embeddings(3), torch.tensor([0, 0, label]))


def test_losses_themselves_with_a_regularizer():
    labels, x = unbalanced_labels(SIZE), embeddings(SIZE, 8)
    options = {"embedding_regularizer": lambda e: e.square().sum(), "embedding_reg_weight": 3.0}
    found = losses.CircleLoss(reducer=reducers.DoNothingReducer(), **options)(x, labels)
    torch.testing.assert_close(found["embedding_reg_loss"]["losses"], 3 * x.square().sum())
