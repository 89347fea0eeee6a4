"""The Triton kernels against the float64 oracles, and compiled for GPUs that need not be there.

Without a GPU they run in Triton's interpreter.
"""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accuracy import assert_accurate
from cases import LOSSES, PARAMS, value_and_grads
from oracles import ORACLES

from metric_kernels import backends, core, distances, fn, losses, row_extremes
from metric_kernels.backends import triton_tiles
from metric_kernels.backends.triton_tiles import use_form
from metric_kernels.core import use_workspace
from metric_kernels.extremes import FORMULA
from metric_kernels.language import Formula, Op, count, lse, smallest, stages_of, total
from metric_kernels.losses import PairLoss
from metric_kernels.metrics import Dot, Euclidean
from metric_kernels.tile import Factors, Side, Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter is chosen when Triton is imported, and nothing else of the session needs to run in it.
with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton")
    import handwritten

    from metric_kernels.backends import triton_fn, triton_kernels


def version(module):
    return tuple(map(int, module.__version__.split(".")[:2]))


if DEVICE == "cpu" and version(triton) < (3, 7) and version(np) >= (2, 4):
    pytest.skip("Triton 3.6 is interpreted with NumPy before 2.4 only", allow_module_level=True)
if type(triton.language.max) is not type(triton_kernels.stats):
    pytest.skip("Triton was imported before without its interpreter", allow_module_level=True)

# Masked pairs are computed as well, and numpy tells of their infinities.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
# A value, or a sum of up to 45 of them in another order.
TOLERANCE = 2e-6
DISTANCES = {
    "cosine": distances.CosineSimilarity,
    "dot": lambda: distances.DotProductSimilarity(normalize_embeddings=False),
    "euclidean": distances.LpDistance,
    "squared euclidean": lambda: distances.LpDistance(power=2, normalize_embeddings=False),
    "snr": distances.SNRDistance,
    "matrix": lambda: distances.LpDistance(p=1),
}
# What the oracles call them, and whether they normalise. None knows a matrix of another distance.
OF_ORACLES = {
    "cosine": ("cosine", True),
    "dot": ("dot", False),
    "euclidean": ("euclidean", True),
    "squared euclidean": ("squared_euclidean", False),
    "snr": ("snr", True),
}


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


class ThreeStages(PairLoss):
    """Stages with functions of the same name and arguments, and each kind of input."""

    scale = 3.0

    class First:
        stats = (lse("neg"), smallest("pos"))

        def pair(v, sign, scale):
            return scale * sign * (0.5 - v), sign * v

        def dpair(v, sign, scale):
            return -scale * sign, sign

    class Second:
        stats = (lse("pos"),)

        def pair(v, sign, scale):
            return (sign * v / scale,)

        def dpair(v, sign, scale):
            return (sign / scale,)

    class Third:
        stats = (total("pos"), total("neg"), count("neg"))

        def pair(v, row1, row2, col0, sign):
            hard = fn.relu(2.0 - fn.softplus(col0)) * fn.exp(-v * v)
            return hard * row1, fn.sigmoid(row2 + sign * v), fn.step(v)

        def dpair(v, row1, row2, col0, sign):
            hard = fn.relu(2.0 - fn.softplus(col0)) * fn.exp(-v * v)
            slope = fn.sigmoid(row2 + sign * v)
            return -2.0 * v * hard * row1, sign * slope * (1.0 - slope), 0.0

        def drow(v, row1, row2, col0, sign):
            hard = fn.relu(2.0 - fn.softplus(col0)) * fn.exp(-v * v)
            slope = fn.sigmoid(row2 + sign * v)
            return hard, 0.0, 0.0, slope * (1.0 - slope), 0.0, 0.0

        def dcol(v, row1, row2, col0, sign):
            inner = -fn.step(2.0 - fn.softplus(col0)) * fn.sigmoid(col0)
            return inner * fn.exp(-v * v) * row1, 0.0, 0.0

    def row(negatives, nearest, positives, near, far, number):
        return fn.where(nearest < 1.0e30, near + positives, 0.0) + far / fn.where(number > 0.0, number, 1.0)


@pytest.fixture(params=triton_tiles.FORMS)
def form(request):
    """Products that are read, or made in the kernels."""
    with use_form(request.param):
        yield request.param


def points(seed, number=37, dim=8):
    """Embeddings, as long in any number of coordinates, and labels with coinciding points, and with classes of one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, dim, generator=generator) * (8 / dim) ** 0.5
    labels = torch.randint(0, 6, (number,), generator=generator)
    x[5], x[9], x[11] = x[2], x[2], x[10]
    labels[:2] = torch.tensor([-7, 2**40])
    return x.to(DEVICE), labels.to(DEVICE)


def evaluate(loss, x, labels, ref=None, ref_labels=None):
    """Value and gradients."""
    value, grads = value_and_grads(lambda x, ref=None: loss(x, labels, None, ref, ref_labels), x, ref)
    return [value, *grads]


def exact(make, distance, x, labels, ref=None, ref_labels=None):
    """Of the oracle in float64; of plain torch in float64 where there is none."""
    x, labels, ref, ref_labels = (None if t is None else t.cpu() for t in (x, labels, ref, ref_labels))
    x, ref = x.double(), None if ref is None else ref.double()
    params = PARAMS.get(make.__name__, {})
    if make is ThreeStages or distance == "matrix":
        return evaluate(make(**params, distance=DISTANCES[distance](), backend="reference"), x, labels, ref, ref_labels)
    kind, normalize = OF_ORACLES[distance]
    oracle = functools.partial(ORACLES[make.__name__], distance=kind, normalize=normalize, **params)
    return evaluate(lambda x, labels, _, ref, ref_labels: oracle(x, labels, ref, ref_labels), x, labels, ref, ref_labels)


def assert_all_accurate(found, expected):
    for one, truth in zip(found, expected, strict=True):
        assert_accurate(one.cpu(), truth.cpu())


def cases():
    for make in (*(losses.REGISTRY[name] for name in LOSSES), ThreeStages):
        for distance in ["cosine"] if make is losses.CircleLoss else DISTANCES:
            yield pytest.param(make, distance, False, id=f"{make.__name__}-{distance}")
            asymmetric = make.formula.two_sided and distance == "snr"
            if make is not losses.NPairsLoss and not asymmetric:
                yield pytest.param(make, distance, True, id=f"{make.__name__}-{distance}-reference set")


@pytest.mark.parametrize("make, distance, reference_set", list(cases()))
def test_loss_and_gradients(make, distance, reference_set, form):
    check(make, distance, reference_set)


def check(make, distance, reference_set, dim=8):
    arguments = points(0, 30, dim)
    if reference_set:
        arguments += points(1, 45, dim)
    options = {**PARAMS.get(make.__name__, {}), "distance": DISTANCES[distance]()}
    found, true = evaluate(make(**options, backend="triton"), *arguments), exact(make, distance, *arguments)
    # Exponents of up to 400 are not known to the budget.
    within = 4e-6 if make is losses.MultiSimilarityLoss and distance == "dot" else None
    # Losses that nearly cancel are as wrong in plain torch.
    plain = evaluate(make(**options, backend="reference"), *arguments) if dim != 8 else [None] * len(true)
    for one, truth, of in zip(found, true, plain, strict=True):
        assert_accurate(one.cpu(), truth.cpu(), None if of is None else of.cpu(), within)


# The interpreter holds 16 coordinates at a time.
@pytest.mark.parametrize("reference_set", [False, True])
@pytest.mark.parametrize("dim", [3, 16, 17, 53])
def test_coordinates_in_chunks_that_do_not_divide_them(dim, reference_set):
    with use_form("b"):
        check(losses.MultiSimilarityLoss, "cosine", reference_set, dim)
        check(losses.CircleLoss, "cosine", reference_set, dim)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [40, 130])
@pytest.mark.parametrize("make, distance, reference_set", list(cases()))
def test_all_coordinates_in_chunks(make, distance, reference_set, dim):
    with use_form("b"):
        check(make, distance, reference_set, dim)


@pytest.mark.parametrize("reference_set", [False, True])
@pytest.mark.parametrize("make", [losses.NTXentLoss, ThreeStages], ids=lambda c: c.__name__)
def test_products_made_in_the_kernels_are_nowhere_else(make, reference_set, monkeypatch):
    arguments = points(0, 40) + (points(1, 70) if reference_set else ())
    monkeypatch.setattr(core, "_product", None)
    for name in ("mm", "matmul", "addmm"):
        monkeypatch.setattr(torch, name, None)
    largest = 0
    new_empty = torch.Tensor.new_empty

    def recorded(self, *size, **options):
        nonlocal largest
        out = new_empty(self, *size, **options)
        largest = max(largest, out.numel())
        return out

    monkeypatch.setattr(torch.Tensor, "new_empty", recorded)
    with use_form("b"):
        found = [evaluate(make(backend="triton"), *arguments) for _ in range(2)]
    assert largest < 40 * 40
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_only_one_of_the_sides_has_a_gradient():
    x, labels = points(0, 30)
    y, ref_labels = points(1, 45)
    loss = losses.NTXentLoss(backend="triton")
    with use_form("b"):
        _, gx, gy = evaluate(loss, x, labels, y, ref_labels)
        for leaf, expected in ((x, gx), (y, gy)):
            leaf.requires_grad_()
            (grad,) = torch.autograd.grad(loss(x, labels, None, y, ref_labels), leaf)
            leaf.requires_grad_(False)
            assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_second_backward_pass_begins_again(dtype, form):
    x, labels = points(0, 30)
    x = x.to(dtype).requires_grad_()
    loss = losses.MultiSimilarityLoss(backend="triton")(x, labels)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operators_take_the_same_way(dtype, form):
    x, labels = points(0, 30, 20)
    x, loss = x.to(dtype), losses.NTXentLoss(backend="triton")
    expected = evaluate(loss, x, labels)
    found = evaluate(torch.compile(loss, fullgraph=True, backend="aot_eager"), x, labels)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0.0)


def test_which_form():
    with pytest.raises(ValueError, match="use_form: expected one of a, b, got 'c'"), use_form("c"):
        pass
    assert triton_tiles.chosen(8192, 8192, 64, torch.float32)
    assert not triton_tiles.chosen(8192, 8192, 65, torch.float32)
    assert not triton_tiles.chosen(8192, 8191, 64, torch.float32)
    assert triton_tiles.chosen(8192, 8192, 128, torch.bfloat16)
    assert not triton_tiles.chosen(65536, 65536, 768, torch.bfloat16)
    assert triton_tiles.chosen(65536, 65536, 768, torch.float16)
    with use_form("a"):
        assert not triton_tiles.chosen(65536, 65536, 768, torch.float16)


def test_products_follow_the_switch_of_torch():
    before = torch.get_float32_matmul_precision()
    try:
        for setting, name in (("highest", "ieee"), ("high", "tf32")):
            torch.set_float32_matmul_precision(setting)
            assert triton_tiles.multiply(128, torch.float32, 16, halves=False).precision == name
            assert triton_tiles.multiply(128, torch.bfloat16, 16, halves=False).precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


# Half precision is multiplied as it is given, and all that is rounded once more are the weights: to bfloat16, and those of
# float16 in form (b), to TF32.
ROUNDED_WEIGHTS = {torch.bfloat16: 2**-8, torch.float16: 2**-10}


def check_half(make, distance, reference_set, dtype, form, workspace=1 << 20):
    # More rows and columns than a program of the interpreter takes at a time, and three tiles of 16 rows.
    arguments = [points(0, 37, 20)] + [points(1, 70, 20)] * reference_set
    arguments = [t for x, labels in arguments for t in (x.to(dtype), labels)]
    params = PARAMS.get(make.__name__, {})
    with use_workspace(workspace):
        loss, *grads = evaluate(make(**params, distance=DISTANCES[distance](), backend="triton"), *arguments)
    true, *true_grads = exact(make, distance, *arguments)
    assert_accurate(loss.cpu(), true.cpu())
    as_exact = distance == "snr" or form == "a" and dtype == torch.float16
    for grad, truth in zip(grads, true_grads, strict=True):
        assert grad.dtype == dtype
        assert_accurate(grad.cpu(), truth.cpu(), within=None if as_exact else 2 * ROUNDED_WEIGHTS[dtype])


@pytest.mark.parametrize("dtype", ROUNDED_WEIGHTS, ids=str)
@pytest.mark.parametrize("distance", OF_ORACLES)
@pytest.mark.parametrize("reference_set", [False, True])
def test_half_precision(distance, reference_set, dtype, form):
    check_half(losses.MultiSimilarityLoss, distance, reference_set, dtype, form)


@pytest.mark.parametrize("dtype", ROUNDED_WEIGHTS, ids=str)
@pytest.mark.parametrize(
    "distance", ["euclidean", *(pytest.param(d, marks=pytest.mark.slow) for d in ("cosine", "squared euclidean"))]
)
@pytest.mark.parametrize("reference_set", [False, True])
@pytest.mark.parametrize("make", [losses.LiftedStructureLoss, losses.NTXentLoss, ThreeStages], ids=lambda c: c.__name__)
def test_half_precision_of_later_stages(make, distance, reference_set, dtype, form):
    check_half(make, distance, reference_set, dtype, form)


@pytest.mark.parametrize("dtype", ROUNDED_WEIGHTS, ids=str)
@pytest.mark.parametrize("distance", ["squared euclidean", pytest.param("cosine", marks=pytest.mark.slow)])
@pytest.mark.parametrize("reference_set", [False, True])
@pytest.mark.parametrize("make", [losses.MultiSimilarityLoss, ThreeStages], ids=lambda c: c.__name__)
def test_half_precision_in_tiles(make, distance, reference_set, dtype):
    with use_form("a"):
        check_half(make, distance, reference_set, dtype, "a", workspace=0)


def test_rounded_weights_share_the_memory_of_the_products():
    """More columns than the threads of a program take at a time: none may write where another has yet to read."""
    generator = torch.Generator().manual_seed(0)
    n, m, formula = 5, 2500, losses.SupConLoss.formula
    x, y = (torch.randn(number, 16, generator=generator).to(DEVICE, torch.bfloat16) for number in (n, m))
    labels = torch.randint(0, 9, (n + m,), generator=generator).to(DEVICE)
    labels, ref_labels = labels[:n], labels[n:]
    s, scales = x.float() @ y.float().t(), [1 / t.float().norm(dim=1) for t in (x, y)]
    values = torch.zeros(len(formula.stats), m, device=DEVICE)
    side, nothing = Side(values, values + 0.01, values.long()), s.new_empty(0)
    op, scaled = Op(formula, Dot, losses.SupConLoss(temperature=0.3)._params()), scales[0][:, None] * scales[1]
    found = []
    for products, factors in ((s * scaled, None), (s, Factors(x, y, *scales))):
        tile = Tile(products, labels, ref_labels, 0, -1, nothing, nothing, 0.0, factors)
        backends.load("triton").weights(op, tile, side.at(slice(0, n)), side, False, None)
        found.append(tile.weights)
    expected, rounded = found
    assert rounded.dtype == torch.bfloat16 and rounded.data_ptr() == s.data_ptr()
    # A GPU rounds to the nearest, the interpreter towards 0.
    torch.testing.assert_close(rounded.float(), expected * scaled, rtol=2**-7, atol=0.0)


def test_weights_below_the_range_of_float16():
    x, labels = points(0, 30, 20)
    x, make = x.half(), losses.SupConLoss
    op = Op(make.formula, Dot, make(temperature=0.3)._params())
    nothing, values = x.new_empty(0, dtype=torch.float32), torch.zeros(len(make.formula.stats), len(x), device=DEVICE)
    tile, out = Tile(nothing, labels, labels, 0, 0, nothing, nothing, 0.0, Factors(x, x, None, None)), []
    for size in (1.0, 2.0**-40):
        side = Side(values, torch.full_like(values, size), torch.zeros_like(values, dtype=torch.int64))
        grad = torch.full(x.shape, torch.nan, device=DEVICE)
        backends.load("triton").gradients(op, tile, side, side, grad, None, there=True, back=True)
        out.append(grad / size)
    assert out[0].abs().max() > 1
    assert torch.equal(*out)


@pytest.mark.parametrize("make", [losses.LiftedStructureLoss, ThreeStages], ids=lambda c: c.__name__)
def test_tiles_that_do_not_start_at_the_first_row(make):
    # More rows and columns than a program of the interpreter takes at a time.
    for arguments in (points(0), points(0) + points(1, 45)):
        with use_workspace(0):
            found = evaluate(
                make(**PARAMS.get(make.__name__, {}), distance=distances.LpDistance(), backend="triton"), *arguments
            )
        assert_all_accurate(found, exact(make, "euclidean", *arguments))


@pytest.mark.parametrize("both", [False, True])
def test_weights_of_one_direction_and_of_both(both):
    """The losses ask for one direction only where the columns have no statistics; the contract does not."""
    x, labels = points(0)
    formula = ThreeStages.formula
    op = Op(formula, Euclidean, ThreeStages()._params())
    found = []
    for name, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        generator = torch.Generator().manual_seed(2)
        values, grads = torch.randn(2, len(formula.stats), len(x), generator=generator).to(DEVICE, dtype)
        index = torch.randint(0, len(x), values.shape, generator=generator).to(DEVICE)
        rows, squares, product = slice(10, 30), x.square().sum(1).to(dtype), (x @ x.t()).to(dtype)
        tile = Tile(product[rows].clone(), labels[rows], labels, 10, 10, squares[rows], squares, 1e-6)
        norm_grad, side = torch.empty_like(squares[rows]), Side(values, grads, index)
        backends.load(name).weights(op, tile, side.at(rows), side, both, norm_grad)
        found.append((tile.s, norm_grad))
    assert_all_accurate(*found)


@pytest.mark.parametrize("make", [losses.REGISTRY[name] for name in LOSSES], ids=lambda c: c.__name__)
def test_nan_reaches_the_loss(make, form):
    x, labels = points(0)
    x[2, 3] = torch.nan
    assert make(backend="triton")(x, labels).isnan()


def first_of_equals(index):
    """Columns of ``points``, of which some coincide: a product of the same points may be another in another block."""
    for column, first in ((5, 2), (9, 2), (11, 10)):
        index = torch.where(index == column, first, index)
    return index


@pytest.mark.parametrize("distance", DISTANCES)
def test_extremes_are_those_of_the_reference_backend(distance, form):
    x, labels = points(0)
    y, ref_labels = points(1, 45)
    for reference in ((), (y, ref_labels)):
        found, expected = [], []
        for name, results in (("triton", found), ("reference", expected)):
            leaf = x.clone().requires_grad_()
            with use_workspace(0 if name == "triton" else 1 << 20):
                extremes = row_extremes(leaf, labels, *reference, distance=DISTANCES[distance](), backend=name)
                sum(v.where(v.isfinite(), 0.0).square().sum() for v in extremes[:4]).backward()
            results += [*extremes, leaf.grad]
        assert torch.equal(first_of_equals(found[4]), first_of_equals(expected[4]))
        for a, b in zip(found[:4], expected[:4]):
            torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)
        assert_accurate(found[5], expected[5].double())


def statistics(name, formula, matrix, labels, ref_labels, *params):
    """What a backend makes of a matrix of pair values, the columns of extremes, and the scales of log-sum-exps."""
    values = matrix.new_empty(len(formula.stats), len(matrix))
    index = torch.full(values.shape, -9, device=DEVICE)
    nothing = matrix.new_empty(0)
    tile = Tile(matrix, labels, ref_labels, 0, -1, nothing, nothing, 0.0)
    scale = torch.full_like(values, torch.nan)
    backends.load(name).stage_stats(Op(formula, Dot, (params,)), 0, tile, values[:0], values[:0], values, index, scale)
    return values, index, scale


def test_extremes_of_ties_infinities_and_nans():
    inf, nan = torch.inf, torch.nan
    rows = [
        [0.0, -0.0, 0.0, 0.0, -0.0, 0.0],
        [-inf, -inf, -inf, inf, inf, inf],
        [1.0, nan, 2.0, nan, nan, 3.0],
        [3.0, inf, nan, -inf, 1.0, -inf],
        [1e-40, 2e-40, -1e-40, -0.0, 1e-40, 0.0],
        [5.0, 7.0, 7.0, -5.0, -7.0, -7.0],
    ]
    matrix = torch.tensor(rows, device=DEVICE)
    # The last row has no positive pair and the one before no negative pair.
    labels = torch.tensor([0, 0, 0, 1, 4, 2], device=DEVICE)
    ref_labels = torch.tensor([0, 0, 0, 1, 1, 1], device=DEVICE)
    for columns in (ref_labels, torch.full_like(ref_labels, 4)):
        values, index, _ = statistics("triton", FORMULA, matrix, labels, columns)
        expected, expected_index, _ = statistics("reference", FORMULA, matrix, labels, columns)
        torch.testing.assert_close(values, expected, rtol=0.0, atol=0.0, equal_nan=True)
        assert torch.equal(index, expected_index)


def test_the_scale_of_a_log_sum_exp_makes_up_for_its_rounding():
    matrix = 30 * torch.randn(40, 60, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    labels, ref_labels = torch.arange(40, device=DEVICE) % 7, torch.arange(60, device=DEVICE) % 6
    values, _, scale = statistics("triton", losses.SupConLoss.formula, matrix, labels, ref_labels, -1.0, 1.0)
    negative = labels[:, None] != ref_labels
    for k, mask in enumerate((~negative, negative)):
        exact = matrix.double().masked_fill(~mask, -torch.inf).logsumexp(1)
        assert (scale[k, exact.isneginf()] == 1).all()
        torch.testing.assert_close(values[k].double() - scale[k].double().log(), exact, rtol=0.0, atol=1e-6)


class Vocabulary:
    """Every name of the vocabulary, of a number and a parameter."""

    stats = (total("neg"),) * 16

    def pair(v, other):
        negative, inner = v < 0.0, (v > -1.0) & (v < 1.0)
        second = fn.where(negative, other, other)
        return (
            fn.abs(v),
            fn.exp(v),
            fn.log(v),
            fn.logaddexp(v, second),
            fn.logaddexp(v, v),
            fn.maximum(v, second),
            fn.minimum(second, v),
            fn.relu(v),
            fn.sigmoid(v),
            fn.softplus(v),
            fn.sqrt(v),
            fn.step(v),
            fn.stop(v),
            fn.where(negative, other, v),
            fn.where(inner | negative, 1.0, 0.0),
            fn.within(v, -1.0, other),
        )

    def dpair(v, other):
        return (v,) * 16


def test_vocabulary_has_the_values_of_torch():
    assert set(fn.__all__) == set(triton_fn.__all__)
    formula = Formula("test_triton.Vocabulary", stages_of(Vocabulary))
    lowest = torch.finfo(torch.float32).min
    ends = [0.0, -0.0, 1.0, 88.0, 1e30, -lowest, torch.inf, torch.nan]
    numbers = torch.cat([torch.tensor(ends), -torch.tensor(ends), torch.linspace(-100.0, 100.0, 401)]).to(DEVICE)
    labels = torch.zeros(len(numbers), dtype=torch.int64, device=DEVICE)
    for other in (1.5, lowest, -torch.inf, torch.inf, torch.nan):
        found, *_ = statistics("triton", formula, numbers[:, None], labels, labels[:1] + 1, other)
        expected, *_ = statistics("reference", formula, numbers[:, None], labels, labels[:1] + 1, other)
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=1e-37, equal_nan=True)


def test_refusals_name_their_reason():
    x, labels = points(0)
    with pytest.raises(RuntimeError, match="float32, not torch.float64"):
        losses.CircleLoss(backend="triton")(x.double(), labels)
    backend = backends.load("triton")
    assert "meta" in backend.supports(FORMULA, Dot, "meta", torch.float32)
    body = {}
    exec("def pair(v):\n    return (v,)\ndef dpair(v):\n    return (1.0,)", body)
    owner = type("Sourceless", (), {"stats": (total("pos"),), "pair": body["pair"], "dpair": body["dpair"]})
    formula = Formula("test_triton.Sourceless", stages_of(owner))
    assert "source" in backend.supports(formula, Dot, DEVICE, torch.float32)


def python(code, **variables):
    """Output of a fresh interpreter without Triton's."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment | variables)


def test_triton_is_imported_on_use_only_and_may_be_missing():
    code = """
import sys
import metric_kernels
from metric_kernels import backends
backend = backends.load("triton")
assert "triton" not in sys.modules
sys.modules["triton"] = None
assert backend.unusable() == "triton is not installed"
"""
    run = python(code)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("form", ["a", "b"])
@pytest.mark.parametrize("with_ref", [False, True])
def test_embeddings_far_from_the_origin_in_bfloat16(with_ref, form):
    """Where w (y - x) is a small difference, both of its parts are rounded."""
    generator = torch.Generator().manual_seed(3)
    x, y = ((5 + 0.3 * torch.randn(48, 16, generator=generator)).bfloat16().to(DEVICE) for _ in range(2))
    labels = (torch.arange(48) % 6).to(DEVICE)
    found = []
    for backend, dtype in (("triton", torch.bfloat16), ("reference", torch.float64)):
        loss = losses.ContrastiveLoss(distance=distances.LpDistance(normalize_embeddings=False), backend=backend)
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, y)]
        with use_form(form):
            loss(leaves[0], labels, *((None, leaves[1], labels.clone()) if with_ref else ())).backward()
        found.append([leaf.grad.double() for leaf in leaves[: 1 + with_ref]])
    for mine, exact in zip(*found, strict=True):
        assert (mine - exact).norm() < 8e-3 * exact.norm()


def test_kernels_compile_without_a_gpu(tmp_path):
    """`make aot` for a formula of one stage and one of two, in each form."""
    code = """
import sys
from metric_kernels.backends import aot
sys.argv[1:] = ["--only", "triton", "SupConLoss", "NTXentLoss"]
aot.SHAPES = (("float32", None), ("bfloat16", None), ("bfloat16", 128))
sys.exit(aot.main())
"""
    run = python(code, TRITON_CACHE_DIR=str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    row = r"^(\w[\w ]+?) +(\w+) +Dot +(float32|bfloat16|bfloat16 128) +sm_(\d+) +\d+ +\d+ +0 +\d+$"
    found = sorted(re.findall(row, run.stdout, re.MULTILINE))
    read, made = ["weights", "weights both"], [f"gradients {way}" for way in ("there", "back", "both")]
    ways = {"float32": read, "bfloat16": read, "bfloat16 128": made}
    stages = {"SupConLoss": ["stats 0"], "NTXentLoss": ["stats 0", "stats 1", "input_grads 1 drow"]}
    assert found == sorted(
        (name, loss, points, architecture)
        for architecture in ("80", "90")
        for loss, statistics in stages.items()
        for points, gradients in ways.items()
        for name in statistics + gradients
    )
    # Offsets of rows in a tile, and of coordinates, are 64 bits wide.
    for path in tmp_path.glob("*/*.ttir"):
        text = path.read_text()
        wide = r"arith\.muli .*tensor<\d+xi64>" if "tt.dot" in text else r"arith\.extsi %n\w* : i32 to i64"
        assert re.search(wide, text), path
        assert not re.search(r"arith\.muli .*tensor<\w+xi32>", text), path


def test_a_kernel_that_spills_fails_make_aot(tmp_path):
    code = """
import sys
from metric_kernels.backends import aot
sys.argv[1:] = ["--only", "triton", "NTXentLoss"]
aot.ARCHITECTURES, aot.SHAPES, aot.OPTIONS = (90,), aot.SHAPES[:1], {"maxnreg": 24}
sys.exit(aot.main())
"""
    run = python(code, TRITON_CACHE_DIR=str(tmp_path))
    assert run.returncode == 1, run.stderr
    assert re.search(r"sm_90 +24 +\d+ +[1-9]\d* +\d+$", run.stdout, re.MULTILINE), run.stdout


def supcon_by_both(made):
    """Statistics of SupCon and what the backward kernels make of them, by the generic kernels and by those by hand."""
    x, labels = points(0, 40, 16)
    n, signed, scale = len(x), (-1.0, 0.5), 1 / x.norm(dim=1)
    op = Op(losses.SupConLoss.formula, Dot, (signed,))
    cosines = x @ x.t() * scale[:, None] * scale
    nothing = x.new_empty(0)
    tile = Tile(nothing if made else cosines, labels, labels, 0, 0, nothing, nothing, 0.0)
    if made:
        tile = tile._replace(factors=Factors(x, x, scale, scale))
    found, grads = [], torch.randn(4, n, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    backend, block = backends.load("triton"), {"height": 32, "width": 32}
    given = (x, scale, labels, n, n, *signed) if made else (cosines, labels, labels, n, n, 0, *signed)
    for generic in (True, False):
        values, scales, out = torch.full((2, 4, n), torch.nan, device=DEVICE).unbind() + (torch.empty_like(x),)
        side = Side(values, grads, torch.zeros_like(values, dtype=torch.int64))
        if generic:
            backend.stage_stats(op, 0, tile, values[:0], values[:0], values, side.index, scales)
        elif made:
            handwritten.stats_made[(2,)](*given, values, scales, n, dim=16, **block)
        else:
            handwritten.stats_read[(2,)](*given, values, scales, n, **block)
        if made and generic:
            backend.gradients(op, tile, side, side, out, None, there=True, back=True)
        elif made:
            handwritten.gradients_made[(2, 1)](*given, values, grads, n, out, dim=16, depth=16, span=16, **block)
        else:
            out = cosines.clone()
            if generic:
                backend.weights(op, tile._replace(s=out), side, side, True, None)
            else:
                handwritten.weights_read[(2,)](out, *given[1:], *(values, grads, n) * 2, **block)
        found.append((values, scales[:2], out))
    return found


@pytest.mark.parametrize("made", [False, True])
def test_kernels_by_hand_do_the_same(made):
    for generic, by_hand in zip(*supcon_by_both(made), strict=True):
        torch.testing.assert_close(by_hand, generic, rtol=1e-5, atol=1e-5)


def test_a_formula_costs_what_a_kernel_by_hand_does():
    code = f"""
import sys, json
sys.path.insert(0, {str(Path(__file__).parent)!r})
from instructions import compared
print(json.dumps([(*case, generic._asdict(), by_hand._asdict()) for *case, generic, by_hand in compared()]))
"""
    run = python(code)
    assert run.returncode == 0, run.stderr
    cases = json.loads(run.stdout)
    assert [case[:3] for case in cases] == [
        [architecture, form, call]
        for architecture in (80, 90)
        for form, call in (("b", "stats 0"), ("b", "gradients both"), ("a", "stats 0"), ("a", "weights both"))
    ]
    for architecture, form, call, generic, by_hand in cases:
        case = architecture, form, call
        forward = call == "stats 0"
        if forward:
            assert generic["ptx_loop"] == by_hand["ptx_loop"], case
        # Backward a statistic has a slope of its own, where by hand there is one for all, and form (b) masks the weights: two
        # instructions of PTX for a pair. From there to SASS the assembler decides, now for the one and now for the other.
        assert generic["ptx_loop"] <= 1.05 * by_hand["ptx_loop"], case
        assert generic["sass_loop"] <= (1.02 if forward else 1.05) * by_hand["sass_loop"], case
        # Around the loop there are pointers to what is known of a reference set.
        assert generic["sass"] <= 1.07 * by_hand["sass"], case
        # Registers are handed out by the eight.
        assert generic["registers"] <= by_hand["registers"] + 8, case
