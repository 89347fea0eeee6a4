"""The exact losses of random batches, of all types and shapes, and the check of a loss against them."""

import functools

import torch
from accuracy import assert_accurate
from cases import LAYOUTS, embeddings, value_and_grads
from dense_reference import dense_reference
from oracles import ORACLES

from benchmarks.dense import DENSE

# The loops of an oracle take seconds above this number of rows; then the dense formula in float64 is the truth.
LOOPS = 33
# torch.nn.functional.softplus, which the dense formulas use, is linear above 20 and 2e-9 off there.
DENSE_BUDGET = 1e-9


def batch(rows, dim, layout, dtype):
    return embeddings(rows, dim, seed=rows, dtype=dtype), LAYOUTS[layout](rows)


def batch_and_reference(rows, columns, dim, dtype):
    x, ref = embeddings(rows, dim, seed=rows, dtype=dtype), embeddings(columns, dim, seed=1000 + columns, dtype=dtype)
    return x, torch.arange(rows) % 3, ref, torch.arange(columns) % 5


@functools.cache
def exact_self(name, rows, dim, layout, dtype):
    x, labels = batch(rows, dim, layout, dtype)
    truth = ORACLES if rows <= LOOPS else DENSE
    return value_and_grads(lambda x: truth[name](x, labels), x.double())


@functools.cache
def plain_self(name, rows, dim, layout, dtype):
    """The plain formula in float32, which is what half precision is computed in."""
    x, labels = batch(rows, dim, layout, dtype)
    return value_and_grads(lambda x: DENSE[name](x, labels), x.float())


@functools.cache
def exact_reference(name, rows, columns, dim, dtype):
    x, labels, ref, ref_labels = batch_and_reference(rows, columns, dim, dtype)
    truth = ORACLES[name] if columns <= LOOPS else functools.partial(dense_reference, name)
    return value_and_grads(lambda x, ref: truth(x, labels, ref, ref_labels), x.double(), ref.double())


@functools.cache
def plain_reference(name, rows, columns, dim, dtype):
    if dtype == torch.float64 or columns < 5:
        return None, (None, None)
    x, labels, ref, ref_labels = batch_and_reference(rows, columns, dim, dtype)
    return value_and_grads(lambda x, ref: dense_reference(name, x, labels, ref, ref_labels), x.float(), ref.float())


def assert_reference(actual, name, rows, columns, dim, dtype):
    """Value and gradients are those of the exact loss."""
    exact, exact_grads = exact_reference(name, rows, columns, dim, dtype)
    plain, plain_grads = plain_reference(name, rows, columns, dim, dtype)
    assert_accurate(actual[0], exact, plain)
    for grad, exact_grad, plain_grad in zip(actual[1], exact_grads, plain_grads, strict=True):
        if grad is not None:
            assert_accurate(grad, exact_grad, plain_grad)


def check_self(name, loss, dtype, rows, dim, layout):
    """Value and gradient of a loss of that name are those of the exact one."""
    x, labels = batch(rows, dim, layout, dtype)
    exact, (exact_grad,) = exact_self(name, rows, dim, layout, dtype)
    value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
    assert value.dtype == grad.dtype == dtype and value.shape == ()
    if dtype == torch.float64:
        within = None if rows <= LOOPS else DENSE_BUDGET
        assert_accurate(value, exact, within=within)
        assert_accurate(grad, exact_grad, within=within)
        return
    has_both_kinds = layout == "unbalanced" or rows > LOOPS
    plain, (plain_grad,) = plain_self(name, rows, dim, layout, dtype) if has_both_kinds else (None, (None,))
    assert_accurate(value, exact, plain)
    assert_accurate(grad, exact_grad, plain_grad)
