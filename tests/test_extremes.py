"""row_extremes: the farthest and nearest positives and negatives, their indices and gradients."""

import math

import pytest
import torch
from accuracy import assert_accurate
from cases import BACKENDS, QUICK_BACKENDS, embeddings, unbalanced_labels, value_and_grads

from metric_kernels import RowExtremes, distances, row_extremes

VALUES = RowExtremes._fields[:4]


def brute_force(matrix, labels, ref_labels, exclude_self):
    """Values and first indices, (4, N) each, by loops over a matrix."""
    values, indices, dtype, matrix = [], [], matrix.dtype, matrix.tolist()
    labels, ref_labels = labels.tolist(), ref_labels.tolist()
    for largest, positive in ((True, True), (False, True), (True, False), (False, False)):
        rows, columns = [], []
        for i in range(len(labels)):
            best, at = (-math.inf if largest else math.inf), -1
            for j in range(len(ref_labels)):
                if (labels[i] == ref_labels[j]) != positive or exclude_self and i == j:
                    continue
                v = matrix[i][j]
                if at < 0 or (v > best if largest else v < best):
                    best, at = v, j
            rows.append(best)
            columns.append(at)
        values.append(rows)
        indices.append(columns)
    return torch.tensor(values, dtype=dtype), torch.tensor(indices)


@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_indices(backend, with_ref):
    x, labels = embeddings(40, 8, dtype=torch.float32), unbalanced_labels(40)
    ref = embeddings(530, 8, seed=1, dtype=torch.float32) if with_ref else None
    ref_labels = torch.arange(530) % 5 if with_ref else None
    found = row_extremes(x, labels, ref, ref_labels, backend=backend)
    matrix = distances.LpDistance()(x.double(), None if ref is None else ref.double())
    values, indices = brute_force(matrix, labels, labels if ref is None else ref_labels, ref is None)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(torch.stack(found[:4]).double(), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "distance", [distances.CosineSimilarity(), distances.SNRDistance(), distances.LpDistance(p=1)], ids=str
)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_distances(backend, distance):
    x, labels = embeddings(30), unbalanced_labels(30)
    found = row_extremes(x, labels, distance=distance, backend=backend)
    values, indices = brute_force(distance(x), labels, labels, True)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(torch.stack(found[:4]), values, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend, with_ref):
    """Batch-hard triplets with both hard and easy pairs, the extremes read from a matrix by their indices."""
    x, labels = embeddings(24, 16, dtype=torch.float32), torch.arange(24) // 4
    ref = embeddings(19, 16, seed=1, dtype=torch.float32) if with_ref else None
    ref_labels = torch.arange(19) % 6 if with_ref else None
    weight = torch.randn(4, 24, dtype=torch.float64)

    def ours(x, ref=None):
        return (torch.stack(row_extremes(x, labels, ref, ref_labels, backend=backend)[:4]) * weight.float()).sum()

    def exact(x, ref=None):
        matrix = distances.LpDistance()(x, ref)
        _, at = brute_force(matrix.detach(), labels, labels if ref is None else ref_labels, ref is None)
        return (matrix.gather(1, at.T).T * weight).sum()

    actual = value_and_grads(ours, x, ref)
    expected = value_and_grads(exact, x.double(), None if ref is None else ref.double())
    for grad, expected_grad in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, expected_grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_first_index(backend):
    x, ref = torch.eye(3)[[0, 0, 1, 1, 2]], torch.eye(3)[[0, 0, 1, 1, 2, 2, 0, 1]].repeat(140, 1)
    labels, ref_labels = torch.tensor([0, 1, 0, 1, 2]), torch.arange(len(ref)) % 2
    found = row_extremes(x, labels, ref, ref_labels, backend=backend)
    values, indices = brute_force(distances.LpDistance()(x, ref), labels, ref_labels, False)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(torch.stack(found[:4]), values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_positives_or_negatives(backend):
    x = embeddings(3, dtype=torch.float32).requires_grad_()
    alone = row_extremes(x, torch.tensor([0, 1, 2]), backend=backend)
    assert (alone.largest_positive == -math.inf).all() and (alone.smallest_positive == math.inf).all()
    assert (alone.indices[:2] == -1).all() and (alone.indices[2:] >= 0).all()
    together = row_extremes(x, torch.tensor([7, 7, 7]), backend=backend)
    assert (together.largest_negative == -math.inf).all() and (together.smallest_negative == math.inf).all()
    assert (together.indices[2:] == -1).all()
    (grad,) = torch.autograd.grad(torch.stack(together[:4])[:2].sum() + torch.stack(alone[:4])[2:].sum(), x)
    assert grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_an_extreme(backend):
    x = embeddings(6, dtype=torch.float32)
    x[1, 2] = math.nan
    found = row_extremes(x, torch.tensor([0, 0, 0, 1, 1, 1]), backend=backend)
    for values, at, rows in zip(found[:4], found.indices, [(0, 2), (0, 2), (3, 4, 5), (3, 4, 5)], strict=True):
        for row in rows:
            assert values[row].isnan() and at[row] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_types(dtype):
    x, labels = embeddings(12, dtype=dtype), unbalanced_labels(12).to(torch.int32)
    found = row_extremes(x, labels)
    assert all(v.dtype == dtype for v in found[:4]) and found.indices.dtype == torch.int64
    exact = row_extremes(x.double(), labels)
    assert torch.equal(found.indices, exact.indices)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ((torch.ones(3, 2), torch.tensor([0, 1])), ValueError),
        ((torch.ones(3, 2), torch.tensor([0.0, 1.0, 1.5])), TypeError),
        ((torch.ones(3), torch.tensor([0, 1, 1])), ValueError),
        ((torch.ones(3, 2), torch.tensor([0, 1, 1]), torch.ones(2, 2)), ValueError),
        ((torch.ones(3, 2), torch.tensor([0, 1, 1]), torch.ones(2, 2), torch.tensor([0])), ValueError),
        ((torch.ones(3, 2), torch.tensor([0, 1, 1]), torch.ones(2, 5), torch.tensor([0, 1])), ValueError),
        ((torch.ones(3, 2).long(), torch.tensor([0, 1, 1])), TypeError),
    ],
    ids=["short_labels", "float_labels", "rank", "no_ref_labels", "short_ref_labels", "width", "integers"],
)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_wrong_arguments(backend, arguments, error):
    """The same errors as those of a loss."""
    with pytest.raises(error, match="labels|embeddings|ref_emb"):
        row_extremes(*arguments, backend=backend)


@pytest.mark.parametrize("rows, columns", [(0, None), (1, None), (0, 3), (3, 0)], ids=str)
def test_empty(rows, columns):
    ref = None if columns is None else torch.ones(columns, 2)
    ref_labels = None if columns is None else torch.zeros(columns, dtype=torch.int64)
    found = row_extremes(torch.ones(rows, 2), torch.zeros(rows, dtype=torch.int64), ref, ref_labels)
    assert found.indices.shape == (4, rows) and (found.indices == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_reference_set(backend):
    x = embeddings(5).requires_grad_()
    found = row_extremes(x, torch.arange(5), x[:0], torch.arange(0), backend=backend)
    assert all((v == sign * torch.inf).all() for v, sign in zip(found[:4], (-1, 1, -1, 1)))
    assert (found.indices == -1).all() and found.indices.shape == (4, 5)
