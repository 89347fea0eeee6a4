"""pairwise_distance and the matrices of distance objects, against float64."""

import pytest
import torch
from accuracy import assert_accurate
from cases import embeddings, value_and_grads

from metric_kernels import distances, pairwise_distance

METRICS = ["euclidean", "squared_euclidean", "cosine", "dot", "snr"]


def exact_matrix(metric, x, y):
    """Values from differences, not from the Gram identity."""
    match metric:
        case "euclidean":
            return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        case "squared_euclidean":
            return (x[:, None] - y[None]).square().sum(2)
        case "cosine":
            return torch.cosine_similarity(x[:, None], y[None], dim=2)
        case "dot":
            return (x[:, None] * y[None]).sum(2)
        case "snr":
            return (x[:, None] - y[None]).var(2) / x.var(1)[:, None]


def weighted(metric, weight, function=exact_matrix):
    """A loss whose gradient has no symmetry to hide behind."""
    return lambda x, y=None: (weight * function(metric, x, x if y is None else y)).sum()


def ours(metric, x, y):
    return pairwise_distance(x, None if y is x else y, metric)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 14), (40, 40)], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_two_sets(metric, shape, dtype):
    x, y = embeddings(shape[0], 24, dtype=dtype), embeddings(shape[1], 24, seed=5, dtype=dtype)
    actual = pairwise_distance(x, y, metric)
    assert actual.dtype == dtype
    assert_accurate(actual, exact_matrix(metric, x.double(), y.double()))
    weight = torch.randn(shape, dtype=torch.float64).to(dtype)
    _, grads = value_and_grads(weighted(metric, weight, ours), x, y)
    _, exact = value_and_grads(weighted(metric, weight.double()), x.double(), y.double())
    for grad, exact_grad in zip(grads, exact, strict=True):
        assert grad.dtype == dtype
        assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_one_set(metric, dtype):
    x = embeddings(21, 24, dtype=dtype)
    actual = pairwise_distance(x, metric=metric)
    exact = exact_matrix(metric, x.double(), x.double())
    assert_accurate(actual, exact)
    if metric.endswith("euclidean") or metric == "snr":
        assert not actual.diagonal().any()
    weight = torch.randn(21, 21, dtype=torch.float64).to(dtype)
    _, (grad,) = value_and_grads(weighted(metric, weight, ours), x)
    _, (exact_grad,) = value_and_grads(weighted(metric, weight.double()), x.double())
    assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("one_set", [True, False], ids=["one_set", "two_sets"])
@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck(metric, one_set):
    x, y = embeddings(5, 4).requires_grad_(), embeddings(3, 4, seed=1).requires_grad_()
    inputs = (x,) if one_set else (x, y)

    def values(x, y=None):
        matrix = pairwise_distance(x, y, metric)
        # The diagonal of one set is a minimum, where finite differences see a kink.
        return matrix[~torch.eye(5, dtype=torch.bool)] if one_set else matrix

    assert torch.autograd.gradcheck(values, inputs)


@pytest.mark.parametrize("options", [{}, {"normalize_embeddings": False}, {"p": 1}, {"power": 3}], ids=str)
@pytest.mark.parametrize("kind", [distances.LpDistance, distances.DotProductSimilarity, distances.SNRDistance])
def test_rowwise_is_the_diagonal_of_the_matrix(kind, options):
    distance = kind(**options)
    x, y = embeddings(7, 5), embeddings(7, 5, seed=1)
    matrix, matrix_grads = value_and_grads(lambda x, y: distance.matrix(x, y).diagonal().sum(), x, y)
    rows, row_grads = value_and_grads(lambda x, y: distance.rowwise(x, y).sum(), x, y)
    torch.testing.assert_close(distance.rowwise(x, y), distance.matrix(x, y).diagonal(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(rows, matrix, rtol=1e-11, atol=0)
    torch.testing.assert_close(row_grads, matrix_grads, rtol=1e-10, atol=1e-11)


def test_a_distance_object_in_place_of_a_name():
    x, y = embeddings(6, 4), embeddings(5, 4, seed=1)
    expected = torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(y))
    torch.testing.assert_close(pairwise_distance(x, y, distances.LpDistance()), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(distances.LpDistance()(x, y), pairwise_distance(x, y, distances.LpDistance()))


def test_coincident_points_have_distance_and_subgradient_zero():
    x = embeddings(1, 8, dtype=torch.float32).expand(3, -1) * 1000
    for y in (None, x.clone()):
        inputs = (x,) if y is None else (x, y)
        value, grads = value_and_grads(lambda x, y=None: pairwise_distance(x, y).sum(), *inputs)
        assert value == 0 and not any(g.any() for g in grads)


def test_large_half_precision_does_not_overflow():
    x = 1000 * embeddings(6, 64, dtype=torch.float16)
    assert pairwise_distance(x).isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
def test_empty(metric, shape):
    x = torch.ones(shape)
    value, (grad,) = value_and_grads(lambda x: pairwise_distance(x, metric=metric).sum(), x)
    assert value == 0 and grad.shape == shape and not grad.any()


@pytest.mark.parametrize("metric", METRICS)
def test_nan_and_inf_reach_the_matrix(metric):
    for wrong in (torch.nan, torch.inf):
        x = embeddings(4, 3)
        x[1, 2] = wrong
        matrix = pairwise_distance(x, metric=metric)
        assert not matrix[1].isfinite().any() and not matrix[:, 1].isfinite().any()


def test_a_penalty_on_the_gradient_raises():
    x = embeddings(4, 3).requires_grad_()
    value = pairwise_distance(x).sum()
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice|second derivative"):
        (value + grad.square().sum()).backward()


@pytest.mark.parametrize("metric", METRICS)
def test_autocast_leaves_the_arithmetic_alone(metric):
    x, y = embeddings(9, 24, dtype=torch.float32), embeddings(14, 24, seed=1, dtype=torch.float32)
    weight = torch.randn(9, 14)
    expected, grads = value_and_grads(weighted(metric, weight, ours), x, y)
    with torch.autocast("cpu", torch.bfloat16):
        inside, inside_grads = value_and_grads(weighted(metric, weight, ours), x, y)
    assert torch.equal(inside, expected) and all(map(torch.equal, inside_grads, grads))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (
            (torch.ones(3, 2), None, "hamming"),
            ValueError,
            "metric: expected one of .*euclidean.* or a distance, got 'hamming'",
        ),
        ((torch.ones(3, 2), torch.ones(3, 4)), ValueError, r"y: expected shape \(rows, 2\), got \(3, 4\)"),
        ((torch.ones(3),), ValueError, r"x: expected shape \(rows, 3\), got \(3,\)"),
        ((torch.ones(3, 2, dtype=torch.int64),), TypeError, "x: expected a tensor of a floating type, got torch.int64"),
        (([[1.0]],), TypeError, "x: expected a tensor of a floating type, got <class 'list'>"),
    ],
    ids=["metric", "y", "rank", "integers", "list"],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        pairwise_distance(*arguments)
