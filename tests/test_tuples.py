"""indices_tuple: listed pairs and triplets, made by hand and by the miners of pytorch-metric-learning."""

import pytest
import torch
from accuracy import assert_accurate
from cases import (
    LOSSES,
    PARAMS,
    PER_PAIR,
    PER_ROW,
    WITH_REF,
    embeddings,
    listed_pairs,
    unbalanced_labels,
    value_and_grads,
)
from oracles import ORACLES
from pytorch_metric_learning import distances as peer_distances
from pytorch_metric_learning import losses as peer_losses
from pytorch_metric_learning import miners
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metric_kernels import distances, losses, reducers, tuples

SIZE = 13
# Losses over triplets, quadruplets and histograms that take pairs or triplets without labels.
TERMS = ["DynamicSoftMarginLoss", "HistogramLoss", "MarginLoss", "QuadrupletLogSumExpLoss", "TripletMarginLoss"]
NEED_NO_LABELS = [name for name in LOSSES if name != "NPairsLoss"]


def as_pairs(indices):
    """The pairs that the oracles take, from triplets too."""
    return indices if len(indices) == 4 else (indices[0], indices[1], indices[0], indices[2])


def check(name, indices, labels, dtype=torch.float64, ref_size=None, **options):
    x, ref, ref_labels = embeddings(SIZE, 8, dtype=dtype), None, None
    if ref_size:
        ref, ref_labels = embeddings(ref_size, 8, seed=2, dtype=dtype), unbalanced_labels(ref_size, seed=3)
    loss = getattr(losses, name)(**PARAMS[name], **options)
    actual = value_and_grads(lambda x, ref=None: loss(x, labels, indices, ref, ref_labels), x, ref)
    exact = value_and_grads(
        lambda x, ref=None: ORACLES[name](x, labels, ref, ref_labels, pairs=as_pairs(indices), **PARAMS[name]),
        x.double(),
        None if ref is None else ref.double(),
    )
    assert actual[0].dtype == dtype
    assert_accurate(actual[0], exact[0])
    for grad, exact_grad in zip(actual[1], exact[1], strict=True):
        assert_accurate(grad, exact_grad)
    return actual[0]


def triplets(labels):
    a, p, n = torch.meshgrid(*3 * [torch.arange(len(labels))], indexing="ij")
    valid = (labels[a] == labels[p]) & (a != p) & (labels[a] != labels[n]) & ((a + 2 * p + 3 * n) % 5 == 0)
    return a[valid], p[valid], n[valid]


@pytest.fixture(params=["matrix", "rows"])
def way(request, monkeypatch):
    """Values as entries of the matrix, or of listed rows, 16 at a time."""
    monkeypatch.setattr(tuples, "_as_matrix", lambda *_: request.param == "matrix")
    monkeypatch.setattr(tuples, "_CHUNK_BYTES", 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [listed_pairs, triplets], ids=["pairs", "triplets"])
@pytest.mark.parametrize("name", LOSSES)
def test_listed(name, make, dtype, way):
    labels = unbalanced_labels(SIZE)
    check(name, make(labels), labels, dtype)


@pytest.mark.parametrize("name", WITH_REF)
def test_listed_with_a_reference_set(name, way):
    labels, ref_labels = unbalanced_labels(SIZE), unbalanced_labels(17, seed=3)
    check(name, listed_pairs(labels, ref_labels), labels, ref_size=17)


DISTANCES = {
    "euclidean": distances.LpDistance(normalize_embeddings=False),
    "squared_euclidean": distances.LpDistance(normalize_embeddings=False, power=2),
    "dot": distances.DotProductSimilarity(normalize_embeddings=False),
    "snr": distances.SNRDistance(normalize_embeddings=False),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("ref_size", [None, 17])
@pytest.mark.parametrize("distance", DISTANCES)
def test_distances(distance, ref_size, dtype, way):
    labels, ref_labels = unbalanced_labels(SIZE), unbalanced_labels(17, seed=3) if ref_size else None
    indices, x = listed_pairs(labels, ref_labels), embeddings(SIZE, 8, dtype=dtype)
    ref = embeddings(ref_size, 8, seed=2, dtype=dtype) if ref_size else None
    loss = losses.NTXentLoss(temperature=2.0, distance=DISTANCES[distance])
    options = {"pairs": indices, "temperature": 2.0, "distance": distance, "normalize": False}
    actual = value_and_grads(lambda x, ref=None: loss(x, None, indices, ref), x, ref)
    exact = value_and_grads(
        lambda x, ref=None: ORACLES["NTXentLoss"](x, labels, ref, ref_labels, **options),
        x.double(),
        None if ref is None else ref.double(),
    )
    assert_accurate(actual[0], exact[0])
    for grad, exact_grad in zip(actual[1], exact[1], strict=True):
        assert_accurate(grad, exact_grad)


def plain_contrastive(matrix, indices):
    """By torch's autograd over the whole matrix, with the default margins."""
    a, p, b, n = indices
    positive, negative = matrix[a, p], (1 - matrix[b, n]).relu()
    return sum(t.sum() / (t > 0).sum().clamp(min=1) for t in (positive, negative))


class OnlyMatrix(peer_distances.BaseDistance):
    """A distance of one's own that has not the peer's pairwise_distance."""

    def compute_mat(self, query_emb, ref_emb):
        return torch.cdist(query_emb, ref_emb, p=1)


@pytest.mark.parametrize(
    "distance", [distances.LpDistance(p=1), distances.LpDistance(power=3), OnlyMatrix()], ids=["p1", "power3", "only_matrix"]
)
def test_a_distance_that_is_no_function_of_products(distance, way):
    indices, x = listed_pairs(unbalanced_labels(SIZE)), embeddings(SIZE, 8)
    loss = losses.ContrastiveLoss(distance=distance)
    actual = value_and_grads(lambda x: loss(x, None, indices), x)
    exact = value_and_grads(lambda x: plain_contrastive(distance(x), indices), x)
    assert_accurate(actual[0], exact[0])
    assert_accurate(actual[1][0], exact[1][0])


def test_a_reference_set_of_another_size_without_labels(way):
    x, ref, indices = embeddings(5), embeddings(9, seed=1), ([0, 1], [5, 8], [4, 2], [0, 7])
    actual = value_and_grads(lambda x, ref: losses.ContrastiveLoss()(x, None, indices, ref), x, ref)
    exact = value_and_grads(lambda x, ref: ORACLES["ContrastiveLoss"](x, None, ref, None, pairs=indices), x, ref)
    assert_accurate(actual[0], exact[0])
    for grad, exact_grad in zip(actual[1], exact[1], strict=True):
        assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_equal_points_have_no_gradient(normalize, dtype, way):
    x = embeddings(2, 40, dtype=dtype)[[0, 0, 1]]
    loss = losses.ContrastiveLoss(distance=distances.LpDistance(normalize_embeddings=normalize))
    value, (grad,) = value_and_grads(lambda x: loss(x, None, ([0, 1], [1, 1], [], [])), x)
    assert value == 0 and not grad.any()


@pytest.mark.parametrize("name", NEED_NO_LABELS + TERMS)
def test_nan_reaches_the_loss(name, way):
    x = embeddings(6)
    x[2, 0] = torch.nan
    assert getattr(losses, name)()(x, None, ([0, 0, 3], [1, 2, 4], [0, 3, 1], [5, 5, 4])).isnan()


@pytest.mark.parametrize("name", NEED_NO_LABELS)
def test_autocast(name, way):
    x, indices = embeddings(SIZE, 8, dtype=torch.bfloat16), listed_pairs(unbalanced_labels(SIZE))
    loss = getattr(losses, name)(**PARAMS[name])
    with torch.autocast("cpu", torch.bfloat16):
        value, (grad,) = value_and_grads(lambda x: loss(x, None, indices), x)
    exact, (exact_grad,) = value_and_grads(lambda x: ORACLES[name](x, None, pairs=indices, **PARAMS[name]), x.double())
    assert value.dtype == torch.float32 and grad.dtype == torch.bfloat16
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)


def test_the_gradient_is_the_same_each_time(way):
    """Though many pairs share a point."""
    x = embeddings(64, 8, dtype=torch.float32)
    indices = torch.randint(64, (4, 20_000)).unbind()
    first, second = (value_and_grads(lambda x: losses.NTXentLoss()(x, None, indices), x) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1][0], second[1][0])


def test_a_second_derivative_raises(way):
    x = embeddings(6).requires_grad_()
    value = losses.ContrastiveLoss()(x, None, ([0], [1], [0], [2]))
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("name", PER_PAIR + PER_ROW)
def test_each_loss_of_all_pairs(name):
    x, labels = embeddings(SIZE, 8), unbalanced_labels(SIZE)
    loss = getattr(losses, name)(**PARAMS[name], reducer=reducers.DoNothingReducer())
    value, (grad,) = value_and_grads(lambda x: sum(part["losses"].sum() for part in loss(x, labels).values()), x)
    exact, (exact_grad,) = value_and_grads(lambda x: ORACLES[name](x, labels, reducer="sum", **PARAMS[name]), x)
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)


# The peer takes a reference point for an index into the batch in the lifted loss.
@pytest.mark.parametrize(
    "name", [*(name for name in NEED_NO_LABELS if name != "LiftedStructureLoss"), "TripletMarginLoss", "MarginLoss"]
)
def test_cross_batch_memory(name):
    labels, results = unbalanced_labels(SIZE), []
    for module in (losses, peer_losses):
        memory = peer_losses.CrossBatchMemory(getattr(module, name)(**PARAMS.get(name, {})), 8, memory_size=50)
        for seed in range(1, 5):
            memory(embeddings(SIZE, 8, seed=seed), labels)
        results.append(value_and_grads(lambda x, memory=memory: memory(x, labels), embeddings(SIZE, 8)))
    (value, (grad,)), (peer, (peer_grad,)) = results
    assert_accurate(value, peer.double(), within=1e-6)
    assert_accurate(grad, peer_grad, within=1e-6)


@pytest.mark.parametrize("name", NEED_NO_LABELS + TERMS)
def test_labels_may_be_left_out(name):
    labels = unbalanced_labels(SIZE)
    indices, x = listed_pairs(labels), embeddings(SIZE)
    loss = getattr(losses, name)().eval()
    assert torch.equal(loss(x, None, indices), loss(x, labels, indices))


def test_n_pairs_needs_labels():
    with pytest.raises(ValueError, match="labels: NPairsLoss expects them"):
        losses.NPairsLoss()(embeddings(4), None, listed_pairs(torch.tensor([0, 0, 1, 1])))


@pytest.mark.parametrize(
    "kind", [list, torch.tensor, lambda i: torch.tensor(i, dtype=torch.int32)], ids=["list", "int64", "int32"]
)
@pytest.mark.parametrize("name", ["NTXentLoss", "QuadrupletLoss"])
def test_kinds_of_indices(name, kind):
    indices = [0, 0, 3], [1, 2, 4], [0, 3, 1], [5, 5, 4]
    x, loss = embeddings(6), getattr(losses, name)()
    expected = loss(x, None, tuple(map(torch.tensor, indices)))
    assert torch.equal(loss(x, None, tuple(map(kind, indices))), expected)
    assert torch.equal(loss(x, None, list(map(kind, indices))), expected)


@pytest.mark.parametrize("name", PER_PAIR + PER_ROW)
def test_repetitions_count_in_losses_over_pairs_only(name):
    x, loss = embeddings(6), getattr(losses, name)()
    once = [0, 0, 3], [1, 2, 4], [0, 3, 1], [5, 5, 4]
    twice = [0, 0, 3, 0], [1, 2, 4, 1], [0, 3, 1, 0], [5, 5, 4, 5]
    difference = (loss(x, None, twice) - loss(x, None, once)).abs()
    assert difference > 1e-6 if name in PER_PAIR else difference == 0


@pytest.mark.parametrize("name", NEED_NO_LABELS)
def test_one_pair_of_each_kind(name):
    """The peer returns 0 where no list is longer than 1."""
    assert check(name, ([0], [1], [0], [2]), None) > 1e-3


@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss"])
@pytest.mark.parametrize("indices", [([0], [1], [], []), ([], [], [0], [1])], ids=["positive", "negative"])
def test_one_pair(name, indices):
    x = embeddings(4)
    x[1] = x[0] + 0.3 * x[1]
    loss = getattr(losses, name)()
    value, (grad,) = value_and_grads(lambda x: loss(x, None, indices), x)
    exact, (exact_grad,) = value_and_grads(lambda x: ORACLES[name](x, None, pairs=indices), x)
    assert value > 1e-3
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)


EMPTY = torch.empty(0, dtype=torch.int64)


@pytest.mark.parametrize("empty", [EMPTY, torch.tensor([]), []], ids=["int64", "float", "list"])
@pytest.mark.parametrize("number", [3, 4], ids=["triplets", "pairs"])
@pytest.mark.parametrize("name", LOSSES + TERMS)
def test_nothing_listed(name, number, empty):
    x, labels = embeddings(5), torch.tensor([0, 0, 1, 1, 2])
    value, (grad,) = value_and_grads(lambda x: getattr(losses, name)()(x, labels, (empty,) * number), x)
    assert value == 0 and not grad.any()


@pytest.mark.parametrize("side", ["positives", "negatives"])
@pytest.mark.parametrize("name", LOSSES)
def test_one_kind_listed(name, side):
    a, p, b, n = (torch.tensor(i) for i in ([0, 1, 2], [1, 0, 3], [0, 1, 4], [2, 3, 0]))
    indices = (a, p, EMPTY, EMPTY) if side == "positives" else (EMPTY, EMPTY, b, n)
    labels = torch.tensor([0, 0, 1, 1, 2, 3])
    x, params = embeddings(6, 8), PARAMS[name]
    loss = getattr(losses, name)(**params)
    value, (grad,) = value_and_grads(lambda x: loss(x, labels, indices), x)
    exact, (exact_grad,) = value_and_grads(lambda x: ORACLES[name](x, labels, pairs=indices, **params), x)
    assert_accurate(value, exact)
    assert_accurate(grad, exact_grad)


MINERS = {
    "BatchHardMiner": miners.BatchHardMiner(),
    "BatchEasyHardMiner": miners.BatchEasyHardMiner(),
    "MultiSimilarityMiner": miners.MultiSimilarityMiner(),
    "TripletMarginMiner": miners.TripletMarginMiner(margin=0.2),
    "PairMarginMiner": miners.PairMarginMiner(),
    "DistanceWeightedMiner": miners.DistanceWeightedMiner(),
    "AngularMiner": miners.AngularMiner(angle=20),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("miner", MINERS)
def test_what_a_miner_returns(miner, name):
    labels = unbalanced_labels(SIZE)
    x = embeddings(SIZE, 8)
    indices = MINERS[miner](x, labels)
    assert sum(map(len, indices))
    check(name, indices, labels)
    if miner != "PairMarginMiner" and all(len(i) > 1 for i in indices):
        peer = getattr(peer_losses, name)(**PARAMS[name])(x, labels, indices)
        assert_accurate(getattr(losses, name)(**PARAMS[name])(x, labels, indices), peer, within=1e-8)


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "SupConLoss"])
def test_a_miner_with_a_reference_set(name):
    x, ref = embeddings(SIZE, 8), embeddings(17, 8, seed=2)
    labels, ref_labels = unbalanced_labels(SIZE), unbalanced_labels(17, seed=3)
    indices = miners.MultiSimilarityMiner()(x, labels, ref, ref_labels)
    check(name, indices, labels, ref_size=17)


@pytest.mark.parametrize(
    "indices, message",
    [
        (3, r"indices_tuple: expected \(anchors, positives, negatives\) or .*, got int"),
        (torch.zeros(3, 2, dtype=torch.int64), "indices_tuple: expected .*, got Tensor of length 3"),
        (([0], [1]), "indices_tuple: expected .*, got tuple of length 2"),
        (([0], [1], [0], [2], [3]), "indices_tuple: expected .*, got tuple of length 5"),
        (([[0]], [1], [2]), r"indices_tuple\[0\]: expected a 1-D tensor of integers, got torch.int64 \(1, 1\)"),
        (([0], [1.0], [2]), r"indices_tuple\[1\]: expected a 1-D tensor of integers, got torch.float32 \(1,\)"),
        (([0, 1], [1], [2, 2]), "indices_tuple: expected as many anchors and positives as each other, got 2 and 1"),
        (([0], [1], [0, 2], [2]), "indices_tuple: expected as many anchors and negatives as each other, got 2 and 1"),
    ],
    ids=["number", "tensor", "two", "five", "rank", "floats", "positives", "negatives"],
)
def test_malformed(indices, message):
    with pytest.raises(ValueError, match=message):
        losses.ContrastiveLoss()(embeddings(4), torch.tensor([0, 0, 1, 1]), indices)


@pytest.mark.parametrize("name", [*NEED_NO_LABELS, *TERMS, "QuadrupletLoss"])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("wrong", [4, -1])
def test_indices_out_of_range(name, place, wrong):
    indices = [[0, 1], [1, 0], [0, 1], [2, 3]]
    indices[place] = [0, wrong]
    with pytest.raises((IndexError, ValueError), match="indices_tuple|index"):
        getattr(losses, name)()(embeddings(4), None, tuple(indices))


@pytest.mark.parametrize("name", PER_ROW)
def test_a_pair_of_both_kinds_is_refused(name):
    with pytest.raises(ValueError, match=r"indices_tuple: expected each pair to be .*, got \(1, 2\) as both"):
        getattr(losses, name)()(embeddings(4), None, ([0, 1], [1, 2], [1, 0], [2, 3]))


class Largest(TorchDispatchMode):
    """The number of bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("name", LOSSES + TERMS)
def test_memory_is_that_of_the_pairs(name):
    """A matrix over this batch would have 1.6 GB."""
    size, number = 20_000, 3000
    x = torch.randn(size, 16, requires_grad=True)
    labels = torch.arange(size) // 4
    a, b = torch.randint(size, (2, number))
    indices = a, a // 4 * 4 + (a + 1) % 4, b, (b + 4 + torch.randint(size - 8, (number,))) % size
    with Largest() as largest:
        getattr(losses, name)()(x, labels, indices).backward()
    assert x.grad.isfinite().all()
    # N-pairs takes one pair of each of at most `number` classes and then compares all of them.
    bound = 4 * number**2 if name == "NPairsLoss" else x.nbytes
    assert x.nbytes <= largest.bytes <= bound


@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "TripletMarginLoss", "QuadrupletLoss"])
def test_memory_is_not_that_of_the_rows_of_pairs(name):
    """The rows of all pairs would have 26 MB, and the matrix 64 MB."""
    size, number = 4000, 50_000
    x = torch.randn(size, 64, requires_grad=True)
    a, p, n = torch.randint(size, (3, number))
    anchors = () if name == "TripletMarginLoss" else (a,)
    with Largest() as largest:
        getattr(losses, name)()(x, None, (a, p // 2 * 2, *anchors, n // 2 * 2 + 1)).backward()
    assert x.nbytes <= largest.bytes <= 2 << 20


@pytest.mark.parametrize("name", PER_ROW)
def test_losses_of_anchors_take_no_memory_of_pairs(name):
    size = 500
    x = torch.randn(size, 16, requires_grad=True)
    loss = getattr(losses, name)(reducer=reducers.DoNothingReducer())
    with Largest() as largest:
        loss(x, torch.arange(size) // 4)["loss"]["losses"].sum().backward()
    assert largest.bytes <= 4 * size**2
