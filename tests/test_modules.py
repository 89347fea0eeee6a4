"""Losses as modules and objects: copies, pickles, processes, devices, representations."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from cases import LOSSES, PARAMS, embeddings, unbalanced_labels

from metric_kernels import distances, losses, reducers


def configured(name):
    return getattr(losses, name)(**PARAMS[name], reducer=reducers.ThresholdReducer(low=0.1))


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
@pytest.mark.parametrize("name", LOSSES)
def test_copies(name, how):
    x, labels = embeddings(12), unbalanced_labels(12)
    loss = configured(name)
    expected = loss(x, labels)
    again = COPIES[how](loss)
    assert torch.equal(again(x, labels), expected)
    assert again.formula is loss.formula


@pytest.mark.parametrize("name", LOSSES)
def test_no_parameters_and_no_state(name):
    loss = configured(name)
    assert not list(loss.parameters()) and not loss.state_dict()
    loss.load_state_dict({})


@pytest.mark.parametrize("name", LOSSES)
def test_the_module_has_no_type_of_its_own(name):
    x, labels = embeddings(12, dtype=torch.float32), unbalanced_labels(12)
    assert configured(name).half().train().eval()(x, labels).dtype == torch.float32


def test_representation():
    text = repr(losses.ContrastiveLoss(distance=distances.LpDistance(power=2)))
    assert "ContrastiveLoss(" in text and "(distance): LpDistance(normalize_embeddings=True, p=2, power=2)" in text
    assert "(reducer): AvgNonZeroReducer()" in text


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
