"""Listed triplets, pairs and quadruplets, and reference sets where no oracle has them."""

import pytest
import torch
from accuracy import assert_accurate
from cases import SLOW_NUMBA, embeddings, listed_pairs, unbalanced_labels, value_and_grads
from term_cases import CASES, PARAMS, build, oracle
from term_truth import LOOPS, check, known, shapes
from test_term_oracles import some_triplets

from metric_kernels import losses, tuples
from metric_kernels.distances import CosineSimilarity, LpDistance
from metric_kernels.reducers import DoNothingReducer

LISTED = [
    case
    for case in CASES
    if case.values[0] in ("TripletMarginLoss", "MarginLoss", "HistogramLoss", "FastAPLoss", "DynamicSoftMarginLoss")
]
LABELS, REF_LABELS = unbalanced_labels(14), unbalanced_labels(9)
LISTS = {
    "triplets": {None: some_triplets(LABELS), 9: some_triplets(LABELS, REF_LABELS)},
    "pairs": {None: listed_pairs(LABELS), 9: listed_pairs(LABELS, REF_LABELS)},
}
QUADRUPLETS = tuple(torch.randint(14, (4, 25), generator=torch.Generator().manual_seed(0)))
NOTHING = torch.empty(0, dtype=torch.int64)


@pytest.fixture(params=["matrix", "rows"])
def way(request, monkeypatch):
    """Values as entries of the matrix, or of listed rows."""
    monkeypatch.setattr(tuples, "_as_matrix", lambda *_: request.param == "matrix")


def compare(name, params, shape, indices, dtype):
    expected = known(oracle, name, {**params, "indices_tuple": indices}, None, shape, dtype)
    return check(build(name, params), dtype, shape, expected, indices=indices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("name, params, shape", shapes(LISTED, LOOPS))
def test_listed(name, params, shape, kind, dtype, way):
    assert compare(name, params, shape, LISTS[kind][shape[1]], dtype) != 0


@pytest.mark.parametrize("detach_margins", [True, False])
def test_adaptive_margins_of_quadruplets(detach_margins, way):
    """They are of the listed pairs, each as often as it is listed."""
    a, p, n1, n2 = QUADRUPLETS

    def exact(x):
        v = LpDistance(power=2)(x)
        gap = torch.cat((v[a, n1], v[n1, n2])).mean() - v[a, p].mean()
        gap = gap.detach() if detach_margins else gap
        return (v[a, p] - v[a, n1] + gap).relu().mean() + (v[a, p] - v[n1, n2] + gap / 2).relu().mean()

    loss = losses.QuadrupletLoss(adaptive=True, detach_margins=detach_margins)
    actual = value_and_grads(lambda x: loss(x, None, QUADRUPLETS), embeddings(14))
    expected = value_and_grads(exact, embeddings(14))
    assert actual[0] > 0
    assert_accurate(actual[0], expected[0])
    assert_accurate(actual[1][0], expected[1][0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_quadruplets(dtype, way):
    """Whatever the labels say, or without them."""
    assert compare("QuadrupletLoss", PARAMS["QuadrupletLoss"], LOOPS[0], QUADRUPLETS, dtype) > 0


@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("distance", [CosineSimilarity(), LpDistance()], ids=["cosine", "euclidean"])
def test_pairs_of_a_smooth_maximum(distance, with_ref, way):
    """Each as often as it is listed."""
    indices = LISTS["pairs"][9 if with_ref else None]
    a, p, b, n = indices

    def exact(x, ref):
        s = -distance.sign * distance(x, ref)
        return torch.logaddexp((20 * (s[b, n] - s[a, p][:, None])).flatten().logsumexp(0), x.new_zeros(()))

    loss, x, ref = losses.QuadrupletLogSumExpLoss(distance=distance), embeddings(14), embeddings(9, seed=1)
    if with_ref:
        actual = value_and_grads(lambda x, ref: loss(x, None, indices, ref), x, ref)
        expected = value_and_grads(exact, x, ref)
    else:
        actual, expected = value_and_grads(lambda x: loss(x, None, indices), x), value_and_grads(lambda x: exact(x, x), x)
    assert_accurate(actual[0], expected[0])
    for grad, exact_grad in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("same_labels", [True, False], ids=["two_views", "reference"])
@pytest.mark.parametrize("backend", SLOW_NUMBA)
def test_a_smooth_maximum_with_a_reference_set(backend, same_labels):
    """Both (i, j) and (j, i) count, which are not the same pair; of two views of a batch, a point is no positive of itself."""
    ref_labels = LABELS if same_labels else REF_LABELS
    inputs = embeddings(14), embeddings(len(ref_labels), seed=1)
    positive = LABELS[:, None] == ref_labels
    negative = ~positive
    if same_labels:
        positive = positive & ~torch.eye(14, dtype=torch.bool)

    def exact(x, ref):
        s = 20 * CosineSimilarity()(x, ref)
        return torch.logaddexp(s[negative].logsumexp(0) + (-s[positive]).logsumexp(0), x.new_zeros(()))

    loss = losses.QuadrupletLogSumExpLoss(backend=backend)
    actual = value_and_grads(lambda x, ref: loss(x, LABELS, None, ref, ref_labels), *inputs)
    expected = value_and_grads(exact, *inputs)
    assert_accurate(actual[0], expected[0])
    for grad, exact_grad in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, exact_grad)


def test_nothing_listed_weighs_all_anchors_alike():
    x = embeddings(14)
    assert torch.equal(losses.FastAPLoss()(x, LABELS, 3 * (NOTHING,)), losses.FastAPLoss()(x, LABELS))


@pytest.mark.parametrize("reducer", [None, DoNothingReducer()], ids=["reduced", "each"])
@pytest.mark.parametrize("num_classes", [None, 6])
def test_no_triplets_and_learned_thresholds(num_classes, reducer):
    """0, without the penalty, and connected to thresholds and points."""
    loss = losses.MarginLoss(learn_beta=True, nu=0.3, num_classes=num_classes, reducer=reducer)
    x = embeddings(14).requires_grad_()
    for call in (lambda: loss(x, torch.arange(14) % 6, 3 * (NOTHING,)), lambda: loss(x, 0 * torch.arange(14))):
        value = call()
        if reducer is not None:
            assert list(value) == ["margin_loss", "beta_reg_loss"] and not value["margin_loss"]["losses"].numel()
            continue
        grads = torch.autograd.grad(value, [x, loss.beta])
        assert value == 0 and not any(grad.any() for grad in grads)


WRONG = [
    (
        losses.SemiHardTripletLoss(),
        LISTS["triplets"][None],
        "expected None for SemiHardTripletLoss, which makes its own choice",
    ),
    (losses.BatchHardTripletLoss(), LISTS["pairs"][None], "expected None for BatchHardTripletLoss, which makes its own choice"),
    (losses.QuadrupletMarginLoss(), QUADRUPLETS, "expected None for QuadrupletMarginLoss, which makes its own choice"),
    (losses.QuadrupletLoss(), LISTS["triplets"][None], r"expected quadruplets \(a, p, n1, n2\), got 3 parts"),
    (losses.QuadrupletLoss(), ([0, 1], [1, 0], [2], [3]), "expected as many anchors as negatives, got 2 and 1"),
]


@pytest.mark.parametrize("loss, indices, message", WRONG)
def test_lists_that_are_refused(loss, indices, message):
    with pytest.raises(ValueError, match=f"indices_tuple: {message}"):
        loss(embeddings(14), LABELS, indices)
