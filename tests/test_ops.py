"""Triplets, quadruplets and histograms as operations, against plain loops over all of them in float64."""

import itertools

import pytest
import torch
from accuracy import assert_accurate
from cases import BACKENDS, embeddings, unbalanced_labels, value_and_grads

from metric_kernels import backends, distances, losses, ops, reducers, use_workspace
from metric_kernels.language import largest, lse, total
from metric_kernels.quadruplets import NEGATIVES
from metric_kernels.terms import ValueTile

COMPILED = ["native", "numba"]
DISTANCES = {
    "cosine": distances.CosineSimilarity(),
    "euclidean": distances.LpDistance(),
    "squared": distances.LpDistance(power=2, normalize_embeddings=False),
    "manhattan": distances.LpDistance(p=1, normalize_embeddings=False),
    "snr": distances.SNRDistance(),
}
SYMMETRIC = ["cosine", "euclidean", "squared"]


def cases(kinds):
    """Backends and distances. Numba takes a second to compile a metric: all but two are for the nightly run."""
    slow = {("numba", kind): [pytest.mark.slow] for kind in kinds if kind not in ("euclidean", "manhattan")}
    return [
        pytest.param(*backend.values, kind, marks=[*backend.marks, *slow.get((*backend.values, kind), [])])
        for backend, kind in itertools.product(BACKENDS, kinds)
    ]


SHAPES = {
    "hinge": lambda t: t.clamp_min(0),
    "squared_hinge": lambda t: t.clamp_min(0) ** 2,
    "softplus": torch.nn.functional.softplus,
}


def value(u, v, kind):
    """The pair value of two rows, written without the package."""
    if kind in ("cosine", "euclidean", "snr"):
        u, v = u / u.norm(), v / v.norm()
    if kind == "cosine":
        return (u * v).sum()
    if kind == "manhattan":
        return (u - v).abs().sum()
    if kind == "snr":
        return (u - v).var() / u.var()
    squared = ((u - v) ** 2).sum()
    return squared if kind == "squared" or squared == 0 else squared.sqrt()


def pairs_of(labels, ref_labels, self_pairs):
    """(positives, negatives) of each anchor as lists of columns."""
    for i, mine in enumerate(labels.tolist()):
        same = [j for j, other in enumerate(ref_labels.tolist()) if other == mine and (self_pairs or j != i)]
        yield same, [j for j, other in enumerate(ref_labels.tolist()) if other != mine]


def matrix_of(x, ref, kind):
    return [[value(u, v, kind) for v in (x if ref is None else ref)] for u in x]


def triplets(x, ref, labels, ref_labels, kind, margin, shape):
    """Sum of the loss, number of active and of all triplets for each anchor."""
    sign = -1 if kind == "cosine" else 1
    v, losses, active, valid = matrix_of(x, ref, kind), [], [], []
    for i, (positives, negatives) in enumerate(pairs_of(labels, ref_labels, ref is not None)):
        found = [SHAPES[shape](sign * (v[i][p] - v[i][n]) + margin) for p in positives for n in negatives]
        losses.append(sum(found, 0 * x.sum()))
        active.append(sum(bool(t > 0) for t in found))
        valid.append(len(found))
    return torch.stack(losses), torch.tensor(active), torch.tensor(valid)


def quadruplets(x, labels, kind, margin, negatives):
    sign, v, size = -1 if kind == "cosine" else 1, matrix_of(x, None, kind), range(len(x))
    unordered = list(itertools.combinations(size, 2))
    positive = [p for p in unordered if labels[p[0]] == labels[p[1]]]
    negative = [p for p in unordered if labels[p[0]] != labels[p[1]]]
    total, active, valid = 0 * x.sum(), 0, 0
    for (i, j), (k, m) in itertools.product(positive, negative):
        if negatives == "disjoint" and {i, j} & {k, m} or negatives == "other_class" and labels[i] in (labels[k], labels[m]):
            continue
        cost = (sign * (v[i][j] - v[k][m]) + margin).clamp_min(0)
        total, active, valid = total + cost, active + int(cost > 0), valid + 1
    return total, active, valid


def histograms(x, ref, labels, ref_labels, kind, low, high, bins):
    """(B, 2, bins + 1)."""
    v, step, rows = matrix_of(x, ref, kind), (high - low) / bins, []
    for i, sides in enumerate(pairs_of(labels, ref_labels, ref is not None)):
        for columns in sides:
            shares = [0 * x.sum()] * (bins + 1)
            for j in columns:
                place = ((v[i][j] - low) / step).clamp(0, bins)
                node = min(int(place), bins - 1)
                shares[node] = shares[node] + 1 - (place - node)
                shares[node + 1] = shares[node + 1] + (place - node)
            rows.append(torch.stack(shares))
    return torch.stack(rows).view(len(x), 2, -1)


def setting(with_ref, size=13):
    x, labels = embeddings(size, 5), unbalanced_labels(size)
    if not with_ref:
        return x, None, labels, labels
    return x, embeddings(9, 5, seed=1), labels, unbalanced_labels(9, seed=2)


def check(actual, expected, inputs, weights):
    """Values, and gradients of a weighted sum of them."""
    found = value_and_grads(lambda *leaves: (actual(*leaves) * weights).sum(), *inputs)
    exact = value_and_grads(lambda *leaves: (expected(*leaves) * weights).sum(), *inputs)
    assert_accurate(found[0], exact[0])
    for grad, exact_grad in zip(found[1], exact[1], strict=True):
        assert_accurate(grad, exact_grad)


@pytest.mark.parametrize("workspace", [1 << 20, 0], ids=["kept", "recomputed"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("backend, kind", cases(DISTANCES))
def test_triplets(backend, kind, with_ref, shape, workspace):
    x, ref, labels, ref_labels = setting(with_ref)
    options = {"margin": 0.1, "shape": shape, "distance": DISTANCES[kind], "backend": backend}

    def ours(x, ref=None):
        return ops.batch_all_triplet(x, labels, ref, ref_labels if with_ref else None, **options)

    def loops(x, ref=None):
        return triplets(x, ref, labels, ref_labels, kind, 0.1, shape)

    with use_workspace(workspace):
        _, active, valid = loops(x, ref)
        found = ours(x, ref)
        assert torch.equal(found.active, active) and torch.equal(found.valid, valid)
        weights = torch.linspace(0.5, 2.0, len(x), dtype=torch.float64)
        check(lambda *z: ours(*z).loss, lambda *z: loops(*z)[0], [t for t in (x, ref) if t is not None], weights)


def semi_hard(x, ref, labels, ref_labels, kind, margin, shape):
    sign = -1 if kind == "cosine" else 1
    v, losses, active, valid = matrix_of(x, ref, kind), [], [], []
    for i, (positives, negatives) in enumerate(pairs_of(labels, ref_labels, ref is not None)):
        found = []
        for p in positives if negatives else []:
            beyond = [n for n in negatives if sign * v[i][n] > sign * v[i][p]]
            chosen = min(beyond, key=lambda n: sign * v[i][n]) if beyond else max(negatives, key=lambda n: sign * v[i][n])
            found.append(SHAPES[shape](sign * (v[i][p] - v[i][chosen]) + margin))
        losses.append(sum(found, 0 * x.sum()))
        active.append(sum(bool(t > 0) for t in found))
        valid.append(len(found))
    return torch.stack(losses), torch.tensor(active), torch.tensor(valid)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("backend, kind", cases(DISTANCES))
def test_semi_hard_triplets(backend, kind, with_ref, shape):
    x, ref, labels, ref_labels = setting(with_ref)
    options = {"margin": 0.3, "shape": shape, "distance": DISTANCES[kind], "backend": backend}

    def ours(x, ref=None):
        return ops.semi_hard_triplet(x, labels, ref, ref_labels if with_ref else None, **options)

    def loops(x, ref=None):
        return semi_hard(x, ref, labels, ref_labels, kind, 0.3, shape)

    found, (_, active, valid) = ours(x, ref), loops(x, ref)
    assert torch.equal(found.active, active) and torch.equal(found.valid, valid)
    weights = torch.linspace(0.5, 2.0, len(x), dtype=torch.float64)
    for workspace in (1 << 20, 0):
        with use_workspace(workspace):
            check(lambda *z: ours(*z).loss, lambda *z: loops(*z)[0], [t for t in (x, ref) if t is not None], weights)


@pytest.mark.parametrize("margin", [0.2, 0.0, -0.1])
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("backend, kind", cases(SYMMETRIC))
def test_quadruplets(backend, kind, negatives, margin):
    x, labels = embeddings(12, 5), unbalanced_labels(12)

    def ours(x):
        return ops.batch_all_quadruplet(
            x, labels, margin=margin, negatives=negatives, distance=DISTANCES[kind], backend=backend
        )

    found, (_, active, valid) = ours(x), quadruplets(x, labels, kind, margin, negatives)
    assert (found.active, found.valid) == (active, valid)
    for workspace in (1 << 20, 0):
        with use_workspace(workspace):
            check(lambda x: ours(x).loss, lambda x: quadruplets(x, labels, kind, margin, negatives)[0], [x], 1.0)


@pytest.mark.parametrize("per_anchor", [False, True], ids=["one", "per_anchor"])
@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("kind, low, high", [("cosine", -1.0, 1.0), ("squared", 1.0, 9.0), ("manhattan", 0.0, 8.0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_histograms(backend, kind, low, high, with_ref, per_anchor):
    x, ref, labels, ref_labels = setting(with_ref)
    options = {"low": low, "high": high, "bins": 7, "per_anchor": per_anchor, "distance": DISTANCES[kind], "backend": backend}

    def ours(x, ref=None):
        return torch.stack(ops.pair_histogram(x, labels, ref, ref_labels if with_ref else None, **options), dim=-2)

    def loops(x, ref=None):
        each = histograms(x, ref, labels, ref_labels, kind, low, high, 7)
        return each if per_anchor else each.sum(0)

    torch.testing.assert_close(ours(x, ref), loops(x, ref), rtol=1e-12, atol=1e-12)
    for workspace in (1 << 20, 0):
        with use_workspace(workspace):
            weights = torch.sin(torch.arange(16, dtype=torch.float64)).view(2, 8)
            check(ours, loops, [t for t in (x, ref) if t is not None], weights)


@pytest.mark.parametrize("size", [2, 5, 9, 10, 24, 64, 97, 300])
def test_long_and_short_lists_agree(size):
    """Positives are compared one by one where there are few, and found by bisection where there are many."""
    x, labels = embeddings(600, 8).requires_grad_(), torch.arange(600) // size

    def run(op, backend):
        found = op(x, labels, backend=backend)
        return found, *torch.autograd.grad(found.loss.sum(), x)

    for op in (ops.batch_all_triplet, ops.batch_all_quadruplet):
        expected, expected_grad = run(op, "reference")
        for name in COMPILED:
            found, grad = run(op, name)
            assert torch.equal(found.active, expected.active) and torch.equal(found.valid, expected.valid)
            torch.testing.assert_close(found.loss, expected.loss)
            torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_disjoint_quadruplets_are_all_but_the_triplets(backend):
    x, labels = embeddings(40, 6), unbalanced_labels(40)
    every, disjoint = (ops.batch_all_quadruplet(x, labels, negatives=n, backend=backend) for n in ("all", "disjoint"))
    shared = ops.batch_all_triplet(x, labels, margin=0.2, backend=backend)
    for one, other, part in zip(every, disjoint, shared):
        torch.testing.assert_close(one - other, part.sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_beyond_32_bits_from_distances(backend):
    """No batch, only its distances: 65536 positives of one anchor farther than its 65537 negatives."""
    size = 1 << 16
    kernels = backends.load(backend).ordered
    labels, others = torch.zeros(1, dtype=torch.int64), torch.ones(size + 1, dtype=torch.int64)
    tile = ValueTile(torch.zeros(1, size + 1), labels, others, slice(0, 1), -1)
    totals, counts = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    below = torch.zeros(1, size, dtype=torch.int64)
    kernels.ranks(tile, 1.0, torch.ones(1, size), labels, 0.5, totals, counts, below)
    assert counts.item() == size * (size + 1) > 1 << 32 and (below == size + 1).all()
    assert totals.item() == 1.5 * size * (size + 1)


@pytest.mark.parametrize("backend", COMPILED)
def test_counts_beyond_32_bits(backend):
    labels = torch.arange(4096) % 2
    x = torch.nn.functional.one_hot(labels, 2).float()
    found = ops.batch_all_triplet(x, labels, margin=2.0, backend=backend)
    assert found.valid.sum() == 4096 * 2047 * 2048 == found.active.sum()
    found = ops.batch_all_quadruplet(x, labels, margin=2.0, negatives="all", backend=backend)
    assert found.active == found.valid == 2 * (2048 * 2047 // 2) * 2048**2
    torch.testing.assert_close(found.loss / found.active, torch.tensor(2 - 2**0.5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_types(backend, dtype):
    x, labels = embeddings(40, 16, dtype=dtype), unbalanced_labels(40)
    for run in (
        lambda x: ops.batch_all_triplet(x, labels, shape="softplus", backend=backend).loss.mean(),
        lambda x: ops.pair_histogram(x, labels, per_anchor=True, backend=backend).negative.square().mean(),
    ):
        actual, exact = value_and_grads(run, x), value_and_grads(run, x.double())
        assert_accurate(actual[0].float(), exact[0])
        assert actual[1][0].dtype == dtype
        assert_accurate(actual[1][0], exact[1][0], within=2e-5 if dtype == torch.float32 else 1.5 * 2**-8)


RUNS = {
    "triplets": lambda x, labels, **options: ops.batch_all_triplet(x, labels, **options).loss.sum(),
    "semi_hard": lambda x, labels, **options: ops.semi_hard_triplet(x, labels, **options).loss.sum(),
    "quadruplets": lambda x, labels, **options: ops.batch_all_quadruplet(x, labels, **options).loss,
    "other_class": lambda x, labels, **options: ops.batch_all_quadruplet(x, labels, negatives="other_class", **options).loss,
    "histogram": lambda x, labels, **options: ops.pair_histogram(x, labels, bins=9, **options).negative.square().sum(),
    "histograms": lambda x, labels, **options: ops.pair_histogram(x, labels, per_anchor=True, **options)[0].square().sum(),
}


@pytest.mark.parametrize("labels", [[], [3], [0, 0], [0, 1], [0, 0, 0], [0, 1, 2], [0, 0, 1]], ids=str)
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_batches(backend, run, labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    loss, (grad,) = value_and_grads(lambda x: run(x, labels, backend=backend), embeddings(len(labels), 4))
    assert loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_reaches_the_value(backend, run):
    x = embeddings(12, 4)
    x[3, 1] = torch.nan
    assert run(x, unbalanced_labels(12), backend=backend).isnan()


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_repeatable_and_differentiable_once(backend, run):
    x, labels = embeddings(700, 8, dtype=torch.float32).requires_grad_(), unbalanced_labels(700)
    (first,), (second,) = (torch.autograd.grad(run(x, labels, backend=backend), x, create_graph=True) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(first.square().sum(), x)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, y: ops.batch_all_triplet(x, y, shape="cubic"), "shape: expected one of hinge, .*, got 'cubic'"),
        (lambda x, y: ops.batch_all_quadruplet(x, y, negatives="some"), "negatives: expected one of disjoint, .*, got 'some'"),
        (lambda x, y: ops.batch_all_quadruplet(x, y, distance=DISTANCES["snr"]), "distance: batch_all_quadruplet expects a"),
        (lambda x, y: ops.pair_histogram(x, y, bins=0), "bins: expected an integer from 1 to .*, got 0"),
        (lambda x, y: ops.pair_histogram(x, y, low=1.0, high=0.0), "low, high: expected finite numbers in order"),
        (lambda x, y: ops.batch_all_triplet(x, y[:-1]), "labels: expected labels of shape"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(embeddings(4), torch.tensor([0, 0, 1, 1]))


def test_a_backend_without_the_kernels_says_so(monkeypatch):
    monkeypatch.setattr(backends.load("triton"), "unsuited", lambda device, dtype: None)
    with pytest.raises(RuntimeError, match="'triton' cannot run ordered terms on cpu in .*: has no kernels for ordered"):
        ops.batch_all_triplet(embeddings(4), torch.tensor([0, 0, 1, 1]), backend="triton")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_in_one_graph(run):
    x, labels = embeddings(24, 6), unbalanced_labels(24)
    compiled = torch.compile(lambda x: 2.0 * run(torch.sin(x), labels), backend="aot_eager", fullgraph=True)
    found, expected = value_and_grads(compiled, x), value_and_grads(lambda x: 2.0 * run(torch.sin(x), labels), x)
    torch.testing.assert_close(found, expected)


class Energies:
    stats = (total("pos"), lse("neg"), largest("pos"))

    def pair(v, scale):
        return v * v, -scale * v, v

    def dpair(v, scale):
        return 2.0 * v, -scale, 1.0


def energies(x, ref, labels, ref_labels, kind, scale):
    v, rows = matrix_of(x, ref, kind), []
    for i, (positives, negatives) in enumerate(pairs_of(labels, ref_labels, ref is not None)):
        none = 0 * x.sum() - torch.inf
        rows.append(
            torch.stack(
                [
                    sum((v[i][p] ** 2 for p in positives), 0 * x.sum()),
                    torch.logsumexp(torch.stack([-scale * v[i][n] for n in negatives]), 0) if negatives else none,
                    torch.stack([v[i][p] for p in positives]).amax() if positives else none,
                ]
            )
        )
    return torch.stack(rows, 1)


@pytest.mark.parametrize("with_ref", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("kind", DISTANCES)
def test_row_statistics_of_a_formula(kind, with_ref):
    x, ref, labels, ref_labels = setting(with_ref)

    def ours(x, ref=None):
        options = {"formula": Energies, "params": {"scale": 2.0}, "distance": DISTANCES[kind], "backend": "reference"}
        return torch.stack(ops.row_stats(x, labels, ref, ref_labels if with_ref else None, **options))

    def loops(x, ref=None):
        return energies(x, ref, labels, ref_labels, kind, 2.0)

    inputs = [t for t in (x, ref) if t is not None]
    torch.testing.assert_close(ours(*inputs), loops(*inputs))
    check(lambda *z: ours(*z).clamp(min=-9.0), lambda *z: loops(*z).clamp(min=-9.0), inputs, torch.arange(1.0, 4.0)[:, None])


def test_row_statistics_of_a_loss():
    x, labels = embeddings(12), unbalanced_labels(12)
    params = {"sign": -1.0, "temperature": 0.1}
    found = ops.row_stats(x, labels, formula=losses.SupConLoss, params=params, distance=DISTANCES["cosine"])
    losses_of_rows = losses.SupConLoss.row(*found)
    value = losses.SupConLoss(reducer=reducers.SumReducer())(x, labels)
    torch.testing.assert_close(losses_of_rows.sum(), value)


@pytest.mark.parametrize("rows, columns", [(0, 3), (2, 0)])
def test_row_statistics_of_nothing(rows, columns):
    found = ops.row_stats(
        embeddings(rows, columns), torch.arange(rows), formula=Energies, params={"scale": 1.0}, backend="reference"
    )
    assert all(t.shape == (rows,) for t in found) and not found[0].any()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"formula": 3}, TypeError, "formula: expected a class, got int"),
        ({"formula": dict}, TypeError, "formula: expected a class with stats, pair and dpair, got dict"),
        ({"formula": Energies}, ValueError, r"params: expected a number for each of scale, got \[\]"),
    ],
)
def test_row_statistics_of_no_formula(options, error, message):
    with pytest.raises(error, match=message):
        ops.row_stats(embeddings(4), torch.tensor([0, 0, 1, 1]), **options)
