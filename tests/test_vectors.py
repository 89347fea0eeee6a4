"""Distances from differences of coordinates, against plain loops and against torch.cdist in float64."""

import math

import pytest
import torch
from accuracy import assert_accurate
from cases import BACKENDS, QUICK_BACKENDS, embeddings, unbalanced_labels, value_and_grads

from metric_kernels import backends, distances, losses, pairwise_distance, use_backend
from metric_kernels.backends import reference_vectors

INF = math.inf
ORDERS = [0.5, 1, 1.5, 3, 4, INF]
METRICS = {
    **{f"p={p}": distances.LpDistance(p=p, normalize_embeddings=False) for p in ORDERS},
    "jensen_shannon": distances.JensenShannonDistance(),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


@pytest.fixture(params=QUICK_BACKENDS)
def quick_backend(request):
    with use_backend(request.param):
        yield request.param


def points(name, rows, dim, seed=0, dtype=torch.float64):
    x = embeddings(rows, dim, seed)
    return (x.abs() if name == "jensen_shannon" else x).to(dtype)


def value(u, v, name):
    """The distance of two lists of numbers, coordinate by coordinate."""
    if name == "jensen_shannon":
        p, q = ([t / math.fsum(row) for t in row] for row in (u, v))
        terms = [t * math.log(2 * t / (a + b)) for a, b in zip(p, q) for t in (a, b) if t > 0]
        return math.sqrt(max(math.fsum(terms), 0.0) / 2)
    gaps, p = [abs(a - b) for a, b in zip(u, v)], METRICS[name].p
    return max(gaps, default=0.0) if p == INF else math.fsum(g**p for g in gaps) ** (1 / p)


def loops(name, x, y):
    return torch.tensor([[value(u, v, name) for v in y.tolist()] for u in x.tolist()], dtype=torch.float64)


def dense(name, x, y):
    """The matrix as a graph that autograd differentiates, in float64, for rows without kinks."""
    if name != "jensen_shannon":
        return torch.cdist(x, y, p=METRICS[name].p)
    p, q = (t / t.sum(1, keepdim=True) for t in (x, y))
    p, q = p[:, None], q[None]
    middle = (p + q) / 2
    # Where p is q the root has no derivative: 0 is added, whose gradient is 0.
    total = (p * (p / middle).log() + q * (q / middle).log()).sum(2) / 2
    apart = (p != q).any(2)
    return torch.where(apart, torch.where(apart, total, 1.0).sqrt(), 0.0)


def compared(name, weight, *inputs):
    """Value and gradients of a weighted sum of the matrix, and the exact ones."""
    pair = len(inputs) == 2
    found = value_and_grads(
        lambda x, y=None: (weight * pairwise_distance(x, y, METRICS[name])).sum(dtype=torch.float64), *inputs
    )
    exact = value_and_grads(
        lambda x, y=None: (weight.double() * dense(name, x, y if pair else x.clone())).sum(), *(t.double() for t in inputs)
    )
    return found, exact


# ---- values and gradients


@pytest.mark.parametrize("name", METRICS)
def test_values_are_those_of_loops(backend, name):
    x, y = points(name, 5, 7, dtype=torch.float32), points(name, 4, 7, seed=1, dtype=torch.float32)
    assert_accurate(pairwise_distance(x, y, METRICS[name]), loops(name, x, y))
    assert_accurate(pairwise_distance(x, metric=METRICS[name]), loops(name, x, x))


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 14, 24), (11, 600, 3), (3, 5, 600), (40, 40, 130)], ids=str)
@pytest.mark.parametrize("name", METRICS)
def test_gradients(backend, name, shape):
    """More rows, columns and features than fit a block, and fewer than are taken at a time."""
    rows, columns, dim = shape
    x, y = points(name, rows, dim, dtype=torch.float32), points(name, columns, dim, seed=1, dtype=torch.float32)
    if name == "jensen_shannon" and dim == 1:
        return  # every row is the same distribution
    for inputs, weight in (((x, y), torch.randn(rows, columns)), ((x,), torch.randn(rows, rows))):
        (_, grads), (_, exact) = compared(name, weight, *inputs)
        for grad, exact_grad in zip(grads, exact, strict=True):
            # A power of small ratios magnifies their rounding: by half in front of the root's slope.
            assert_accurate(grad, exact_grad, within=4e-6 if name == "p=0.5" else None)


@pytest.mark.parametrize("one_set", [True, False], ids=["one_set", "two_sets"])
@pytest.mark.parametrize("name", METRICS)
def test_gradcheck(quick_backend, name, one_set):
    x, y = points(name, 5, 4).requires_grad_(), points(name, 3, 4, seed=1).requires_grad_()

    def values(x, y=None):
        matrix = pairwise_distance(x, y, METRICS[name])
        return matrix[~torch.eye(5, dtype=torch.bool)] if one_set else matrix

    assert torch.autograd.gradcheck(values, (x,) if one_set else (x, y))


@pytest.mark.parametrize("name", ["p=1", "p=1.5", "jensen_shannon"])
def test_float64_in_numba(name):
    with use_backend("numba"):
        x, y, weight = points(name, 6, 9), points(name, 5, 9, seed=1), torch.randn(6, 5, dtype=torch.float64)
        found, exact = compared(name, weight, x, y)
    assert_accurate(found[0], exact[0])
    for grad, exact_grad in zip(found[1], exact[1], strict=True):
        assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["p=1", "p=3", "jensen_shannon"])
def test_half_precision_is_computed_in_float32(quick_backend, name, dtype):
    x, y = points(name, 9, 24, dtype=dtype), points(name, 7, 24, seed=1, dtype=dtype)
    assert_accurate(pairwise_distance(x, y, METRICS[name]), dense(name, x.double(), y.double()))
    weight = torch.randn(9, 7).to(dtype)
    for grad, exact_grad in zip(*(grads for _, grads in compared(name, weight, x, y)), strict=True):
        assert grad.dtype == dtype
        assert_accurate(grad, exact_grad)


def test_names_are_those_of_distances(quick_backend):
    x, y = points("jensen_shannon", 6, 5), points("jensen_shannon", 4, 5, seed=1)
    for name, metric in (("manhattan", "p=1"), ("chebyshev", "p=inf"), ("jensen_shannon", "jensen_shannon")):
        assert torch.equal(pairwise_distance(x, y, name), pairwise_distance(x, y, METRICS[metric]))
    torch.testing.assert_close(pairwise_distance(x, y, "manhattan"), torch.cdist(x, y, p=1.0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("p", [1, 3, INF])
def test_normalised_and_raised_to_a_power(quick_backend, p):
    x, y = embeddings(6, 5), embeddings(4, 5, seed=1)
    expected = torch.cdist(torch.nn.functional.normalize(x, p=p), torch.nn.functional.normalize(y, p=p), p=p) ** 3
    torch.testing.assert_close(distances.LpDistance(p=p, power=3)(x, y), expected, rtol=1e-12, atol=0)


# ---- kinks, and the ends of the range


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 3, INF])
def test_gradients_at_kinks_are_those_of_cdist(backend, p):
    """Small integers: equal rows, equal coordinates and equal largest differences, none of them rounded."""
    x, y = (torch.randint(-2, 3, (size, 4)).float() for size in (12, 9))
    y[:3] = x[:3]
    distance, weight = distances.LpDistance(p=p, normalize_embeddings=False), torch.randn(12, 9)
    _, grads = value_and_grads(lambda x, y: (weight * distance(x, y)).sum(), x, y)
    _, exact = value_and_grads(lambda x, y: (weight.double() * torch.cdist(x, y, p=p)).sum(), x.double(), y.double())
    for grad, exact_grad in zip(grads, exact, strict=True):
        assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("name", METRICS)
def test_equal_rows_have_distance_and_gradient_zero(backend, name):
    x = points(name, 1, 6, dtype=torch.float32).expand(5, -1)
    for inputs in ((x,), (x, x.clone())):
        matrix, grads = value_and_grads(lambda x, y=None: pairwise_distance(x, y, METRICS[name]).sum(), *inputs)
        assert matrix == 0 and not any(g.any() for g in grads)


@pytest.mark.parametrize("name", METRICS)
def test_the_diagonal_of_one_set_is_zero(backend, name):
    x = points(name, 7, 130, dtype=torch.float32)
    matrix = pairwise_distance(x, metric=METRICS[name])
    assert not matrix.diagonal().any()
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-6, atol=0)


def test_an_empty_share_counts_nothing_and_has_no_gradient(backend):
    x = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    matrix, (grad,) = value_and_grads(lambda x: pairwise_distance(x, metric="jensen_shannon").square().sum(), x)
    exact = loops("jensen_shannon", x, x)
    assert_accurate(matrix, exact.square().sum())
    assert pairwise_distance(x, metric="jensen_shannon")[1, 2] == pytest.approx(math.sqrt(math.log(2)))
    assert grad.isfinite().all() and not grad[x == 0].any() and grad[0, 1] != 0


def test_nearly_equal_distributions(backend):
    """The terms of a sum of logarithms would cancel."""
    x = points("jensen_shannon", 8, 50, dtype=torch.float32)
    y = x * (1 + 1e-3 * torch.randn(8, 50))
    raw = distances.JensenShannonDistance(normalize_embeddings=False)
    found, grads = value_and_grads(lambda x, y: raw(x, y).diagonal().sum(), x, y)
    p, q = x.double(), y.double()
    t = (p - q) / (p + q)
    # Of (1 + t) log(1 + t) + (1 - t) log(1 - t); what is left out is of order t ** 4.
    exact = ((p + q) * (t.square() + t**4 / 6)).sum(1).sqrt() / 2
    assert_accurate(found, exact.sum())
    assert_accurate(grads[0], torch.log1p(t) / (4 * exact[:, None]))


def test_a_negative_share_is_not_a_number(quick_backend):
    x = torch.tensor([[1.0, -1.0, 2.0], [1.0, 2.0, 3.0]])
    matrix = pairwise_distance(x, metric="jensen_shannon")
    assert matrix[0].isnan().all() and matrix[:, 0].isnan().all() and matrix[1, 1] == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("p", [1.5, 3, 4, 20])
def test_powers_neither_overflow_nor_vanish(backend, p, scale):
    distance = distances.LpDistance(p=p, normalize_embeddings=False)
    x, y = embeddings(4, 9, dtype=torch.float32), embeddings(3, 9, seed=1, dtype=torch.float32)
    weight = torch.randn(4, 3)
    found, grads = value_and_grads(lambda x, y: (weight * distance(x, y)).sum(), scale * x, scale * y)
    exact, exact_grads = value_and_grads(
        lambda x, y: (weight.double() * distance(x, y)).sum(), (scale * x).double(), (scale * y).double()
    )
    for actual, expected in zip((found, *grads), (exact, *exact_grads), strict=True):
        assert_accurate(actual, expected, within=4e-6)


@pytest.mark.parametrize("name", METRICS)
def test_nan_and_infinity_reach_the_matrix(backend, name):
    for wrong in (math.nan, INF):
        x = points(name, 4, 300, dtype=torch.float32)
        x[1, 270] = wrong
        matrix = pairwise_distance(x, metric=METRICS[name])
        assert not matrix[1].isfinite().any() and not matrix[:, 1].isfinite().any()
        assert matrix[[0, 2, 3]][:, [0, 2, 3]].isfinite().all()
        if wrong == INF and name != "jensen_shannon":
            assert (matrix[1, [0, 2, 3]] == INF).all()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 2, 0), (0, 0, 0)], ids=str)
def test_empty(backend, name, shape):
    rows, columns, dim = shape
    x, y = torch.ones(rows, dim), torch.ones(columns, dim)
    matrix = pairwise_distance(x, y, METRICS[name])
    assert matrix.shape == (rows, columns) and not matrix.any()
    for inputs in ((x, y), (x,)):
        found, grads = value_and_grads(lambda x, y=None: pairwise_distance(x, y, METRICS[name]).sum(), *inputs)
        assert found == 0
        assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, inputs, strict=True))


# ---- behaviour


@pytest.mark.parametrize("name", ["p=1", "p=1.5", "jensen_shannon"])
def test_rows_anywhere_in_memory(backend, name):
    x, y = points(name, 9, 14, dtype=torch.float32), points(name, 7, 14, seed=1, dtype=torch.float32)
    weight = torch.randn(9, 7)

    def run(x, y, weight):
        _, grads = value_and_grads(lambda x, y: (weight * pairwise_distance(x, y, METRICS[name])).sum(), x, y)
        return pairwise_distance(x, y, METRICS[name]), *grads

    expected = run(x, y, weight)
    wide = torch.full((9, 20), math.nan)
    wide[:, 3:17] = x
    for other_x, other_y in ((wide[:, 3:17], y), (x.T.contiguous().T, y.repeat_interleave(2, 0)[::2])):
        torch.testing.assert_close(run(other_x, other_y, weight.T.contiguous().T), expected, rtol=1e-6, atol=1e-6)
    same = x[:1].expand(7, -1)
    assert torch.equal(pairwise_distance(x, same, METRICS[name]), pairwise_distance(x, same.clone(), METRICS[name]))


@pytest.mark.parametrize("name", METRICS)
def test_the_number_of_threads_changes_nothing(backend, name, threads):
    x, y = points(name, 40, 20, dtype=torch.float32), points(name, 600, 20, seed=1, dtype=torch.float32)
    weight, found = torch.randn(40, 600), []
    for number in (1, 2, 3):
        threads(number)
        matrix = pairwise_distance(x, y, METRICS[name])
        _, grads = value_and_grads(lambda x, y: (weight * pairwise_distance(x, y, METRICS[name])).sum(), x, y)
        found.append((matrix, *grads))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_only_what_is_asked_for_is_differentiated(backend):
    x, y, weight = torch.randn(6, 5), torch.randn(4, 5), torch.randn(6, 4)
    _, (both, other) = value_and_grads(lambda x, y: (weight * pairwise_distance(x, y, "manhattan")).sum(), x, y)
    _, (alone,) = value_and_grads(lambda x: (weight * pairwise_distance(x, y, "manhattan")).sum(), x)
    _, (of_other,) = value_and_grads(lambda y: (weight * pairwise_distance(x, y, "manhattan")).sum(), y)
    assert torch.equal(alone, both) and torch.equal(of_other, other)


@pytest.mark.parametrize("name", ["p=3", "jensen_shannon"])
def test_a_second_derivative_raises(quick_backend, name):
    x = points(name, 5, 4).requires_grad_()
    (grad,) = torch.autograd.grad(pairwise_distance(x, metric=METRICS[name]).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.square().sum().backward()


@pytest.mark.parametrize("name", ["p=1", "p=inf", "jensen_shannon"])
def test_autocast_leaves_the_arithmetic_alone(name):
    x, weight = points(name, 9, 24, dtype=torch.float32), torch.randn(9, 9)

    def run():
        return value_and_grads(lambda x: (weight * pairwise_distance(x, metric=METRICS[name])).sum(), x)

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    assert torch.equal(inside[0], expected[0]) and torch.equal(inside[1][0], expected[1][0])


def test_some_rows_at_a_time_are_all_rows(monkeypatch):
    x, y, weight = torch.randn(11, 6), torch.randn(7, 6), torch.randn(11, 7)

    def run(name):
        return value_and_grads(lambda x, y: (weight * pairwise_distance(x.abs(), y.abs(), METRICS[name])).sum(), x, y)

    with use_backend("reference"):
        expected = {name: run(name) for name in METRICS}
        for size in (1, 3 * y.numel() * y.itemsize):
            monkeypatch.setattr(reference_vectors, "_CHUNK", size)
            for name in METRICS:
                torch.testing.assert_close(run(name), expected[name])


# ---- backends


def test_a_choice_is_obeyed_or_raises_with_its_reason(monkeypatch):
    x, used = torch.randn(4, 3), []
    for name in ("native", "numba", "reference"):
        kernels = backends.load(name).vectors
        monkeypatch.setattr(kernels, "distances", lambda *_, name=name: used.append(name))
        with use_backend(name):
            pairwise_distance(x, metric="manhattan")
    assert used == ["native", "numba", "reference"]
    with (
        use_backend("triton"),
        pytest.raises(RuntimeError, match="'triton' cannot run distances of vectors on cpu .*: triton: "),
    ):
        pairwise_distance(x, metric="manhattan")
    with pytest.raises(RuntimeError, match="'numba' cannot run .* on cuda .*: numba: runs on cpu tensors, not on cuda"):
        backends.kernels("vectors", torch.device("cuda"), torch.float32, "numba")


def test_the_first_usable_backend_runs(monkeypatch):
    x, used = torch.randn(4, 3), []
    monkeypatch.delenv("METRIC_KERNELS_BACKEND", raising=False)
    order = ["native", "numba", "reference"]
    for name in order:
        kernels = backends.load(name).vectors
        monkeypatch.setattr(kernels, "distances", lambda *_, name=name: used.append(name))
    for name in order:
        backends._choose.cache_clear()
        pairwise_distance(x, metric="manhattan")
        monkeypatch.setattr(backends.load(name), "unsuited", lambda *_: "not today")
    assert used == order
    monkeypatch.undo()
    backends._choose.cache_clear()


def test_the_variable_chooses_too(monkeypatch):
    monkeypatch.setenv("METRIC_KERNELS_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="'triton' cannot run distances of vectors"):
        pairwise_distance(torch.randn(4, 3), metric="chebyshev")


def test_a_backward_pass_runs_where_the_forward_pass_did():
    x = torch.randn(4, 3, requires_grad=True)
    with use_backend("reference"):
        matrix = pairwise_distance(x, metric="manhattan")
    with use_backend("triton"):  # has no such kernels
        matrix.sum().backward()
    assert x.grad is not None


# ---- torch.compile


@pytest.mark.parametrize("one_set", [True, False], ids=["one_set", "two_sets"])
@pytest.mark.parametrize("name", ["p=1", "p=3", "jensen_shannon"])
def test_in_one_graph(name, one_set):
    torch._dynamo.reset()
    inputs = (points(name, 9, 6),) if one_set else (points(name, 9, 6), points(name, 5, 6, seed=1))

    def run(x, y=None):
        return (2.0 * pairwise_distance(x * x, None if y is None else y * y, METRICS[name])).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_grads(compiled, *inputs), value_and_grads(run, *inputs))


@pytest.mark.parametrize("arguments", [("lp", 1.0), ("lp", 3.0), ("lp", INF), ("jensen_shannon", 1.0)], ids=str)
def test_the_operator(arguments):
    x, y = (points("jensen_shannon", rows, 6).requires_grad_() for rows in (5, 4))
    operator = torch.ops.metric_kernels.vector_distances.default
    for given in ((x, y), (x, None), (x.detach(), y)):
        torch.library.opcheck(operator, (*given, *arguments))


# ---- distances of losses


@pytest.mark.parametrize("power", [0.5, 1, 2])
@pytest.mark.parametrize("name", ["p=1", "p=3", "p=inf", "jensen_shannon"])
def test_rowwise_is_the_diagonal_of_the_matrix(name, power):
    x, y = points(name, 7, 5), points(name, 7, 5, seed=1)
    if name == "jensen_shannon":
        distance = distances.JensenShannonDistance(power=power)
    else:
        distance = distances.LpDistance(p=METRICS[name].p, power=power, normalize_embeddings=False)
    matrix = value_and_grads(lambda x, y: distance.matrix(x, y).diagonal().sum(), x, y)
    rows = value_and_grads(lambda x, y: distance.rowwise(x, y).sum(), x, y)
    torch.testing.assert_close(rows, matrix, rtol=1e-11, atol=1e-12)


def test_equal_and_empty_shares_rowwise():
    x = torch.tensor([[0.0, 1.0, 3.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    distance = distances.JensenShannonDistance()
    rows = value_and_grads(lambda x, y: distance.rowwise(x, y).sum(), x, y)
    matrix = value_and_grads(lambda x, y: distance.matrix(x, y).diagonal().sum(), x, y)
    torch.testing.assert_close(rows, matrix, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("listed", [False, True], ids=["all_pairs", "listed"])
def test_a_loss_on_distributions(listed):
    """Contrastive: positives that are apart, and negatives nearer than the margin, by torch from the dense matrix."""
    x, labels = points("jensen_shannon", 12, 6), unbalanced_labels(12)
    same = labels[:, None] == labels
    positive, negative = same & ~torch.eye(12, dtype=torch.bool), ~same
    pairs = (*positive.nonzero().unbind(1), *negative.nonzero().unbind(1)) if listed else None

    def exact(x):
        d = dense("jensen_shannon", x, x)
        parts = d[positive].relu(), (0.4 - d[negative]).relu()
        return sum(t.sum() / max((t > 0).sum(), 1) for t in parts)

    loss = losses.ContrastiveLoss(neg_margin=0.4, distance=distances.JensenShannonDistance())
    torch.testing.assert_close(value_and_grads(lambda x: loss(x, labels, pairs), x), value_and_grads(exact, x))


# ---- errors


@pytest.mark.parametrize("p", [0, -1, math.nan, "two"], ids=str)
def test_an_order_that_is_none(p):
    distance = distances.LpDistance(normalize_embeddings=False)
    distance.p = p
    with pytest.raises(ValueError, match="p: expected a number above 0, got"):
        pairwise_distance(torch.randn(4, 3), metric=distance)


def test_devices_must_match():
    with pytest.raises(ValueError, match="y: expected device cpu, got meta"):
        pairwise_distance(torch.randn(4, 3), torch.empty(4, 3, device="meta"), "manhattan")
