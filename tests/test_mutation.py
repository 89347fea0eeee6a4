"""The checks can fail: every loss with one thing changed in its formula is told from the right one."""

import dataclasses
import itertools

import pytest
import torch
from cases import LOSSES
from truth import check_self

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
    check_self(name, mutant(backend="reference"), torch.float32, 20, 16, "unbalanced")


def has(name, function):
    return getattr(getattr(losses, name).formula.stages[-1], function) is not None


@pytest.mark.parametrize("name", LOSSES)
def test_the_unchanged_formula_passes(name):
    check(name)


@pytest.mark.parametrize("change", [flipped, scaled])
@pytest.mark.parametrize("name, function", [(n, f) for n in LOSSES for f in ("pair", "dpair", "drow", "dcol") if has(n, f)])
def test_a_changed_formula_fails(name, function, change):
    with pytest.raises(AssertionError):
        check(name, **{function: change(getattr(getattr(losses, name).formula.stages[-1], function))})


@pytest.mark.parametrize("name, function", [(n, f) for n in LOSSES for f in ("drow", "dcol") if has(n, f)])
def test_a_forgotten_derivative_fails(name, function):
    with pytest.raises(AssertionError):
        check(name, **{function: None})
