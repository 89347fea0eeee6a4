"""The losses as functions."""

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


def test_every_loss_has_a_function():
    assert sorted(functional.__all__) == sorted(NAMES[name] for name in LOSSES)


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


def test_names_and_docstrings():
    assert functional.ntxent_loss.__name__ == "ntxent_loss"
    assert "Normalised temperature-scaled cross entropy" in functional.ntxent_loss.__doc__


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="gamma"):
        functional.supcon_loss(embeddings(4), torch.tensor([0, 0, 1, 1]), gamma=1)
