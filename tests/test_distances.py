"""Losses on every distance and similarity: our own, those of pytorch-metric-learning, and objects unknown to both."""

import functools

import pytest
import torch
from accuracy import assert_accurate
from cases import (
    LOSSES,
    PARAMS,
    PEER_WITH_REF,
    QUICK_BACKENDS,
    WITH_REF,
    embeddings,
    unbalanced_labels,
    value_and_grads,
)
from oracles import ORACLES
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning import losses as peer_losses

from metric_kernels import distances, losses

# Ours, and what the oracles call it.
METRICS = {
    "cosine": (distances.CosineSimilarity(), ("cosine", True)),
    "dot": (distances.DotProductSimilarity(), ("dot", True)),
    "dot-raw": (distances.DotProductSimilarity(normalize_embeddings=False), ("dot", False)),
    "euclidean": (distances.LpDistance(), ("euclidean", True)),
    "euclidean-raw": (distances.LpDistance(normalize_embeddings=False), ("euclidean", False)),
    "squared": (distances.LpDistance(power=2), ("squared_euclidean", True)),
    "squared-raw": (distances.LpDistance(normalize_embeddings=False, power=2), ("squared_euclidean", False)),
    "snr": (distances.SNRDistance(), ("snr", True)),
    "snr-raw": (distances.SNRDistance(normalize_embeddings=False), ("snr", False)),
}
CASES = [
    pytest.param(name, metric, id=f"{name}-{metric}")
    for name in LOSSES
    for metric in METRICS
    if name != "CircleLoss" or metric == "cosine"
]
# Distances that no fused metric is: the whole matrix is built.
DENSE = {
    "manhattan": ("LpDistance", {"p": 1}),
    "manhattan-raw": ("LpDistance", {"p": 1, "normalize_embeddings": False}),
    "cubed": ("LpDistance", {"power": 3}),
    "squared-dot": ("DotProductSimilarity", {"power": 2}),
    "snr-squared": ("SNRDistance", {"power": 2}),
}


class Angle(peer_distances.BaseDistance):
    """1 - cos, a distance that only this test knows."""

    def __init__(self):
        super().__init__(is_inverted=False)

    def compute_mat(self, query_emb, ref_emb):
        return 1 - query_emb @ ref_emb.T

    def pairwise_distance(self, query_emb, ref_emb):
        return 1 - (query_emb * ref_emb).sum(1)


def inputs(name, with_ref):
    """Labels, embeddings and perhaps a reference set of another size."""
    labels, x = unbalanced_labels(13), embeddings(13, 8)
    if not with_ref:
        return (labels, None), (x, None)
    return (labels, unbalanced_labels(10, seed=3)), (x, embeddings(10, 8, seed=2))


@functools.cache
def exact(name, metric, with_ref, dtype=torch.float64):
    """Of the inputs rounded to a type."""
    (labels, ref_labels), leaves = inputs(name, with_ref)
    leaves = [leaf if leaf is None else leaf.to(dtype).double() for leaf in leaves]
    kind, normalize = METRICS[metric][1]
    options = {"distance": kind, "normalize": normalize, **PARAMS[name]}
    return value_and_grads(lambda x, ref=None: ORACLES[name](x, labels, ref, ref_labels, **options), *leaves)


def ours(name, with_ref, dtype=torch.float64, **options):
    (labels, ref_labels), leaves = inputs(name, with_ref)
    loss = getattr(losses, name)(**PARAMS[name], **options)
    return value_and_grads(
        lambda x, ref=None: loss(x, labels, ref_emb=ref, ref_labels=ref_labels),
        *(leaf if leaf is None else leaf.to(dtype) for leaf in leaves),
    )


def peers(name, with_ref, distance):
    (labels, ref_labels), leaves = inputs(name, with_ref)
    loss = getattr(peer_losses, name)(**PARAMS[name], distance=distance)
    return value_and_grads(lambda x, ref=None: loss(x, labels, ref_emb=ref, ref_labels=ref_labels), *leaves)


def assert_same(actual, expected, within=None):
    assert_accurate(actual[0], expected[0], within=within)
    for grad, expected_grad in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, expected_grad, within=within)


# Lifted structure reads a reference point's negatives from the other side, where d(i, j) must be d(j, i).
FUSED = [
    pytest.param(*case.values, with_ref, id=f"{case.id}-{'reference' if with_ref else 'self'}")
    for case in CASES
    for with_ref in (False, True)
    if not with_ref or case.values[0] in WITH_REF and not (case.values[0] == "LiftedStructureLoss" and "snr" in case.values[1])
]


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name, metric, with_ref", FUSED)
def test_fused(name, metric, with_ref, backend):
    actual = ours(name, with_ref, distance=METRICS[metric][0], backend=backend)
    assert_same(actual, exact(name, metric, with_ref), within=1e-11)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name, metric", CASES)
def test_fused_in_float32(name, metric, backend):
    actual = ours(name, False, torch.float32, distance=METRICS[metric][0], backend=backend)
    assert_same(actual, exact(name, metric, False, torch.float32))


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_an_asymmetric_distance_is_refused_where_the_loss_needs_a_symmetric_one(backend):
    with pytest.raises(ValueError, match="distance: LiftedStructureLoss with a reference set expects a symmetric one"):
        ours("LiftedStructureLoss", True, distance=distances.SNRDistance(), backend=backend)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("distance", DENSE)
@pytest.mark.parametrize(
    "name, with_ref",
    [(n, r) for n in LOSSES for r in (False, True) if n != "CircleLoss" and (not r or n in PEER_WITH_REF)],
)
def test_dense(name, with_ref, distance, backend):
    kind, options = DENSE[distance]
    expected = peers(name, with_ref, getattr(peer_distances, kind)(**options))
    actual = ours(name, with_ref, distance=getattr(distances, kind)(**options), backend=backend)
    # torch.nn.functional.softplus of the peer's epilogues is 2e-9 off above 20.
    assert_same(actual, expected, within=1e-8)


@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "SupConLoss", "NTXentLoss"])
def test_a_distance_of_the_user(name, with_ref):
    assert_same(ours(name, with_ref, distance=Angle()), peers(name, with_ref, Angle()), within=1e-10)


@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
def test_lifted_structure_with_a_distance_of_the_user(with_ref):
    """With a reference set both directions of the user's matrix are read: the same as the cosine, shifted by 1."""
    options = {**PARAMS["LiftedStructureLoss"], "distance": "cosine"}
    (labels, ref_labels), leaves = inputs("LiftedStructureLoss", with_ref)
    expected = value_and_grads(
        lambda x, ref=None: ORACLES["LiftedStructureLoss"](x, labels, ref, ref_labels, **options), *leaves
    )
    # The margins cancel against the shift: neg_margin - (1 - s) = s - (1 - neg_margin).
    margins = {"neg_margin": 1 - options["neg_margin"], "pos_margin": 1 - options["pos_margin"]}
    loss = losses.LiftedStructureLoss(**margins, distance=Angle())
    actual = value_and_grads(lambda x, ref=None: loss(x, labels, ref_emb=ref, ref_labels=ref_labels), *leaves)
    assert_same(actual, expected, within=1e-11)


PEER_DISTANCES = {
    "LpDistance": ["ContrastiveLoss", "MultiSimilarityLoss"],
    "CosineSimilarity": ["CircleLoss", "NTXentLoss"],
    "DotProductSimilarity": ["NPairsLoss", "SupConLoss"],
    "SNRDistance": ["ContrastiveLoss"],
}


@pytest.mark.parametrize(
    "kind, name, options",
    [
        pytest.param(kind, name, options, id=f"{kind}-{name}-{options}")
        for kind, names in PEER_DISTANCES.items()
        for name in names
        # The class fixes the options of a cosine.
        for options in ([{}] if kind == "CosineSimilarity" else [{}, {"normalize_embeddings": False}, {"power": 2}])
    ],
)
def test_a_distance_of_the_peer_is_ours(kind, name, options):
    given = getattr(peer_distances, kind)(**options)
    own = getattr(distances, kind)(**options)
    adopted = getattr(losses, name)(distance=given).distance
    assert type(adopted) is type(own)
    assert (adopted.p, adopted.power, adopted.normalize_embeddings) == (own.p, own.power, own.normalize_embeddings)
    assert adopted.metric is own.metric
    expected, actual = ours(name, False, distance=own), ours(name, False, distance=given)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1][0], expected[1][0])


def test_inverting_a_distance_is_refused():
    for kind in (distances.LpDistance, distances.SNRDistance):
        with pytest.raises(AssertionError, match="is_inverted: expected False"):
            kind(is_inverted=True)
    with pytest.raises(AssertionError, match="normalize_embeddings: expected True"):
        distances.CosineSimilarity(normalize_embeddings=False)


@pytest.mark.parametrize("wrong", ["euclidean", 2, object()], ids=str)
def test_what_is_no_distance_is_refused(wrong):
    with pytest.raises(TypeError, match="distance: expected an object of metric_kernels.distances"):
        losses.ContrastiveLoss(distance=wrong)


def test_circle_loss_takes_cosines_only():
    with pytest.raises(AssertionError, match="CircleLoss expects CosineSimilarity, got LpDistance"):
        losses.CircleLoss(distance=distances.LpDistance())


class Doubled(distances.LpDistance):
    def matrix(self, x, y):
        return 2 * super().matrix(x, y)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_a_subclass_with_a_matrix_of_its_own(backend):
    labels, x = unbalanced_labels(12), embeddings(12)
    doubled = losses.ContrastiveLoss(2, 4, distance=Doubled(), backend=backend)(x, labels)
    torch.testing.assert_close(doubled, 2 * losses.ContrastiveLoss(1, 2, backend=backend)(x, labels))


def test_a_subclass_with_the_methods_of_the_peer_is_refused():
    with pytest.raises(TypeError, match="Wrong: expected matrix and rowwise, got compute_mat"):
        type("Wrong", (distances.LpDistance,), {"compute_mat": lambda self, x, y: None})


@pytest.mark.parametrize("p", [1, 2])
def test_a_root_of_a_distance_has_gradient_zero_at_zero(p):
    x = embeddings(6)
    x[1] = x[0]
    loss = losses.ContrastiveLoss(distance=distances.LpDistance(p=p, power=0.5))
    value, (grad,) = value_and_grads(lambda x: loss(x, torch.tensor([0, 0, 1, 1, 2, 2])), x)
    assert value > 0 and grad.isfinite().all()


def test_circle_loss_takes_a_subclass_of_the_cosine_of_the_peer():
    labels, x = unbalanced_labels(12), embeddings(12)
    named = type("Named", (peer_distances.CosineSimilarity,), {})()
    torch.testing.assert_close(losses.CircleLoss(distance=named)(x, labels), losses.CircleLoss()(x, labels))
