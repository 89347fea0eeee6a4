"""functional.triplet_margin against torch.nn.functional.triplet_margin_loss in float64."""

import inspect
import math

import pytest
import torch
from accuracy import assert_accurate
from cases import BACKENDS, QUICK_BACKENDS, embeddings, value_and_grads
from torch.nn.functional import triplet_margin_loss

from metric_kernels import use_backend
from metric_kernels.functional import triplet_margin

INF = math.inf
ORDERS = [0.5, 1, 1.5, 2.0, 3, INF]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


@pytest.fixture(params=QUICK_BACKENDS)
def quick_backend(request):
    with use_backend(request.param):
        yield request.param


def rows(*shape, dtype=torch.float64):
    """Negatives about as far as positives, so that some triplets are active and some are not."""
    return tuple(embeddings(math.prod(shape[:-1]), shape[-1], seed, dtype).view(shape) for seed in range(3))


def compared(points, weight=None, exact_points=None, **options):
    """Value and gradients of ours and of torch's, in float64."""

    def weighted(function):
        return lambda *x: (function(*x, **options) * (1.0 if weight is None else weight)).sum()

    found = value_and_grads(weighted(triplet_margin), *points)
    return found, value_and_grads(weighted(triplet_margin_loss), *(t.double() for t in exact_points or points))


def assert_same(found, exact, within=None):
    assert_accurate(found[0], exact[0], within=within)
    for grad, exact_grad in zip(found[1], exact[1], strict=True):
        assert_accurate(grad, exact_grad, within=within)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("swap", [False, True], ids=["plain", "swap"])
@pytest.mark.parametrize("p", ORDERS)
def test_it_is_that_of_torch(backend, p, swap, reduction):
    points = rows(9, 37, dtype=torch.float32)
    weight = torch.randn(9, dtype=torch.float64) if reduction == "none" else None
    options = {"p": p, "swap": swap, "reduction": reduction, "margin": 0.3, "eps": 1e-3}
    assert (triplet_margin(*points, **{**options, "reduction": "none"}) > 0).float().mean() not in (0, 1)
    found, exact = compared(points, weight, **options)
    # The difference of two distances is smaller than either, and as wrong.
    assert_same(found, exact, within=4e-6 if p != 0.5 else 1e-5)
    value = triplet_margin(*points, **options)
    assert value.dtype == torch.float32 and value.shape == ((9,) if reduction == "none" else ())


@pytest.mark.parametrize("swap", [False, True], ids=["plain", "swap"])
@pytest.mark.parametrize("p", ORDERS)
def test_float64(quick_backend, p, swap):
    assert_same(*compared(rows(5, 70), p=p, swap=swap))


@pytest.mark.parametrize("p", [1.5, 2.0])
def test_float64_in_numba(p):
    with use_backend("numba"):
        assert_same(*compared(rows(5, 300), p=p, swap=True))


@pytest.mark.parametrize("swap", [False, True], ids=["plain", "swap"])
@pytest.mark.parametrize("p", [1.5, 2.0, 3, INF])
def test_gradcheck(quick_backend, p, swap):
    points = tuple(t.requires_grad_() for t in rows(4, 3))
    assert torch.autograd.gradcheck(lambda *x: triplet_margin(*x, p=p, swap=swap, reduction="none"), points)


@pytest.mark.parametrize("swap", [False, True], ids=["plain", "swap"])
@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2.0, 3, INF])
def test_kinks(backend, p, swap):
    """Small integers: equal rows, coordinates, largest differences and distances, and losses of exactly 0; no rounding."""
    generator = torch.Generator().manual_seed(5)
    points = [torch.randint(-1, 2, (200, 3), generator=generator).float() for _ in range(3)]
    weight = torch.randn(200, dtype=torch.float64)
    options = {"p": p, "swap": swap, "margin": 1.0, "eps": 0.0, "reduction": "none"}
    if p in (1, INF):  # those of other p are rounded, and a loss of 0 is so by chance
        d = [torch.linalg.vector_norm(points[i] - points[j], ord=p, dim=1) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert (1 + d[0] - (torch.minimum(*d[1:]) if swap else d[1]) == 0).any() and (d[1] == d[2]).any()
    else:
        options["margin"] = 0.9
    found, exact = compared(points, weight, **options)
    assert_same(found, exact, within=4e-6)


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 7), (1, 1)], ids=str)
def test_leading_dimensions(quick_backend, shape):
    points = rows(*shape)
    weight = torch.randn(shape[:-1], dtype=torch.float64)
    assert triplet_margin(*points, reduction="none").shape == shape[:-1]
    assert_same(*compared(points, weight, reduction="none"))
    assert_same(*compared(points))


def test_sizes_of_one_are_expanded(backend):
    anchor, positive, negative = rows(6, 5, dtype=torch.float32)
    for points in (
        (anchor[:1], positive, negative),
        (anchor, positive[:, :1], negative[:1]),
        (anchor[:1, :1], positive, negative),
    ):
        assert_same(*compared(points, swap=True), within=4e-6)


def test_rows_anywhere_in_memory(backend):
    points = rows(6, 5, dtype=torch.float32)
    expected = value_and_grads(triplet_margin, *points)
    wide = torch.full((6, 9), math.nan)
    wide[:, 2:7] = points[1]
    spread = points[0].T.contiguous().T, wide[:, 2:7], points[2].repeat_interleave(2, 0)[::2]
    torch.testing.assert_close(value_and_grads(triplet_margin, *spread), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_only_what_is_asked_for_is_differentiated(backend, wanted):
    points = rows(6, 5, dtype=torch.float32)
    _, everything = value_and_grads(lambda *x: triplet_margin(*x, swap=True), *points)

    def some(*given):
        mine = dict(zip(wanted, given))
        return triplet_margin(*(mine.get(k, t) for k, t in enumerate(points)), swap=True)

    _, grads = value_and_grads(some, *(points[k] for k in wanted))
    assert all(torch.equal(grad, everything[k]) for grad, k in zip(grads, wanted))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(quick_backend, dtype):
    points = rows(9, 37, dtype=dtype)
    found, exact = compared(points, margin=0.3)
    assert triplet_margin(*points).dtype == dtype and found[1][0].dtype == dtype
    assert_same(found, exact)
    with torch.autocast("cpu", dtype):
        assert triplet_margin(*points).dtype == torch.float32


def test_types_are_promoted(quick_backend):
    anchor, positive, negative = rows(4, 5)
    mixed = anchor.float(), positive.half(), negative
    found, exact = compared(mixed)
    assert found[0].dtype == torch.float64 and [g.dtype for g in found[1]] == [t.dtype for t in mixed]
    assert_accurate(found[0], exact[0])


@pytest.mark.parametrize("reduction, no_features", [("mean", 0.5), ("sum", 1.5), ("none", 1.5)])
def test_no_features_and_no_rows(backend, reduction, no_features):
    for shape, expected in (((3, 0), no_features), ((0, 4), 0.0)):
        points = 3 * (torch.ones(shape),)
        value, grads = value_and_grads(lambda *x: triplet_margin(*x, margin=0.5, reduction=reduction).sum(), *points)
        assert value == expected and all(g.shape == t.shape for g, t in zip(grads, points))


@pytest.mark.parametrize("p", [1, 1.5, 2.0, INF])
def test_nan_reaches_its_loss_only(backend, p):
    for which in range(3):
        points = [t.clone() for t in rows(5, 40, dtype=torch.float32)]
        points[which][1, 33] = math.nan
        losses = triplet_margin(*points, p=p, swap=True, reduction="none")
        assert losses.isnan().tolist() == [False, True, False, False, False]
        assert triplet_margin(*points, p=p).isnan()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_neither_overflow_nor_vanish(backend, scale):
    points = tuple(scale * t for t in rows(6, 9, dtype=torch.float32))
    assert_same(*compared(points, margin=scale, eps=0.0), within=4e-6)


@pytest.mark.parametrize("swap", [False, True], ids=["plain", "swap"])
def test_the_number_of_threads_changes_nothing(backend, swap, threads):
    points, found = rows(3000, 40, dtype=torch.float32), []
    for number in (1, 2, 3):
        threads(number)
        value, grads = value_and_grads(lambda *x: triplet_margin(*x, swap=swap), *points)
        found.append((value, *grads))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_a_second_derivative_raises(quick_backend):
    points = tuple(t.requires_grad_() for t in rows(4, 3))
    (grad,) = torch.autograd.grad(triplet_margin(*points), points[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.square().sum().backward()


def test_arguments_are_those_of_torch():
    """In the same order with the same defaults, up to its deprecated ones."""
    own, theirs = (inspect.signature(f).parameters for f in (triplet_margin, triplet_margin_loss))
    assert list(own) == [name for name in theirs if name not in ("size_average", "reduce")]
    assert all(own[name].default == theirs[name].default for name in own)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("swap", [False, True], ids=["plain", "swap"])
def test_in_one_graph(swap, reduction):
    torch._dynamo.reset()
    points = rows(5, 7)

    def run(a, b, c):
        return 2.0 * triplet_margin(a, b.sin(), c[:1], swap=swap, reduction=reduction).sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_grads(compiled, *points), value_and_grads(run, *points))


@pytest.mark.parametrize("swap, reduction", [(False, "mean"), (True, "none")])
def test_the_operator(swap, reduction):
    points = tuple(t.requires_grad_() for t in rows(5, 7))
    for given in (points, (points[0], points[1].detach(), points[2])):
        torch.library.opcheck(torch.ops.metric_kernels.triplet_loss.default, (*given, 1.0, 2.0, 1e-6, swap, reduction))


ONES = torch.ones(3, 2)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((ONES, ONES, ONES), {"margin": 0}, ValueError, "margin: expected a number above 0, got 0"),
        ((ONES, ONES, ONES), {"margin": math.nan}, ValueError, "margin: expected a number above 0, got nan"),
        ((ONES, ONES, ONES), {"p": 0}, ValueError, "p: expected a number above 0, got 0"),
        ((ONES, ONES, ONES), {"p": "2nd"}, ValueError, "p: expected a number above 0, got '2nd'"),
        ((ONES, ONES, ONES), {"reduction": "max"}, ValueError, "reduction: expected one of none, mean, sum, got 'max'"),
        ((ONES, ONES[0], ONES), {}, ValueError, r"positive: expected 2 dimensions, got shape \(2,\)"),
        ((ONES[0, 0], ONES, ONES), {}, ValueError, r"anchor: expected at least 1 dimension, got shape \(\)"),
        (
            (ONES, ONES, torch.ones(3, 4)),
            {},
            ValueError,
            r"expected shapes that expand to one, got anchor \(3, 2\), .*\(3, 4\)",
        ),
        ((ONES, ONES.long(), ONES), {}, TypeError, "positive: expected a tensor of a floating type, got torch.int64"),
        ((ONES, ONES, [[1.0]]), {}, TypeError, "negative: expected a tensor of a floating type, got <class 'list'>"),
        ((ONES, ONES.to("meta"), ONES), {}, ValueError, "positive: expected device cpu, got meta"),
        ((ONES, ONES, ONES), {"size_average": True}, TypeError, "size_average"),
    ],
)
def test_wrong_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        triplet_margin(*arguments, **options)


def test_a_backend_without_the_kernels_says_so():
    with use_backend("triton"), pytest.raises(RuntimeError, match="'triton' cannot run distances of vectors on cpu"):
        triplet_margin(*rows(3, 2))
