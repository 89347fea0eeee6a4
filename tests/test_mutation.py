"""The checks can fail: every loss with one thing changed in its formula is told from the right one."""

import dataclasses
import itertools

import pytest
import torch
from accuracy import assert_accurate
from cases import LOSSES, embeddings, unbalanced_labels, value_and_grads
from oracles import ORACLES

from metric_kernels import losses
from metric_kernels.language import Formula

_number = itertools.count()


def flipped(function):
    """The function with the sign of its first value that is not 0 flipped."""

    def flip(*arguments):
        values = list(function(*arguments))
        k = next(k for k, t in enumerate(values) if not isinstance(t, float) or t)
        values[k] = -values[k]
        return tuple(values)

    return flip


def scaled(function):
    return lambda *arguments: tuple(t * (1 + 1e-5) for t in function(*arguments))


def check(name, **changes):
    """The check of test_losses for a loss whose last stage has some functions replaced."""
    cls = getattr(losses, name)
    *others, last = cls.formula.stages
    stages = (*others, dataclasses.replace(last, **changes))
    mutant = type("Mutant", (cls,), {"formula": Formula(f"mutant {next(_number)}", stages)})
    x, labels = embeddings(20, 16, dtype=torch.float32), unbalanced_labels(20)
    loss = mutant(backend="reference")
    value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
    exact, (exact_grad,) = value_and_grads(lambda x: ORACLES[name](x, labels), x.double())
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("name", LOSSES)
def test_the_unchanged_formula_passes(name):
    check(name)


@pytest.mark.parametrize("change", [flipped, scaled])
@pytest.mark.parametrize("function", ["pair", "dpair", "drow", "dcol"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_changed_formula_fails(name, function, change):
    original = getattr(getattr(losses, name).formula.stages[-1], function)
    if original is None:
        pytest.skip(f"has no {function}")
    with pytest.raises(AssertionError):
        check(name, **{function: change(original)})


@pytest.mark.parametrize("function", ["drow", "dcol"])
@pytest.mark.parametrize("name", ["LiftedStructureLoss", "NTXentLoss"])
def test_a_forgotten_derivative_fails(name, function):
    if getattr(getattr(losses, name).formula.stages[-1], function) is None:
        pytest.skip(f"has no {function}")
    with pytest.raises(AssertionError):
        check(name, **{function: None})
