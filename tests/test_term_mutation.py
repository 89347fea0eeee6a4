"""The checks can fail: losses over triplets, quadruplets and histograms with one thing wrong in a kernel are told apart."""

import dataclasses
import inspect
import itertools

import pytest
import torch
from term_cases import PARAMS
from term_truth import LOOPS, check_dense
from test_mutation import flipped as flipped_formula
from test_mutation import scaled as scaled_formula
from test_term_reducers import compare

from metric_kernels import backends, extremes, ordered, positive_pairs
from metric_kernels.backends import native_ordered, reference_binned, reference_ordered
from metric_kernels.language import Formula
from metric_kernels.losses import margin, quadruplet, quadruplet_log_sum_exp
from metric_kernels.ordered import SLOPES
from metric_kernels.quadruplets import NEGATIVES

_number = itertools.count()
SHAPE = (33, None, "unbalanced")


def case(name, **params):
    return name, {**PARAMS[name], **params}


TRIPLETS = case("TripletMarginLoss")
SMOOTH, SQUARED = case("TripletMarginLoss", smooth_loss=True), case("TripletMarginLoss", squared=True)
SEMI_HARD, SOFT_SEMI_HARD = case("SemiHardTripletLoss"), case("SemiHardTripletLoss", soft_margin=True)
QUADRUPLETS = [*(case("QuadrupletMarginLoss", negatives=negatives) for negatives in NEGATIVES), case("QuadrupletLoss")]
DYNAMIC, HISTOGRAM, FAST_AP = case("DynamicSoftMarginLoss"), case("HistogramLoss"), case("FastAPLoss")
RANKED = [TRIPLETS, DYNAMIC, *QUADRUPLETS]
SUMMED, BINNED = [SMOOTH, SQUARED], [HISTOGRAM, FAST_AP]
BACKEND = type(backends.load("reference"))
FREE = ("euclidean", False)


def check(name, params, pair_value=None, dtype=torch.float32, backend="reference"):
    """The check of test_term_losses."""
    check_dense(name, params, SHAPE, dtype, pair_value, backend=backend)


def flipped(value):
    return -value


def scaled(value):
    return value * (1 + 1e-5)


def forgotten(value):
    return 0 * value


def one_more(number):
    """Of every number but 0."""
    return number + (number > 0)


def rolled(value):
    """What belongs to a neighbour."""
    return value.roll(1, -1)


def swapped(value):
    """Positives for negatives."""
    return value.flip(1)


def with_itself(tile):
    """A tile in which a point is a positive of itself."""
    return tile._replace(diagonal=-1)


def taken(name, change):
    """A kernel that takes one of its arguments for another."""

    def mutant(kernel):
        def changed(*args, **kwargs):
            given = inspect.signature(kernel).bind(*args, **kwargs)
            given.arguments[name] = change(given.arguments[name])
            return kernel(*given.args, **given.kwargs)

        return changed

    return mutant


def added(name, change):
    """A kernel that adds something else to one of its arguments."""

    def mutant(kernel):
        def changed(*args, **kwargs):
            given = inspect.signature(kernel).bind(*args, **kwargs)
            out = given.arguments[name]
            if out is None:
                return kernel(*args, **kwargs)
            given.arguments[name] = share = torch.zeros_like(out)
            result = kernel(*given.args, **given.kwargs)
            out += change(share)
            return result

        return changed

    return mutant


def returned(change):
    """A kernel that returns something else."""
    return lambda kernel: lambda *args, **kwargs: change(kernel(*args, **kwargs))


# Where a kernel is, what is done to it, and the losses whose check must tell.
MUTANTS = [
    *((reference_ordered, "ranks", added, "totals", change, RANKED) for change in (flipped, scaled, forgotten)),
    (reference_ordered, "ranks", added, "counts", one_more, RANKED[:1] + QUADRUPLETS[:-1]),
    (reference_ordered, "ranks", added, "below", one_more, QUADRUPLETS),
    (reference_ordered, "ranks", added, "below", forgotten, QUADRUPLETS),
    (reference_ordered, "ranks", taken, "margin", flipped, RANKED),
    (reference_ordered, "ranks", taken, "lists", rolled, RANKED),
    *((reference_ordered, "rank_grads", added, "g", change, RANKED) for change in (flipped, scaled, forgotten)),
    (reference_ordered, "rank_grads", added, "below", one_more, RANKED[:2]),
    (reference_ordered, "rank_grads", added, "below", forgotten, RANKED[:2]),
    (reference_ordered, "rank_grads", taken, "margin", flipped, RANKED),
    *((reference_ordered, "sums", added, "totals", change, SUMMED) for change in (flipped, scaled, forgotten)),
    (reference_ordered, "sums", added, "counts", one_more, SUMMED),
    (reference_ordered, "sums", taken, "margin", flipped, SUMMED),
    (reference_ordered, "sums", taken, "low", lambda low: low - 1.0, [SQUARED]),
    *(
        (reference_ordered, "sum_grads", added, name, change, SUMMED)
        for name in ("g", "slopes")
        for change in (flipped, scaled, forgotten, rolled)
    ),
    (reference_ordered, "sum_grads", taken, "margin", flipped, SUMMED),
    (
        reference_ordered,
        "nearest",
        taken,
        "lists",
        lambda lists: torch.full_like(lists, torch.inf),
        [SEMI_HARD, SOFT_SEMI_HARD],
    ),
    (
        reference_ordered,
        "nearest",
        taken,
        "lists",
        lambda lists: torch.full_like(lists, -torch.inf),
        [SEMI_HARD, SOFT_SEMI_HARD],
    ),
    (reference_ordered, "nearest", taken, "sign", flipped, [SEMI_HARD, SOFT_SEMI_HARD]),
    (reference_binned, "histogram", added, "out", rolled, BINNED),
    (reference_binned, "histogram", added, "out", swapped, BINNED),
    (reference_binned, "histogram", added, "out", lambda out: out - out // 100_000, [FAST_AP]),
    (reference_binned, "histogram", taken, "tile", with_itself, BINNED),
    (reference_binned, "histogram", taken, "lone", lambda lone: not lone, [HISTOGRAM]),
    (reference_binned, "histogram_grads", taken, "lone", lambda lone: not lone, [HISTOGRAM]),
    (reference_binned, "histogram", taken, "low", lambda low: low + 1e-5, BINNED),
    *((reference_binned, "histogram_grads", added, "g", change, BINNED) for change in (flipped, scaled, forgotten, rolled)),
    (reference_binned, "histogram_grads", taken, "tables", swapped, BINNED),
    (ordered, "positives", taken, "sign", flipped, [TRIPLETS, SMOOTH, SEMI_HARD]),
    (ordered, "positives", taken, "tile", with_itself, [SMOOTH, SOFT_SEMI_HARD]),
    (ordered, "positive_columns", returned, None, lambda columns: columns[:, 1:], [TRIPLETS, SEMI_HARD]),
    (positive_pairs, "positive_columns", returned, None, lambda columns: columns[:, 1:], QUADRUPLETS),
    (ordered, "add_at", taken, "grads", forgotten, [TRIPLETS, SMOOTH, SEMI_HARD]),
    (ordered, "add_at", taken, "grads", scaled, [TRIPLETS, SMOOTH, SEMI_HARD]),
    *((BACKEND, "values", returned, None, change, [TRIPLETS, QUADRUPLETS[0], FAST_AP]) for change in (flipped, scaled)),
    *((BACKEND, "slopes", taken, "g", change, [TRIPLETS, HISTOGRAM]) for change in (flipped, scaled, forgotten)),
]


def mutants():
    found = []
    for place, name, kind, argument, change, cases in MUTANTS:
        mutant = kind(change) if argument is None else kind(argument, change)
        for k, (loss, params) in enumerate(cases):
            words = [
                name,
                kind.__name__,
                argument or "result",
                getattr(change, "__name__", "changed").strip("<>"),
                loss,
                str(k),
            ]
            found.append(pytest.param(place, name, mutant, loss, params, id="-".join(words)))
    return found


@pytest.mark.parametrize("name, params", [*RANKED, *SUMMED, SEMI_HARD, SOFT_SEMI_HARD, *BINNED], ids=str)
def test_the_unchanged_kernels_pass(name, params):
    check(name, params)


@pytest.mark.parametrize("place, kernel, mutant, name, params", mutants())
def test_a_changed_kernel_fails(monkeypatch, place, kernel, mutant, name, params):
    monkeypatch.setattr(place, kernel, mutant(getattr(place, kernel)))
    with pytest.raises(AssertionError):
        check(name, params)


# What makes no difference to the default reducers, and to which it does.
REDUCED = [
    *((kernel, "low", lambda low: 0.0, SQUARED, "low_high") for kernel in ("sums", "sum_grads")),
    *((kernel, "high", lambda high: torch.inf, case, "low_high") for kernel in ("sums", "sum_grads") for case in SUMMED),
    ("rank_grads", "scale", rolled, TRIPLETS, "per_anchor"),
    *(("sum_grads", "scale", rolled, case, "per_anchor") for case in SUMMED),
]


@pytest.mark.parametrize("kernel, argument, change, case, kind", REDUCED)
def test_a_changed_kernel_fails_with_a_reducer(monkeypatch, kernel, argument, change, case, kind):
    compare(*case, LOOPS[0], kind, backend="reference")
    monkeypatch.setattr(reference_ordered, kernel, taken(argument, change)(getattr(reference_ordered, kernel)))
    with pytest.raises(AssertionError):
        compare(*case, LOOPS[0], kind, backend="reference")


@pytest.mark.parametrize("change", [flipped, scaled])
@pytest.mark.parametrize("which", [0, 1], ids=["cost", "slope"])
@pytest.mark.parametrize("shape, case", [("hinge", SEMI_HARD), ("squared_hinge", SQUARED), ("softplus", SMOOTH)], ids=str)
def test_a_changed_shape_fails(monkeypatch, shape, case, which, change):
    functions = list(SLOPES[shape])
    function = functions[which]
    functions[which] = lambda t: change(function(t))
    monkeypatch.setitem(SLOPES, shape, tuple(functions))
    with pytest.raises(AssertionError):
        check(*case)


@pytest.mark.parametrize("change", [flipped, scaled, forgotten])
@pytest.mark.parametrize("name, params", [TRIPLETS, SMOOTH, QUADRUPLETS[0]], ids=str)
def test_a_changed_gradient_of_norms_fails(monkeypatch, name, params, change):
    def slopes(self, metric, tile, g, norm_grad):
        original(self, metric, tile, g, norm_grad)
        norm_grad.copy_(change(norm_grad))

    check(name, params, FREE, torch.float64)
    original = BACKEND.slopes
    monkeypatch.setattr(BACKEND, "slopes", slopes)
    with pytest.raises(AssertionError):
        check(name, params, FREE, torch.float64)


FORMULAS = [
    (margin, case("MarginLoss")),
    (extremes, case("BatchHardTripletLoss")),
    (quadruplet_log_sum_exp, case("QuadrupletLogSumExpLoss")),
    (quadruplet, case("QuadrupletLoss", adaptive=True, detach_margins=False)),
]


@pytest.mark.parametrize("change", [flipped_formula, scaled_formula])
@pytest.mark.parametrize("function", ["pair", "dpair"])
@pytest.mark.parametrize("module, case", FORMULAS, ids=[name for _, (name, _) in FORMULAS])
def test_a_changed_formula_fails(monkeypatch, module, case, function, change):
    check(*case, dtype=torch.float64)
    *others, last = module.FORMULA.stages
    last = dataclasses.replace(last, **{function: change(getattr(last, function))})
    monkeypatch.setattr(module, "FORMULA", Formula(f"mutant of a term {next(_number)}", (*others, last)))
    with pytest.raises(AssertionError):
        check(*case, dtype=torch.float64)


# All at once, in C++: what it returns, and what it writes.
STEPS = {
    "total": lambda total, count, tile, norm_grad: (scaled(total), count),
    "count": lambda total, count, tile, norm_grad: (total, count + 1),
    "slopes": lambda total, count, tile, norm_grad: (tile.s.copy_(scaled(tile.s)), (total, count))[1],
    "slope": lambda total, count, tile, norm_grad: (tile.s[3].zero_(), (total, count))[1],
    "norms": lambda total, count, tile, norm_grad: (norm_grad.copy_(scaled(norm_grad)), (total, count))[1],
}


@pytest.mark.skipif(backends.load("native").unusable() is not None, reason="needs the extension")
@pytest.mark.parametrize("mistake", STEPS)
def test_a_changed_step_fails(monkeypatch, mistake):
    def step(metric, tile, norm_grad, **options):
        found = original(metric, tile, norm_grad=norm_grad, **options)
        return STEPS[mistake](*found, tile, norm_grad)

    check(*TRIPLETS, FREE, backend="native")
    original = native_ordered.triplets_step
    monkeypatch.setattr(native_ordered, "triplets_step", step)
    with pytest.raises(AssertionError):
        check(*TRIPLETS, FREE, backend="native")
