"""The losses as functions."""

import inspect
import pickle

import pytest
import torch
from cases import LOSSES, PARAMS, embeddings, listed_pairs, unbalanced_labels

from metric_kernels import distances, functional, losses, reducers

NAMES = {
    "CircleLoss": "circle_loss",
    "ContrastiveLoss": "contrastive_loss",
    "LiftedStructureLoss": "lifted_structure_loss",
    "MultiSimilarityLoss": "multi_similarity_loss",
    "NPairsLoss": "npairs_loss",
    "NTXentLoss": "ntxent_loss",
    "SupConLoss": "supcon_loss",
}
TERMS = {
    "BatchHardTripletLoss": "batch_hard_triplet_loss",
    "FastAPLoss": "fast_ap_loss",
    "HistogramLoss": "histogram_loss",
    "MarginLoss": "margin_loss",
    "QuadrupletLogSumExpLoss": "quadruplet_log_sum_exp_loss",
    "QuadrupletLoss": "quadruplet_loss",
    "QuadrupletMarginLoss": "quadruplet_margin_loss",
    "SemiHardTripletLoss": "semi_hard_triplet_loss",
    "TripletMarginLoss": "triplet_margin_loss",
}


def test_every_loss_has_a_function():
    known = {**NAMES, **TERMS}
    assert known.keys() == losses.REGISTRY.keys() - {"DynamicSoftMarginLoss"}
    assert sorted(functional.__all__) == sorted([*known.values(), "triplet_margin"])


@pytest.mark.parametrize("name", TERMS)
def test_losses_on_triplets_and_more(name):
    x, labels = embeddings(12), unbalanced_labels(12)
    value = getattr(functional, TERMS[name])(x, labels, backend="reference")
    assert torch.equal(value, getattr(losses, name)(backend="reference")(x, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_arguments_of_the_constructor_by_name(name):
    function, labels, x = getattr(functional, NAMES[name]), unbalanced_labels(12), embeddings(12)
    options = {**PARAMS[name], "reducer": reducers.SumReducer()}
    assert torch.equal(function(x, labels, **options), getattr(losses, name)(**options)(x, labels))
    pairs = listed_pairs(labels)
    assert torch.equal(function(x, labels, pairs), getattr(losses, name)()(x, labels, pairs))


def test_a_reference_set_and_a_distance():
    x, ref = embeddings(12), embeddings(9, seed=1)
    labels, ref_labels = unbalanced_labels(12), unbalanced_labels(9, seed=1)
    value = functional.contrastive_loss(
        x, labels, ref_emb=ref, ref_labels=ref_labels, distance=distances.SNRDistance(), backend="reference"
    )
    loss = losses.ContrastiveLoss(distance=distances.SNRDistance(), backend="reference")
    assert torch.equal(value, loss(x, labels, None, ref, ref_labels))


@pytest.mark.parametrize("name", LOSSES)
def test_the_signature_is_that_of_the_call_and_of_the_constructor(name):
    cls, function = getattr(losses, name), getattr(functional, NAMES[name])
    call = list(inspect.signature(losses.PairLoss.forward).parameters)[1:]
    own, base = (inspect.signature(c).parameters for c in (cls, losses.PairLoss))
    found = inspect.signature(function).parameters
    assert list(found) == [*call, *(n for n in own if n != "kwargs"), *base]
    constructor = {**base, **own}
    for argument, parameter in found.items():
        if argument not in call:
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.default == constructor[argument].default
    defaults = {n: p.default for n, p in found.items() if n not in call}
    x, labels = embeddings(12), unbalanced_labels(12)
    assert torch.equal(function(x, labels, **defaults), cls()(x, labels))


@pytest.mark.parametrize("name", NAMES.values())
def test_names_and_docstrings(name):
    function = getattr(functional, name)
    assert function.__name__ == function.__qualname__ == name
    assert pickle.loads(pickle.dumps(function)) is function
    # Indented as it should be, or no tool finds the sections.
    assert "\nArgs:\n" in function.__doc__ and "kwargs" not in function.__doc__


def test_a_docstring_is_that_of_the_loss():
    assert "Normalised temperature-scaled cross entropy" in functional.ntxent_loss.__doc__


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="gamma"):
        functional.supcon_loss(embeddings(4), torch.tensor([0, 0, 1, 1]), gamma=1)
