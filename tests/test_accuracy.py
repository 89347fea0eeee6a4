"""The comparisons themselves: they accept what is right and refuse what is nearly right."""

import math

import pytest
import torch
from accuracy import (
    BUDGET,
    HALVES,
    assert_accurate,
    assert_accurate_where_terms_cancel,
    budget,
    relative_error,
)
from conftest import poisoned_numpy

EXACT = torch.linspace(-3.0, 5.0, 101, dtype=torch.float64) ** 3
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def refuses(actual, exact=EXACT, **options):
    with pytest.raises(AssertionError):
        assert_accurate(actual, exact, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accepts_the_rounded_exact_result(dtype):
    assert_accurate(EXACT.to(dtype), EXACT)
    assert_accurate(EXACT[7].to(dtype), EXACT[7])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_refuses_a_result_that_is_off_by_two_budgets(dtype):
    refuses((EXACT * (1 + 2 * budget(EXACT, dtype))).to(dtype))
    one = EXACT.clone()
    one[50:60] *= 1.5
    refuses(one.to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_refuses_half_precision_that_was_rounded_twice_as_coarsely(dtype):
    # The result of arithmetic in half precision, here one addition, rounds more than once.
    refuses((EXACT.to(dtype) * 1.1).to(dtype) / 1.1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_accepts_half_precision_of_a_result_in_float32(dtype):
    close = (EXACT * (1 + BUDGET[torch.float32])).float().to(dtype)
    assert_accurate(close, EXACT)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", [math.nan, math.inf], ids=str)
def test_refuses_what_is_not_finite(dtype, wrong):
    spoiled = EXACT.to(dtype, copy=True)
    spoiled[3] = wrong
    refuses(spoiled)


def test_refuses_a_wrong_sign_a_wrong_scale_and_a_wrong_shape():
    refuses(-EXACT)
    refuses(2 * EXACT)
    refuses(torch.zeros_like(EXACT))
    refuses(EXACT[:-1])
    refuses(EXACT[:, None])


def test_an_exact_zero_is_met_by_zeros_only():
    zeros = torch.zeros(3, dtype=torch.float64)
    assert_accurate(torch.zeros(3), zeros)
    refuses(torch.full((3,), 1e-30), zeros)
    refuses(torch.full((3,), math.nan), zeros)


def test_the_truth_must_be_of_float64_and_finite():
    refuses(EXACT, EXACT.float())
    refuses(EXACT, EXACT / 0)


def test_a_badly_conditioned_problem_is_judged_by_the_plain_formula():
    off = (EXACT * (1 + 5e-5)).float()
    refuses(off)
    assert_accurate(off, EXACT, plain=(EXACT * (1 + 4e-5)).float())
    refuses(off, plain=(EXACT * (1 + 1e-5)).float())


def test_what_cancels_leaves_its_rounding():
    value, point, grad = torch.tensor(3.0), torch.eye(2, 3), torch.tensor([[0.5, -4.0, 0.0], [0.0, 0.0, 0.0]])

    def check(value, grad, point=point):
        assert_accurate_where_terms_cancel(value, value_exact, (point,), (grad,), (exact_grad,))

    value_exact, exact_grad = value.double(), grad.double()
    rounding = BUDGET[torch.float32]
    check(value, grad)
    check(value + rounding, grad + 2 * rounding)
    check(value, grad + 1, point=torch.full((2, 3), 1e-8))
    for wrong in [(value + 10 * rounding, grad), (value, grad + 10 * rounding), (value * math.nan, grad), (value, -grad)]:
        with pytest.raises(AssertionError):
            check(*wrong)
    with pytest.raises(AssertionError):
        check(value, torch.full_like(grad, math.nan))


def test_relative_error():
    assert relative_error(torch.tensor([3.0, 4.1]), torch.tensor([3.0, 4.0]).double()) == pytest.approx(0.02, rel=1e-5)


def test_fresh_memory_is_poisoned():
    assert torch.empty(3).isnan().all() and torch.ones(1).new_empty(3).isnan().all()
    assert torch.empty_like(torch.ones(2, 2, dtype=torch.bfloat16)).isnan().all()
    numpy = poisoned_numpy()
    assert numpy.isnan(numpy.empty(3, numpy.float32)).all() and (numpy.empty(3, numpy.uint32) == 2**32 - 1).all()
