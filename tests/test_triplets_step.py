"""The hinge over all triplets of a small batch in one call: the same as anchor by anchor, and only where it applies."""

import functools

import pytest
import torch
from accuracy import BUDGET, assert_accurate
from cases import LAYOUTS, backend_params, embeddings, unbalanced_labels, value_and_grads
from term_cases import PAIR_VALUES

from metric_kernels import losses, reducers, use_workspace
from metric_kernels.backends import native_ordered
from metric_kernels.batch import Batch
from metric_kernels.distances import LpDistance
from metric_kernels.metrics import Euclidean
from metric_kernels.ordered import BatchAllTriplets
from metric_kernels.terms import evaluate
from metric_kernels.tile import Tile

pytestmark = [pytest.mark.parametrize("backend", backend_params("native"))]
FREE = LpDistance(normalize_embeddings=False)


@pytest.fixture
def steps(monkeypatch):
    """What each call has returned."""
    calls, original = [], native_ordered.triplets_step

    @functools.wraps(original)
    def step(*args, **kwargs):
        calls.append(original(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(native_ordered, "triplets_step", step)
    return calls


def sums(distance, x, labels, ref=None, ref_labels=None, summed=True, margin=0.33):
    """The sum over all triplets, and the number of those above 0."""
    term = BatchAllTriplets("hinge", distance.sign, 0.0, torch.inf, (margin,))
    values, counts = evaluate(term, Batch(x, labels, None, ref, ref_labels), distance, "native", summed)
    return values.sum(), counts.sum()


def same(distance, labels, ref_labels, *inputs, within=None):
    """In one call and anchor by anchor; returns the number of triplets above 0."""
    counts, found = [], []
    for summed in (True, False):

        def total(x, ref=None, summed=summed):
            value, count = sums(distance, x, labels, ref, ref_labels, summed)
            counts.append(count)
            return value

        found.append(value_and_grads(total, *inputs))
    (value, grads), (expected, expected_grads) = found
    assert counts[0] == counts[1]
    assert_accurate(value, expected, within=1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_accurate(grad, expected_grad.double(), within=within)
    return counts[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_ref", ["self", "reference", "two_views"])
@pytest.mark.parametrize("kind", PAIR_VALUES, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_every_distance(kind, with_ref, dtype, backend, steps):
    x, labels = embeddings(37, dtype=dtype), unbalanced_labels(37)
    within = BUDGET.get(dtype, 2**-8)
    if with_ref == "self":
        assert same(PAIR_VALUES[kind], labels, None, x, within=within)
    elif with_ref == "two_views":
        assert same(PAIR_VALUES[kind], labels, labels, x, embeddings(37, seed=1, dtype=dtype), within=within)
    else:
        assert same(PAIR_VALUES[kind], labels, unbalanced_labels(21), x, embeddings(21, seed=1, dtype=dtype), within=within)
    assert len(steps) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, backend, steps):
    number = same(FREE, LAYOUTS[layout](40), None, embeddings(40))
    assert len(steps) == 1 and (number > 0) == (layout not in ("one_class", "all_different"))


@pytest.mark.parametrize("wanted", ["batch", "reference"])
@pytest.mark.parametrize("distance", [LpDistance(), FREE], ids=["normalised", "free"])
def test_one_side_wants_a_gradient(distance, wanted, backend, steps):
    x, ref, labels, ref_labels = embeddings(30), embeddings(19, seed=1), unbalanced_labels(30), unbalanced_labels(19)
    if wanted == "batch":
        found = [value_and_grads(lambda x, s=s: sums(distance, x, labels, ref, ref_labels, s)[0], x) for s in (True, False)]
    else:
        found = [value_and_grads(lambda ref, s=s: sums(distance, x, labels, ref, ref_labels, s)[0], ref) for s in (True, False)]
    assert len(steps) == 1
    assert_accurate(found[0][1][0], found[1][1][0])


# A tile of a kept matrix has 4 MiB.
@pytest.mark.parametrize("size, dtype", [(1023, torch.float32), (1024, torch.float32), (1025, torch.float32)])
@pytest.mark.parametrize("distance", [LpDistance(), FREE], ids=["normalised", "free"])
def test_the_largest_tile(distance, size, dtype, backend, steps):
    x, labels = embeddings(size, 16, dtype=dtype), torch.arange(size) // 4
    assert same(distance, labels, None, x) > 0
    assert len(steps) == (size <= 1024)


@pytest.mark.parametrize("rows, columns", [(1023, 1025), (1025, 1025), (2048, 512), (2049, 512), (20, 3000)])
def test_the_largest_tile_of_a_reference_set(rows, columns, backend, steps):
    x, ref = embeddings(rows, 8, dtype=torch.float32), embeddings(columns, 8, seed=1, dtype=torch.float32)
    assert same(FREE, torch.arange(rows) % 99, torch.arange(columns) % 99, x, ref) > 0
    assert len(steps) == (rows * columns <= 1 << 20)


@pytest.mark.parametrize(
    "distance", [LpDistance(), LpDistance(normalize_embeddings=False, power=2)], ids=["normalised", "free"]
)
@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
def test_second_backward(distance, with_ref, backend, steps):
    x, labels, ref, ref_labels = embeddings(37).requires_grad_(), unbalanced_labels(37), None, None
    leaves = [x]
    if with_ref:
        ref, ref_labels = embeddings(21, seed=1).requires_grad_(), unbalanced_labels(21)
        leaves.append(ref)
    value = losses.TripletMarginLoss(distance=distance, backend=backend)(x, labels, None, ref, ref_labels)
    first, second, third = (torch.autograd.grad(value, leaves, retain_graph=k < 2) for k in range(3))
    assert all(map(torch.equal, first, second)) and all(map(torch.equal, first, third)) and all(g.any() for g in first)
    assert len(steps) == 3  # the matrix is not kept after a backward pass
    doubled = losses.TripletMarginLoss(distance=distance, backend=backend)(x, labels, None, ref, ref_labels) * 2.0
    assert all(torch.equal(2.0 * g, twice) for g, twice in zip(first, torch.autograd.grad(doubled, leaves)))


REDUCERS = [reducers.AvgNonZeroReducer, reducers.MeanReducer, reducers.SumReducer]


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
def test_plain_reducers_with_and_without(reducer, with_ref, backend, steps):
    """Without a budget for the matrix there is no step."""
    labels, ref_labels = unbalanced_labels(37), unbalanced_labels(21) if with_ref else None
    inputs = [embeddings(37), *([embeddings(21, seed=1)] if with_ref else [])]
    loss = losses.TripletMarginLoss(margin=0.33, reducer=reducer(), backend=backend)
    value, grads = value_and_grads(lambda x, ref=None: loss(x, labels, None, ref, ref_labels), *inputs)
    assert len(steps) == 1
    with use_workspace(0):
        expected, expected_grads = value_and_grads(lambda x, ref=None: loss(x, labels, None, ref, ref_labels), *inputs)
    assert len(steps) == 1 and value > 0
    assert_accurate(value, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_accurate(grad, expected_grad)


def test_means_of_the_anchors(backend, steps):
    """Anchors with as many triplets each: their mean is that of all, and takes no step."""
    x, labels, found = embeddings(40), torch.arange(40) // 4, []
    for reducer in (reducers.MeanReducer(), reducers.PerAnchorReducer()):
        loss = losses.TripletMarginLoss(margin=9.0, reducer=reducer, backend=backend)
        found.append(value_and_grads(lambda x, loss=loss: loss(x, labels), x))
    assert len(steps) == 1
    assert_accurate(found[0][0], found[1][0])
    assert_accurate(found[0][1][0], found[1][1][0])


OTHERS = {
    "squared": {"squared": True},
    "smooth": {"smooth_loss": True},
    "swapped": {"swap": True},
    "window": {"reducer": reducers.ThresholdReducer(0.1, 0.7)},
    "given_matrix": {"distance": LpDistance(p=1)},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_what_has_no_step(options, backend, steps):
    losses.TripletMarginLoss(**options, backend=backend)(embeddings(20).requires_grad_(), unbalanced_labels(20)).backward()
    assert not steps


def test_no_step_without_gradients(backend, steps):
    x, labels = embeddings(20), unbalanced_labels(20)
    value = losses.TripletMarginLoss(backend=backend)(x, labels)
    assert not steps
    assert_accurate(losses.TripletMarginLoss(backend=backend)(x.requires_grad_(), labels).detach(), value)
    assert len(steps) == 1


@pytest.mark.parametrize("labels", LAYOUTS)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite(labels, wrong, backend, steps):
    x = embeddings(14)
    x[5, 2] = wrong
    (value, _), (expected, _) = (sums(FREE, x.clone().requires_grad_(), LAYOUTS[labels](14), summed=s) for s in (True, False))
    assert len(steps) == 1 and value.isnan() and expected.isnan()


def test_any_number_of_threads(threads, backend):
    z, labels, found = embeddings(600, 16, dtype=torch.float32), unbalanced_labels(600), []
    squares, products = z.square().sum(1), z @ z.t()
    for number in (1, 2, 3):
        threads(number)
        tile, norm_grad = Tile(products.clone(), labels, labels, 0, 0, squares, squares, 1e-6), torch.empty(600)
        results = native_ordered.triplets_step(Euclidean, tile, sign=1.0, margin=0.33, both=True, norm_grad=norm_grad)
        found.append((*results, tile.s, norm_grad))
    assert found[0][1] > 0 and norm_grad.any()
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))
