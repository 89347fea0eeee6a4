"""Losses over triplets, quadruplets and histograms on every backend against the float64 oracles and plain formulas."""

import pytest
import torch
from accuracy import HALVES, assert_accurate
from cases import BACKENDS, COMPILED, SLOW_NUMBA, TERM_LOSSES, embeddings, value_and_grads
from oracles import TERM_ORACLES
from term_cases import CASES, CASES_AND_PAIR_VALUES, PARAMS, build, oracle
from term_dense import DEFAULT, DENSE, dense
from term_truth import LOOPS, check, check_dense, known, sets, shapes, slow_if

from metric_kernels import backends, losses, use_workspace
from metric_kernels.distances import LpDistance
from metric_kernels.terms import _doubled, running_sums

# The C++ kernels work on chunks of 512 columns, and tiles of a recomputed matrix have 16 rows. See also LOOPS.
RAGGED = [(33, None, "unbalanced"), (123, None, "halves"), (622, None, "pairs"), (40, 601, "pairs")]
LARGE = (1100, None, "pairs")


def test_every_loss_has_an_oracle_and_a_plain_formula():
    assert sorted(TERM_ORACLES) == sorted(DENSE) == TERM_LOSSES


@pytest.mark.parametrize("name, params, pair_value, shape", shapes(CASES_AND_PAIR_VALUES, LOOPS))
def test_the_plain_formula_is_the_oracle(name, params, pair_value, shape):
    expected = known(oracle, name, params, pair_value, shape, torch.float64)
    plain = known(dense, name, params, pair_value, shape, torch.float64)
    assert_accurate(plain[0], expected[0])
    for grad, exact_grad in zip(plain[1], expected[1], strict=True):
        assert_accurate(grad, exact_grad)


def on_backends(cases, dtypes):
    """With every backend and type; Numba compiles each metric for each type."""
    return [
        pytest.param(
            *case.values,
            *backend.values,
            dtype,
            id=f"{case.id}-{backend.id}-{dtype}",
            marks=[*case.marks, *backend.marks, *slow_if(backend.id == "numba" and compiles_more(*case.values[:3], dtype))],
        )
        for case in cases
        for backend in BACKENDS
        for dtype in dtypes
    ]


def compiles_more(name, params, pair_value, dtype):
    """Than a loss with its own distance in float32, and one loss with every distance."""
    return dtype == torch.float64 or pair_value != DEFAULT.get(name, ("euclidean", True)) and name != "TripletMarginLoss"


@pytest.mark.parametrize(
    "name, params, pair_value, shape, backend, dtype",
    on_backends(shapes(CASES_AND_PAIR_VALUES, LOOPS), [torch.float64, torch.float32]),
)
def test_every_distance(name, params, pair_value, shape, backend, dtype):
    check(build(name, params, pair_value, backend=backend), dtype, shape, known(oracle, name, params, pair_value, shape, dtype))


# Kept and recomputed matrices of either type. Reference kernels work on whole tiles.
RUNS = [
    pytest.param(backend.id, dtype, workspace, id=f"{backend.id}-{dtype}-{workspace}", marks=[*backend.marks, *slow_if(also)])
    for dtype, workspace, quick in [
        (torch.float32, 0, ("native", "numba")),
        (torch.float64, 1 << 28, ("native",)),
        (torch.float32, 1 << 28, ()),
        (torch.float64, 0, ()),
    ]
    for backend in BACKENDS
    for also in [backend.id not in quick]
]


@pytest.mark.parametrize("backend, dtype, workspace", RUNS)
@pytest.mark.parametrize("name, params, shape", shapes(CASES, RAGGED))
def test_ragged_tiles(name, params, shape, backend, dtype, workspace):
    with use_workspace(workspace):
        check_dense(name, params, shape, dtype, backend=backend)


@pytest.mark.parametrize("name", TERM_LOSSES)
def test_a_kept_matrix_of_more_than_one_tile(name):
    loss = build(name, PARAMS[name], backend=COMPILED)
    x, labels, *_ = sets(torch.float64, *LARGE)
    actual = value_and_grads(lambda x: loss(x, labels), x)
    with use_workspace(0):
        expected = value_and_grads(lambda x: loss(x, labels), x)
    assert_accurate(actual[0], expected[0], within=1e-11)
    assert_accurate(actual[1][0], expected[1][0], within=1e-11)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name, params, shape", shapes(CASES, RAGGED[:1]))
def test_half_precision(name, params, shape, dtype):
    check_dense(name, params, shape, dtype, backend=COMPILED)


# FastAP and the dynamic soft margin have a range of Euclidean distances, the histogram one of similarities.
GIVEN = [case for case in CASES if case.values[0] not in ("HistogramLoss", "FastAPLoss", "DynamicSoftMarginLoss")]


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("name, params, shape", shapes(GIVEN, LOOPS))
def test_a_distance_that_builds_its_matrix(name, params, shape, backend):
    expected = known(dense, name, params, ("manhattan", False), shape, torch.float64)
    loss = build(name, params, distance=LpDistance(p=1, normalize_embeddings=False), backend=backend)
    for workspace in (1 << 28, 0):
        with use_workspace(workspace):
            check(loss, torch.float64, shape, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["TripletMarginLoss", "SemiHardTripletLoss", "QuadrupletMarginLoss", "BatchHardTripletLoss"])
def test_a_margin_that_is_not_finite_is_refused(name, value):
    with pytest.raises(ValueError, match=f"margin: expected a finite number, got {value}"):
        getattr(losses, name)(margin=value)(torch.eye(6), torch.arange(6) // 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_near_the_largest_number(backend):
    """Their sum overflows, which is no reason for a NaN."""
    x, labels = torch.tensor([[0.0], [1e38], [1.2e38], [-1e38]]), torch.tensor([0, 0, 1, 1])
    distance = LpDistance(p=1, normalize_embeddings=False)
    assert losses.SemiHardTripletLoss(distance=distance, backend=backend)(x, labels).isfinite()
    assert losses.TripletMarginLoss(distance=distance, backend=backend)(x, labels).isfinite()


FAR_DOWN = torch.iinfo(torch.int64).min
LABELINGS = {
    "some_alone": torch.cat((torch.arange(30) // 3 - 5, torch.arange(11) - 90)),
    "most_alone": torch.cat((torch.tensor([-1, FAR_DOWN, FAR_DOWN]), torch.arange(38) + 7)),
}


@pytest.mark.parametrize("workspace", [0, 1 << 20], ids=["tiles", "kept"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pairs", ["triplets", "all"])
@pytest.mark.parametrize("labels", LABELINGS.values(), ids=LABELINGS)
def test_histograms_of_points_without_a_positive(labels, pairs, backend, workspace):
    """And of any labels, among them such as those by which the kernels know these points."""
    x, options = embeddings(len(labels), dtype=torch.float32), {"n_bins": 20, "pairs": pairs}
    expected, plain = (
        value_and_grads(lambda x: dense("HistogramLoss", x, labels, **options), x.to(dtype))
        for dtype in (torch.float64, torch.float32)
    )
    with use_workspace(workspace):
        value, (grad,) = value_and_grads(lambda x: losses.HistogramLoss(**options, backend=backend)(x, labels), x)
    assert_accurate(value, expected[0], plain[0])
    assert_accurate(grad, expected[1][0], plain[1][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_among_points_without_a_positive(backend):
    x = embeddings(12, dtype=torch.float32)
    assert losses.HistogramLoss(backend=backend)(x, torch.arange(12)) == 0
    x[3, 1] = torch.nan
    assert losses.HistogramLoss(backend=backend)(x, torch.arange(12)).isnan()


@pytest.mark.parametrize("pairs", ["triplets", "all"])
def test_histograms_take_one_sweep(pairs, monkeypatch):
    """Points without a positive are known to the kernels."""
    calls, kernels = [], backends.load("reference").binned
    original = kernels.histogram
    monkeypatch.setattr(kernels, "histogram", lambda *arguments: calls.append(original(*arguments)))
    losses.HistogramLoss(pairs=pairs, backend="reference")(embeddings(9), torch.tensor([0, 0, 1, 1, 2, 3, 4, 5, 6]))
    assert len(calls) == 1


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (101,), (5, 11), (3, 2, 64), (2, 1000)], ids=str)
def test_running_sums(shape):
    """As on a GPU and as on a processor: after a NaN all is NaN, before it nothing."""
    values = torch.rand(shape, dtype=torch.float64)
    values[..., 7:8] = torch.nan
    leaf = values.nan_to_num(0.5).requires_grad_()
    for found, expected in ((running_sums(values), values.cumsum(-1)), (_doubled(values), values.cumsum(-1))):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0.0, equal_nan=True)
    weights = torch.rand(shape, dtype=torch.float64)
    grads = [torch.autograd.grad((f(leaf) * weights).sum(), leaf)[0] for f in (_doubled, lambda t: t.cumsum(-1))]
    torch.testing.assert_close(*grads, rtol=1e-13, atol=0.0)
