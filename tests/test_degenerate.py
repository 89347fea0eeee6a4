"""Inputs at the edge of what is defined, and inputs that are wrong: what comes out, or which error."""

import math

import pytest
import torch
from accuracy import BUDGET, assert_accurate, assert_accurate_where_terms_cancel
from cases import (
    ALL_LOSSES,
    BACKENDS,
    LOSSES,
    PARAMS,
    QUICK_BACKENDS,
    TERM_LOSSES,
    WITH_REF,
    embeddings,
    unbalanced_labels,
    value_and_grads,
)
from oracles import ORACLES
from term_cases import ALL_SELF_AND_REF
from term_cases import PARAMS as TERM_PARAMS
from term_cases import WITH_REF as TERM_WITH_REF
from term_cases import oracle as term_oracle

from metric_kernels import distances, losses

ALL_WITH_REF = WITH_REF + TERM_WITH_REF


def exact_loss(name, *args, **options):
    """The oracle of a loss of either kind."""
    return ORACLES[name](*args, **options) if name in ORACLES else term_oracle(name, *args, **options)


PAIRED = [0, 0, 1, 1, 2, 2]
X = embeddings(6, 4)
ZEROED = X.clone()
ZEROED[2] = 0
REPEATED = X[[0, 0, 0, 1, 1, 2]]

# Embeddings and labels. None of them may give anything but finite numbers.
FINITE = {
    "one_class": (X, [3] * 6),
    "all_different": (X, [4, 1, 3, 0, 2, 9]),
    "singletons": (X, [0, 0, 1, 2, 3, 4]),
    "one_row": (X[:1], [0]),
    "two_alike": (X[:2], [5, 5]),
    "two_different": (X[:2], [5, 6]),
    "duplicates": (REPEATED, [0, 0, 1, 1, 2, 2]),
    "identical": (X[:1].expand(6, -1), PAIRED),
    "identical_one_class": (X[:1].expand(6, -1), [1] * 6),
    "opposite": (torch.stack([X[0], -X[0], X[0], -X[0]]), [0, 0, 1, 1]),
    "a_zero_row": (ZEROED, PAIRED),
    "all_zero": (torch.zeros(6, 4, dtype=torch.float64), PAIRED),
    "large": (1e15 * X, PAIRED),
    "small": (1e-8 * X, PAIRED),
    "very_different_scales": (X * torch.tensor([1e-6, 1e6, 1, 1e3, 1e-3, 1])[:, None], PAIRED),
}
# The exponent 80 (1.4 - s) (0.6 - s) of the circle loss changes by up to 320 times as much as the cosine s.
CIRCLE_BUDGET = 320 * torch.finfo(torch.float32).eps / 2
# Nothing to compare: 0, whatever the definition would give.
NOTHING = {
    "no_rows": (X[:0], []),
    "no_features": (X[:, :0], PAIRED),
    "no_features_one_class": (X[:, :0], [0] * 6),
    "no_rows_and_features": (X[:0, :0], []),
}


@pytest.mark.parametrize("case", FINITE)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_finite(name, case, backend):
    x, labels = FINITE[case][0].float(), torch.tensor(FINITE[case][1])
    # A zero row is at distance 1 of all others, a default margin: rounding would decide whether it counts.
    options = PARAMS[name] if name == "ContrastiveLoss" else TERM_PARAMS.get(name, {})
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)(**options, backend=backend)(x, labels), x)
    exact, (exact_grad,) = value_and_grads(lambda x: exact_loss(name, x, labels, **options), x.double())
    assert value.isfinite() and grad.isfinite().all()
    within = CIRCLE_BUDGET if name == "CircleLoss" else None
    assert_accurate_where_terms_cancel(value, exact, (x,), (grad,), (exact_grad,), within)


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_nothing_to_compare(name, case, backend):
    x, labels = NOTHING[case][0], torch.tensor(NOTHING[case][1], dtype=torch.int64)
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)(backend=backend)(x, labels), x)
    assert value == 0 and value.shape == () and grad.shape == x.shape and not grad.any()


@pytest.mark.parametrize("rows, columns, dim", [(0, 4, 3), (4, 0, 3), (0, 0, 3), (4, 5, 0)], ids=str)
@pytest.mark.parametrize("name", ALL_WITH_REF)
def test_empty_reference_set_or_batch(name, rows, columns, dim):
    labels = torch.arange(rows), torch.arange(columns)
    value, grads = value_and_grads(
        lambda x, ref: getattr(losses, name)()(x, labels[0], ref_emb=ref, ref_labels=labels[1]),
        torch.ones(rows, dim),
        torch.ones(columns, dim),
    )
    assert value == 0 and not any(g.any() for g in grads)


@pytest.mark.parametrize("labels", [[0, 1, 2], [3, 4, 5]], ids=["some", "none"])
@pytest.mark.parametrize("name", ALL_WITH_REF)
def test_a_reference_set_without_positives(name, labels):
    x, ref, ref_labels = embeddings(3), embeddings(4, seed=1), torch.tensor([0, 0, 6, 6])
    labels = torch.tensor(labels)
    loss, options = getattr(losses, name), TERM_PARAMS.get(name, {})
    value, grads = value_and_grads(lambda x, ref: loss(**options)(x, labels, None, ref, ref_labels), x, ref)
    exact, exact_grads = value_and_grads(lambda x, ref: exact_loss(name, x, labels, ref, ref_labels, **options), x, ref)
    assert_accurate(value, exact)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert_accurate(grad, exact_grad)


# A singleton takes no part in N-pairs.
TAKES_PART = [(name, row) for name in ALL_LOSSES for row in (1, 6) if name != "NPairsLoss" or row == 1]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name, row", TAKES_PART)
def test_what_is_not_finite_reaches_the_loss(name, row, backend, wrong):
    x = embeddings(7, 4, dtype=torch.float32)
    x[row, 2] = wrong
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)(backend=backend)(x, torch.tensor([*PAIRED, 9])), x)
    assert not value.isfinite()
    assert not grad.isfinite().all()


@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4]], ids=["one_class", "different", "pair"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TERM_LOSSES)
def test_nan_reaches_the_loss_without_tuples(name, backend, labels):
    x = embeddings(6, 4, dtype=torch.float32)
    x[4, 2] = math.nan
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)(backend=backend)(x, torch.tensor(labels)), x)
    assert value.isnan() and grad.isnan().any()


@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "SupConLoss", "NTXentLoss", "TripletMarginLoss"])
@pytest.mark.parametrize("distance", [distances.LpDistance, distances.DotProductSimilarity, distances.SNRDistance])
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_nan_reaches_the_loss_without_normalisation(backend, distance, name):
    x = embeddings(6, 4)
    x[1, 2] = math.nan
    loss = getattr(losses, name)(distance=distance(normalize_embeddings=False), backend=backend)
    assert loss(x, torch.tensor(PAIRED)).isnan()


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_half_precision_beyond_its_squares(name):
    """The squared norm of these rows overflows float16."""
    x = 1000 * embeddings(6, 16, dtype=torch.float16)
    labels = torch.tensor(PAIRED)
    options = TERM_PARAMS.get(name, {})
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)(**options)(x, labels), x)
    exact, (exact_grad,) = value_and_grads(lambda x: exact_loss(name, x, labels, **options), x.double())
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("distance", [distances.LpDistance(), distances.LpDistance(normalize_embeddings=False)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_zero_subgradient_at_distance_zero(backend, distance):
    x = 3 * X[:1].float().expand(6, -1)
    loss = losses.ContrastiveLoss(distance=distance, backend=backend)
    value, (grad,) = value_and_grads(lambda x: loss(x, torch.tensor(PAIRED)), x)
    assert value == 1 and not grad.any()


LABELS = {
    "bool": torch.tensor([True, True, False, False, True, False]),
    "uint8": torch.tensor([255, 255, 0, 0, 7, 7], dtype=torch.uint8),
    "int8": torch.tensor([-128, -128, 127, 127, 0, 0], dtype=torch.int8),
    "int16": torch.tensor([-300, -300, 2, 2, 3, 3], dtype=torch.int16),
    "int32": torch.tensor([-(2**31), -(2**31), 2**31 - 1, 2**31 - 1, 0, 0], dtype=torch.int32),
    "negative": torch.tensor([-1, -1, -2, -2, 0, 0]),
    # The same in their low 32 bits, and in float32 and float64.
    "low_bits": torch.tensor([1, 1, 1 + 2**32, 1 + 2**32, 1 + 2**33, 1 + 2**33]),
    "float_neighbours": torch.tensor([2**62, 2**62, 2**62 + 1, 2**62 + 1, -(2**62), -(2**62)]),
}


# What is the same for all losses is tested with one of each kind, and with N-pairs, which picks its rows first.
EXAMPLES = ["ContrastiveLoss", "NPairsLoss", "TripletMarginLoss", "QuadrupletMarginLoss", "HistogramLoss"]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_types_of_labels(name, labels):
    plain = torch.unique(LABELS[labels].long(), return_inverse=True)[1]
    loss = getattr(losses, name)()
    # N-pairs takes classes in the order of their labels, which torch.unique keeps.
    assert torch.equal(loss(X, LABELS[labels]), loss(X, plain))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_labels_of_a_wrong_type(dtype):
    with pytest.raises(TypeError, match=f"labels: expected an integer or bool type, got {dtype}"):
        losses.SupConLoss()(X, torch.tensor(PAIRED).to(dtype))


GOOD = torch.tensor(PAIRED)
WRONG = {
    "embeddings_list": ((X.tolist(), GOOD), TypeError, "embeddings: expected a tensor, got list"),
    "embeddings_none": ((None, GOOD), TypeError, "embeddings: expected a tensor, got NoneType"),
    "embeddings_1d": ((X[0], GOOD), ValueError, r"embeddings must be a 2D tensor of shape .*, got \(4,\)"),
    "embeddings_3d": ((X[None], GOOD), ValueError, r"embeddings must be a 2D tensor of shape .*, got \(1, 6, 4\)"),
    "embeddings_int": ((X.long(), GOOD), TypeError, "embeddings: expected a floating type, got torch.int64"),
    "embeddings_complex": ((X.cfloat(), GOOD), TypeError, "embeddings: expected a floating type, got torch.complex64"),
    "labels_list": ((X, PAIRED), TypeError, "labels: expected a tensor, got list"),
    "labels_none": ((X,), ValueError, "labels, ref_labels: expected both, or an indices_tuple, got None"),
    "labels_2d": ((X, GOOD[:, None]), ValueError, r"labels must be a 1D tensor of shape .*, got \(6, 1\)"),
    "labels_0d": ((X, GOOD[0]), ValueError, r"labels must be a 1D tensor of shape .*, got \(\)"),
    "labels_short": ((X, GOOD[:5]), ValueError, r"expected labels of shape \(6,\), got \(5,\)"),
    "ref_list": ((X, GOOD, None, [1.0], GOOD), TypeError, "ref_emb: expected a tensor, got list"),
    "ref_1d": ((X, GOOD, None, X[0], GOOD[:1]), ValueError, r"ref_emb must be a 2D tensor of shape .*, got \(4,\)"),
    "ref_int": (
        (X, GOOD, None, X.int(), GOOD.clone()),
        TypeError,
        "ref_emb: expected a floating type, got torch.int32",
    ),
    "ref_width": (
        (X, GOOD, None, X[:, :3], GOOD.clone()),
        ValueError,
        r"ref_emb: expected shape \(R, 4\).*, got \(6, 3\)",
    ),
    "ref_device": (
        (X, GOOD, None, X.to("meta"), GOOD.clone()),
        ValueError,
        "ref_emb: expected device cpu, got meta",
    ),
    "ref_labels_none": ((X, GOOD, None, X.clone()), ValueError, "labels, ref_labels: expected both"),
    "ref_labels_alone": ((X, GOOD, None, None, GOOD.clone()), ValueError, "ref_labels: expected ref_emb along with it"),
    "ref_labels_short": (
        (X, GOOD, None, X[:5], GOOD[:4]),
        ValueError,
        r"expected ref_labels of shape \(5,\), got \(4,\)",
    ),
    "ref_labels_same_object_short": (
        (X, GOOD, None, X[:5], GOOD),
        ValueError,
        r"ref_labels: expected shape \(5,\), got \(6,\)",
    ),
    "ref_labels_float": (
        (X, GOOD, None, X.clone(), GOOD.float()),
        TypeError,
        "ref_labels: expected an integer or bool type, got torch.float32",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", ["ContrastiveLoss", "SupConLoss", "TripletMarginLoss", "BatchHardTripletLoss"])
def test_wrong_arguments(name, case):
    arguments, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        getattr(losses, name)()(*arguments)


NO_REF = [name for name in ALL_LOSSES if name not in [*ALL_WITH_REF, "QuadrupletLogSumExpLoss"]]


@pytest.mark.parametrize("name", NO_REF)
def test_a_reference_set_is_refused(name):
    with pytest.raises(ValueError, match=f"ref_emb is not supported for {name}"):
        getattr(losses, name)()(X, GOOD, ref_emb=X.clone(), ref_labels=GOOD.clone())


STRIDED = {
    "transposed": lambda x: x.t().contiguous().t(),
    "every_other_row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every_other_column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "inner_block": lambda x: torch.nn.functional.pad(x, (1, 2, 3, 4))[3:-4, 1:-2],
    "reversed": lambda x: x.flip(0).contiguous()[torch.arange(len(x)).flip(0)],
}


@pytest.mark.parametrize("layout", STRIDED)
@pytest.mark.parametrize("name", EXAMPLES)
def test_strides(name, layout):
    x, labels, loss = embeddings(9, 5), unbalanced_labels(9), getattr(losses, name)()
    value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
    same, (same_grad,) = value_and_grads(lambda x: loss(STRIDED[layout](x), labels), x)
    assert torch.equal(same, value) and torch.equal(same_grad, grad)


def test_strides_of_labels_and_of_the_reference_set():
    x, ref, loss = embeddings(9, 5), embeddings(7, 5, seed=1), losses.ContrastiveLoss()
    labels, ref_labels = unbalanced_labels(9), unbalanced_labels(7, seed=1)
    strided = labels.repeat_interleave(2)[::2], ref_labels.repeat_interleave(3)[::3]
    value, grads = value_and_grads(lambda x, ref: loss(x, labels, None, ref, ref_labels), x, ref)
    same, same_grads = value_and_grads(lambda x, ref: loss(x, strided[0], None, STRIDED["transposed"](ref), strided[1]), x, ref)
    assert torch.equal(same, value)
    assert all(map(torch.equal, same_grads, grads))


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_an_expanded_row(name):
    """All rows are one: its gradient is the sum over them."""
    labels = torch.tensor(PAIRED)
    loss = getattr(losses, name)(**TERM_PARAMS.get(name, {}))
    value, (grad,) = value_and_grads(lambda row: loss(row.expand(6, -1), labels), X[:1].float())
    exact, _ = value_and_grads(lambda row: exact_loss(name, row.expand(6, -1), labels, **TERM_PARAMS.get(name, {})), X[:1])
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)
    assert grad.shape == (1, 4) and grad.abs().max() < 1e-5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_without_gradients(name, backend, mode):
    x, labels, loss = (
        embeddings(9, 5, dtype=torch.float32),
        unbalanced_labels(9),
        getattr(losses, name)(backend=backend).eval(),
    )
    expected = loss(x.clone().requires_grad_(), labels)
    with mode():
        value = loss(x.clone().requires_grad_(), labels)
    assert not value.requires_grad
    assert_accurate(value, expected.detach().double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("enabled", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_autocast(name, enabled, dtype):
    """The arithmetic is that of outside the region; a half input gives a float32 loss, as torch's own losses do."""
    x, labels, loss = embeddings(33, 16, dtype=dtype), unbalanced_labels(33), getattr(losses, name)()
    outside, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        inside, (inside_grad,) = value_and_grads(lambda x: loss(x, labels), x)
    half = dtype in (torch.bfloat16, torch.float16)
    assert inside.dtype == (torch.float32 if enabled and half else dtype)
    assert torch.equal(inside.to(dtype), outside)
    assert inside_grad.dtype == dtype and torch.equal(inside_grad, grad)


@pytest.mark.parametrize("options", [{"p": 1}, {"power": 3}], ids=str)
@pytest.mark.parametrize("kind", [distances.LpDistance, distances.DotProductSimilarity, distances.SNRDistance])
def test_autocast_of_a_distance_that_builds_its_matrix(kind, options):
    x, labels = embeddings(33, 16, dtype=torch.float32), unbalanced_labels(33)
    loss = losses.ContrastiveLoss(distance=kind(**options))
    expected, (grad,) = value_and_grads(lambda x: loss(x, labels), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        value, (inside_grad,) = value_and_grads(lambda x: loss(x, labels), x)
    assert_accurate(value, expected)
    assert_accurate(inside_grad, grad, within=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_of_listed_pairs(name):
    x, labels = embeddings(12, 16, dtype=torch.float32), torch.arange(12) // 3
    indices = tuple(torch.tensor(i) for i in ([0, 1, 3, 6], [1, 2, 5, 7], [0, 1, 3, 6], [3, 4, 0, 9]))
    expected = value_and_grads(lambda x: getattr(losses, name)()(x, labels, indices), x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = value_and_grads(lambda x: getattr(losses, name)()(x, labels, indices), x)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1][0], expected[1][0])


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_penalty_on_the_gradient_raises(name, backend):
    """Without a second derivative its share of the gradient would silently be missing."""
    x = embeddings(9, 5).requires_grad_()
    value = getattr(losses, name)(backend=backend)(x, unbalanced_labels(9))
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice|second derivative|first derivatives only"):
        (value + grad.square().sum()).backward()


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name, with_ref", ALL_SELF_AND_REF)
def test_the_same_result_every_time(name, with_ref, backend):
    torch.use_deterministic_algorithms(False)
    try:
        x, labels, loss = torch.randn(150, 32), torch.randint(9, (150,)), getattr(losses, name)(backend=backend).eval()
        ref, ref_labels = (torch.randn(170, 32), torch.randint(9, (170,))) if with_ref else (None, None)
        first, *others = (value_and_grads(lambda x, ref=None: loss(x, labels, None, ref, ref_labels), x, ref) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(True)
    for value, grads in others:
        assert torch.equal(value, first[0])
        assert all(map(torch.equal, grads, first[1]))


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", [name for name in ALL_LOSSES if name != "NPairsLoss"])
def test_order_of_the_batch_does_not_matter(name, backend):
    x, labels, loss = embeddings(40, 8), unbalanced_labels(40), getattr(losses, name)(backend=backend).eval()
    order = torch.randperm(40)
    value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
    other, (other_grad,) = value_and_grads(lambda x: loss(x, labels[order]), x[order])
    assert_accurate(other, value)
    assert_accurate(other_grad, grad[order], within=10 * BUDGET[torch.float64])


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_names_of_classes_do_not_matter(name, backend):
    x, labels, loss = embeddings(40, 8), unbalanced_labels(40), getattr(losses, name)(backend=backend).eval()
    # Another order of the classes is another order of the rows of the N-pairs loss.
    names = torch.tensor([5, 70, 800, 9000, 10**10, 10**11]) if name == "NPairsLoss" else torch.randperm(6) * 977 - 1000
    value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
    other, (other_grad,) = value_and_grads(lambda x: loss(x, names[labels]), x)
    assert torch.equal(other, value) and torch.equal(other_grad, grad)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_regularizer_of_the_embeddings_is_added(name):
    x, labels = embeddings(9, 5), unbalanced_labels(9)
    plain = getattr(losses, name)()(x, labels)
    loss = getattr(losses, name)(embedding_regularizer=lambda x: x.square().mean(), embedding_reg_weight=0.5)
    torch.testing.assert_close(loss(x, labels), plain + 0.5 * x.square().mean())


def test_inputs_are_left_alone():
    for name in ALL_LOSSES:
        x, labels = embeddings(9, 5).requires_grad_(), unbalanced_labels(9)
        before = x.detach().clone(), labels.clone()
        getattr(losses, name)()(x, labels).backward()
        assert torch.equal(x.detach(), before[0]) and torch.equal(labels, before[1])


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_labels_may_change_before_the_backward_pass(name, backend):
    labels, x = unbalanced_labels(12), embeddings(12).requires_grad_()
    loss = getattr(losses, name)(backend=backend).eval()
    (expected,) = torch.autograd.grad(loss(x, labels), x)
    value = loss(x, labels)
    labels.zero_()
    assert torch.equal(*torch.autograd.grad(value, x), expected)


@pytest.mark.parametrize("name", ALL_WITH_REF)
def test_large_halves_and_an_empty_reference_set(name):
    x, labels = 3e4 * torch.ones(6, 4, dtype=torch.float16), torch.arange(6)
    assert getattr(losses, name)()(x, labels, None, x[:0], labels[:0]) == 0
