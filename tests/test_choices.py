"""What is chosen for a forward pass holds for its backward passes, whenever and on whichever thread they run."""

import threading

import pytest
import torch
from cases import ALL_LOSSES, embeddings, unbalanced_labels

from metric_kernels import backends, core, losses, use_backend, use_workspace
from metric_kernels.backends.triton_tiles import chosen, use_form
from metric_kernels.distances import LpDistance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = {
    **{name: {} for name in ALL_LOSSES},
    "of vectors": {"loss": "ContrastiveLoss", "distance": LpDistance(p=1)},
    "swap": {"loss": "TripletMarginLoss", "swap": True, "distance": LpDistance(p=1)},
}


@pytest.fixture
def seen(monkeypatch):
    """The backends and the budgets that are asked for."""
    backend, workspace, names, sizes = backends._choose, core.workspace, [], []

    def choose(*arguments):
        names.append(arguments[-1])
        return backend(*arguments)

    def budget():
        sizes.append(workspace())
        return sizes[-1]

    choose.cache_clear = backend.cache_clear
    monkeypatch.setattr(backends, "_choose", choose)
    monkeypatch.setattr(core, "workspace", budget)
    return names, sizes


@pytest.mark.parametrize("case", CASES)
def test_backward_passes_take_the_way_of_the_forward_pass(case, seen):
    options = dict(CASES[case])
    loss = getattr(losses, options.pop("loss", case))(**options).to(DEVICE)
    x, labels = embeddings(40, dtype=torch.float32).to(DEVICE).requires_grad_(), unbalanced_labels(40).to(DEVICE)
    with use_backend("reference"), use_workspace(1234):
        value = loss(x, labels)
    grads = []

    def backward():
        for _ in range(2):
            grads.extend(torch.autograd.grad(value, x, retain_graph=True))

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert torch.equal(*grads)
    names, sizes = seen
    assert set(names) == {"reference"} and set(sizes) <= {1234}


def test_a_choice_ends_with_its_block(seen):
    x, labels = embeddings(20).to(DEVICE).requires_grad_(), unbalanced_labels(20).to(DEVICE)
    with use_backend("reference"), use_workspace(1234):
        losses.CircleLoss()(x, labels).backward()
    losses.CircleLoss()(x, labels).backward()
    names, sizes = seen
    assert names[-1] is None and sizes[-1] != 1234


def test_a_form_of_the_triton_kernels_is_that_of_all_threads():
    """So that it reaches what torch.compile made of a backward pass too."""
    shape, found = (65536, 65536, 128, torch.bfloat16), []
    for form in ("a", "b"):
        with use_form(form):
            thread = threading.Thread(target=lambda: found.append(chosen(*shape)))
            thread.start()
            thread.join()
    assert found == [False, True]
    assert chosen(*shape)
