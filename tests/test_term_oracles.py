"""The oracles of triplet, quadruplet and histogram losses: by hand, by identities, and against other libraries in float64."""

import itertools
import math

import pytest
import torch
from cases import embeddings, listed_pairs, unbalanced_labels, value_and_grads
from hypothesis import given, settings
from oracles import TERM_ORACLES
from pytorch_metric_learning import distances, losses, miners, reducers
from sentence_transformers.sentence_transformer import losses as sentence_losses
from term_cases import CASES, OVER_TRIPLETS, PARAMS, WITH_REF, batches, oracle
from test_oracles import CLASS_WEIGHTS, DEGENERATE, DISTANCES, assert_same, label_of, peer_reducer

NAMES = list(TERM_ORACLES)
METRICS = pytest.mark.parametrize("metric", DISTANCES, ids=label_of)

# Points on a line, the last one alone in its class: d_01 = 1, d_23 = 1.5 are the positive pairs.
LINE = torch.tensor([[0.0], [1.0], [3.0], [4.5], [5.0]], dtype=torch.float64)
LINE_LABELS = [0, 0, 1, 1, 2]
ON_LINE = {"distance": "euclidean", "normalize": False}
# s_01 = 0.6, s_02 = 0.8 and s_12 = 0.96, of unit vectors.
CIRCLE = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]], dtype=torch.float64)


def on_line(name, number=5, x=LINE, labels=LINE_LABELS, **params):
    return oracle(name, x[:number], labels[:number], **ON_LINE, **params).item()


def all_triplets(labels, ref_labels=None):
    columns = labels if ref_labels is None else ref_labels
    return [
        (a, p, n)
        for a, p, n in itertools.product(range(len(labels)), range(len(columns)), range(len(columns)))
        if labels[a] == columns[p] != columns[n] and (a != p or ref_labels is not None)
    ]


def some_triplets(labels, ref_labels=None):
    """Not all, in no order, and some of them twice."""
    found = [t for t in all_triplets(labels, ref_labels) if (t[0] + 2 * t[1] + 3 * t[2]) % 5 == 0]
    return tuple(torch.tensor(found[::-1] + found[:3]).unbind(1))


def both(name, peer, x, ref=None, **params):
    """Value and gradients of the oracle are those of another loss of the same leaves."""
    expected = value_and_grads(peer, x, ref)
    assert expected[0].isfinite()
    assert_same(value_and_grads(lambda x, ref=None: oracle(name, x, ref=ref, **params), x, ref), expected)
    return expected[0]


# By hand


def test_triplet_margin_by_hand():
    def loss(**params):
        return on_line("TripletMarginLoss", 4, margin=1.25, **params)

    # Of 8 triplets (1, 0, 2) costs 1 - 2 + 1.25 and (2, 3, 1) costs 1.5 - 2 + 1.25.
    assert loss() == 0.5
    assert loss(reducer="mean") == 1 / 8
    assert loss(reducer="sum") == 1
    assert loss(reducer=("threshold", 0.5, None)) == 0.75
    assert loss(reducer="per_anchor") == (0.25 / 2 + 0.75 / 2) / 4
    assert loss(reducer=("class_weighted", [1, 3])) == (0.25 + 3 * 0.75) / 8
    assert loss(squared=True) == (0.25**2 + 0.75**2) / 2
    # The pair 1-2 is also reached from the triplets (0, 1, 2) and (3, 2, 1).
    assert loss(swap=True, reducer="sum") == 2
    assert loss(indices_tuple=([1, 1, 3], [0, 0, 2], [2, 2, 1]), reducer="sum") == 0.5
    # The positive 0 of anchor 1 with the negatives 2 and 3, one of them twice; nothing for anchors 0 and 2.
    assert loss(indices_tuple=([1, 0], [0, 1], [1, 2, 1, 1], [2, 0, 3, 2]), reducer="sum") == 0.5
    soft = [math.log1p(math.exp(t + 1.25)) for t in (-2, -3.5, -1, -2.5, -1.5, -0.5, -3, -2)]
    assert loss(smooth_loss=True) == pytest.approx(sum(soft) / 8, rel=1e-14)


def test_triplet_swap_with_a_reference_set_by_hand():
    x, ref = torch.tensor([[0.0]], dtype=torch.float64), torch.tensor([[2.0], [3.5], [-3.0]], dtype=torch.float64)
    options = {"margin": 1.25, "reducer": "sum", "swap": True, **ON_LINE}
    # Between reference points: |2 - 3.5| replaces 3.5, while |2 - (-3)| is more than 3.
    assert oracle("TripletMarginLoss", x, [0], ref, [0, 1, 2], **options) == (2 - 1.5 + 1.25) + (2 - 3 + 1.25)


@pytest.mark.parametrize("lone_anchors, expected", [("skip", (0.25, 0.75, 2.25, 0)), ("zero", (0.25, 0.75, 2.25, 0, 0.75))])
def test_batch_hard_by_hand(lone_anchors, expected):
    def loss(**params):
        return on_line("BatchHardTripletLoss", margin=1.25, lone_anchors=lone_anchors, **params)

    assert loss() == sum(expected) / len(expected)
    assert loss(reducer="per_anchor") == sum(expected) / 5
    assert loss(reducer="sum") == sum(expected)
    arguments = [1 - 3, 1 - 2, 1.5 - 2, 1.5 - 0.5, 0 - 0.5][: len(expected)]
    soft = sum(math.log1p(math.exp(t + 1.25)) for t in arguments) / len(expected)
    assert loss(soft_margin=True) == pytest.approx(soft, rel=1e-14)


def test_batch_hard_lone_anchor_of_similarities():
    x = CIRCLE[:2]
    assert oracle("BatchHardTripletLoss", x, [0, 1], distance="cosine") == 0
    zero = oracle("BatchHardTripletLoss", x, [0, 1], distance="cosine", lone_anchors="zero", margin=0.5)
    assert zero.item() == pytest.approx(0.6 - 1 + 0.5)


def test_batch_hard_within_listed_pairs():
    pairs = ([0, 2], [1, 3], [0, 0, 2], [3, 4, 0])
    assert on_line("BatchHardTripletLoss", margin=4, indices_tuple=pairs) == ((1 - 4.5 + 4) + (1.5 - 3 + 4)) / 2
    assert on_line("BatchHardTripletLoss", margin=4, indices_tuple=([0, 0], [1, 1], [2, 3])) == 1 - 3 + 4


def test_semi_hard_by_hand():
    # (1, 0) has the negative at 2, (2, 3) one of those at 2; (3, 2) passes over the one at 0.5.
    assert on_line("SemiHardTripletLoss", margin=1.25) == (0.25 + 0.75) / 4
    # No negative is beyond the positives: the farthest ones, at 2 and at 4.
    x = torch.tensor([[0.0], [5.0], [1.0], [2.0]], dtype=torch.float64)
    assert on_line("SemiHardTripletLoss", x=x, labels=[0, 0, 1, 2], margin=1.25) == ((5 - 2 + 1.25) + (5 - 4 + 1.25)) / 2
    # A negative as far as the positive is not beyond it.
    x = torch.tensor([[0.0], [1.0], [-1.0], [1.5]], dtype=torch.float64)
    assert on_line("SemiHardTripletLoss", x=x, labels=[0, 0, 1, 2], margin=1, reducer="sum") == 0.5 + 0.0


def test_margin_loss_by_hand():
    def loss(**params):
        return on_line("MarginLoss", 4, **{"margin": 0.75, "beta": 2.0, **params})

    # Positives beyond 1.25: 0.25 in each of 4 triplets. Negatives within 2.75: 0.75 in each of 2.
    assert loss() == 2.5 / 6
    assert loss(reducer="sum") == 2.5
    assert loss(reducer="per_anchor") == (0 + 0.75 / 2 + (2 * 0.25 + 0.75) / 2 + 0.25) / 4
    assert loss(nu=0.5) == 2.5 / 6
    assert loss(nu=0.5, learn_beta=True) == 2.5 / 6 + 1
    assert loss(nu=0.5, learn_beta=True, num_classes=2) == 2.5 / 6 + 0.5 * 8 * 2 / 6
    assert loss(nu=0.5, learn_beta=True, num_classes=2, reducer="mean") == 2.5 / 8 + 0.5 * 2
    # The mean of the penalties is over triplets, so the lone anchor does not count.
    options = {"reducer": "per_anchor", "learn_beta": True, "num_classes": 3, "beta": 2.0, "margin": 0.75}
    without, penalised = (on_line("MarginLoss", nu=nu, **options) for nu in (0, 0.5))
    assert penalised == without + 0.5 * 2
    assert loss(beta=1.75, margin=0.25, nu=0.5, learn_beta=True) == 0.5 * 1.75
    assert loss(beta=1.75, margin=0.25, nu=0.5, learn_beta=True, num_classes=2) == 0
    beta = torch.tensor([2.0, 1.5], dtype=torch.float64, requires_grad=True)
    # Class 1 now: positives cost 0.75 in each of 4 triplets, one negative costs 0.25.
    value = oracle("MarginLoss", LINE[:4], LINE_LABELS[:4], margin=0.75, beta=beta, **ON_LINE)
    assert value == (0.75 + 4 * 0.75 + 0.25) / 6
    value.backward()
    assert torch.allclose(beta.grad, torch.tensor([1.0, 1 - 4]).double() / 6)


def test_quadruplet_margin_by_hand():
    def loss(negatives, **params):
        return on_line("QuadrupletMarginLoss", margin=1.25, negatives=negatives, **params)

    # {0, 1} against 2 at {1, 2} and {2, 4} and 0.5 at {3, 4}; {2, 3} against the same.
    assert loss("all", reducer="sum") == (0.25 + 0.25 + 1.75) + (0.75 + 0.75 + 2.25)
    assert loss("all") == 1
    assert loss("all", reducer="mean") == 6 / 16
    for negatives in ("disjoint", "other_class"):
        assert loss(negatives, reducer="sum") == 0.25 + 1.75
        assert loss(negatives) == 1
        assert loss(negatives, reducer="mean") == 2 / 4
        assert loss(negatives, reducer=("threshold", None, 1)) == 0.25 / 3


def test_other_class_is_less_than_disjoint():
    x = torch.tensor([[0.0], [1.0], [1.5], [2.0], [2.5]], dtype=torch.float64)
    labels = [0, 0, 0, 1, 2]
    by_hand = [1 - 0.5, 1.5 - 0.5, 0.5 - 0.5]
    assert on_line("QuadrupletMarginLoss", x=x, labels=labels, margin=0.25, reducer="sum", negatives="other_class") == sum(
        t + 0.25 for t in by_hand
    )
    disjoint = [*by_hand, 1 - 0.5, 1 - 1, 1.5 - 1, 1.5 - 1.5]
    assert on_line("QuadrupletMarginLoss", x=x, labels=labels, margin=0.25, reducer="sum") == sum(t + 0.25 for t in disjoint)


def test_quadruplet_loss_by_hand():
    def loss(**params):
        return on_line("QuadrupletLoss", **params)

    # 12 triplets: (1, 0, 2), (2, 3, 1), (2, 3, 4) and (3, 2, 4). 4 quadruplets: {0, 1} against {2, 4} and {3, 4}.
    margins = {"margin1": 1.25, "margin2": 1.25}
    assert loss(**margins) == (0.25 + 0.75 + 0.75 + 2.25) / 12 + (0.25 + 1.75) / 4
    assert loss(**margins, reducer="sum") == 4 + 4 * 2
    assert loss(**margins, reducer="avg_non_zero") == 1 + 1
    quadruplets = ([0, 2], [1, 3], [2, 1], [4, 4])
    assert loss(margin1=1.25, margin2=1.75, indices_tuple=quadruplets) == (0 + 0.75) / 2 + (0.75 + 0) / 2
    # Mean negative 3.0625 less mean positive 1.25.
    assert loss(adaptive=True) == (0.8125 + 0.3125 + 2 * 1.3125 + 2.8125) / 12 + 1.40625 / 4
    assert loss(adaptive=True) == loss(adaptive=True, detach_margins=False)
    assert loss(adaptive=True) == loss(margin1=1.8125, margin2=0.90625)


def test_quadruplet_loss_defaults_by_hand():
    # Squared distances 0.8, 0.4 and 0.08, and no quadruplet.
    assert oracle("QuadrupletLoss", CIRCLE, [0, 0, 1]).item() == pytest.approx(((0.8 - 0.4 + 1) + (0.8 - 0.08 + 1)) / 2)


def test_quadruplet_log_sum_exp_by_hand():
    total = sum(math.exp(2 * (p - n)) for p in (1, 1.5) for n in (3, 4.5, 5, 2, 3.5, 4, 2, 0.5))
    assert on_line("QuadrupletLogSumExpLoss", scale=2.0) == pytest.approx(math.log1p(total), rel=1e-14)
    value = oracle("QuadrupletLogSumExpLoss", CIRCLE, [0, 0, 1]).item()
    assert value == pytest.approx(math.log1p(math.exp(20 * 0.2) + math.exp(20 * 0.36)), rel=1e-14)


def test_histogram_by_hand():
    def loss(labels=(0, 0, 1), **params):
        return oracle("HistogramLoss", CIRCLE, labels, n_bins=4, **params).item()

    # On the nodes 0.5 and 1: h+ = (0.8, 0.2), h- = (0.24, 0.76).
    assert loss() == pytest.approx(0.24 * 0.8 + 0.76)
    assert loss(delta=0.5) == loss()
    assert loss(kernel="linear", margin=0.25) == pytest.approx(0.8 * (0.24 * 0.25 + 0.76 * 0.75) + 0.2 * 0.76 * 0.25)
    low, same, high = (math.log1p(math.exp(3 * (0.25 + gap))) for gap in (-0.5, 0, 0.5))
    expected = 0.8 * (0.24 * same + 0.76 * high) + 0.2 * (0.24 * low + 0.76 * same)
    assert loss(kernel="exp", margin=0.25, alpha=3.0) == pytest.approx(expected)
    # The listed triplet has only the negative pair of similarity 0.96.
    assert loss(indices_tuple=([1], [0], [2])) == pytest.approx(0.08 * 0.8 + 0.92)


def test_histogram_pairs_by_hand():
    x = torch.cat([CIRCLE, torch.tensor([[0.0, -1.0]]).double()])
    labels = [0, 0, 1, 2]
    # The pair {2, 3} is in no triplet; like {0, 3} and {1, 3} it is far below the positive pair.
    within = (0.24 * 0.8 + 0.76) * 2
    triplets = oracle("HistogramLoss", x, labels, n_bins=4).item()
    assert triplets == pytest.approx(within / 4)
    assert oracle("HistogramLoss", x, labels, n_bins=4, pairs="all").item() == pytest.approx(within / 5)


def test_fast_ap_by_hand():
    # Squared distances 0.8, 0.4 and 0.08 on the nodes 0, 1, ...
    first, second = 0.2 * 0.2 / 0.8 + 0.8 / 2, 0.2 * 0.2 / 1.12 + 0.8 / 2
    labels = [0, 0, 1]
    assert oracle("FastAPLoss", CIRCLE, labels, num_bins=4).item() == pytest.approx(1 - (first + second) / 2)
    weighted = oracle("FastAPLoss", CIRCLE, labels, num_bins=4, indices_tuple=([0, 2], [1, 2], [2, 2])).item()
    assert weighted == pytest.approx(((1 - first) + (1 - second)) / 4 / 2)


def test_dynamic_soft_margin_by_hand():
    dynamic = TERM_ORACLES["DynamicSoftMarginLoss"]
    d = {(0, 1): math.sqrt(0.8), (0, 2): math.sqrt(0.4), (1, 2): math.sqrt(0.08)}
    t, u = d[0, 1] - d[0, 2], d[0, 1] - d[1, 2]
    loss, histogram = dynamic(CIRCLE, [0, 0, 1], num_bins=4)
    torch.testing.assert_close(histogram, torch.tensor([0, 0, (1 - t + 1 - u) / 2, (t + u) / 2, 0]).double())
    assert loss.item() == pytest.approx((2 - t - u) / 2 * (t + u) / 2)
    # The average of a histogram of sum 1 and of the counts of two triplets.
    before = torch.tensor([0.5, 0, 0.5, 0, 0]).double()
    loss, histogram = dynamic(CIRCLE, [0, 0, 1], num_bins=4, histogram=before, momentum=0.25)
    now = torch.tensor([0.375, 0, 0.375 + 0.25 * (2 - t - u), 0.25 * (t + u), 0]).double() / 1.25
    torch.testing.assert_close(histogram, now)
    assert loss.item() == pytest.approx(now[:3].sum().item() * (t + u) / 2)
    # A node at -0.5 and one at 0.5: u is beyond.
    loss, histogram = dynamic(CIRCLE, [0, 0, 1], num_bins=1, min_val=-0.5)
    torch.testing.assert_close(histogram, torch.tensor([0.5 - t, 0.5 + t + 1]).double() / 2)
    assert loss.item() == pytest.approx(((0.5 - t) / 2 * t + u) / 2)
    # Now d_12 - d_01 = -u is before the first.
    v = d[1, 2] - d[0, 2]
    loss, histogram = dynamic(CIRCLE, [0, 1, 1], num_bins=1, min_val=-0.5)
    torch.testing.assert_close(histogram, torch.tensor([1 + 0.5 - v, 0.5 + v]).double() / 2)
    assert loss.item() == pytest.approx((1.5 - v) / 2 * v / 2)


def test_dynamic_soft_margin_without_triplets_keeps_the_histogram():
    dynamic, before = TERM_ORACLES["DynamicSoftMarginLoss"], torch.full((11,), 1 / 11).double()
    loss, histogram = dynamic(CIRCLE, [0, 1, 2], histogram=before)
    assert loss == 0 and torch.equal(histogram, before)
    assert dynamic(CIRCLE, [0, 0, 0])[1] is None
    assert dynamic(CIRCLE[:1], None, CIRCLE[1:2]) == (0, None)


def test_dynamic_soft_margin_without_labels_by_hand():
    dynamic = TERM_ORACLES["DynamicSoftMarginLoss"]
    ref = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]]).double()
    # Distances to the reference points from (1, 0), (0.6, 0.8) and (0.8, 0.6).
    a, b = math.sqrt(2), 0.0
    c, d, e = math.sqrt(0.4), math.sqrt(0.8), math.sqrt(3.6)
    f, g, h = math.sqrt(0.8), math.sqrt(0.4), math.sqrt(3.2)
    t = torch.tensor([a - min(b, a, c, f), d - min(c, e, b, g), h - min(f, g, a, e)]).double()
    loss, histogram = dynamic(CIRCLE, None, ref, num_bins=2)
    counts = torch.tensor([0, (1 - t / 2).sum(), (t / 2).sum()]).double() / 3
    torch.testing.assert_close(histogram, counts)
    torch.testing.assert_close(loss, counts[1] * t.mean())
    with pytest.raises(ValueError, match="match"):
        dynamic(CIRCLE, None, ref[:2])


# Against pytorch-metric-learning


@METRICS
@pytest.mark.parametrize(
    "options", [{}, {"swap": True}, {"smooth_loss": True}, {"margin": 0.4, "swap": True, "smooth_loss": True}]
)
def test_triplet_margin_of_a_peer(options, metric):
    x, labels = embeddings(14), unbalanced_labels(14)
    peer = losses.TripletMarginLoss(distance=DISTANCES[metric], **options)
    own = dict(options, distance=metric[0], normalize=metric[1])
    both("TripletMarginLoss", lambda x: peer(x, labels), x, labels=labels, **own)
    for indices in (some_triplets(labels), listed_pairs(labels, number=12)):
        both("TripletMarginLoss", lambda x, i=indices: peer(x, labels, i), x, labels=labels, indices_tuple=indices, **own)
    if "swap" not in options:
        # With a reference set the peer looks up d_pn among the distances of the queries.
        ref, ref_labels = embeddings(9, seed=2), unbalanced_labels(9, seed=3)
        own.update(labels=labels, ref_labels=ref_labels)
        both("TripletMarginLoss", lambda x, ref: peer(x, labels, None, ref, ref_labels), x, ref, **own)
        for indices in (some_triplets(labels, ref_labels), listed_pairs(labels, ref_labels, number=12)):
            own["indices_tuple"] = indices
            both("TripletMarginLoss", lambda x, ref, i=indices: peer(x, labels, i, ref, ref_labels), x, ref, **own)


def test_swap_with_a_reference_set_is_that_of_the_joint_batch():
    labels, ref_labels = unbalanced_labels(8), unbalanced_labels(11, seed=3)
    a, p, n = torch.tensor(all_triplets(labels, ref_labels)).unbind(1)
    peer, joint = losses.TripletMarginLoss(margin=0.4, swap=True), torch.cat([labels, ref_labels])
    options = {"labels": labels, "ref_labels": ref_labels, "margin": 0.4, "swap": True}

    def loss(x, ref):
        return peer(torch.cat([x, ref]), joint, (a, 8 + p, 8 + n))

    both("TripletMarginLoss", loss, embeddings(8), embeddings(11, seed=2), **options)


@pytest.mark.parametrize(
    "reducer",
    ["mean", "sum", "avg_non_zero", ("threshold", 0.2, 0.7), ("threshold", 100.0, None), ("class_weighted", CLASS_WEIGHTS)],
    ids=label_of,
)
@pytest.mark.parametrize("name", ["TripletMarginLoss", "MarginLoss"])
def test_reducers_of_a_peer(name, reducer):
    x, labels = embeddings(14), unbalanced_labels(14)
    peer = getattr(losses, name)(reducer=peer_reducer(reducer))
    # The peer keeps beta in float32.
    params = {"beta": float(torch.tensor(1.2))} if name == "MarginLoss" else {}
    value = both(name, lambda x: peer(x, labels), x, labels=labels, reducer=reducer, **params)
    assert (value == 0) == (reducer[0:2] == ("threshold", 100.0))


@pytest.mark.parametrize("name", OVER_TRIPLETS)
def test_per_anchor_is_the_mean_of_single_anchors(name):
    x, labels = embeddings(14), unbalanced_labels(14)
    triplets = all_triplets(labels)

    def by_anchor(x):
        rows = []
        for anchor in range(14):
            own = [t for t in triplets if t[0] == anchor]
            indices = torch.tensor(own).unbind(1) if own else ([], [], [])
            rows.append(oracle(name, x, labels, indices_tuple=indices, reducer="mean", **PARAMS[name]))
        return sum(rows) / 14

    both(name, by_anchor, x, labels=labels, reducer="per_anchor", **PARAMS[name])


@METRICS
def test_margin_loss_of_a_peer(metric):
    x, labels = embeddings(14), unbalanced_labels(14)
    params = {"margin": 0.3, "beta": 0.75}
    peer = losses.MarginLoss(distance=DISTANCES[metric], **params)
    own = dict(params, labels=labels, distance=metric[0], normalize=metric[1])
    both("MarginLoss", lambda x: peer(x, labels), x, **own)
    for indices in (some_triplets(labels), listed_pairs(labels, number=12)):
        both("MarginLoss", lambda x, i=indices: peer(x, labels, i), x, indices_tuple=indices, **own)
    ref, ref_labels = embeddings(9, seed=2), unbalanced_labels(9, seed=3)
    both("MarginLoss", lambda x, ref: peer(x, labels, None, ref, ref_labels), x, ref, ref_labels=ref_labels, **own)


@pytest.mark.parametrize("reducer", [None, "mean", "avg_non_zero", ("class_weighted", CLASS_WEIGHTS)], ids=str)
@pytest.mark.parametrize("metric", [("euclidean", True), ("cosine", True)], ids=label_of)
@pytest.mark.parametrize("num_classes", [None, 1, 6])
def test_learned_beta_of_a_peer(num_classes, metric, reducer):
    x, labels = embeddings(14).requires_grad_(), unbalanced_labels(14) if num_classes != 1 else torch.arange(14) % 3
    options = {} if reducer is None else {"reducer": peer_reducer(reducer)}
    peer = losses.MarginLoss(
        margin=0.3, nu=0.2, beta=0.75, learn_beta=True, num_classes=num_classes, distance=DISTANCES[metric], **options
    ).double()
    if num_classes == 6:
        peer.beta.data = torch.linspace(0.5, 1.25, 6, dtype=torch.float64)
    expected = peer(x, labels)
    expected = expected.detach(), torch.autograd.grad(expected, [x, peer.beta])
    beta = peer.beta.detach().clone().requires_grad_()
    own = {"distance": metric[0], "reducer": reducer}
    value = oracle("MarginLoss", x, labels, margin=0.3, nu=0.2, beta=beta, learn_beta=True, **own)
    assert_same((value.detach(), torch.autograd.grad(value, [x, beta])), expected)
    assert expected[1][1].abs().max() > 1e-3


@METRICS
@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
def test_batch_hard_of_a_peer(metric, with_ref):
    x, labels = embeddings(14), unbalanced_labels(14)
    ref, ref_labels = (embeddings(9, seed=2), unbalanced_labels(9, seed=3)) if with_ref else (None, None)
    miner = miners.BatchHardMiner(distance=DISTANCES[metric])
    for margin, soft_margin in ((0.3, False), (0.3, True), (0.0, True)):
        peer = losses.TripletMarginLoss(
            margin=margin, smooth_loss=soft_margin, distance=DISTANCES[metric], reducer=reducers.MeanReducer()
        )

        def loss(x, ref=None, peer=peer):
            return peer(x, labels, miner(x, labels, ref, ref_labels), ref, ref_labels)

        options = {"labels": labels, "ref_labels": ref_labels, "distance": metric[0], "normalize": metric[1]}
        both("BatchHardTripletLoss", loss, x, ref, margin=margin, soft_margin=soft_margin, **options)


@pytest.mark.parametrize("metric", [("euclidean", True), ("cosine", True), ("squared_euclidean", False)], ids=label_of)
def test_semi_hard_of_a_peer(metric):
    """The peer's miner has no other choice where no negative is beyond the positive, so only the other pairs are compared."""
    x, labels = embeddings(14), torch.arange(14) // 2
    miner = miners.BatchEasyHardMiner(pos_strategy="hard", neg_strategy="semihard", distance=DISTANCES[metric])
    a, p, _, n = miner(x, labels)
    assert 7 < len(a) < 14
    peer = losses.TripletMarginLoss(margin=0.3, distance=DISTANCES[metric], reducer=reducers.MeanReducer())
    negatives = (labels[a][:, None] != labels).nonzero()
    pairs = a, p, a[negatives[:, 0]], negatives[:, 1]
    options = {"labels": labels, "margin": 0.3, "distance": metric[0], "normalize": metric[1]}
    both("SemiHardTripletLoss", lambda x: peer(x, labels, (a, p, n)), x, indices_tuple=pairs, **options)


IGNORE_INDEXING = pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing")


@IGNORE_INDEXING
@pytest.mark.parametrize("n_bins", [None, 7, 40])
@pytest.mark.parametrize("layout", ["balanced", "singletons"])
def test_histogram_of_a_peer(float64_by_default, layout, n_bins):
    labels = torch.arange(14) // 2 if layout == "balanced" else unbalanced_labels(14)
    x, peer = embeddings(14), losses.HistogramLoss(n_bins=n_bins)
    both("HistogramLoss", lambda x: peer(x, labels), x, labels=labels, n_bins=n_bins)
    for indices in (some_triplets(labels), listed_pairs(labels, number=12)):
        both("HistogramLoss", lambda x, i=indices: peer(x, labels, i), x, labels=labels, n_bins=n_bins, indices_tuple=indices)
    if layout == "balanced":
        both("HistogramLoss", lambda x: peer(x, labels), x, labels=labels, n_bins=n_bins, pairs="all")
    else:
        assert abs(oracle("HistogramLoss", x, labels, n_bins=n_bins, pairs="all") - peer(x, labels)) > 1e-4


@IGNORE_INDEXING
def test_histogram_of_a_peer_with_delta(float64_by_default):
    """2 / delta = 3.125: the last of 4 nodes is at 0.92, beyond all similarities."""
    x, labels = embeddings(10, 12), torch.arange(10) // 2
    both("HistogramLoss", lambda x: losses.HistogramLoss(delta=0.64)(x, labels), x, labels=labels, delta=0.64)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("num_bins", [7, 10])
def test_fast_ap_of_a_peer(num_bins, power):
    x, labels = embeddings(14), unbalanced_labels(14)
    peer = losses.FastAPLoss(num_bins, distance=distances.LpDistance(power=power))
    options = {"labels": labels, "num_bins": num_bins, "distance": "euclidean" if power == 1 else None}
    both("FastAPLoss", lambda x: peer(x, labels), x, **options)
    for indices in (some_triplets(labels), listed_pairs(labels, number=12), ([], [], [])):
        indices = tuple(torch.as_tensor(i, dtype=torch.int64) for i in indices)
        both("FastAPLoss", lambda x, i=indices: peer(x, labels, i), x, indices_tuple=indices, **options)


@pytest.mark.parametrize("reducer", ["sum", "avg_non_zero", "per_anchor", ("class_weighted", CLASS_WEIGHTS)], ids=label_of)
def test_fast_ap_reducers_of_a_peer(reducer):
    x, labels = embeddings(14), unbalanced_labels(14)
    peer = losses.FastAPLoss(reducer=peer_reducer(reducer))
    both("FastAPLoss", lambda x: peer(x, labels), x, labels=labels, reducer=reducer)


class ConstantWeights(losses.DynamicSoftMarginLoss):
    """The peer with the histogram that the paper has, one without a gradient."""

    def update_histogram(self, data):
        super().update_histogram(data.detach())


class CopiedDistance(distances.LpDistance):
    """Without labels the peer overwrites the matrix that the gradient of torch.cdist needs."""

    def compute_mat(self, query_emb, ref_emb):
        return super().compute_mat(query_emb, ref_emb).clone()


@pytest.mark.parametrize("kind", ["self", "reference", "triplets", "pairs", "matches"])
def test_dynamic_soft_margin_of_a_peer(kind):
    """Three steps with one running histogram. The peer has no node at the end, and no difference comes near it here."""
    labels, ref_labels = unbalanced_labels(12), unbalanced_labels(9, seed=3)
    params = {"min_val": -2.2, "num_bins": 9, "momentum": 0.2}
    peer, original = ConstantWeights(**params, distance=CopiedDistance()), losses.DynamicSoftMarginLoss(**params)
    indices = {"triplets": some_triplets(labels), "pairs": listed_pairs(labels, number=12)}.get(kind)
    histogram = None
    for step in range(3):
        x = embeddings(12, 16, seed=step)
        ref = embeddings(9 if kind == "reference" else 12, 16, seed=7 + step) if kind in ("reference", "matches") else None
        if kind == "matches":
            ref = x + 0.7 * ref
        own = {"reference": (labels, ref_labels), "matches": (None, None)}.get(kind, (labels, None))

        def peer_loss(x, ref=None, peer=peer, own=own):
            return peer(x, own[0], indices, ref, own[1])

        def oracle_loss(x, ref=None, own=own, histogram=histogram):
            return TERM_ORACLES["DynamicSoftMarginLoss"](
                x, own[0], ref, own[1], indices_tuple=indices, histogram=histogram, **params
            )

        with torch.no_grad():
            value, histogram = oracle_loss(x, ref)
            torch.testing.assert_close(original(x, own[0], indices, ref, own[1]), value, rtol=1e-9, atol=0)
        expected = value_and_grads(peer_loss, x, ref)
        assert_same(value_and_grads(lambda *leaves, f=oracle_loss: f(*leaves)[0], x, ref), expected)
        torch.testing.assert_close(histogram[:-1], peer.hist_, rtol=1e-9, atol=1e-12)
        assert histogram[-1] == 0


# Against sentence-transformers


SENTENCE_LOSSES = [
    ("BatchAllTripletLoss", "TripletMarginLoss", {}),
    ("BatchHardTripletLoss", "BatchHardTripletLoss", {"lone_anchors": "zero"}),
    ("BatchHardSoftMarginTripletLoss", "BatchHardTripletLoss", {"lone_anchors": "zero", "soft_margin": True, "margin": 0}),
    ("BatchSemiHardTripletLoss", "SemiHardTripletLoss", {}),
]


@pytest.mark.parametrize("cosine", [False, True], ids=["euclidean", "cosine"])
@pytest.mark.parametrize("theirs, ours, options", SENTENCE_LOSSES, ids=[case[0] for case in SENTENCE_LOSSES])
def test_triplet_losses_of_sentence_transformers(theirs, ours, options, cosine):
    kind = sentence_losses.BatchHardTripletLossDistanceFunction
    arguments = {"distance_metric": kind.cosine_distance if cosine else kind.euclidean_distance}
    if "margin" not in options:
        arguments["margin"] = 0.7
        options = dict(options, margin=0.7)
    peer = getattr(sentence_losses, theirs)(None, **arguments)
    options = dict(options, distance="cosine" if cosine else "euclidean", normalize=False)
    for labels in (unbalanced_labels(14), torch.arange(14) // 2, torch.arange(14) % 3):
        both(ours, lambda x, y=labels: peer.compute_loss_from_embeddings([x], y), embeddings(14), labels=labels, **options)


@pytest.mark.parametrize("scale", [20.0, 3.0])
def test_cosent_of_sentence_transformers(scale):
    labels = unbalanced_labels(14)
    i, j = torch.triu_indices(14, 14, 1)
    scores = (labels[i] == labels[j]).double()
    peer = sentence_losses.CoSENTLoss(None, scale=scale)

    def loss(x):
        return peer.compute_loss_from_embeddings([x[i], x[j]], scores)

    both("QuadrupletLogSumExpLoss", loss, embeddings(14), labels=labels, scale=scale)


# By other formulas


def matrix_of(x, metric):
    kind, normalize = metric
    if normalize or kind == "cosine":
        x = torch.nn.functional.normalize(x)
    if kind in ("cosine", "dot"):
        return x @ x.T
    squared = (x[:, None] - x).square().sum(-1)
    return squared if kind == "squared_euclidean" else squared.clamp_min(1e-300).sqrt()


SYMMETRIC = [metric for metric in DISTANCES if metric[0] != "snr"]


def masks(labels):
    i, j = torch.triu_indices(len(labels), len(labels), 1)
    same = labels[i] == labels[j]
    return (i[same], j[same]), (i[~same], j[~same])


def quadruplet_differences(x, labels, metric):
    """(positive pairs, negative pairs) of differences, and which are disjoint and which of other classes."""
    (i, j), (k, m) = masks(labels)
    v = matrix_of(x, metric)
    difference = v[i, j][:, None] - v[k, m]
    i, j = i[:, None], j[:, None]
    disjoint = (i != k) & (i != m) & (j != k) & (j != m)
    other_class = (labels[i] != labels[k]) & (labels[i] != labels[m])
    return (-difference if metric[0] in ("cosine", "dot") else difference), disjoint, other_class


@pytest.mark.parametrize("metric", SYMMETRIC, ids=label_of)
@pytest.mark.parametrize("reducer", ["avg_non_zero", "mean", "sum"])
def test_quadruplet_margin_as_a_tensor(reducer, metric):
    x, labels = embeddings(13), unbalanced_labels(13)

    def loss(x, negatives):
        difference, disjoint, other_class = quadruplet_differences(x, labels, metric)
        kept = {"all": disjoint | True, "disjoint": disjoint, "other_class": other_class}[negatives]
        hinge = torch.relu(difference[kept] + 0.3)
        return {"sum": hinge.sum(), "mean": hinge.mean(), "avg_non_zero": hinge.sum() / hinge.count_nonzero()}[reducer]

    for negatives in ("all", "disjoint", "other_class"):
        options = {"distance": metric[0], "normalize": metric[1], "negatives": negatives, "reducer": reducer}
        both("QuadrupletMarginLoss", lambda x, kind=negatives: loss(x, kind), x, labels=labels, margin=0.3, **options)


@pytest.mark.parametrize("metric", SYMMETRIC, ids=label_of)
@pytest.mark.parametrize("margins", ["fixed", "constant", "with gradients"])
def test_quadruplet_loss_as_a_tensor(metric, margins):
    x, labels = embeddings(13), unbalanced_labels(13)
    a, p, n = torch.tensor(all_triplets(labels)).unbind(1)
    sign = -1 if metric[0] in ("cosine", "dot") else 1

    def loss(x):
        v = sign * matrix_of(x, metric)
        difference, _, other_class = quadruplet_differences(x, labels, metric)
        positive, negative = masks(labels)
        gap = v[negative].mean() - v[positive].mean()
        gap = gap.detach() if margins == "constant" else gap
        margin1, margin2 = (0.6, 0.2) if margins == "fixed" else (gap, gap / 2)
        return torch.relu(v[a, p] - v[a, n] + margin1).mean() + torch.relu(difference[other_class] + margin2).mean()

    options = {"distance": metric[0], "normalize": metric[1], "margin1": 0.6, "margin2": 0.2}
    options.update(adaptive=margins != "fixed", detach_margins=margins == "constant")
    both("QuadrupletLoss", loss, x, labels=labels, **options)


@pytest.mark.parametrize("adaptive", [False, True])
def test_quadruplet_loss_of_a_metric(adaptive):
    x, labels = embeddings(10), unbalanced_labels(10)
    weight = torch.linspace(0.2, 1.4, 6, dtype=torch.float64)

    def metric(u, v):
        assert u.shape == v.shape and u.shape[1] == 6
        return ((u - v).square() * weight).sum(1)

    def scaled(x):
        return oracle("QuadrupletLoss", x * weight.sqrt(), labels, normalize=False, adaptive=adaptive)

    both("QuadrupletLoss", scaled, x, labels=labels, metric=metric, adaptive=adaptive)
    quadruplets = ([0, 4], [6, 5], [1, 0], [2, 3])
    expected = oracle("QuadrupletLoss", x * weight.sqrt(), None, normalize=False, indices_tuple=quadruplets)
    torch.testing.assert_close(oracle("QuadrupletLoss", x, None, metric=metric, indices_tuple=quadruplets), expected)


def test_quadruplet_loss_evaluates_a_metric_once_for_each_pair_in_order():
    seen = []

    def metric(u, v):
        seen.extend(zip(u[:, 0].tolist(), v[:, 0].tolist(), strict=True))
        return (u - v).square().sum(1)

    oracle("QuadrupletLoss", LINE, LINE_LABELS, metric=metric)
    assert sorted(seen) == list(itertools.combinations(LINE[:, 0].tolist(), 2))


@pytest.mark.parametrize("metric", SYMMETRIC, ids=label_of)
def test_quadruplet_log_sum_exp_factorises(metric):
    x, labels = embeddings(13), unbalanced_labels(13)
    sign = -1 if metric[0] in ("cosine", "dot") else 1
    positive, negative = masks(labels)

    def loss(x):
        v = 2.5 * sign * matrix_of(x, metric)
        exponent = torch.logsumexp(-v[negative], 0) + torch.logsumexp(v[positive], 0)
        return torch.logaddexp(exponent, torch.zeros_like(exponent))

    both("QuadrupletLogSumExpLoss", loss, x, labels=labels, scale=2.5, distance=metric[0], normalize=metric[1])


@pytest.mark.parametrize("kernel", ["step", "linear", "exp"])
@pytest.mark.parametrize("n_bins", [7, 100])
def test_histogram_as_a_tensor(kernel, n_bins):
    x, labels = embeddings(13), unbalanced_labels(13)
    nodes = torch.linspace(-1, 1, n_bins + 1, dtype=torch.float64)
    gap = nodes - nodes[:, None]
    kernels = {
        "step": torch.ones_like(gap).triu(),
        "linear": torch.relu(0.13 + gap),
        "exp": torch.log1p(torch.exp(3 * (0.13 + gap))),
    }

    def loss(x):
        s = matrix_of(x, ("cosine", True))
        # Triangles around the nodes.
        positive, negative = (torch.relu(1 - (s[pairs] - nodes[:, None]).abs() * n_bins / 2).mean(1) for pairs in masks(labels))
        return positive @ kernels[kernel] @ negative

    both("HistogramLoss", loss, x, labels=labels, n_bins=n_bins, kernel=kernel, margin=0.13, alpha=3.0, pairs="all")


def test_similarities_beyond_the_nodes_count_as_the_last():
    x = torch.tensor([[2.0], [1.0], [-3.0]], dtype=torch.float64)
    value, (grad,) = value_and_grads(
        lambda x: oracle("HistogramLoss", x, [0, 0, 1], n_bins=4, distance="dot", normalize=False, kernel="linear", margin=3),
        x,
    )
    assert value == 3 - 1 - 1 and not grad.any()


def sums(x, labels, negatives, margin, reducer):
    options = {"margin": margin, "reducer": reducer, "distance": "squared_euclidean", "normalize": False}
    return oracle("QuadrupletMarginLoss", x, labels, negatives=negatives, **options)


@settings(max_examples=30)
@given(batches(rows=9, grid=True))
def test_disjoint_quadruplets_are_all_but_the_triplets(batch):
    x, labels = batch
    triplets = {"margin": 0.5, "distance": "squared_euclidean", "normalize": False, "reducer": "sum"}
    both(
        "QuadrupletMarginLoss",
        lambda x: sums(x, labels, "all", 0.5, "sum") - oracle("TripletMarginLoss", x, labels, **triplets),
        x,
        labels=labels,
        **triplets,
    )


@settings(max_examples=30)
@given(batches(rows=9, grid=True))
def test_quadruplets_of_other_classes_are_all_but_those_of_each_class(batch):
    x, labels = batch
    margin = {"margin": 0.5, "distance": "squared_euclidean", "normalize": False, "reducer": "sum"}

    def loss(x):
        v = (x[:, None] - x).square().sum(-1)
        (i, j), (k, m) = masks(labels)
        total = sums(x, labels, "all", 0.5, "sum")
        for label in labels.unique():
            own, touching = labels[i] == label, (labels[k] == label) | (labels[m] == label)
            total = total - torch.relu(0.5 + v[i[own], j[own]][:, None] - v[k[touching], m[touching]]).sum()
        return total

    both("QuadrupletMarginLoss", loss, x, labels=labels, negatives="other_class", **margin)


@pytest.mark.parametrize("name, params", CASES)
def test_excluded_diagonal_of_a_copy_is_the_self_batch(name, params):
    if name not in WITH_REF or params.get("lone_anchors") == "zero":
        with pytest.raises(ValueError, match="reference"):
            oracle(name, LINE, LINE_LABELS, LINE, LINE_LABELS, **params)
        return
    x, labels = embeddings(10), unbalanced_labels(10)
    value, (grad,) = value_and_grads(lambda x: oracle(name, x, labels, **params), x)
    copied, grads = value_and_grads(lambda x, ref: oracle(name, x, labels, ref, labels, exclude_diagonal=True, **params), x, x)
    assert_same((copied, [sum(grads)]), (value, [grad]))


@pytest.mark.parametrize("name, params", [case for case in CASES if case.values[0] in WITH_REF])
@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
def test_all_triplets_listed(name, params, with_ref):
    """A point of a reference set is a positive even if it is a copy of the anchor."""
    x, labels = embeddings(10), unbalanced_labels(10)
    reference = (x, labels) if with_ref else (None, None)
    triplets = torch.tensor(all_triplets(labels, reference[1])).unbind(1)
    if name == "BatchHardTripletLoss":
        # Lone anchors are in no triplet.
        params = dict(params, lone_anchors="skip")
    listed = oracle(name, x, labels, *reference, indices_tuple=triplets, **params)
    torch.testing.assert_close(listed, oracle(name, x, labels, *reference, **params))


def has_constants(name, params):
    """Whether a part of the loss that depends on the embeddings has no gradient."""
    return name == "DynamicSoftMarginLoss" or params.get("adaptive") and params.get("detach_margins", True)


@pytest.mark.parametrize("name, params", [case for case in CASES if not has_constants(*case.values)])
def test_gradient_is_that_of_the_value(name, params):
    x, labels = embeddings(8).requires_grad_(), unbalanced_labels(8)
    assert torch.autograd.gradcheck(lambda x: oracle(name, x, labels, **params), x)


# Degenerate batches


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name, params", CASES)
def test_degenerate_batches(name, params, case):
    size, dim, labels = DEGENERATE[case]
    value, (grad,) = value_and_grads(lambda x: oracle(name, x, labels, **params), embeddings(size, dim))
    assert value.dtype == torch.float64 and value.ndim == 0 and grad.shape == (size, dim)
    assert value.isfinite() and grad.isfinite().all()
    if case == "one class" and name == "FastAPLoss":
        # A precision of 1, up to rounding.
        assert abs(value) < 1e-15 and grad.abs().max() < 1e-15
    elif dim and not (case == "all different" and params.get("lone_anchors") == "zero"):
        assert value == 0 and not grad.any()


@pytest.mark.parametrize("size", [1, 3])
def test_lone_anchors_alone(size):
    x, labels = embeddings(size), torch.arange(size)
    d = matrix_of(x, ("euclidean", True)) + 9 * torch.eye(size)
    expected = torch.relu(1.7 - d.min(1).values).mean() if size > 1 else torch.zeros(()).double()
    value = oracle("BatchHardTripletLoss", x, labels, lone_anchors="zero", margin=1.7)
    torch.testing.assert_close(value, expected)
    assert value == oracle("BatchHardTripletLoss", x, labels, lone_anchors="zero", margin=1.7, reducer="per_anchor")


@pytest.mark.parametrize("beta", [0.5, [0.5, 0.7]])
@pytest.mark.parametrize("labels, margin", [([0, 0, 0], 0.2), ([0, 0, 1], -9)], ids=["no triplet", "no loss"])
def test_margin_loss_without_a_loss_is_connected(beta, labels, margin):
    beta = torch.tensor(beta, dtype=torch.float64)
    options = {"margin": margin, "learn_beta": True, "nu": 0.0}
    value, grads = value_and_grads(lambda x, beta: oracle("MarginLoss", x, labels, beta=beta, **options), embeddings(3), beta)
    assert value == 0 and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("QuadrupletMarginLoss", "QuadrupletLogSumExpLoss")])
def test_empty_lists(name):
    x, number = embeddings(4), 4 if name == "QuadrupletLoss" else 3
    value, (grad,) = value_and_grads(lambda x: oracle(name, x, [0, 0, 1, 1], indices_tuple=([],) * number), x)
    if name == "FastAPLoss":
        assert value == oracle(name, x, [0, 0, 1, 1]) > 0
    else:
        assert value == 0 and not grad.any()


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (0, 0)])
@pytest.mark.parametrize("name", WITH_REF)
def test_empty_reference_set_or_batch(name, sizes):
    rows, columns = sizes
    x, ref = embeddings(rows), embeddings(columns)
    value, grads = value_and_grads(lambda x, ref: oracle(name, x, [0] * rows, ref, [0] * columns), x, ref)
    assert value == 0 and not any(grad.any() for grad in grads)


def check_finite(name, params, x, labels, **options):
    value, (grad,) = value_and_grads(lambda x: oracle(name, x, labels, **options, **params), x)
    assert value.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("name, params", CASES)
@settings(max_examples=15)
@given(batches(rows=9))
def test_any_batch_is_finite(name, params, batch):
    check_finite(name, params, *batch)


@pytest.mark.parametrize("name, params", CASES)
def test_identical_rows(name, params):
    x, labels = embeddings(3)[[0, 0, 0, 1, 1, 2, 2, 0]], torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])
    check_finite(name, params, x, labels)
    check_finite(name, params, x[:1].expand(8, -1), labels)


@pytest.mark.parametrize("row", range(6))
@pytest.mark.parametrize("name, params", CASES)
def test_nan_reaches_the_loss(name, params, row):
    x = embeddings(6)
    x[row, 0] = math.nan
    # Row 4 is alone in its class, and may be nothing but a negative.
    assert oracle(name, x, [0, 0, 1, 1, 2, 1], **params).isnan()
    assert oracle(name, x, [0, 1, 2, 3, 4, 5], **params).isnan()


def test_nan_that_no_comparison_sees_reaches_the_loss():
    """Both anchors find the negative beyond their positive, and the other negative is at no distance."""
    x = torch.tensor([[0.0], [1.0], [3.0], [math.nan]], dtype=torch.float64)
    assert oracle("SemiHardTripletLoss", x, [0, 0, 1, 2], **ON_LINE).isnan()
    assert not oracle("SemiHardTripletLoss", x[:3], [0, 0, 1], **ON_LINE).isnan()


@pytest.mark.parametrize("name", NAMES)
def test_input_dtypes(name):
    x, labels = embeddings(10).to(torch.bfloat16).requires_grad_(), unbalanced_labels(10).to(torch.int8) - 2
    loss = oracle(name, x, labels)
    assert loss.dtype == torch.float64 and torch.equal(loss, oracle(name, x.double(), labels.tolist()))
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == torch.bfloat16 and grad.isfinite().all() and grad.any()


def test_ties_go_to_the_first():
    x = torch.tensor([[0.0], [1.0], [-1.0], [1.0]], dtype=torch.float64)
    for name in ("BatchHardTripletLoss", "SemiHardTripletLoss"):
        # Anchor 0 has the positives and negatives 1 and 2, and 3, all at distance 1.
        for labels, pairs in (([0, 0, 0, 1], ([0, 0], [1, 2], [0], [3])), ([0, 1, 2, 0], ([0], [3], [0, 0], [1, 2]))):
            _, (grad,) = value_and_grads(
                lambda x, name=name, y=labels, i=pairs: oracle(
                    name, x, y, indices_tuple=i, margin=1.0, reducer="sum", **ON_LINE
                ),
                x,
            )
            both_positives = name == "SemiHardTripletLoss" and labels[1] == 0
            assert grad[1] != 0 and (grad[2] != 0) == both_positives and grad[3] != 0


MISTAKES = [
    ("TripletMarginLoss", {"smooth_loss": True, "squared": True}, "squared"),
    ("BatchHardTripletLoss", {"lone_anchors": "drop"}, "lone_anchors"),
    ("QuadrupletMarginLoss", {"negatives": "none"}, "negatives"),
    ("QuadrupletMarginLoss", {"distance": "snr"}, "symmetric"),
    ("QuadrupletMarginLoss", {"reducer": "per_anchor"}, "anchor"),
    ("QuadrupletLoss", {"reducer": ("class_weighted", CLASS_WEIGHTS)}, "anchor"),
    ("QuadrupletLoss", {"metric": torch.dist, "distance": "euclidean"}, "metric"),
    ("QuadrupletLoss", {"adaptive": True, "indices_tuple": ([0], [1], [2], [4])}, "adaptive"),
    ("QuadrupletLogSumExpLoss", {"distance": "snr"}, "symmetric"),
    ("HistogramLoss", {"pairs": "some"}, "pairs"),
    ("HistogramLoss", {"kernel": "cubic"}, "kernel"),
    ("HistogramLoss", {"distance": "euclidean"}, "similarities"),
    ("FastAPLoss", {"distance": "cosine"}, "Euclidean"),
    ("DynamicSoftMarginLoss", {"distance": "cosine"}, "Euclidean"),
]


@pytest.mark.parametrize("name, params, message", MISTAKES)
def test_bad_arguments(name, params, message):
    with pytest.raises(ValueError, match=message):
        oracle(name, LINE.expand(-1, 2), LINE_LABELS, **params)
