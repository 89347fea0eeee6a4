"""Every loss on every backend, in every type and shape, against the float64 oracles and dense formulas."""

import pytest
import torch
from accuracy import HALVES, assert_accurate
from cases import (
    BACKENDS,
    COMPILED,
    LOSSES,
    QUICK_BACKENDS,
    WITH_REF,
    backend_params,
    embeddings,
    unbalanced_labels,
    value_and_grads,
)
from dense_reference import dense_reference
from oracles import ORACLES
from pytorch_metric_learning import losses as peer_losses
from truth import assert_reference, batch, batch_and_reference, check_self, exact_reference, exact_self, plain_self

from benchmarks.dense import DENSE
from metric_kernels import losses
from metric_kernels.distances import LpDistance

# Half precision is computed in float32 before any backend sees it.
COMPILED_ONLY = backend_params(COMPILED)
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


def test_every_loss_has_an_oracle_and_a_dense_formula():
    assert sorted(ORACLES) == sorted(DENSE) == LOSSES


@pytest.mark.parametrize("name", WITH_REF)
def test_the_dense_formula_with_a_reference_set_is_its_oracle(name):
    x, labels, ref, ref_labels = batch_and_reference(9, 20, 8, torch.float64)
    exact, exact_grads = exact_reference(name, 9, 20, 8, torch.float64)
    value, grads = value_and_grads(lambda x, ref: dense_reference(name, x, labels, ref, ref_labels), x, ref)
    assert_accurate(value, exact)
    assert_accurate(torch.cat(grads), torch.cat(exact_grads))


@pytest.mark.parametrize("shape", SMALL + LARGE, ids=shape_id)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_batch(name, backend, shape):
    check_self(name, getattr(losses, name)(backend=backend), torch.float32, *shape)


@pytest.mark.parametrize("shape", SMALL + LARGE, ids=shape_id)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_batch_in_float64(name, backend, shape):
    check_self(name, getattr(losses, name)(backend=backend), torch.float64, *shape)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [SMALL[-1], LARGE[1]], ids=shape_id)
@pytest.mark.parametrize("backend", COMPILED_ONLY)
@pytest.mark.parametrize("name", LOSSES)
def test_batch_in_half_precision(name, backend, shape, dtype):
    check_self(name, getattr(losses, name)(backend=backend), dtype, *shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_larger_batch(name, backend):
    check_self(name, getattr(losses, name)(backend=backend), torch.float32, *LARGER)


def check_reference(name, backend, shape, dtype):
    x, labels, ref, ref_labels = batch_and_reference(*shape, dtype)
    loss = getattr(losses, name)(backend=backend)
    value, grads = value_and_grads(lambda x, ref: loss(x, labels, ref_emb=ref, ref_labels=ref_labels), x, ref)
    assert {value.dtype, *(grad.dtype for grad in grads)} == {dtype}
    assert_reference((value, grads), name, *shape, dtype)


@pytest.mark.parametrize("shape", REFERENCE, ids=shape_id)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WITH_REF)
def test_reference_set(name, backend, shape):
    check_reference(name, backend, shape, torch.float32)


@pytest.mark.parametrize("shape", REFERENCE, ids=shape_id)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", WITH_REF)
def test_reference_set_in_float64(name, backend, shape):
    check_reference(name, backend, shape, torch.float64)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [REFERENCE[2], REFERENCE[4]], ids=shape_id)
@pytest.mark.parametrize("backend", COMPILED_ONLY)
@pytest.mark.parametrize("name", WITH_REF)
def test_reference_set_in_half_precision(name, backend, shape, dtype):
    check_reference(name, backend, shape, dtype)


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
    assert_accurate(grad, exact_grad)


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
    """Unit vectors of one coordinate are all 1 or -1, exactly."""
    x, labels = embeddings(9, 1, dtype=torch.float32), unbalanced_labels(9)
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)()(x, labels), x)
    assert_accurate(value, ORACLES[name](x, labels))
    assert not grad.any()


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
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ntxent_far_from_its_optimum(backend):
    """A positive opposite to its anchor: the loss is about 200, where a sum of exponentials has left float32."""
    x, labels = torch.tensor([[1.0, 0.2], [-1.0, 0.1], [1.0, 0.0], [-1.0, 0.3]]), torch.tensor([0, 0, 1, 1])
    value, (grad,) = value_and_grads(lambda x: losses.NTXentLoss(temperature=0.01, backend=backend)(x, labels), x)
    exact, (exact_grad,) = value_and_grads(lambda x: ORACLES["NTXentLoss"](x, labels, temperature=0.01), x.double())
    assert exact > 190
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)
    # The peer adds the smallest float32 to the sum and takes the logarithm.
    assert peer_losses.NTXentLoss(temperature=0.01)(x, labels) < 88
