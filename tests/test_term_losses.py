"""Losses over triplets, quadruplets and histograms on every backend against the float64 oracles and plain formulas."""

import functools

import pytest
import torch
from accuracy import HALVES, assert_accurate
from cases import LAYOUTS, TERM_BACKENDS, TERM_LOSSES, embeddings, value_and_grads
from oracles import TERM_ORACLES
from term_cases import CASES, CASES_AND_PAIR_VALUES, PARAMS, VARIANTS, build, oracle, takes_ref
from term_dense import DENSE, dense

from metric_kernels import use_workspace
from metric_kernels.distances import LpDistance

# Rows, columns of a reference set or None, and the layout of the labels. The C++ kernels work on chunks of 512 columns, and
# tiles of a recomputed matrix have 16 rows. No triplet and no pair of these is so near to a kink that float32 might take it for
# one beyond.
LOOPS = [(14, None, "unbalanced"), (14, 9, "unbalanced")]
RAGGED = [(33, None, "unbalanced"), (123, None, "halves"), (622, None, "pairs"), (40, 601, "pairs")]
LARGE = (1100, None, "pairs")


def shapes(names_and_params, found):
    """Those cases with those of the shapes that their loss takes."""
    return [
        pytest.param(*case.values, shape, id=f"{case.id}-{'x'.join(map(str, shape))}", marks=slow_if(takes_long(case, shape)))
        for case in names_and_params
        for shape in found
        if shape[1] is None or takes_ref(*case.values[:2])
    ]


def takes_long(case, shape):
    """Plain formulas of many rows take seconds; the first variant of each loss on some is enough for every run."""
    name, params = case.values[:2]
    rows = max(shape[0], shape[1] or 0)
    return rows > 200 or rows > 100 and params != {**PARAMS[name], **VARIANTS[name][0]}


def slow_if(condition):
    return [pytest.mark.slow] if condition else []


def sets(dtype, rows, columns, layout):
    """Embeddings and labels of the batch and of a reference set."""
    # So short that no softplus is linear in float64.
    x, labels = 0.5 * embeddings(rows, 8, seed=rows, dtype=dtype), LAYOUTS[layout](rows)
    if columns is None:
        return x, labels, None, None
    return x, labels, 0.5 * embeddings(columns, 8, seed=columns, dtype=dtype), LAYOUTS[layout](columns)


def run(function, x, labels, ref, ref_labels):
    """Value and gradients of ``function(x, labels, ref, ref_labels)``."""
    return value_and_grads(lambda x, ref=None: function(x, labels, ref, ref_labels), x, ref)


@functools.cache
def _known(formula, name, options, pair_value, shape, dtype, arithmetic):
    inputs = sets(dtype, *shape)
    inputs = tuple(t.to(arithmetic) if t is not None and t.is_floating_point() else t for t in inputs)
    return run(functools.partial(formula, name, pair_value=pair_value, **dict(options)), *inputs)


def known(formula, name, params, pair_value, shape, dtype, arithmetic=torch.float64):
    """Of an oracle or a plain formula, each once."""
    return _known(formula, name, tuple(params.items()), pair_value, shape, dtype, arithmetic)


def check(loss, dtype, shape, expected, plain=(None, (None, None)), within=None):
    actual = run(lambda x, labels, ref, ref_labels: loss(x, labels, None, ref, ref_labels), *sets(dtype, *shape))
    assert {actual[0].dtype, *(grad.dtype for grad in actual[1])} == {dtype} and actual[0].shape == ()
    assert_accurate(actual[0], expected[0], plain[0], within)
    for grad, exact_grad, plain_grad in zip(actual[1], expected[1], plain[1]):
        assert_accurate(grad, exact_grad, plain_grad, within)


def check_dense(name, params, shape, dtype, pair_value=None, **options):
    """Against the plain formula in float64, with that in float32 to tell how well the problem is conditioned."""
    given = name, params, pair_value, shape, dtype
    plain = {} if dtype == torch.float64 else {"plain": known(dense, *given, arithmetic=torch.float32)}
    loss = build(name, params, pair_value, **options)
    check(loss, dtype, shape, known(dense, *given), within=1e-11 if dtype == torch.float64 else None, **plain)


def test_every_loss_has_an_oracle_and_a_plain_formula():
    assert sorted(TERM_ORACLES) == sorted(DENSE) == TERM_LOSSES


@pytest.mark.parametrize("name, params, pair_value, shape", shapes(CASES_AND_PAIR_VALUES, LOOPS))
def test_the_plain_formula_is_the_oracle(name, params, pair_value, shape):
    expected = known(oracle, name, params, pair_value, shape, torch.float64)
    plain = known(dense, name, params, pair_value, shape, torch.float64)
    assert_accurate(plain[0], expected[0])
    for grad, exact_grad in zip(plain[1], expected[1], strict=True):
        assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", TERM_BACKENDS)
@pytest.mark.parametrize("name, params, pair_value, shape", shapes(CASES_AND_PAIR_VALUES, LOOPS))
def test_every_distance(name, params, pair_value, shape, backend, dtype):
    check(build(name, params, pair_value, backend=backend), dtype, shape, known(oracle, name, params, pair_value, shape, dtype))


KEPT_AND_RECOMPUTED = [
    pytest.param(dtype, workspace, id=f"{dtype}-{workspace}", marks=slow_if(also))
    for dtype, workspace, also in [
        (torch.float32, 0, False),
        (torch.float64, 1 << 28, False),
        (torch.float32, 1 << 28, True),
        (torch.float64, 0, True),
    ]
]


# Reference kernels work on whole tiles.
COMPILED_FIRST = [
    pytest.param(*b.values, marks=[*b.marks, *slow_if(b.values[0] == "reference")], id=b.values[0]) for b in TERM_BACKENDS
]


@pytest.mark.parametrize("dtype, workspace", KEPT_AND_RECOMPUTED)
@pytest.mark.parametrize("backend", COMPILED_FIRST)
@pytest.mark.parametrize("name, params, shape", shapes(CASES, RAGGED))
def test_ragged_tiles(name, params, shape, backend, dtype, workspace):
    with use_workspace(workspace):
        check_dense(name, params, shape, dtype, backend=backend)


@pytest.mark.parametrize("name", TERM_LOSSES)
def test_a_kept_matrix_of_more_than_one_tile(name):
    loss = build(name, PARAMS[name], backend="native")
    x, labels, *_ = sets(torch.float64, *LARGE)
    actual = value_and_grads(lambda x: loss(x, labels), x)
    with use_workspace(0):
        expected = value_and_grads(lambda x: loss(x, labels), x)
    assert_accurate(actual[0], expected[0], within=1e-11)
    assert_accurate(actual[1][0], expected[1][0], within=1e-11)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name, params, shape", shapes(CASES, RAGGED[:1]))
def test_half_precision(name, params, shape, dtype):
    check_dense(name, params, shape, dtype, backend="native")


# FastAP and the dynamic soft margin have a range of Euclidean distances, the histogram one of similarities.
GIVEN = [case for case in CASES if case.values[0] not in ("HistogramLoss", "FastAPLoss", "DynamicSoftMarginLoss")]


@pytest.mark.parametrize("backend", TERM_BACKENDS)
@pytest.mark.parametrize("name, params, shape", shapes(GIVEN, LOOPS))
def test_a_distance_that_builds_its_matrix(name, params, shape, backend):
    expected = known(dense, name, params, ("manhattan", False), shape, torch.float64)
    loss = build(name, params, distance=LpDistance(p=1, normalize_embeddings=False), backend=backend)
    for workspace in (1 << 28, 0):
        with use_workspace(workspace):
            check(loss, torch.float64, shape, expected)
