"""Every loss on every backend, in every type and shape, against the float64 oracles and dense formulas."""

import functools

import pytest
import torch
from accuracy import assert_accurate
from cases import BACKENDS, LAYOUTS, LOSSES, QUICK_BACKENDS, WITH_REF, embeddings, unbalanced_labels, value_and_grads
from dense_reference import dense_reference
from oracles import ORACLES

from benchmarks.dense import DENSE
from metric_kernels import losses
from metric_kernels.distances import LpDistance

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# The loops of an oracle take seconds above this number of rows; then the dense formula in float64 is the truth.
LOOPS = 33
# torch.nn.functional.softplus, which the dense formulas use, is linear above 20 and 2e-9 off there.
DENSE_BUDGET = 1e-9

# Rows, features and layout of the labels. The C++ kernels work on chunks of 512 columns and on lanes of 64.
SMALL = [
    (1, 3, "one_class"),
    (2, 3, "one_class"),
    (2, 3, "all_different"),
    (7, 3, "unbalanced"),
    (33, 64, "unbalanced"),
]
LARGE = [(130, 64, "pairs"), (257, 64, "unbalanced"), (511, 16, "halves"), (512, 16, "unbalanced"), (513, 16, "halves")]
LARGER = (1030, 64, "unbalanced")
# Rows, columns and features with a reference set.
REFERENCE = [(1, 1, 3), (2, 7, 16), (33, 20, 64), (3, 513, 16), (7, 1030, 16), (514, 34, 16)]


def shape_id(shape):
    return "x".join(map(str, shape))


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


def check_self(name, backend, dtype, rows, dim, layout):
    x, labels = batch(rows, dim, layout, dtype)
    exact, (exact_grad,) = exact_self(name, rows, dim, layout, dtype)
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)(backend=backend)(x, labels), x)
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


def test_every_loss_has_an_oracle_and_a_dense_formula():
    assert sorted(ORACLES) == sorted(DENSE) == LOSSES


@pytest.mark.parametrize("name", WITH_REF)
def test_the_dense_formula_with_a_reference_set_is_its_oracle(name):
    x, labels, ref, ref_labels = batch_and_reference(9, 20, 8, torch.float64)
    exact, exact_grads = exact_reference(name, 9, 20, 8, torch.float64)
    value, grads = value_and_grads(lambda x, ref: dense_reference(name, x, labels, ref, ref_labels), x, ref)
    assert_accurate(value, exact)
    assert_accurate(torch.cat(grads), torch.cat(exact_grads))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL + LARGE, ids=shape_id)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_batch(name, backend, shape, dtype):
    check_self(name, backend, dtype, *shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_larger_batch(name, backend, dtype):
    check_self(name, backend, dtype, *LARGER)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", REFERENCE, ids=shape_id)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WITH_REF)
def test_reference_set(name, backend, shape, dtype):
    if backend == "numba" and dtype == torch.float64:
        pytest.skip("numba takes part in float32")
    x, labels, ref, ref_labels = batch_and_reference(*shape, dtype)
    loss = getattr(losses, name)(backend=backend)
    value, grads = value_and_grads(lambda x, ref: loss(x, labels, ref_emb=ref, ref_labels=ref_labels), x, ref)
    assert {value.dtype, *(grad.dtype for grad in grads)} == {dtype}
    assert_reference((value, grads), name, *shape, dtype)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_batch_as_its_own_reference_set(name, backend):
    """The pairs (i, i) are left out where the labels are the same object, whatever the embeddings are."""
    x, labels = embeddings(14), unbalanced_labels(14)
    loss = getattr(losses, name)(backend=backend)
    value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
    same, (same_grad,) = value_and_grads(lambda x: loss(x, labels, ref_emb=x, ref_labels=labels), x)
    assert torch.equal(same, value) and torch.equal(same_grad, grad)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", WITH_REF)
def test_a_copy_of_the_batch_with_the_same_labels_object(name, backend):
    x, labels = embeddings(14), unbalanced_labels(14)
    loss = getattr(losses, name)(backend=backend)
    value, grads = value_and_grads(lambda x, ref: loss(x, labels, ref_emb=ref, ref_labels=labels), x, x)
    exact, exact_grads = value_and_grads(lambda x, ref: ORACLES[name](x, labels, ref, labels, exclude_diagonal=True), x, x)
    assert_accurate(value, exact)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", WITH_REF)
def test_the_batch_with_other_labels_keeps_its_diagonal(name, backend):
    x, labels = embeddings(14), unbalanced_labels(14)
    loss = getattr(losses, name)(backend=backend)
    value, (grad,) = value_and_grads(lambda x: loss(x, labels, ref_emb=x, ref_labels=labels.clone()), x)
    exact, (exact_grad,) = value_and_grads(lambda x: ORACLES[name](x, labels, x, labels), x)
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad, within=1e-10)


@pytest.mark.parametrize("grad_output", [3.5, -0.25, 0.0])
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_grad_output(name, backend, grad_output):
    x, labels = batch(*SMALL[-1], torch.float32)
    _, (exact,) = exact_self(name, *SMALL[-1], torch.float32)
    _, (plain,) = plain_self(name, *SMALL[-1], torch.float32)
    x.requires_grad_()
    getattr(losses, name)(backend=backend)(x, labels).backward(torch.tensor(grad_output))
    assert_accurate(x.grad, grad_output * exact, grad_output * plain)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)], ids=["x", "ref", "neither"])
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", WITH_REF)
def test_gradients_only_where_wanted(name, backend, wanted):
    x, labels, ref, ref_labels = batch_and_reference(33, 20, 64, torch.float32)
    inputs = x.requires_grad_(wanted[0]), ref.requires_grad_(wanted[1])
    value = getattr(losses, name)(backend=backend)(x, labels, ref_emb=ref, ref_labels=ref_labels)
    assert value.requires_grad == any(wanted)
    if any(wanted):
        value.backward()
    assert tuple(leaf.grad is not None for leaf in inputs) == wanted
    assert_reference((value.detach(), [leaf.grad for leaf in inputs]), name, 33, 20, 64, torch.float32)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)], ids=str)
@pytest.mark.parametrize("name", WITH_REF)
def test_the_two_sides_may_differ_in_type(name, dtypes):
    x, labels, ref, ref_labels = batch_and_reference(33, 20, 64, torch.bfloat16)
    loss = getattr(losses, name)()
    value, grads = value_and_grads(
        lambda x, ref: loss(x, labels, ref_emb=ref, ref_labels=ref_labels), x.to(dtypes[0]), ref.to(dtypes[1])
    )
    assert (value.dtype, *(grad.dtype for grad in grads)) == (dtypes[0], *dtypes)
    assert_reference((value, grads), name, 33, 20, 64, torch.bfloat16)


@pytest.mark.parametrize("name", LOSSES)
def test_one_feature_that_is_normalised_away_has_no_gradient(name):
    """Unit vectors of one coordinate are all 1 or -1: nothing but rounding can be left."""
    x, labels = embeddings(9, 1, dtype=torch.float32), unbalanced_labels(9)
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)()(x, labels), x)
    assert_accurate(value, ORACLES[name](x, labels))
    assert (grad * x).abs().max() < 1e-5


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "NTXentLoss", "LiftedStructureLoss"])
def test_one_feature(name, backend):
    labels = unbalanced_labels(9)
    x = embeddings(9, 1, dtype=torch.float32)
    loss = getattr(losses, name)(distance=LpDistance(normalize_embeddings=False), backend=backend)
    value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
    exact, (exact_grad,) = value_and_grads(
        lambda x: ORACLES[name](x, labels, distance="euclidean", normalize=False), x.double()
    )
    # The square of a distance is a difference of squares here: p + q - 2 s.
    assert_accurate(value, exact, within=1e-5)
    assert_accurate(grad, exact_grad, within=1e-4)
