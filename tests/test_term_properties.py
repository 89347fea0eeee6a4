"""Whatever batch is drawn, losses over triplets, quadruplets and histograms agree with the float64 oracles, ties and all.

On a grid of halves all differences of squared distances are exact, so that what is equal is equal to every backend.
"""

import pytest
import torch
from accuracy import assert_accurate_where_terms_cancel
from cases import SLOW_NUMBA, value_and_grads
from hypothesis import given, settings
from hypothesis import strategies as st
from term_cases import CASES, PAIR_VALUES, PARAMS, batches, build, oracle, takes_ref
from test_ops import quadruplets, semi_hard, triplets

from metric_kernels import losses, ops, reducers
from metric_kernels.quadruplets import NEGATIVES

EXACT = ("squared_euclidean", False)
SQUARED = PAIR_VALUES[EXACT]
# These normalise, after which nothing is exact.
NORMALISED = ["FastAPLoss", "DynamicSoftMarginLoss"]
MARGINS = st.sampled_from([-0.75, -0.25, 0.0, 0.25, 1.0, 2.5])
ON_GRID = [case for case in CASES if case.values[0] not in NORMALISED]


def pair_value_of(name):
    return ("dot", False) if name == "HistogramLoss" else EXACT


def with_margins(draw, name, params):
    """The parameters with margins that make ties: a triplet that costs exactly 0, a value exactly on a node."""
    drawn = {key: draw(MARGINS) for key in params if key in ("margin", "margin1", "margin2")}
    if name == "MarginLoss":
        drawn["beta"] = draw(st.sampled_from([0.5, 1.25, 3.0]))
    if name == "HistogramLoss":
        drawn["n_bins"] = draw(st.sampled_from([1, 8]))
    return {**params, **drawn}


def check(name, params, backend, x, labels, ref=None, ref_labels=None, pair_value=None):
    loss = build(name, params, pair_value, backend=backend)
    value, grads = value_and_grads(lambda x, ref=None: loss(x, labels, None, ref, ref_labels), x, ref)
    points = tuple(t for t in (x, ref) if t is not None)
    if not all(t.numel() for t in points):
        assert value == 0 and not any(grad.any() for grad in grads)
        return
    exact, exact_grads = value_and_grads(
        lambda x, ref=None: oracle(name, x, labels, ref, ref_labels, pair_value=pair_value, **params), x, ref
    )
    assert_accurate_where_terms_cancel(value, exact, points, grads, exact_grads)


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name, params", ON_GRID)
@settings(max_examples=20)
@given(data=st.data(), batch=batches(rows=9, dim=4, grid=True))
def test_ties(name, params, backend, data, batch):
    check(name, with_margins(data.draw, name, params), backend, *batch, pair_value=pair_value_of(name))


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name, params", [case for case in ON_GRID if takes_ref(*case.values)])
@settings(max_examples=15)
@given(data=st.data(), batch=batches(rows=7, dim=3, grid=True), reference=batches(rows=7, dim=3, grid=True))
def test_ties_with_a_reference_set(name, params, backend, data, batch, reference):
    (x, labels), (ref, ref_labels) = batch, reference
    dim = min(x.shape[1], ref.shape[1])
    params = with_margins(data.draw, name, params)
    check(name, params, backend, x[:, :dim], labels, ref[:, :dim], ref_labels, pair_value=pair_value_of(name))


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name", PARAMS)
@settings(max_examples=20)
@given(batch=batches(rows=9, grid=False, repeated=False))
def test_any_batch(name, backend, batch):
    check(name, PARAMS[name], backend, *batch)


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name", NORMALISED)
@settings(max_examples=20)
@given(batch=batches(rows=9, grid=False))
def test_repeated_rows(name, backend, batch):
    check(name, PARAMS[name], backend, *batch)


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@settings(max_examples=30)
@given(batch=batches(rows=10, dim=4, grid=True), margin=MARGINS)
def test_numbers_of_tuples(backend, batch, margin):
    """As integers."""
    x, labels = batch
    if not x.numel():
        return
    options = {"margin": margin, "distance": SQUARED, "backend": backend}
    for found, loops in ((ops.batch_all_triplet, triplets), (ops.semi_hard_triplet, semi_hard)):
        _, active, valid = loops(x, None, labels, labels, "squared", margin, "hinge")
        actual = found(x, labels, **options)
        assert torch.equal(actual.active, active) and torch.equal(actual.valid, valid)
    for negatives in NEGATIVES:
        _, active, valid = quadruplets(x, labels, "squared", margin, negatives)
        actual = ops.batch_all_quadruplet(x, labels, negatives=negatives, **options)
        assert (actual.active, actual.valid) == (active, valid)


SUMS = {
    "TripletMarginLoss": [{}, {"squared": True}],
    "SemiHardTripletLoss": [{}],
    "BatchHardTripletLoss": [{}],
    "QuadrupletMarginLoss": [{"negatives": negatives} for negatives in NEGATIVES],
}


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name, params", [(name, params) for name in SUMS for params in SUMS[name]])
@settings(max_examples=15)
@given(batch=batches(grid=True), margin=MARGINS, seed=st.integers(0, 2**20))
def test_order_and_names_of_classes_change_no_bit(name, params, backend, batch, margin, seed):
    """Of a sum of numbers that are exact."""
    x, labels = batch
    generator = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(len(x), generator=generator), torch.randperm(20, generator=generator) * 977 - 5000
    loss = getattr(losses, name)(margin=margin, distance=SQUARED, reducer=reducers.SumReducer(), backend=backend, **params)
    assert torch.equal(loss(x[order], names[labels[order]]), loss(x, labels))


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@settings(max_examples=30)
@given(batch=batches(grid=True), margin=MARGINS)
def test_disjoint_quadruplets_are_all_but_the_triplets(backend, batch, margin):
    x, labels = batch
    options = {"margin": margin, "distance": SQUARED, "reducer": reducers.SumReducer(), "backend": backend}
    every, disjoint = (losses.QuadrupletMarginLoss(negatives=n, **options)(x, labels) for n in ("all", "disjoint"))
    assert every - disjoint == losses.TripletMarginLoss(**options)(x, labels)


@pytest.mark.slow
@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name, params", ON_GRID)
@settings(derandomize=False, print_blob=True, max_examples=300)
@given(data=st.data(), batch=batches(rows=10, dim=4, grid=True))
def test_many_ties(name, params, backend, data, batch):
    check(name, with_margins(data.draw, name, params), backend, *batch, pair_value=pair_value_of(name))


@pytest.mark.parametrize("backend", ["native", "numba", "reference"])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_repeated_rows_in_float32(negatives, backend):
    """A product of few rows is not the same bits on both sides of the diagonal, and equal rows make ties off any grid."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        size, width = int(torch.randint(4, 13, (1,), generator=generator)), (19, 27, 30, 33)[seed % 4]
        x = torch.randn(3, width, generator=generator)[torch.randint(0, 3, (size,), generator=generator)]
        labels = torch.randint(0, 3, (size,), generator=generator)
        found, grad = value_and_grad_of_quadruplets(x, labels, negatives, backend)
        exact, _ = value_and_grad_of_quadruplets(x.double(), labels, negatives, backend)
        assert 0 <= found.active <= found.valid
        torch.testing.assert_close(found.loss, exact.loss, rtol=1e-5, atol=1e-5)
        if not found.active:
            assert not found.loss and not grad.any()


def value_and_grad_of_quadruplets(x, labels, negatives, backend):
    x = x.detach().requires_grad_()
    found = ops.batch_all_quadruplet(x, labels, margin=0.0, negatives=negatives, backend=backend)
    return found, torch.autograd.grad(found.loss, x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["native", "numba", "reference"])
def test_margins_on_a_node_count_as_above_it(backend, dtype):
    """All distances of one-hot rows are the same, so that every t is 0, a node; listed triplets are the same triplets."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    place = torch.arange(6)
    same = labels[:, None] == labels
    listed = (same & (place[:, None] != place))[:, :, None] & ~same[:, None, :]
    found = []
    for tuples in (None, listed.nonzero(as_tuple=True)):
        x = torch.eye(6, dtype=dtype).requires_grad_()
        loss = losses.DynamicSoftMarginLoss(backend=backend)
        value = loss(x, labels, tuples)
        found.append((value, torch.autograd.grad(value, x)[0], loss.histogram))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert found[0][1].norm() > 0.6
