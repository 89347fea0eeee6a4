"""The budget for the product matrix: kept or computed again, the results are the same; the memory is what it says."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from accuracy import assert_accurate
from cases import ALL_LOSSES, BACKENDS, QUICK_BACKENDS, TERM_LOSSES, embeddings, unbalanced_labels, value_and_grads
from term_cases import ALL_PARAMS, ALL_SELF_AND_REF

import metric_kernels
from metric_kernels import core, losses, use_workspace, workspace
from metric_kernels.distances import LpDistance, SNRDistance

# Tiles of a recomputed matrix have at least 16 rows: these are 16, 16 and 5.
ROWS, COLUMNS = 37, 21
MIB = 1 << 20


def run(name, with_ref, dtype=torch.float64, **options):
    labels, x = unbalanced_labels(ROWS), embeddings(ROWS, 24, dtype=dtype)
    ref, ref_labels = None, None
    if with_ref:
        ref, ref_labels = embeddings(COLUMNS, 24, seed=1, dtype=dtype), unbalanced_labels(COLUMNS, seed=1)
    loss = getattr(losses, name)(**options)
    return value_and_grads(lambda x, ref=None: loss(x, labels, ref_emb=ref, ref_labels=ref_labels), x, ref)


def assert_same(actual, expected):
    assert_accurate(actual[0], expected[0].double())
    for grad, expected_grad in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, expected_grad.double())


@pytest.mark.parametrize("size", [0, ROWS * ROWS], ids=["nothing", "a_quarter"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name, with_ref", ALL_SELF_AND_REF)
def test_recomputed_is_kept(name, with_ref, backend, size):
    dtype = torch.float32 if backend == "numba" else torch.float64
    # Products of fewer rows may be rounded differently, and the exponents of the defaults would magnify that.
    expected = run(name, with_ref, dtype, backend=backend, **ALL_PARAMS[name])
    with use_workspace(size):
        actual = run(name, with_ref, dtype, backend=backend, **ALL_PARAMS[name])
    assert_same(actual, expected)


@pytest.mark.parametrize("distance", [LpDistance(normalize_embeddings=False), SNRDistance()], ids=["euclidean", "snr"])
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_recomputed_is_kept_where_norms_have_gradients(backend, distance):
    exact = run("ContrastiveLoss", True, distance=distance, backend=backend)
    with use_workspace(0):
        assert_same(run("ContrastiveLoss", True, distance=distance, backend=backend), exact)


@pytest.mark.parametrize("size", [0, 256 * MIB], ids=["recomputed", "kept"])
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_second_backward(name, backend, size):
    x = embeddings(ROWS, 24).requires_grad_()
    with use_workspace(size):
        value = getattr(losses, name)(backend=backend)(x, unbalanced_labels(ROWS))
        first, second, third = (torch.autograd.grad(value, x, retain_graph=k < 2)[0] for k in range(3))
    assert_accurate(second, first)
    assert torch.equal(third, second) and (name not in TERM_LOSSES or torch.equal(second, first))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, x)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_second_backward_of_a_given_matrix(backend):
    x = embeddings(ROWS, 24).requires_grad_()
    value = losses.ContrastiveLoss(distance=LpDistance(p=1), backend=backend)(x, unbalanced_labels(ROWS))
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_budget_may_change_between_forward_and_backward():
    x = embeddings(ROWS, 24).requires_grad_()
    value = losses.NTXentLoss()(x, unbalanced_labels(ROWS))
    (expected,) = torch.autograd.grad(value, x, retain_graph=True)
    with use_workspace(0):
        other = losses.NTXentLoss()(x, unbalanced_labels(ROWS))
    assert_accurate(torch.autograd.grad(other, x)[0], expected)


def test_setting_and_restoring():
    before = metric_kernels.workspace()
    try:
        metric_kernels.set_workspace(123)
        assert metric_kernels.workspace() == 123
        with pytest.raises(KeyError), use_workspace(0):
            assert metric_kernels.workspace() == 0
            raise KeyError
        assert metric_kernels.workspace() == 123
    finally:
        metric_kernels.set_workspace(before)


@pytest.mark.parametrize("wrong", [-1, "much", None, float("nan")], ids=str)
def test_what_is_no_size_is_refused(wrong):
    before = metric_kernels.workspace()
    with pytest.raises(ValueError, match="size: expected a number of bytes >= 0, got"):
        metric_kernels.set_workspace(wrong)
    with pytest.raises(ValueError, match="size: expected a number of bytes >= 0, got"), use_workspace(wrong):
        pass
    assert metric_kernels.workspace() == before


PEAK = """
import pathlib, sys, torch
from metric_kernels import losses, use_workspace

def resident(which):
    fields = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields[which].split()[0])

def step(size):
    for loss in map(eval, sys.argv[3:]):
        loss.backend = sys.argv[1]
        x = torch.randn(size, 32).requires_grad_()
        loss(x, torch.arange(size) // 4).backward()

step(64)
with torch.no_grad():
    torch.randn(4096, 32) @ torch.randn(32, 512)
# Memory below the peak so far would look free: hold as much as that.
ballast = torch.ones(resident("VmHWM") - resident("VmRSS") + (1 << 20), dtype=torch.uint8)
before = resident("VmHWM")
with use_workspace(int(sys.argv[2])):
    step(4096)
print(resident("VmHWM") - before)
"""


reads_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def extra(backend, size, *loss):
    """Bytes of memory that steps of 4096 rows take beyond what is there."""
    command = [sys.executable, "-c", PEAK, backend, str(size), *(f"losses.{each}" for each in loss)]
    # What is freed goes back at once, and does not add up from one loss to the next.
    freed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0"}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=freed).stdout)


@reads_proc
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_peak_memory(backend):
    """The matrix of 4096 x 4096 floats has 64 MiB."""
    # Plain torch has a few temporaries of the size of a tile.
    assert extra(backend, 8 * MIB, "MultiSimilarityLoss()") < (32 if backend == "native" else 60) * MIB
    if backend == "native":
        # The measurement itself sees a kept matrix.
        assert extra(backend, 256 * MIB, "MultiSimilarityLoss()") > 60 * MIB


TERMS = ["TripletMarginLoss()", "SemiHardTripletLoss()", "QuadrupletMarginLoss()", "HistogramLoss()", "FastAPLoss()"]
MORE_TERMS = [
    "TripletMarginLoss(swap=True)",
    "TripletMarginLoss(smooth_loss=True)",
    "BatchHardTripletLoss()",
    "MarginLoss()",
    "QuadrupletLoss(adaptive=True)",
    "QuadrupletLogSumExpLoss()",
    "DynamicSoftMarginLoss()",
]


@reads_proc
@pytest.mark.parametrize("loss", [TERMS, pytest.param(MORE_TERMS, marks=pytest.mark.slow)], ids=["some", "others"])
def test_peak_memory_of_terms(loss):
    """A tile of pair values, what becomes of it, and what is known of each point."""
    assert extra("native", 16 * MIB, *loss) < 32 * MIB


def test_a_budget_belongs_to_its_thread():
    before, seen = workspace(), []

    def other():
        with use_workspace(1):
            barrier.wait()
            barrier.wait()
        seen.append(workspace())

    barrier = threading.Barrier(2)
    thread = threading.Thread(target=other)
    with use_workspace(2):
        thread.start()
        barrier.wait()
        assert workspace() == 2
        barrier.wait()
    thread.join()
    assert [workspace(), *seen] == [before, before]


@pytest.mark.parametrize("size", [32, 1500], ids=["one_tile", "many_tiles"])
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_loss_that_lives_on_holds_no_tensors(name, size):
    gc.freeze()  # only what is made from here on is collected and looked at
    try:
        x, labels = embeddings(size, 8).requires_grad_(), torch.arange(size) // 4
        loss = getattr(losses, name)(backend="native")(x, labels)
        loss.backward()
        gc.collect()
        held = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape in ((size, size), (size, 8))]
    finally:
        gc.unfreeze()
    assert any(t is x for t in held) and loss.isfinite()
    assert all(t is x or t is x.grad for t in held)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_second_backward_pass(name, backend):
    x, labels = embeddings(24, 8).requires_grad_(), torch.arange(24) // 4
    loss = getattr(losses, name)(backend=backend)(x, labels)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, x)
    torch.testing.assert_close(second, 3 * first)


@pytest.mark.parametrize("name", ALL_LOSSES)
@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_a_second_backward_pass_in_a_smaller_workspace(name, backend, monkeypatch):
    """What the first pass kept is gone, and the matrix no longer fits."""
    x = embeddings(ROWS, 24).requires_grad_()
    loss = getattr(losses, name)(**ALL_PARAMS.get(name, {}), backend=backend)
    value = loss(x, unbalanced_labels(ROWS))
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    monkeypatch.setattr(core, "_default_workspace", 0)
    (second,) = torch.autograd.grad(value, x)
    assert_accurate(second, first)
