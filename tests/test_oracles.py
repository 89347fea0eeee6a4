"""The oracles against pytorch-metric-learning in float64, the dense baselines of the benchmark against the oracles."""

import math

import pytest
import torch
from cases import LOSSES, PARAMS, PER_PAIR, PER_ROW, TYPICAL, embeddings, listed_pairs, unbalanced_labels, value_and_grads
from cases import PEER_WITH_REF as WITH_REF
from oracles import ORACLES
from pytorch_metric_learning import distances, losses, reducers

from benchmarks.dense import DENSE

RTOL = 1e-9
# torch.nn.functional.softplus is linear above 20, which is off by up to exp(-20) = 2e-9.
SOFTPLUS_RTOL = 1e-8

DISTANCES = {
    ("cosine", True): distances.CosineSimilarity(),
    ("cosine", False): distances.CosineSimilarity(),
    ("dot", True): distances.DotProductSimilarity(),
    ("dot", False): distances.DotProductSimilarity(normalize_embeddings=False),
    ("euclidean", True): distances.LpDistance(),
    ("euclidean", False): distances.LpDistance(normalize_embeddings=False),
    ("squared_euclidean", True): distances.LpDistance(power=2),
    ("squared_euclidean", False): distances.LpDistance(normalize_embeddings=False, power=2),
    ("snr", True): distances.SNRDistance(),
    ("snr", False): distances.SNRDistance(normalize_embeddings=False),
}


class Flattened(reducers.BaseReducer):
    """Drops the trailing dimension of some of the peer's losses, which its reducers mistake for a matrix."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, loss_dict, embeddings, labels):
        (info,) = loss_dict.values()
        if torch.is_tensor(info["losses"]):
            info["losses"] = info["losses"].flatten()
        return self.inner(loss_dict, embeddings, labels)


CLASS_WEIGHTS = torch.linspace(0.2, 3.0, 12, dtype=torch.float64)
REDUCERS = ["mean", "sum", "avg_non_zero", "per_anchor", ("class_weighted", CLASS_WEIGHTS)]


def peer_reducer(reducer):
    match reducer:
        case ("threshold", low, high):
            return Flattened(reducers.ThresholdReducer(low=low, high=high))
        case ("class_weighted", weights):
            return Flattened(reducers.ClassWeightedReducer(weights))
    named = {
        "mean": reducers.MeanReducer,
        "sum": reducers.SumReducer,
        "avg_non_zero": reducers.AvgNonZeroReducer,
        "per_anchor": reducers.PerAnchorReducer,
    }
    return Flattened(named[reducer]())


def label_of(key):
    if key[0] == "class_weighted":
        return "class_weighted"
    return key if isinstance(key, str) else "-".join(map(str, key))


def assert_same(actual, expected, rtol=RTOL):
    """Value and every gradient, the gradients relative to their largest entry."""
    torch.testing.assert_close(actual[0], expected[0], rtol=rtol, atol=1e-14)
    for got, want in zip(actual[1], expected[1], strict=True):
        largest = want.abs().max().item() if want.numel() else 0.0
        torch.testing.assert_close(got, want, rtol=0, atol=rtol * largest + 1e-14)


def check(name, x, labels, ref=None, ref_labels=None, pairs=None, metric=None, reducer=None, **params):
    peer_args = dict(params)
    oracle_args = dict(params, pairs=pairs)
    if metric is not None:
        peer_args["distance"] = DISTANCES[metric]
        oracle_args.update(distance=metric[0], normalize=metric[1])
    if reducer is not None:
        peer_args["reducer"] = peer_reducer(reducer)
        oracle_args["reducer"] = reducer
    peer = getattr(losses, name)(**peer_args)

    def peer_loss(x, ref=None):
        return peer(x, labels, pairs, ref_emb=ref, ref_labels=ref_labels)

    def oracle_loss(x, ref=None):
        return ORACLES[name](x, labels, ref, ref_labels, **oracle_args)

    # Where nothing is left to average, the peer's 0 is not connected to the reference set.
    expected = value_and_grads(peer_loss, x, ref, connected=False)
    assert torch.isfinite(expected[0])
    assert_same(value_and_grads(oracle_loss, x, ref), expected, SOFTPLUS_RTOL if name == "CircleLoss" else RTOL)
    return expected[0]


def metrics_of(names):
    return [
        pytest.param(name, metric, id=f"{name}-{'default' if metric is None else label_of(metric)}")
        for name in names
        for metric in [None, *DISTANCES]
        if name != "CircleLoss" or metric is None or metric[0] == "cosine"
    ]


@pytest.mark.parametrize("name, metric", metrics_of(LOSSES))
@pytest.mark.parametrize("use_params", [False, True], ids=["defaults", "params"])
def test_self_batch(name, metric, use_params):
    params = PARAMS[name] if use_params else {}
    check(name, embeddings(14), unbalanced_labels(14), metric=metric, **params)


@pytest.mark.parametrize("name, metric", metrics_of(WITH_REF))
@pytest.mark.parametrize("ref_size", [9, 17])
def test_reference_set(name, metric, ref_size):
    ref_labels = unbalanced_labels(ref_size, seed=3)
    check(name, embeddings(13), unbalanced_labels(13), embeddings(ref_size, seed=2), ref_labels, metric=metric)


@pytest.mark.parametrize("name, metric", metrics_of(LOSSES))
def test_listed_pairs(name, metric):
    labels = unbalanced_labels(13)
    check(name, embeddings(13), labels, pairs=listed_pairs(labels), metric=metric, **PARAMS[name])


@pytest.mark.parametrize("name", WITH_REF)
def test_listed_pairs_with_reference_set(name):
    labels, ref_labels = unbalanced_labels(11), unbalanced_labels(15, seed=3)
    ref = embeddings(15, seed=2)
    check(name, embeddings(11), labels, ref, ref_labels, pairs=listed_pairs(labels, ref_labels), **PARAMS[name])


@pytest.mark.parametrize("name", LOSSES)
def test_triplets(name):
    labels = unbalanced_labels(12)
    triplets = [
        (a, p, n)
        for a in range(12)
        for p in range(12)
        for n in range(12)
        if a != p and labels[a] == labels[p] != labels[n] and (a + 2 * p + 3 * n) % 5 == 0
    ]
    a, p, n = torch.tensor(triplets).unbind(1)
    x = embeddings(12)
    peer = getattr(losses, name)()
    expected = value_and_grads(lambda x: peer(x, labels, (a, p, n)), x)
    assert_same(value_and_grads(lambda x: ORACLES[name](x, labels, pairs=(a, p, a, n)), x), expected)


@pytest.mark.parametrize("reducer", REDUCERS, ids=label_of)
@pytest.mark.parametrize("name", LOSSES)
def test_reducers(name, reducer):
    labels = unbalanced_labels(14)
    check(name, embeddings(14), labels, reducer=reducer, **PARAMS[name])
    if name in WITH_REF:
        # The peer's PerAnchorReducer has as many columns as the batch has rows, so the reference set is kept smaller.
        check(name, embeddings(14), labels, embeddings(9, seed=2), unbalanced_labels(9, seed=3), reducer=reducer)
    if reducer != "per_anchor":
        check(name, embeddings(14), labels, pairs=listed_pairs(labels), reducer=reducer, **PARAMS[name])


@pytest.mark.parametrize("low, high", [(0.8, None), (None, 1.2), (0.8, 1.2), (100.0, None)])
@pytest.mark.parametrize("name", LOSSES)
def test_threshold_reducer(name, low, high):
    low, high = (bound and bound * TYPICAL[name] for bound in (low, high))
    value = check(name, embeddings(14), unbalanced_labels(14), reducer=("threshold", low, high), **PARAMS[name])
    assert (value == 0) == (low == 100 * TYPICAL[name])


@pytest.mark.parametrize("name", LOSSES)
def test_larger_batch(name):
    check(name, embeddings(30, 16, seed=5), unbalanced_labels(30, seed=5, classes=7))


@pytest.mark.parametrize("name", LOSSES)
def test_zero_rows(name):
    x = embeddings(8)
    x[2] = 0
    x[5] = 1e-13 * x[5]
    # With other margins than the default, since a zero row is at distance 1 of all others.
    check(name, x, torch.tensor([0, 0, 1, 1, 2, 2, 1, 3]), **PARAMS[name])


@pytest.mark.parametrize("name", LOSSES)
def test_identical_rows(name):
    x = embeddings(3)[[0, 0, 0, 1, 1, 2, 2, 0]]
    check(name, x, torch.tensor([0, 0, 1, 1, 1, 2, 2, 3]))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "NPairsLoss"])
def test_reference_set_is_a_block_of_the_joint_batch(name):
    """Rows x against columns ref is the batch [x, ref] with the cross pairs listed."""
    labels, ref_labels = unbalanced_labels(8), unbalanced_labels(11, seed=3)
    x, ref = embeddings(8), embeddings(11, seed=2)
    same = labels[:, None] == ref_labels
    a1, p = same.nonzero().unbind(1)
    a2, n = (~same).nonzero().unbind(1)
    if name == "LiftedStructureLoss":
        # Its second sum starts at the positive, so it needs the negative pairs in both directions.
        pairs = a1, 8 + p, torch.cat([a2, 8 + n]), torch.cat([8 + n, a2])
    else:
        pairs = a1, 8 + p, a2, 8 + n
    oracle, peer = ORACLES[name], getattr(losses, name)(reducer=reducers.SumReducer())
    actual = value_and_grads(lambda x, ref: oracle(x, labels, ref, ref_labels, reducer="sum"), x, ref)
    expected = value_and_grads(lambda x, ref: peer(torch.cat([x, ref]), torch.cat([labels, ref_labels]), pairs), x, ref)
    assert_same(actual, expected)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "NPairsLoss"])
def test_excluded_diagonal_of_a_copy_is_the_self_batch(name):
    labels = unbalanced_labels(10)
    x = embeddings(10)

    def loss(x, ref=None, **options):
        return ORACLES[name](x, labels, ref, None if ref is None else labels, reducer="mean", **options)

    value, (grad,) = value_and_grads(loss, x)
    copied, grads = value_and_grads(lambda x, ref: loss(x, ref, exclude_diagonal=True), x, x)
    assert_same((copied, [sum(grads)]), (value, [grad]))
    kept = loss(x, x)
    assert abs(kept - value) > 1e-6


def similarity(x, i, j):
    return torch.cosine_similarity(x[i], x[j], dim=0)


def expected_of_one_pair_each(name, x):
    """Closed forms for the positive pair (0, 1) and the negative pair (0, 2); row 3 has no pair."""
    s_p, s_n = similarity(x, 0, 1), similarity(x, 0, 2)
    d_p, d_n = (2 - 2 * s_p).sqrt(), (2 - 2 * s_n).sqrt()
    match name:
        case "ContrastiveLoss":
            return d_p + torch.relu(1 - d_n)
        case "MultiSimilarityLoss":
            return (torch.log1p(torch.exp(2 * (0.5 - s_p))) / 2 + torch.log1p(torch.exp(50 * (s_n - 0.5))) / 50) / 4
        case "SupConLoss":
            return torch.log1p(torch.exp((s_n - s_p) / 0.1))
        case "CircleLoss":
            pull = -80 * (1.4 - s_p.detach()) * (s_p - 0.6)
            return torch.log1p(torch.exp(pull + 80 * torch.relu(s_n.detach() + 0.4) * (s_n - 0.4)))
        case "NTXentLoss":
            return torch.log1p(torch.exp((s_n - s_p) / 0.07))
        case "NPairsLoss":
            return 0 * s_p
        case "LiftedStructureLoss":
            return torch.relu(1 - d_n + d_p) ** 2 / 2


@pytest.mark.parametrize("name", LOSSES)
def test_one_listed_pair_of_each_kind(name):
    """The peer returns 0 when no index list is longer than 1."""
    x, labels = embeddings(4, seed=1), [0, 0, 1, 1]
    expected = value_and_grads(lambda x: expected_of_one_pair_each(name, x), x)
    assert name == "NPairsLoss" or expected[0] > 1e-3
    assert_same(value_and_grads(lambda x: ORACLES[name](x, labels, pairs=([0], [1], [0], [2])), x), expected)


@pytest.mark.parametrize("name", PER_PAIR + PER_ROW)
def test_repeated_pairs(name):
    x, labels = embeddings(6), [0, 0, 0, 1, 1, 2]
    once = ([0, 0, 3], [1, 2, 4], [0, 3, 1], [5, 5, 4])
    twice = ([0, 0, 3, 0], [1, 2, 4, 1], [0, 3, 1, 0], [5, 5, 4, 5])
    difference = ORACLES[name](x, labels, pairs=twice) - ORACLES[name](x, labels, pairs=once)
    if name in PER_ROW:
        assert difference == 0
    else:
        assert abs(difference) > 1e-6


def test_repeated_pairs_weigh_within_their_anchor():
    x, labels = embeddings(4), [0, 0, 0, 1]
    d = [(x[0] / x[0].norm() - x[j] / x[j].norm()).norm() for j in range(4)]
    loss = ORACLES["ContrastiveLoss"](x, labels, pairs=([0, 0, 0], [1, 1, 2], [], []), reducer="per_anchor")
    torch.testing.assert_close(loss, (2 * d[1] + d[2]) / 3 / 4)


DEGENERATE = {
    "one class": (5, 4, [3] * 5),
    "all different": (5, 4, [4, 1, 3, 0, 2]),
    "one row": (1, 4, [0]),
    "no rows": (0, 4, []),
    "no features": (6, 0, [0, 0, 0, 1, 1, 2]),
    "no features, one class": (3, 0, [0, 0, 0]),
}
# These two have a value where all pairs are of one kind.
NEEDS_ONE_KIND = ("ContrastiveLoss", "MultiSimilarityLoss")


# Every case with the default reducer, one of them with every other.
DEGENERATE_REDUCTIONS = [pytest.param(case, None, id=case) for case in DEGENERATE] + [
    pytest.param("all different", reducer, id=f"all different-{label_of(reducer)}")
    for reducer in [*REDUCERS, ("threshold", 0.3, 1.0)]
]


@pytest.mark.parametrize("case, reducer", DEGENERATE_REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_batches(name, case, reducer):
    size, dim, labels = DEGENERATE[case]
    value, (grad,) = value_and_grads(lambda x: ORACLES[name](x, labels, reducer=reducer), embeddings(size, dim))
    assert value.dtype == torch.float64 and value.ndim == 0 and grad.shape == (size, dim)
    assert value.isfinite() and grad.isfinite().all()
    if dim and (name not in NEEDS_ONE_KIND or size < 2):
        assert value == 0 and not grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_no_features(name):
    check(name, embeddings(6, 0), torch.tensor([0, 0, 0, 1, 1, 2]))


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "NPairsLoss"])
def test_empty_reference_set_or_batch(name, sizes):
    rows, columns = sizes
    x, ref = embeddings(rows), embeddings(columns)
    value, grads = value_and_grads(lambda x, ref: ORACLES[name](x, [0] * rows, ref, [0] * columns), x, ref)
    assert value == 0 and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("empty", ["positives", "negatives", "both"])
@pytest.mark.parametrize("name", LOSSES)
def test_empty_pair_lists(name, empty):
    a1, p = ([], []) if empty != "negatives" else ([0, 1], [1, 0])
    a2, n = ([], []) if empty != "positives" else ([0, 1], [2, 2])
    x = embeddings(3)
    value, (grad,) = value_and_grads(lambda x: ORACLES[name](x, [0, 0, 1], pairs=(a1, p, a2, n)), x)
    assert value.isfinite() and grad.isfinite().all()
    if empty == "both" or name not in NEEDS_ONE_KIND:
        assert value == 0 and not grad.any()


@pytest.mark.parametrize("reducer", ["mean", "avg_non_zero", ("threshold", 0.1, 5.0)], ids=label_of)
@pytest.mark.parametrize("name", LOSSES)
def test_nan_reaches_the_loss(name, reducer):
    x = embeddings(6)
    x[1, 0] = math.nan
    assert ORACLES[name](x, [0, 0, 1, 1, 2, 2], reducer=reducer).isnan()


@pytest.mark.parametrize("distance", ["euclidean", "snr"])
def test_no_gradient_noise_at_distance_zero(distance):
    x = embeddings(1).expand(4, -1)
    value, (grad,) = value_and_grads(
        lambda x: ORACLES["ContrastiveLoss"](x, [0, 0, 1, 1], distance=distance, normalize=False), x
    )
    assert value == 1 and not grad.any()


def test_snr_of_an_anchor_without_variance_is_zero():
    x = embeddings(4)
    x[0] = 2.0
    value, (grad,) = value_and_grads(
        lambda x: ORACLES["ContrastiveLoss"](x, None, distance="snr", normalize=False, pairs=([0], [1], [], [])), x
    )
    assert value == 0 and not grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_dtypes(dtype):
    x = embeddings(6).to(dtype).requires_grad_()
    labels = torch.tensor([-1, -1, 0, 0, 3, 3], dtype=torch.int8)
    for oracle in ORACLES.values():
        loss = oracle(x, labels)
        assert loss.dtype == torch.float64
        assert torch.equal(loss, oracle(x.double(), labels.tolist()))
        (grad,) = torch.autograd.grad(loss, x)
        assert grad.dtype == dtype and grad.isfinite().all()


def test_bad_arguments():
    x, labels = embeddings(4), [0, 0, 1, 1]
    with pytest.raises(ValueError, match="distance"):
        ORACLES["SupConLoss"](x, labels, distance="manhattan")
    with pytest.raises(ValueError, match="reducer"):
        ORACLES["SupConLoss"](x, labels, reducer="median")
    with pytest.raises(ValueError, match="cosine"):
        ORACLES["CircleLoss"](x, labels, distance="euclidean")
    with pytest.raises(ValueError, match="reference"):
        ORACLES["NPairsLoss"](x, labels, x, labels)


def test_the_comparison_can_fail():
    value, grads = torch.tensor(1.0), (torch.ones(3, 2),)
    assert_same((value, grads), (value, grads))
    for wrong in [(value + 1e-6, grads), (value, (grads[0] + 1e-6,)), (value * math.nan, grads)]:
        with pytest.raises(AssertionError):
            assert_same(wrong, (value, grads))


@pytest.mark.parametrize("size", [13, 40])
@pytest.mark.parametrize("name", LOSSES)
def test_dense_formula(name, size):
    labels = unbalanced_labels(size, seed=size, classes=3 if size == 13 else 8)
    x = embeddings(size, 12, seed=size)
    expected = value_and_grads(lambda x: ORACLES[name](x, labels), x)
    assert_same(value_and_grads(lambda x: DENSE[name](x, labels), x), expected, SOFTPLUS_RTOL)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("name", LOSSES)
def test_dense_formula_in_low_precision(name, dtype, tolerance):
    labels, x = unbalanced_labels(24, classes=5), embeddings(24, 12).to(dtype)
    value, (grad,) = value_and_grads(lambda x: DENSE[name](x, labels), x)
    exact, (exact_grad,) = value_and_grads(lambda x: ORACLES[name](x, labels), x.double())
    assert grad.dtype == dtype
    assert abs(value - exact) <= tolerance * exact
    assert (grad - exact_grad).norm() <= 2 * tolerance * exact_grad.norm()


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "NPairsLoss"])
def test_dense_formula_traces_as_one_graph(name):
    torch._dynamo.reset()
    labels, x = unbalanced_labels(12), embeddings(12)
    compiled = torch.compile(DENSE[name], fullgraph=True, backend="aot_eager")
    assert_same(value_and_grads(lambda x: compiled(x, labels), x), value_and_grads(lambda x: DENSE[name](x, labels), x))
