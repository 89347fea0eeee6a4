"""Losses over triplets, histograms and ranks against pytorch-metric-learning: same arguments, values, gradients and errors."""

import pytest
import torch
from accuracy import assert_accurate
from cases import SLOW_NUMBA, embeddings, listed_pairs, unbalanced_labels, value_and_grads
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning import losses as peer_losses
from term_cases import PEERS
from test_pml import SIZES, labels_of, parameters
from test_term_oracles import IGNORE_INDEXING, ConstantWeights, some_triplets
from test_tuples import MINERS

from metric_kernels import distances, losses

pytestmark = pytest.mark.usefixtures("float64_by_default")

# The peer adds up to the rounding of its own distances.
WITHIN = 1e-8
OPTIONS = [
    ("TripletMarginLoss", {}),
    ("TripletMarginLoss", {"margin": 0.3}),
    ("TripletMarginLoss", {"swap": True}),
    ("TripletMarginLoss", {"smooth_loss": True}),
    ("TripletMarginLoss", {"margin": 0.3, "swap": True, "smooth_loss": True}),
    ("MarginLoss", {}),
    ("MarginLoss", {"margin": 0.4, "beta": 0.75, "num_classes": 40}),
    ("FastAPLoss", {}),
    ("FastAPLoss", {"num_bins": 7}),
    ("HistogramLoss", {}),
    ("HistogramLoss", {"n_bins": 9}),
    ("HistogramLoss", {"delta": 0.25}),
]
PEER_OPTIONS = pytest.mark.parametrize("name, options", OPTIONS, ids=str)
WITH_REF = [case for case in OPTIONS if case[0] in ("TripletMarginLoss", "MarginLoss") and "swap" not in case[1]]


def compare(name, options, call, *inputs, **ours):
    """Value and gradients of ``call(loss, *inputs)`` are those of the peer."""
    peer = getattr(peer_losses, name)(**options)
    if name == "MarginLoss":
        peer.beta = peer.beta.double()
    actual = value_and_grads(lambda *leaves: call(getattr(losses, name)(**options, **ours), *leaves), *inputs)
    expected = value_and_grads(lambda *leaves: call(peer, *leaves), *inputs)
    assert expected[0] != 0
    assert_accurate(actual[0], expected[0], within=WITHIN)
    for grad, peer_grad in zip(actual[1], expected[1], strict=True):
        assert_accurate(grad, peer_grad, within=WITHIN)


@pytest.mark.parametrize("name", PEERS)
def test_constructor(name):
    """The peer's arguments come first; what it does not have comes after them."""
    ours, peer = (parameters(getattr(module, name).__init__) for module in (losses, peer_losses))
    assert ours[: len(peer) - 1] == peer[:-1] and ours[-1] == peer[-1]


@IGNORE_INDEXING
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("backend", SLOW_NUMBA)
@PEER_OPTIONS
def test_batch(name, options, backend, size):
    labels = labels_of(size)
    compare(name, options, lambda loss, x: loss(x, labels), embeddings(size, 16), backend=backend)


@pytest.mark.parametrize("name, options", WITH_REF, ids=str)
def test_reference_set(name, options):
    labels, ref_labels = labels_of(20), labels_of(31, seed=1)
    compare(
        name, options, lambda loss, x, ref: loss(x, labels, None, ref, ref_labels), embeddings(20, 16), embeddings(31, 16, 1)
    )


@IGNORE_INDEXING
@pytest.mark.parametrize("listed", [some_triplets, listed_pairs], ids=["triplets", "pairs"])
@PEER_OPTIONS
def test_listed(name, options, listed):
    labels = labels_of(20)
    indices = listed(labels)
    compare(name, options, lambda loss, x: loss(x, labels, indices), embeddings(20, 16))


# Another miner finds no triplets here.
@IGNORE_INDEXING
@pytest.mark.parametrize("miner", [miner for miner in MINERS if miner != "PairMarginMiner"])
@pytest.mark.parametrize("name", [name for name in PEERS if name != "DynamicSoftMarginLoss"])
def test_what_a_miner_returns(name, miner):
    x, labels = embeddings(20, 16), labels_of(20)
    indices = MINERS[miner](x, labels)
    assert sum(map(len, indices))
    compare(name, {}, lambda loss, x: loss(x, labels, indices), x)


DISTANCES = {
    "cosine": lambda module: module.CosineSimilarity(),
    "dot": lambda module: module.DotProductSimilarity(normalize_embeddings=False),
    "euclidean": lambda module: module.LpDistance(normalize_embeddings=False),
    "squared": lambda module: module.LpDistance(power=2),
    "manhattan": lambda module: module.LpDistance(p=1),
    "snr": lambda module: module.SNRDistance(),
}


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["TripletMarginLoss", "MarginLoss"])
def test_distances(name, distance):
    """Ours, and the peer's in the place of ours."""
    x, labels = embeddings(20, 16), labels_of(20)
    make = DISTANCES[distance]
    peer = getattr(peer_losses, name)(distance=make(peer_distances))
    expected = value_and_grads(lambda x: peer(x, labels), x)
    for module in (distances, peer_distances):
        loss = getattr(losses, name)(distance=make(module))
        actual = value_and_grads(lambda x, loss=loss: loss(x, labels), x)
        assert_accurate(actual[0], expected[0], within=WITHIN)
        assert_accurate(actual[1][0], expected[1][0], within=WITHIN)


@pytest.mark.parametrize("listed", [None, some_triplets, listed_pairs], ids=["all", "triplets", "pairs"])
@pytest.mark.parametrize("num_classes", [None, 12])
def test_learned_thresholds(num_classes, listed):
    """Three steps of stochastic gradient descent, of the thresholds too."""
    x, labels = embeddings(20, 16), labels_of(20)
    indices = None if listed is None else listed(labels)
    found = []
    for module in (losses, peer_losses):
        loss = module.MarginLoss(beta=1.1, nu=0.2, learn_beta=True, num_classes=num_classes).double()
        optimizer, leaf = torch.optim.SGD(loss.parameters(), lr=0.5), x.clone().requires_grad_()
        for _ in range(3):
            optimizer.zero_grad()
            leaf.grad = None
            loss(leaf, labels, indices).backward()
            optimizer.step()
        found.append((loss.beta.detach(), leaf.grad))
    assert found[0][0].std() > 1e-4 if num_classes else found[0][0] != 1.1
    for ours, peers in zip(*found, strict=True):
        assert_accurate(ours, peers, within=WITHIN)


@pytest.mark.parametrize("power", [1, 2])
def test_fast_ap_of_a_power(power):
    x, labels = embeddings(20, 16), labels_of(20)
    expected = value_and_grads(lambda x: peer_losses.FastAPLoss(distance=peer_distances.LpDistance(power=power))(x, labels), x)
    actual = value_and_grads(lambda x: losses.FastAPLoss(distance=distances.LpDistance(power=power))(x, labels), x)
    assert_accurate(actual[0], expected[0], within=WITHIN)
    assert_accurate(actual[1][0], expected[1][0], within=WITHIN)


KINDS = {
    "batch": (lambda loss, x: loss(x, DYNAMIC_LABELS), False),
    "triplets": (lambda loss, x: loss(x, DYNAMIC_LABELS, some_triplets(DYNAMIC_LABELS)), False),
    "pairs": (lambda loss, x: loss(x, DYNAMIC_LABELS, listed_pairs(DYNAMIC_LABELS)), False),
    "reference": (lambda loss, x, ref: loss(x, DYNAMIC_LABELS, None, ref, DYNAMIC_LABELS.flip(0)), True),
    "matches": (lambda loss, x, ref: loss(x, None, None, x + 0.5 * ref), True),
}
DYNAMIC_LABELS = unbalanced_labels(20)


@pytest.mark.parametrize("backend", SLOW_NUMBA)
@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_soft_margin(kind, backend):
    """Value of the peer in three steps, each of which has a gradient: that of its loss with a constant histogram."""
    call, with_ref = KINDS[kind]
    peer, original, loss = ConstantWeights(), peer_losses.DynamicSoftMarginLoss(), losses.DynamicSoftMarginLoss(backend=backend)
    for step in range(3):
        inputs = [embeddings(20, 16, seed) for seed in (step, 10 + step)][: 1 + with_ref]
        with torch.no_grad():
            value = call(original, *inputs)
        if kind == "matches":  # the peer overwrites what the gradient of its distance needs
            expected = value, None
        else:
            expected = value_and_grads(lambda *leaves: call(peer, *leaves), *inputs)
        actual = value_and_grads(lambda *leaves: call(loss, *leaves), *inputs)
        assert_accurate(actual[0], value, within=WITHIN)
        for grad, peer_grad in zip(actual[1], expected[1] or (), strict=False):
            assert_accurate(grad, peer_grad, within=WITHIN)


X, LABELS = embeddings(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
TRIPLETS = tuple(map(torch.tensor, ([0, 1], [1, 0], [2, 3])))
MISTAKES = {
    "one_row": (PEERS, lambda module, name: getattr(module, name)()(X[0], LABELS)),
    "short_labels": (PEERS, lambda module, name: getattr(module, name)()(X, LABELS[:5])),
    "labels_2d": (PEERS, lambda module, name: getattr(module, name)()(X, LABELS[:, None])),
    "nothing_known": (PEERS[:4], lambda module, name: getattr(module, name)()(X)),
    "two_parts": (["TripletMarginLoss", "MarginLoss"], lambda module, name: getattr(module, name)()(X, LABELS, TRIPLETS[:2])),
    "an_index": (PEERS, lambda module, name: getattr(module, name)()(X, LABELS, (*TRIPLETS[:2], torch.tensor([2, 6])))),
    "a_class": (["MarginLoss"], lambda module, name: module.MarginLoss(num_classes=2)(X, LABELS)),
    "a_reference_set": (
        ["HistogramLoss", "FastAPLoss"],
        lambda module, name: getattr(module, name)()(X, LABELS, None, X.clone(), LABELS.clone()),
    ),
    "no_labels": (["FastAPLoss"], lambda module, name: module.FastAPLoss()(X, None, TRIPLETS)),
    "delta": (["HistogramLoss"], lambda module, name: module.HistogramLoss(n_bins=7, delta=0.5)),
    "similarity": (PEERS[3:], lambda module, name: getattr(module, name)(distance=peer_distances.CosineSimilarity())),
    "not_normalised": (
        PEERS[3:],
        lambda module, name: getattr(module, name)(distance=peer_distances.LpDistance(normalize_embeddings=False)),
    ),
    "another_norm": (PEERS[3:], lambda module, name: getattr(module, name)(distance=peer_distances.LpDistance(p=1))),
}


@IGNORE_INDEXING
@pytest.mark.parametrize("mistake, name", [(mistake, name) for mistake, (names, _) in MISTAKES.items() for name in names])
def test_the_same_errors(mistake, name):
    _, call = MISTAKES[mistake]
    with pytest.raises(Exception) as peer:
        call(peer_losses, name)
    with pytest.raises(peer.type) as ours:
        call(losses, name)
    assert type(ours.value) is peer.type and "\n" not in str(ours.value)
