"""A backward pass on a thread of its own, as autograd's for a GPU, sees what was chosen around the forward pass."""

import threading

import pytest
import torch
from cases import embeddings, unbalanced_labels

from metric_kernels import backends, core, losses, pairwise_distance, tuples, use_backend, use_workspace
from metric_kernels.backends.triton_tiles import chosen, use_form
from metric_kernels.caller import Caller

BUDGET = 12_345


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def listed(x, labels):
    pairs = torch.arange(8), torch.arange(1, 9)
    return losses.ContrastiveLoss()(x, labels, (*pairs, pairs[0], pairs[1] + 1))


PASSES = {
    "statistics": lambda x, labels: losses.ContrastiveLoss(backend="numba")(x, labels),
    "step": lambda x, labels: losses.ContrastiveLoss(backend="native")(x, labels),
    "term": lambda x, labels: losses.SemiHardTripletLoss()(x, labels),
    "swap": lambda x, labels: losses.TripletMarginLoss(swap=True)(x, labels),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_workspace(name, monkeypatch):
    x, labels = embeddings(24, 8).requires_grad_(), unbalanced_labels(24)
    seen, here, real = [], threading.get_ident(), core.workspace

    def watched():
        seen.append((threading.get_ident() == here, real()))
        return real()

    monkeypatch.setattr(core, "workspace", watched)
    with use_workspace(BUDGET):
        loss = PASSES[name](x, labels)
    # The second pass computes again what the first one used up.
    first, second = (in_a_thread(lambda: torch.autograd.grad(loss, x, retain_graph=True)[0]) for _ in range(2))
    assert first.any() and torch.equal(first, second)
    assert {size for _, size in seen} == {BUDGET} and not all(inside for inside, _ in seen)


def test_the_workspace_of_listed_pairs(monkeypatch):
    x, labels = embeddings(24, 8).requires_grad_(), unbalanced_labels(24)
    monkeypatch.setattr(tuples, "_as_matrix", lambda *sizes: False)
    seen = set()
    chunks = tuples._chunks
    monkeypatch.setattr(tuples, "_chunks", lambda *sizes: seen.add(core.workspace()) or chunks(*sizes))
    with use_workspace(BUDGET):
        loss = listed(x, labels)
    assert in_a_thread(lambda: torch.autograd.grad(loss, x)[0]).any()
    assert seen == {BUDGET}


@pytest.mark.parametrize("make", [losses.ContrastiveLoss, losses.SemiHardTripletLoss])
def test_the_backend(make, monkeypatch):
    x, labels = embeddings(24, 8).requires_grad_(), unbalanced_labels(24)
    names, choose = [], backends.choose

    def watched(*arguments):
        names.append(choose(*arguments).name)
        return choose(*arguments)

    monkeypatch.setattr(backends, "choose", watched)
    with use_backend("reference"):
        loss = make()(x, labels)
    for _ in range(2):
        in_a_thread(lambda: torch.autograd.grad(loss, x, retain_graph=True))
    assert len(names) >= 2 and set(names) == {"reference"}


def test_operations_on_vectors():
    x, seen = embeddings(9, 4).requires_grad_(), []
    with use_workspace(BUDGET):
        matrix = pairwise_distance(x, metric="manhattan")
    matrix.grad_fn.register_prehook(lambda grads: seen.append(core.workspace()))
    kernels = matrix.grad_fn.kernels

    class Watched:
        def __getattr__(self, name):
            seen.append(core.workspace())
            return getattr(kernels, name)

    matrix.grad_fn.kernels = Watched()
    in_a_thread(lambda: matrix.sum().backward())
    before, inside = seen
    assert inside == BUDGET != before


def test_the_form_of_the_triton_kernels():
    """Of all threads, so that it reaches what torch.compile made of a backward pass too."""
    shape = 65536, 65536, 768, torch.bfloat16
    with use_form("a"), use_form("b"):
        assert in_a_thread(lambda: chosen(*shape))
    with use_form("a"):
        assert not in_a_thread(lambda: chosen(*shape))
    assert chosen(*shape)


def test_several_threads_at_once():
    with use_workspace(BUDGET):
        caller = Caller()
    barrier, found = threading.Barrier(2), []

    def inside():
        barrier.wait(10)
        return core.workspace()

    threads = [threading.Thread(target=lambda: found.append(caller.run(inside))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BUDGET, BUDGET]
