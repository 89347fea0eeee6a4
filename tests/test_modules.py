"""Losses as modules and objects: copies, pickles, processes, devices, representations."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from cases import ALL_LOSSES, TERM_LOSSES, embeddings, unbalanced_labels
from term_cases import ALL_PARAMS

from metric_kernels import distances, losses, reducers

# What has no state.
STATELESS = [name for name in ALL_LOSSES if name != "DynamicSoftMarginLoss"]


def configured(name):
    return getattr(losses, name)(**ALL_PARAMS[name], reducer=reducers.ThresholdReducer(low=0.1))


def saved_and_loaded(loss):
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "pickle": lambda loss: pickle.loads(pickle.dumps(loss)),
    "deepcopy": copy.deepcopy,
    "torch_save": saved_and_loaded,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_copies(name, how):
    """Of a loss in use, and of its running histogram if it has one."""
    x, labels = embeddings(12), unbalanced_labels(12)
    loss = configured(name)
    loss(embeddings(12, seed=1), labels)
    again = COPIES[how](loss)
    assert torch.equal(again(x, labels), loss(x, labels))
    assert again.kernels is loss.kernels


@pytest.mark.parametrize("name", STATELESS)
def test_no_parameters_and_no_state(name):
    loss = configured(name)
    assert not list(loss.parameters()) and not loss.state_dict()
    loss.load_state_dict({})


@pytest.mark.parametrize("num_classes", [None, 6])
@pytest.mark.parametrize("how", COPIES)
def test_copies_of_learned_thresholds(how, num_classes):
    x, labels = embeddings(12), unbalanced_labels(12)
    loss = losses.MarginLoss(learn_beta=True, num_classes=num_classes, nu=0.1)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    loss(x, labels).backward()
    optimizer.step()
    again = COPIES[how](loss)
    assert not torch.equal(again.beta.detach(), losses.MarginLoss(num_classes=num_classes).beta)
    assert torch.equal(again(x, labels), loss(x, labels))
    other = losses.MarginLoss(learn_beta=True, num_classes=num_classes, nu=0.1)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(x, labels), loss(x, labels))


def test_the_running_histogram_is_state():
    """It is loaded with a checkpoint, moves with the module, and changes in training only."""
    labels, loss, other = unbalanced_labels(12), losses.DynamicSoftMarginLoss(), losses.DynamicSoftMarginLoss()
    for seed in range(3):
        loss(embeddings(12, seed=seed), labels)
    assert list(loss.state_dict()) == ["histogram"] and not list(loss.parameters())
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(embeddings(12, seed=3), labels), loss(embeddings(12, seed=3), labels))
    before = loss.eval().histogram.clone()
    loss(embeddings(12, seed=4), labels)
    assert torch.equal(loss.histogram, before) and before.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_the_module_has_no_type_of_its_own(name):
    x, labels = embeddings(12, dtype=torch.float32), unbalanced_labels(12)
    assert configured(name).half().train().eval()(x, labels).dtype == torch.float32


def test_representation():
    text = repr(losses.ContrastiveLoss(distance=distances.LpDistance(power=2)))
    assert "ContrastiveLoss(" in text and "(distance): LpDistance(normalize_embeddings=True, p=2, power=2)" in text
    assert "(reducer): AvgNonZeroReducer()" in text


@pytest.mark.parametrize("name", TERM_LOSSES)
def test_representation_of_every_loss(name):
    assert repr(getattr(losses, name)()).startswith(f"{name}(\n  (distance): ")


def test_a_regularizer_may_be_a_module():
    loss = losses.SupConLoss(embedding_regularizer=torch.nn.Linear(6, 1))
    assert len(list(loss.parameters())) == 2


def _in_child(queue, x, labels):
    torch.set_num_threads(1)
    x = x.requires_grad_()
    loss = losses.MultiSimilarityLoss()(x, labels)
    loss.backward()
    queue.put((loss.item(), x.grad.norm().item()))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_forked_process():
    """Forked after the parent has used its threads, with one thread in the child, as in the workers of a data loader.

    With more, torch's own products hang there.
    """
    x, labels = embeddings(256, 32, dtype=torch.float32), torch.arange(256) // 4
    leaf = x.clone().requires_grad_()
    losses.MultiSimilarityLoss()(leaf, labels).backward()
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, x, labels))
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    assert not alive and child.exitcode == 0
    value, norm = queue.get()
    assert value == pytest.approx(losses.MultiSimilarityLoss()(x, labels).item(), rel=1e-6)
    assert norm == pytest.approx(leaf.grad.norm().item(), rel=1e-5)
