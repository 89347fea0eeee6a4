"""Random shapes, labels, scales and duplicates: whatever is drawn, the backends agree with the float64 truth."""

import pytest
import torch
from accuracy import assert_accurate, assert_accurate_where_terms_cancel
from cases import BACKENDS, LOSSES, PARAMS, QUICK_BACKENDS, WITH_REF, value_and_grads
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ORACLES

from benchmarks.dense import DENSE
from metric_kernels import losses


@st.composite
def batches(draw, rows=12, dim=6):
    """Embeddings with duplicated and zero rows, rows of different scales, and labels of any class structure."""
    size, dim = draw(st.integers(0, rows)), draw(st.integers(0, dim))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    if size:
        x = x[torch.tensor(draw(st.lists(st.integers(0, size - 1), min_size=size, max_size=size)))]
        # Powers of two, so that scaled duplicates are the same point once they are normalised.
        scales = draw(st.lists(st.sampled_from([0.0, 2.0**-10, 1.0, 32.0]), min_size=size, max_size=size))
        x = x * torch.tensor(scales, dtype=torch.float64)[:, None]
    labels = draw(st.lists(st.integers(-2, draw(st.integers(-2, 6))), min_size=size, max_size=size))
    return x, torch.tensor(labels, dtype=torch.int64)


def check(name, backend, dtype, x, labels, ref=None, ref_labels=None):
    # Not the default margins: a zero row is at distance 1 of all others.
    loss = getattr(losses, name)(**PARAMS[name], backend=backend)
    inputs = tuple(t if t is None else t.to(dtype) for t in (x, ref))
    value, grads = value_and_grads(lambda x, ref=None: loss(x, labels, None, ref, ref_labels), *inputs)
    assert value.isfinite() and all(grad.isfinite().all() for grad in grads)
    if not all(t.numel() for t in inputs if t is not None):
        assert value == 0 and not any(grad.any() for grad in grads)
        return
    exact, exact_grads = value_and_grads(lambda x, ref=None: ORACLES[name](x, labels, ref, ref_labels, **PARAMS[name]), *inputs)
    points = tuple(t for t in inputs if t is not None)
    assert_accurate_where_terms_cancel(value, exact, points, grads, exact_grads)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15)
@given(batch=batches())
def test_batch(name, backend, batch):
    check(name, backend, torch.float64, *batch)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", WITH_REF)
@settings(max_examples=15)
@given(batch=batches(dim=5), reference=batches(dim=5), dim=st.integers(0, 5))
def test_reference_set(name, backend, batch, reference, dim):
    (x, labels), (ref, ref_labels) = batch, reference
    dim = min(dim, x.shape[1], ref.shape[1])
    check(name, backend, torch.float64, x[:, :dim], labels, ref[:, :dim], ref_labels)


@pytest.mark.parametrize("backend", BACKENDS[2:])
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15)
@given(batch=batches())
def test_numba(name, backend, batch):
    check(name, backend, torch.float32, *batch)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=3)
@given(size=st.integers(40, 1100), dim=st.integers(8, 40), classes=st.integers(2, 300), seed=st.integers(0, 2**20))
def test_larger_batch(name, backend, size, dim, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, dim, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    # A positive and a negative pair at least.
    labels[:3] = torch.tensor([0, 0, 1])
    exact, (exact_grad,) = value_and_grads(lambda x: DENSE[name](x, labels), x.double())
    plain, (plain_grad,) = value_and_grads(lambda x: DENSE[name](x, labels), x)
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)(backend=backend)(x, labels), x)
    assert_accurate(value, exact, plain)
    assert_accurate(grad, exact_grad, plain_grad)


@pytest.mark.slow
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
@settings(derandomize=False, print_blob=True, max_examples=400)
@given(batch=batches())
def test_many_batches(name, backend, batch):
    check(name, backend, torch.float64, *batch)
