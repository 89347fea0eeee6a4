"""The exact losses over triplets, quadruplets and histograms of batches of many shapes, and the check against them."""

import functools

import pytest
import torch
from accuracy import assert_accurate
from cases import LAYOUTS, embeddings, value_and_grads
from term_cases import PARAMS, VARIANTS, build, takes_ref
from term_dense import dense

# Rows, columns of a reference set or None, and the layout of the labels: small enough for the loops of the oracles.
# No triplet and no pair of these is so near to a kink that float32 might take it for one beyond.
LOOPS = [(14, None, "unbalanced"), (14, 9, "unbalanced")]


def shapes(names_and_params, found):
    """Those cases with those of the shapes that their loss takes."""
    return [
        pytest.param(*case.values, shape, id=f"{case.id}-{'x'.join(map(str, shape))}", marks=slow_if(takes_long(case, shape)))
        for case in names_and_params
        for shape in found
        if shape[1] is None or takes_ref(*case.values[:2])
    ]


def takes_long(case, shape):
    """Plain formulas of many rows take seconds; the first variant of each loss on some is enough for every run."""
    name, params = case.values[:2]
    rows = max(shape[0], shape[1] or 0)
    return rows > 200 or rows > 100 and params != {**PARAMS[name], **VARIANTS[name][0]}


def slow_if(condition):
    return [pytest.mark.slow] if condition else []


def sets(dtype, rows, columns, layout):
    """Embeddings and labels of the batch and of a reference set."""
    # So short that no softplus is linear in float64.
    x, labels = 0.5 * embeddings(rows, 8, seed=rows, dtype=dtype), LAYOUTS[layout](rows)
    if columns is None:
        return x, labels, None, None
    return x, labels, 0.5 * embeddings(columns, 8, seed=columns, dtype=dtype), LAYOUTS[layout](columns)


def run(function, x, labels, ref, ref_labels):
    """Value and gradients of ``function(x, labels, ref, ref_labels)``."""
    return value_and_grads(lambda x, ref=None: function(x, labels, ref, ref_labels), x, ref)


@functools.cache
def _known(formula, name, options, pair_value, shape, dtype, arithmetic):
    inputs = sets(dtype, *shape)
    inputs = tuple(t.to(arithmetic) if t is not None and t.is_floating_point() else t for t in inputs)
    return run(functools.partial(formula, name, pair_value=pair_value, **dict(options)), *inputs)


def known(formula, name, params, pair_value, shape, dtype, arithmetic=torch.float64):
    """Of an oracle or a plain formula, each once."""
    return _known(formula, name, tuple(params.items()), pair_value, shape, dtype, arithmetic)


def check(loss, dtype, shape, expected, plain=(None, (None, None)), within=None, indices=None):
    actual = run(lambda x, labels, ref, ref_labels: loss(x, labels, indices, ref, ref_labels), *sets(dtype, *shape))
    assert {actual[0].dtype, *(grad.dtype for grad in actual[1])} == {dtype} and actual[0].shape == ()
    assert_accurate(actual[0], expected[0], plain[0], within)
    for grad, exact_grad, plain_grad in zip(actual[1], expected[1], plain[1]):
        assert_accurate(grad, exact_grad, plain_grad, within)
    return actual[0]


def check_dense(name, params, shape, dtype, pair_value=None, **options):
    """Against the plain formula in float64, with that in float32 to tell how well the problem is conditioned."""
    given = name, params, pair_value, shape, dtype
    plain = {} if dtype == torch.float64 else {"plain": known(dense, *given, arithmetic=torch.float32)}
    loss = build(name, params, pair_value, **options)
    check(loss, dtype, shape, known(dense, *given), within=1e-11 if dtype == torch.float64 else None, **plain)
