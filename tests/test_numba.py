"""The Numba backend: its vocabulary, its kernels against the reference backend, and its threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from accuracy import assert_accurate
from cases import BACKENDS, LOSSES, embeddings, value_and_grads
from forked import works_in_a_forked_child

from metric_kernels import backends, extremes, fn, losses, row_extremes
from metric_kernels.distances import LpDistance
from metric_kernels.language import Formula, Op, count, largest, lse, smallest, stages_of, total
from metric_kernels.losses import PairLoss
from metric_kernels.metrics import SNR, Dot, Euclidean, SquaredEuclidean
from metric_kernels.tile import Side, Tile

numba = pytest.importorskip("numba")
mpmath = pytest.importorskip("mpmath")

from metric_kernels.backends import numba as backend  # noqa: E402
from metric_kernels.backends import numba_fn  # noqa: E402

DTYPES = [np.float32, np.float64]


def arity(name):
    return getattr(numba_fn, name).__code__.co_argcount


def elementwise(name):
    """A function of the vocabulary, compiled, on arrays."""
    arguments = [f"x{k}" for k in range(arity(name))]
    entries = ", ".join(f"{a}[i]" for a in arguments)
    scope = {"function": getattr(numba_fn, name)}
    exec(f"def loop(y, {', '.join(arguments)}):\n for i in range(y.size):\n  y[i] = function({entries})", scope)
    loop = numba.njit(error_model="numpy", fastmath={"contract"})(scope["loop"])

    def call(*xs):
        y = np.empty_like(xs[-1])
        loop(y, *xs)
        return y

    return call


def anything(seed=0, size=300_000):
    """Numbers of float32 of every magnitude, and many ordinary ones."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(2**32, size=size, dtype=np.uint64).astype(np.uint32).view(np.float32)
    limits = np.finfo(np.float32)
    special = [
        0.0,
        1.0,
        math.inf,
        math.nan,
        limits.max,
        limits.tiny,
        limits.smallest_subnormal,
        88.7228,
        88.7229,
        103.9,
    ]
    with np.errstate(invalid="ignore"):
        usual = [generator.uniform(-110, 95, size), generator.normal(size=size), special, np.negative(special)]
        return np.concatenate([bits, *usual]).astype(np.float32)


def assert_close_in_ulps(found, exact, allowed=2.0, least=None):
    """Fails unless each number is the exact one but for some units in the last place, those of ``least`` if larger."""
    dtype = found.dtype.type
    with np.errstate(all="ignore"):
        rounded = np.asarray(exact, dtype)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(rounded))
        # Next to the largest number an infinity is as near.
        finite = np.abs(rounded) < np.finfo(dtype).max * dtype(1 - 1e-6)
        rest = ~finite & ~np.isnan(rounded)
        assert (np.sign(found[rest]) == np.sign(rounded[rest])).all()
        assert (np.abs(found[rest]) >= 0.999 * np.finfo(dtype).max).all()
        scale = np.abs(rounded) if least is None else np.maximum(np.abs(rounded), np.asarray(least, dtype))
        errors = np.abs(found[finite] - exact[finite]) / np.spacing(scale[finite])
    assert errors.max() <= allowed, f"off by {errors.max()} units"


ONE = {
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "relu": lambda x: np.where(x < 0, 0, x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0),
    "sqrt": np.sqrt,
    "step": lambda x: np.where(x > 0, 1.0, 0.0),
    "stop": lambda x: x,
}
TWO = {"logaddexp": np.logaddexp, "maximum": np.maximum, "minimum": np.minimum}


def test_the_vocabulary_is_complete():
    assert numba_fn.__all__ == fn.__all__
    assert {*ONE, *TWO, "where", "within"} == set(fn.__all__)


@pytest.mark.parametrize("name", ONE)
def test_functions_of_a_float32(name):
    x = anything()
    with np.errstate(all="ignore"):
        exact = ONE[name](x.astype(np.float64))
    # A sigmoid may be 0 where it is no normal number.
    least = np.finfo(np.float32).tiny * 2**23 if name == "sigmoid" else None
    assert_close_in_ulps(elementwise(name)(x), exact, 2.5 if name == "sigmoid" else 2.0, least)


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_float32(name):
    x, y = anything(), anything(seed=1)
    y[::3] = x[::3]
    y[1::3] = np.nextafter(-x[1::3], np.float32(0))
    with np.errstate(all="ignore"):
        exact = TWO[name](x.astype(np.float64), y.astype(np.float64))
    if name == "logaddexp":
        # The difference of two numbers where it is near 0, and no better than the exponent x - y.
        assert_close_in_ulps(elementwise(name)(x, y), exact, 8.0, np.abs(np.maximum(x, y)))
    else:
        np.testing.assert_array_equal(elementwise(name)(x, y), exact)


MPMATH = {
    "exp": mpmath.exp,
    "log": lambda x: mpmath.log(x) if x > 0 else mpmath.nan,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "logaddexp": lambda x: mpmath.log(mpmath.exp(x) + mpmath.exp(0.5)),
}


@pytest.mark.parametrize("name", MPMATH)
def test_functions_of_a_float64(name):
    generator = np.random.default_rng(0)
    x = np.concatenate([generator.uniform(-700, 700, 200), generator.normal(size=200), [0.5, 1e-300, -1e-300]])
    with mpmath.workdps(330):
        exact = np.array([float(MPMATH[name](mpmath.mpf(float(value)))) for value in x])
    arguments = [x, np.full_like(x, 0.5)][: arity(name)]
    assert_close_in_ulps(elementwise(name)(*arguments), exact, 2.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_passes(dtype):
    x = np.linspace(-2, 2, 9, dtype=dtype)
    nans, low, high = np.full_like(x, math.nan), np.full_like(x, -1), np.full_like(x, 1)
    for name in set(ONE) - {"step"}:
        assert np.isnan(elementwise(name)(nans)).all()
    for name in TWO:
        assert np.isnan(elementwise(name)(nans, x)).all() and np.isnan(elementwise(name)(x, nans)).all()
    within, where = elementwise("within"), elementwise("where")
    np.testing.assert_array_equal(within(x, low, high), (x > -1) & (x < 1))
    np.testing.assert_array_equal(where(x > 0, x, low), np.where(x > 0, x, low))
    assert not within(nans, low, high).any() and not elementwise("step")(nans).any()


@pytest.mark.parametrize("name", sorted({*ONE, *TWO, "within"}))
def test_types_stay_what_they_are(name):
    function = getattr(numba_fn, name)
    call = numba.njit(lambda numbers: function(*numbers))
    for dtype, expected in zip(DTYPES, (numba.float32, numba.float64)):
        call((dtype(1.5),) * arity(name))
        (signature,) = [s for s in call.nopython_signatures if s.args[0].dtype == expected]
        assert signature.return_type == expected


SCALE = 2.0


def own_formulas():
    margin = 0.25

    class Everything:
        """Each kind of statistic on each side, each kind of input, and constants from wherever they may come."""

        class First:
            stats = (lse("neg"), smallest("pos"), lse("pos"), largest("neg"), count("neg"))

            def pair(v, sign, scale):
                return SCALE * sign * (margin - v), sign * v, v / scale, v + 1, fn.step(v - margin)

            def dpair(v, sign, scale):
                return -SCALE * sign, sign, 1 / scale, 1, 0

        class Second:
            stats = (total("pos"), total("neg"), lse("neg"), smallest("neg"), largest("pos"), count("pos"))

            def pair(v, row0, row2, col0, low0, high0):
                hard = fn.relu(2 - fn.softplus(col0 - row0)) * fn.exp(-(v**2))
                soft = fn.where((v > low0) | (v < -1), fn.sigmoid(row2 + v), fn.minimum(v, row2))
                return hard, soft, soft + col0, col0 - v, fn.maximum(v, row0), fn.within(hard, low0, high0)

            def dpair(v, row0, row2, col0, low0, high0):
                hard = fn.relu(2.0 - fn.softplus(col0 - row0)) * fn.exp(-(v**2))
                slope = fn.sigmoid(row2 + v) * fn.sigmoid(-row2 - v)
                inside = fn.where((v > low0) | (v < -1), slope, fn.step(row2 - v))
                return -2 * v * hard, inside, inside, -1.0, fn.step(v - row0), 0.0

            def drow(v, row0, row2, col0, low0, high0):
                near = fn.exp(-(v**2)) * fn.sigmoid(col0 - row0)
                return near, 0.0, 0.0, v, fn.logaddexp(v, row2), 1.0, fn.sqrt(fn.abs(v)), 0.0, col0, v, 0.0, 0.0

            def dcol(v, row0, row2, col0, low0, high0):
                return v, row2, fn.log(1.0 + fn.abs(row0)), fn.stop(v), 0.0, 0.0

    class ManyNegatives:
        """More arrays to read in one loop than LLVM checks for overlap."""

        stats = (lse("neg"), lse("neg"), lse("neg"), lse("neg"), total("neg"))

        def pair(v, sign):
            return v, 2.0 * v, sign * v, -2.0 * v, v * v

        def dpair(v, sign):
            return 1.0, 2.0, sign, -2.0, 2.0 * v

    class OnlyPositives:
        stats = (total("pos"), lse("pos"))

        def pair(v):
            return v, -v

        def dpair(v):
            return 1.0, -1.0

    return [Formula(f"{__name__}.{c.__name__}", stages_of(c)) for c in (Everything, ManyNegatives, OnlyPositives)]


FORMULAS = [*(losses.REGISTRY[name].formula for name in LOSSES), extremes.FORMULA, *own_formulas()]
METRICS = [Dot, Euclidean, SquaredEuclidean, SNR]
# Compiling is what takes long: each formula has one metric in float32 and another in float64.
CASES = [
    pytest.param(f, METRICS[(k + 3 * double) % 4], dtype, id=f"{f.key.rpartition('.')[2]}-{dtype}")
    for k, f in enumerate(FORMULAS)
    for double, dtype in enumerate((torch.float32, torch.float64))
    if not (double and f.key.endswith(("ManyNegatives", "OnlyPositives")))
]
NUMBERS = {"sign": -1.0, "low0": 0.0, "low1": 0.0, "high0": math.inf, "high1": math.inf, "gamma": 2.0}


class Contract:
    """The same tile out of the middle of a matrix for a backend, with any statistics and gradients of its points."""

    rows = slice(7, 30)

    def __init__(self, case, metric, same, dtype):
        generator = torch.Generator().manual_seed(1)
        self.op = Op(case, metric, tuple(tuple(NUMBERS.get(p, 0.7) for p in stage.params) for stage in case.stages))
        n, m = 37, 37 if same else 53
        x = 0.4 * torch.randn(n, 6, generator=generator)
        y = x if same else 0.4 * torch.randn(m, 6, generator=generator)
        labels = torch.randint(0, 5, (n,), generator=generator)
        labels[8:11] = torch.tensor([-7, 2**40, 99])
        ref_labels = labels if same else torch.randint(0, 6, (m,), generator=generator)
        x, y = x.to(dtype), y.to(dtype)
        x[12], y[13] = y[20], x[9]
        product, p, q = x @ y.t(), x.square().sum(1), y.square().sum(1)
        at, diagonal = self.rows, self.rows.start if same else -1
        self.tile = Tile(product[at], labels[at], ref_labels, at.start, diagonal, p[at], q, 1e-6)
        self.mine = self.side(n, m, dtype, generator)
        self.other = self.mine if same else self.side(m, n, dtype, generator)

    def side(self, number, others, dtype, generator):
        values, grads = torch.randn(2, len(self.op.formula.stats), number, generator=generator).to(dtype)
        return Side(values, grads, torch.randint(0, others, values.shape, generator=generator))

    def to(self, dtype):
        """The same numbers in another type."""
        copy = object.__new__(Contract)
        copy.op, copy.tile = self.op, Tile(*(t.to(dtype) if is_real(t) else t for t in self.tile))
        copy.mine, copy.other = (Side(s.values.to(dtype), s.grads.to(dtype), s.index) for s in (self.mine, self.other))
        return copy

    def stats(self, name, stage):
        first = self.op.formula.first[stage]
        out = slice(first, first + len(self.op.formula.stages[stage].stats))
        values = self.mine.values[:, self.rows].clone()
        index = torch.full(values.shape, -9)
        scale = torch.ones_like(values)
        backends.load(name).stats(self.op, [stage], self.tile, values, self.other.values, index, scale)
        return values[out], index[out], scale[out]

    def weights(self, name, both, norms):
        tile = self.tile._replace(s=self.tile.s.clone())
        norm_grad = torch.empty(len(tile.s), dtype=tile.s.dtype) if norms else None
        backends.load(name).weights(self.op, tile, self.mine.at(self.rows), self.other, both, norm_grad)
        return (tile.s, norm_grad[:, None]) if norms else (tile.s,)

    def input_grads(self, name, stage, swapped):
        return backends.load(name).input_grads(self.op, stage, self.tile, self.mine.at(self.rows), self.other, swapped)


def is_real(value):
    return torch.is_tensor(value) and value.is_floating_point()


def assert_rows_accurate(found, plain, exact):
    """Every row by itself, so that no large number hides an error in a small one. Infinities are what they are."""
    for one, other, truth in zip(found, plain, exact, strict=True):
        finite = truth.isfinite()
        assert torch.equal(one[~finite], other[~finite])
        assert_accurate(one[finite], truth[finite], other[finite])


@pytest.mark.parametrize("same", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["self", "reference"])
@pytest.mark.parametrize("case, metric, dtype", CASES)
def test_kernels_are_those_of_the_reference_backend(case, metric, dtype, same):
    given = Contract(case, metric, same, dtype)
    exact = given.to(torch.float64)
    for number, stage in enumerate(case.stages):
        (found, index, _), (plain, columns, _) = given.stats("numba", number), given.stats("reference", number)
        assert_rows_accurate(found, plain, exact.stats("reference", number)[0])
        assert torch.equal(index, columns)
        for swapped, slope in ((False, stage.drow), (True, stage.dcol)):
            if slope:
                found, plain = (given.input_grads(name, number, swapped) for name in ("numba", "reference"))
                assert_rows_accurate(found, plain, exact.input_grads("reference", number, swapped))
    results = [given.weights(name, same, metric.norms) for name in ("numba", "reference")]
    for found, plain, truth in zip(*results, exact.weights("reference", same, metric.norms)):
        assert_rows_accurate(found, plain, truth)


def test_both_directions_between_two_sets():
    case = next(f for f in FORMULAS if f.key.endswith("Everything"))
    given = Contract(case, SNR, False, torch.float64)
    for found, plain in zip(given.weights("numba", True, True), given.weights("reference", True, True)):
        assert_rows_accurate(found, plain, plain)


def test_extremes_take_the_first_of_equals_and_know_of_none():
    matrix = LpDistance(p=1, normalize_embeddings=False)
    x = torch.tensor([[0.0], [1.0], [-1.0], [1.0], [-1.0], [5.0], [7.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    found, expected = (row_extremes(x, labels, distance=matrix, backend=name) for name in ("numba", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert found.indices[0, 0] == 1 and found.indices[3, 0] == 3
    for lonely in (torch.zeros(7, dtype=torch.int64), torch.arange(7)):
        found, expected = (row_extremes(x, lonely, distance=matrix, backend=name) for name in ("numba", "reference"))
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert (found.indices == -1).any()


def test_extremes_that_are_infinite_or_not_a_number():
    given = Contract(extremes.FORMULA, Dot, True, torch.float32)
    s = given.tile.s
    s[0], s[1] = math.inf, -math.inf
    s[2, 5], s[3, 31], s[4, 20:] = math.nan, -math.nan, -math.inf
    s[5, ::2] = math.inf
    s[6] = 0.0
    (found, index, _), (expected, columns, _) = given.stats("numba", 0), given.stats("reference", 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(index, columns)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_log_sum_exp_of_numbers_that_are_not_finite(wrong):
    given = Contract(losses.MultiSimilarityLoss.formula, Dot, True, torch.float32)
    given.tile.s[::2, ::3] = wrong
    given.tile.s[3] = wrong
    (found, _, scale), (expected, _, other) = given.stats("numba", 0), given.stats("reference", 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    for values, scales in ((found, scale), (expected, other)):
        assert (scales[~values.isfinite()] == 1).all() and scales.isfinite().all()


@pytest.mark.parametrize("name", BACKENDS)
def test_the_scale_of_a_log_sum_exp_makes_up_for_its_rounding(name):
    given = Contract(losses.SupConLoss.formula, Dot, False, torch.float32)
    given.op = given.op._replace(params=((-1.0, 1.0),))  # pair values themselves
    given.tile.s.mul_(100)
    values, _, scale = given.stats(name, 0)
    negative = given.tile.labels[:, None] != given.tile.ref_labels
    for k, mask in enumerate((~negative, negative)):
        exact = given.tile.s.double().masked_fill(~mask, -math.inf).logsumexp(1)
        assert (scale[k, exact.isneginf()] == 1).all()
        torch.testing.assert_close(values[k].double() - scale[k].double().log(), exact, rtol=0.0, atol=5e-7)
    assert (values[1] - exact).abs().max() > 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_nan_in_an_embedding_reaches_the_loss(name):
    x = embeddings(10, dtype=torch.float32)
    x[2, 3] = math.nan
    assert losses.REGISTRY[name](backend="numba")(x, torch.arange(10) // 2).isnan()


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "NTXentLoss", "LiftedStructureLoss"])
def test_one_anchor_alone_and_no_pairs(name):
    loss, other = (losses.REGISTRY[name](backend=b) for b in ("numba", "reference"))
    for labels in (torch.tensor([3]), torch.arange(4), torch.zeros(4, dtype=torch.int64)):
        x = embeddings(len(labels), dtype=torch.float32)
        value, (grad,) = value_and_grads(lambda x, labels=labels: loss(x, labels), x)
        expected, (truth,) = value_and_grads(lambda x, labels=labels: other(x, labels), x)
        torch.testing.assert_close((value, grad), (expected, truth))


class OwnLoss(PairLoss):
    """A loss of a user."""

    stats = (lse("neg"), total("pos"), count("pos"))

    def __init__(self, temperature, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    def pair(v, sign, temperature):
        return SCALE * fn.softplus(-sign * v / temperature), (1 + sign * v) ** 2, 1

    def dpair(v, sign, temperature):
        slope = -SCALE * sign * fn.sigmoid(-sign * v / temperature) / temperature
        return slope, 2 * sign * (1 + sign * v), 0

    def row(negatives, positives, number):
        return fn.softplus(negatives) + positives / fn.maximum(number, fn.where(number > 0.0, number, 1.0))


class Untranslatable(PairLoss):
    stats = (lse("neg"),)

    def pair(v):
        return (torch.tanh(v),)

    def dpair(v):
        return (1.0 - torch.tanh(v) ** 2,)

    def row(negatives):
        return fn.softplus(negatives)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_loss_of_a_user(dtype):
    x, labels = embeddings(30, dtype=dtype), torch.arange(30) % 7
    (value, (grad,)), (plain, (plain_grad,)), (exact, (truth,)) = (
        value_and_grads(lambda x, name=name: OwnLoss(0.3, backend=name)(x, labels), leaf)
        for name, leaf in (("numba", x), ("reference", x), ("reference", x.double()))
    )
    assert_accurate(value, exact, plain)
    assert_accurate(grad, truth, plain_grad)


def test_numba_is_chosen_where_no_other_kernel_is_compiled():
    op = Op(OwnLoss.formula, Dot, ((-1.0, 0.3),))
    assert backends.choose(op, torch.device("cpu"), torch.float32).name == "numba"


def test_a_formula_that_is_not_in_the_language():
    x, labels = embeddings(6), torch.arange(6) // 2
    expected = Untranslatable(backend="reference")(x, labels)
    assert Untranslatable()(x, labels) == expected
    with pytest.raises(RuntimeError, match=r"numba: Untranslatable.pair does not compile: .*tanh"):
        Untranslatable(backend="numba")(x, labels)


def test_reasons_against(monkeypatch):
    supports = backend.BACKEND.supports
    assert "cuda" in supports(OwnLoss.formula, Dot, "cuda", torch.float32)
    assert "float16" in supports(OwnLoss.formula, Dot, "cpu", torch.float16)
    assert supports(OwnLoss.formula, Dot, "cpu", torch.float64) is None
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert "NUMBA_DISABLE_JIT" in supports(OwnLoss.formula, Dot, "cpu", torch.float32)


def test_a_missing_numba_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert "numba cannot be imported" in backend.BACKEND.unusable()


def test_numba_is_imported_on_first_use_only():
    program = (
        "import sys, torch, metric_kernels.backends.numba\n"
        "assert 'numba' not in sys.modules\n"
        "loss = metric_kernels.losses.ContrastiveLoss(backend='reference')\n"
        "loss(torch.eye(4), torch.tensor([0, 0, 1, 1]))\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class LargePass:
    """Statistics and weights of a tile that is worth several threads, some labels of which have many positives."""

    def __init__(self):
        generator = torch.Generator().manual_seed(2)
        n, case = 300, losses.MultiSimilarityLoss.formula
        labels = torch.arange(n) // 2
        labels[:120] = torch.arange(120) % 2
        self.op = Op(case, Dot, ((-1.0, 2.0, 10.0, 0.5),))
        none = torch.empty(0)
        self.tile = Tile(torch.randn(n, n, generator=generator), labels, labels, 0, 0, none, none, 1e-6)
        self.values = torch.empty(2, n)
        self.grads = torch.randn(2, n, generator=generator)
        self.index = torch.empty(0, n, dtype=torch.int64)

    def run(self):
        none, scale = self.values[:0], torch.ones_like(self.values)
        backend.BACKEND.stage_stats(self.op, 0, self.tile, none, none, self.values, self.index, scale)
        side = Side(self.values, self.grads, self.index)
        backend.BACKEND.weights(self.op, self.tile, side, side, True, None)
        return self.values.numpy(), self.tile.s.numpy()


def assert_identical(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("openmp", [True, False], ids=["OpenMP", "Python threads"])
def test_the_number_of_threads_changes_nothing(threads, monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(backend, "_openmp", lambda: None)
    threads(1)
    expected = LargePass().run()
    assert all(np.isfinite(array).all() for array in expected)
    for number in (2, 5):
        threads(number)
        assert_identical(LargePass().run(), expected)


def test_calls_from_several_threads_at_once(threads):
    threads(2)
    expected, passes, found = LargePass().run(), [LargePass() for _ in range(60)], {}

    def work(mine):
        for k in mine:
            found[k] = passes[k].run()

    workers = [threading.Thread(target=work, args=(range(start, 60, 3),)) for start in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 60
    for results in found.values():
        assert_identical(results, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_no_threads_to_wait_for(threads):
    threads(2)
    expected, again = LargePass().run(), LargePass()
    assert works_in_a_forked_child(lambda: assert_identical(again.run(), expected))
