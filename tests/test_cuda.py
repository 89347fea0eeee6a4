"""The CUDA kernels against the float64 oracles and the reference backend, and compiled for GPUs that need not be there.

Without a GPU the same sources are compiled for the CPU, see cuda_on_cpu, where the threads of a block take turns. The tests of
the whole registry do with METRIC_KERNELS_TEST_DEVICE=cuda-on-cpu.
"""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_on_cpu
import pytest
import torch
from accuracy import assert_accurate
from cases import ALL_LOSSES, PARAMS, SELF_AND_REF, embeddings, unbalanced_labels, value_and_grads
from oracles import ORACLES
from term_cases import CASES, build
from term_dense import dense
from test_term_losses import known
from waiting import Waiting

from metric_kernels import backends, core, losses, report, row_extremes, use_workspace
from metric_kernels.backends import aot_cuda, cuda
from metric_kernels.distances import LpDistance, SNRDistance
from metric_kernels.extremes import FORMULA
from metric_kernels.language import Op
from metric_kernels.metrics import METRICS, Euclidean
from metric_kernels.ops import batch_all_quadruplet
from metric_kernels.ordered import BatchAllTriplets, SemiHardTriplets
from metric_kernels.quadruplets import NEGATIVES
from metric_kernels.reducers import AvgNonZeroReducer, ClassWeightedReducer, MeanReducer, PerAnchorReducer, ThresholdReducer
from metric_kernels.terms import ValueTile
from metric_kernels.tile import Side, Tile

ON_GPU = torch.cuda.is_available() and backends.load("cuda").unusable() is None
DEVICE = "cuda" if ON_GPU else "cpu"
COMPILER = shutil.which("g++") if sys.platform == "linux" else None
DTYPES = [torch.float32, torch.float64]
# Sums of thousands of numbers in another order than torch has.
CLOSE = {torch.float32: {"rtol": 2e-5, "atol": 2e-4}, torch.float64: {"rtol": 1e-12, "atol": 1e-11}}
ON_CPU_ONLY = pytest.mark.skipif(ON_GPU, reason="of the kernels as compiled for the CPU")


@pytest.fixture(scope="module")
def kernels():
    """The extension, or the one for the CPU in its place."""
    if not ON_GPU and COMPILER is None:
        pytest.skip("no GPU, and no g++ on Linux to do without one")
    with pytest.MonkeyPatch.context() as patch:
        if not ON_GPU:
            patch.setitem(sys.modules, "metric_kernels._cuda", cuda_on_cpu.load("metric_kernels._cuda"))
        forget()
        yield
    forget()


def forget():
    for remembered in (cuda._extension, backends._choose):
        remembered.cache_clear()


def run(loss, x, labels, ref=None, ref_labels=None):
    """Value and gradients."""
    value, grads = value_and_grads(lambda x, ref=None: loss(x, labels, None, ref, ref_labels), x, ref)
    return [value, *grads]


def sets(with_ref=False, size=37, dtype=torch.float32):
    """Embeddings and labels, of a batch and of a reference set."""
    x, labels = embeddings(size, dtype=dtype).to(DEVICE), unbalanced_labels(size).to(DEVICE)
    if not with_ref:
        return x, labels
    return x, labels, embeddings(45, seed=1, dtype=dtype).to(DEVICE), unbalanced_labels(45, seed=1).to(DEVICE)


def assert_all_accurate(found, truth, plain=None):
    for one, expected, other in zip(found, truth, plain or [None] * len(truth), strict=True):
        assert_accurate(one.cpu(), expected.cpu(), other)


# ---- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("workspace", [1 << 20, 0], ids=["kept", "tiles"])
@pytest.mark.parametrize("name, with_ref", SELF_AND_REF)
def test_losses_on_pairs(name, with_ref, workspace):
    arguments = sets(with_ref)
    with use_workspace(workspace):
        found = run(getattr(losses, name)(**PARAMS[name], backend="cuda"), *arguments)
    exact = [t.cpu().double() if t.is_floating_point() else t.cpu() for t in arguments]
    truth = run(lambda x, labels, _, ref, ref_labels: ORACLES[name](x, labels, ref, ref_labels, **PARAMS[name]), *exact)
    assert_all_accurate(found, truth)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("distance", [LpDistance(power=2, normalize_embeddings=False), SNRDistance(), LpDistance(p=1)])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "LiftedStructureLoss"])
def test_losses_on_other_distances(name, distance):
    x, labels = sets()
    found, truth = (
        run(getattr(losses, name)(**PARAMS[name], distance=distance, backend=backend), x.to(dtype), labels)
        for backend, dtype in (("cuda", torch.float32), ("reference", torch.float64))
    )
    assert_all_accurate(found, truth)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name, params", CASES)
def test_losses_over_tuples(name, params):
    shape = (33, None, "unbalanced")
    x, labels = 0.5 * embeddings(33, 8, seed=33, dtype=torch.float32), unbalanced_labels(33)
    found = run(build(name, params, backend="cuda"), x.to(DEVICE), labels.to(DEVICE))
    (value, grads), (plain, plain_grads) = (
        known(dense, name, params, None, shape, torch.float32, arithmetic) for arithmetic in (torch.float64, torch.float32)
    )
    assert_all_accurate(found, [value, *grads], [plain, *plain_grads])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_nan_reaches_the_loss(name):
    x, labels = sets()
    x[2, 3] = torch.nan
    assert getattr(losses, name)(backend="cuda")(x, labels).isnan()


@ON_CPU_ONLY
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_the_order_of_threads_and_blocks_does_not_show(name, monkeypatch):
    """A kernel that reads what another thread writes, without a barrier in between, would tell."""
    forwards = run(getattr(losses, name)(backend="cuda"), *sets())
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "backwards")
    backwards = run(getattr(losses, name)(backend="cuda"), *sets())
    assert all(map(torch.equal, forwards, backwards))


@pytest.fixture
def queued(monkeypatch):
    """Whatever runs here counts as a device that nobody waits for."""
    monkeypatch.setattr(core, "QUEUED", {DEVICE})


@pytest.mark.usefixtures("kernels", "queued")
@pytest.mark.parametrize("name", ALL_LOSSES)
def test_no_loss_waits_for_a_gpu(name):
    loss, (x, labels) = getattr(losses, name)(backend="cuda"), sets()
    x.requires_grad_()
    with Waiting() as waiting:
        loss(x, labels).backward()
    assert not waiting.found


@pytest.mark.usefixtures("kernels", "queued")
@pytest.mark.parametrize("reducer", [MeanReducer(), ClassWeightedReducer(torch.arange(40.0))])
@pytest.mark.parametrize("name", ["NPairsLoss", "MarginLoss", "BatchHardTripletLoss"])
def test_waiting_changes_nothing(name, reducer, monkeypatch):
    """Of losses that know more where they may ask."""
    options = {"MarginLoss": {"num_classes": 40}, "BatchHardTripletLoss": {"lone_anchors": "zero"}}.get(name, {})
    loss, (x, labels) = getattr(losses, name)(reducer=reducer, backend="cuda", **options), sets(dtype=torch.float64)
    with Waiting() as waiting:
        found = run(loss, x, labels)
    assert not waiting.found
    monkeypatch.setattr(core, "QUEUED", set())
    torch.testing.assert_close(found, run(loss, x, labels), **CLOSE[torch.float64])


@ON_CPU_ONLY
@pytest.mark.usefixtures("queued")
@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_without_a_weight_is_refused_when_it_comes_to_it(label):
    with pytest.raises(IndexError):
        ClassWeightedReducer(torch.ones(3)).of_anchors(torch.ones(2), torch.tensor([0, label]))


REDUCERS = [MeanReducer(), AvgNonZeroReducer(), ThresholdReducer(0.1, 1.5), PerAnchorReducer()]
SHAPES_OF_TRIPLETS = [
    ("TripletMarginLoss", {}),
    ("TripletMarginLoss", {"smooth_loss": True}),
    ("TripletMarginLoss", {"squared": True}),
    ("SemiHardTripletLoss", {}),
    ("SemiHardTripletLoss", {"soft_margin": True}),
]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("with_ref, workspace", [(False, 1 << 20), (True, 0)], ids=["self-kept", "reference-tiles"])
@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda reducer: type(reducer).__name__)
@pytest.mark.parametrize("name, params", SHAPES_OF_TRIPLETS)
def test_no_loss_over_triplets_waits(name, params, reducer, with_ref, workspace):
    loss = getattr(losses, name)(**params, margin=0.3, reducer=reducer, backend="cuda")
    x, labels, *reference = sets(with_ref)
    x.requires_grad_()
    with use_workspace(workspace), Waiting() as waiting:
        loss(x, labels, None, *reference).backward()
    assert x.grad.any()
    assert not waiting.found


ASKS = {
    "item": lambda t: t.sum().item(),
    "list": lambda t: t.tolist(),
    "bool": lambda t: bool(t[0]),
    "mask": lambda t: t[t > 0],
    "assignment": lambda t: t.__setitem__(t > 0, -t[:2]),
    "unique": torch.unique,
    "repeat": lambda t: torch.repeat_interleave(t, (t > 0).long()),
    "equal": lambda t: torch.equal(t, -t),
    "numbers": lambda t: t * t.new_tensor([1.0, 2.0, 3.0]),
    "move": lambda t: t.to("meta"),
    "backward": lambda t: TellsBackward.apply(t).sum().backward(),
}


class TellsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        return t.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * grad.sum().item()


@pytest.mark.parametrize("call", ASKS.values(), ids=ASKS)
def test_what_waits_is_told(call):
    t = torch.tensor([0.5, 0.0, 2.0])
    with Waiting() as waiting:
        torch.where(t > 0, t.clamp(min=0.1), 1.0).sort()
    assert not waiting.found
    with waiting:
        call(t.requires_grad_() if call is ASKS["backward"] else t)
    assert waiting.found


# ---- row kernels -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("formula", [losses.LiftedStructureLoss.formula, losses.MultiSimilarityLoss.formula, FORMULA])
def test_weights_of_one_direction_and_of_both(formula, both):
    """The losses ask for one direction only where the columns have no statistics; the contract does not."""
    x, labels = sets()
    op, found = Op(formula, Euclidean, tuple((0.5,) * len(stage.params) for stage in formula.stages)), []
    for backend, dtype in (("cuda", torch.float32), ("reference", torch.float64)):
        generator = torch.Generator().manual_seed(2)
        values, grads = torch.randn(2, len(op.formula.stats), len(x), generator=generator).to(DEVICE, dtype)
        index = torch.randint(0, len(x), values.shape, generator=generator).to(DEVICE)
        rows, squares, product = slice(10, 30), x.square().sum(1).to(dtype), (x @ x.t()).to(dtype)
        tile = Tile(product[rows].clone(), labels[rows], labels, 10, 10, squares[rows], squares, 1e-6)
        norm_grad, side = torch.empty_like(squares[rows]), Side(values, grads, index)
        backends.load(backend).weights(op, tile, side.at(rows), side, both, norm_grad)
        found.append((tile.s, norm_grad))
    assert_all_accurate(*found)


@pytest.mark.usefixtures("kernels")
def test_extremes_are_those_of_the_reference_backend():
    x, labels, y, ref_labels = sets(with_ref=True)
    for reference in ((), (y, ref_labels)):
        found, expected = (row_extremes(x, labels, *reference, backend=backend) for backend in ("cuda", "reference"))
        assert torch.equal(found[4], expected[4])
        for one, other in zip(found[:4], expected[:4]):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("kernels")
def test_extremes_of_ties_infinities_and_nans():
    inf, nan = torch.inf, torch.nan
    ties, ends = [0.0, -0.0, 0.0, 0.0, -0.0, 0.0], [-inf] * 3 + [inf] * 3
    matrix = torch.tensor([ties, ends, [1.0, nan, 2.0, nan, nan, 3.0], [3.0, inf, nan, -inf, 1.0, -inf]], device=DEVICE)
    labels, ref_labels = torch.tensor([0, 0, 0, 4], device=DEVICE), torch.tensor([0, 0, 0, 1, 1, 1], device=DEVICE)
    found = []
    for backend in ("cuda", "reference"):
        values = matrix.new_empty(len(FORMULA.stats), len(matrix))
        index = torch.full(values.shape, -9, device=DEVICE)
        op, nothing = Op(FORMULA, METRICS[0], ((),)), matrix.new_empty(0)
        tile = Tile(matrix, labels, ref_labels, 0, -1, nothing, nothing, 0.0)
        backends.load(backend).stage_stats(op, 0, tile, values[:0], values[:0], values, index, values[:0])
        found.append((values, index))
    torch.testing.assert_close(*found, rtol=0.0, atol=0.0, equal_nan=True)


# ---- kernels of terms ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
def test_values_and_slopes(metric, dtype):
    x, labels, y, ref_labels = sets(with_ref=True, dtype=dtype)
    y[3] = x[2]
    norms = x.square().sum(1), y.square().sum(1)
    g, found = torch.randn(len(x), len(y), dtype=dtype).to(DEVICE), []
    for backend in map(backends.load, ("cuda", "reference")):
        tile, by_norm = Tile(x @ y.t(), labels, ref_labels, 0, -1, *norms, 1e-6), torch.empty_like(norms[0])
        values = backend.values(metric, tile).clone()
        backend.slopes(metric, tile, g, by_norm)
        found.append((values, tile.s, by_norm))
    torch.testing.assert_close(*found, **CLOSE[dtype])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [1, 32, 77])
def test_a_matrix_and_its_transpose(size):
    square = torch.randn(size, size + 3).to(DEVICE)[:, :size]
    expected = square + square.t()
    backends.load("cuda").add_transposed(square)
    assert torch.equal(square, expected)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [1, 32, 77])
def test_a_matrix_that_mirrors_itself(size):
    square = torch.randn(size, size + 3).to(DEVICE)[:, :size]
    expected = square.triu() + square.triu(1).t()
    backends.load("cuda").mirror(square)
    assert torch.equal(square, expected)


def value_tile(columns, dtype, rows=3, nan=False):
    """Pair values on a grid, so that many are equal, with a self pair in each row."""
    v = torch.randint(-30, 30, (rows, columns)).to(DEVICE, dtype) / 8
    if nan:
        v[1, columns // 2] = torch.nan
    ref_labels = (torch.arange(columns) % 5).to(DEVICE)
    return ValueTile(v, ref_labels[:rows].clone(), ref_labels, slice(0, rows), 0)


def sorted_lists(number, length, dtype):
    """Sorted, with empty places first; the last list has none but those."""
    lists = torch.randint(-30, 30, (number, length)).to(DEVICE, dtype) / 8 + 0.01
    lists[:, : length // 3] = -torch.inf
    lists[-1] = -torch.inf
    return lists.sort(1).values


# More columns than a block holds at a time, and lists around what is compared value by value and what shared memory has.
SIZES = [(3, 1), (40, 0), (40, 5), (2050, 32), (300, 33), (2200, 2100)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns, length", SIZES)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_ranks(columns, length, shared, dtype):
    tile, lists = value_tile(columns, dtype, nan=columns == 40), sorted_lists(3, length, dtype)
    which = torch.tensor([1, 0, 1] if shared else [0, 1, 2], device=DEVICE)
    scale, wide = torch.randn(3).to(DEVICE, dtype), torch.randn(3, columns + 2).to(DEVICE, dtype)
    found = []
    for kernels in (backends.load(name).ordered for name in ("cuda", "reference")):
        totals, counts = torch.ones(3, dtype=torch.float64, device=DEVICE), torch.ones(3, dtype=torch.int64, device=DEVICE)
        below, again = (torch.ones(lists.shape, dtype=torch.int64, device=DEVICE) for _ in range(2))
        g = wide.clone()[:, :columns]
        kernels.ranks(tile, -1.0, lists, which, 0.5, totals, counts, below)
        kernels.rank_grads(tile, -1.0, lists, which, 0.5, scale, g, again)
        present = lists > -torch.inf
        found.append((totals, counts, below[present], again[present], g))
    torch.testing.assert_close(*found, **CLOSE[dtype], equal_nan=True)


def labelled_tile(columns, classes, diagonal, dtype):
    """The same with so many classes in any order, and zeros of either sign; the last row has no positives if it may."""
    tile = value_tile(columns, dtype, nan=columns == 40)
    tile.v[:, ::2] = torch.where(tile.v == 0, -0.0, tile.v)[:, ::2]
    ref_labels = -torch.randperm(columns).to(DEVICE) % classes
    labels = ref_labels[:3].clone()
    if diagonal < 0:
        labels[2] = classes
    return tile._replace(ref_labels=ref_labels, labels=labels, diagonal=diagonal)


FOUND = [
    BatchAllTriplets("hinge", -1.0, 0.0, math.inf, (0.25, 1.0)),
    SemiHardTriplets("hinge", 1.0, -1.0, math.inf, 0.25),
    SemiHardTriplets("squared_hinge", -1.0, 0.0, 0.5, 1.0),
    SemiHardTriplets("softplus", -1.0, -1.0, math.inf, 0.25),
]
VISITED = [
    BatchAllTriplets("hinge", -1.0, -1.0, 2.25, (0.25,)),
    BatchAllTriplets("squared_hinge", 1.0, 0.5, 3.0, (0.25, 1.0)),
    BatchAllTriplets("softplus", -1.0, 0.0, math.inf, (0.25,)),
    BatchAllTriplets("softplus", 1.0, 0.5, 2.0, (0.25,)),
]
# As many positives as are compared value by value, as are searched, and more than a kernel has in shared memory at a time.
CLASSES = [(3, 3), (40, 7), (300, 4), (30, 1)]
OVER_TRIPLETS = [
    pytest.param(term, *sizes, id=f"{term.key}:{term.flat}-{sizes}")
    for terms, many in ((FOUND, [(1100, 2), (2500, 2)]), (VISITED, [(2100, 7)]))
    for term in terms
    for sizes in CLASSES + many
]


def sums_and_grads(term, tile, grads, backend):
    """Totals, counts and gradients of a term over triplets; of the second row, which may have a NaN, the total alone."""
    kernels = backends.load(backend).ordered
    totals, counts = torch.zeros_like(grads), torch.zeros_like(grads, dtype=torch.int64)
    g = torch.ones_like(tile.v)
    term.forward(kernels, (tile,), totals, counts)
    term.backward(kernels, tile, g, grads, ())
    return totals, counts[:, ::2], g[::2].double()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("diagonal", [0, -1])
@pytest.mark.parametrize("term, columns, classes", OVER_TRIPLETS)
def test_triplets_of_gathered_positives_are_those_of_lists(term, columns, classes, diagonal, dtype):
    tile = labelled_tile(columns, classes, diagonal, dtype)
    grads = torch.randn(term.shapes(3, columns)[0], dtype=torch.float64).to(DEVICE)
    found = sums_and_grads(term, tile, grads, "cuda")
    expected = sums_and_grads(term, tile._replace(v=tile.v.double()), grads, "reference")
    torch.testing.assert_close(found, expected, **CLOSE[dtype], equal_nan=True)


@ON_CPU_ONLY
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("term, columns, classes", OVER_TRIPLETS)
def test_the_order_of_threads_does_not_show_in_triplets(term, columns, classes, monkeypatch):
    tile = labelled_tile(columns, classes, 0, torch.float32)
    tile.v.add_(torch.rand_like(tile.v))
    grads = torch.randn(term.shapes(3, columns)[0], dtype=torch.float64)
    forwards = sums_and_grads(term, tile, grads, "cuda")
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "backwards")
    torch.testing.assert_close(sums_and_grads(term, tile, grads, "cuda"), forwards, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_semi_hard_triplets_of_infinite_values(sign, dtype):
    """Positives beyond all else, negatives beyond all positives, and a positive that counts as none."""
    tile = value_tile(40, dtype)
    tile.v[0, [5, 10, 11, 12]] = torch.tensor([torch.inf, -torch.inf, torch.inf, -torch.inf], device=DEVICE, dtype=dtype)
    tile.v[2, tile.ref_labels != tile.labels[2]] = sign * torch.inf
    term, grads = SemiHardTriplets("hinge", sign, -1.0, math.inf, 0.25), torch.ones(1, 3, dtype=torch.float64, device=DEVICE)
    found, expected = (sums_and_grads(term, tile, grads, backend) for backend in ("cuda", "reference"))
    torch.testing.assert_close(found, expected, **CLOSE[dtype])


@pytest.mark.usefixtures("kernels")
def test_a_list_that_is_not_there_makes_the_total_nan():
    """Only the GPU could tell, and nobody waits for it."""
    tile, lists = value_tile(40, torch.float32), sorted_lists(3, 4, torch.float32)
    totals, counts = torch.zeros(3, dtype=torch.float64, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    which = torch.tensor([-1, 0, 3], device=DEVICE)
    backends.load("cuda").ordered.ranks(tile, 1.0, lists, which, 0.0, totals, counts, None)
    assert totals.isnan().tolist() == [True, False, True]


# Runs that a block sorts have 2048 values; three of them are merged twice, and five three times.
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number, room", [(0, 0), (0, 9), (1, 1), (5, 9000), (2048, 2048), (5000, 6000), (9000, 9001)])
def test_sorted_values(number, room, dtype):
    values = torch.full((room,), torch.nan, dtype=dtype, device=DEVICE)
    values[:number] = torch.randint(-999, 999, (number,)).to(DEVICE, dtype) / 8
    values[: number // 7] = torch.inf
    values[number // 2 : number // 2 + number // 5] = -torch.inf
    ordered = backends.load("cuda").ordered.pairs.sorted(values, torch.tensor([number], device=DEVICE))
    assert torch.equal(ordered[:number], values[:number].sort().values)


# More pairs than a block sorts, in a class of more pairs than are gathered at a time; kept, in tiles, and with room for as
# many pairs as there are.
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("workspace", [1 << 20, 40_000, 0], ids=["kept", "counted", "tiles"])
def test_quadruplets_of_thousands_of_pairs(workspace, negatives, dtype):
    x, labels = embeddings(84, dtype=dtype).to(DEVICE), torch.tensor([7] * 3 + [-1] * 70 + list(range(11))).to(DEVICE)

    def step(backend, x):
        x = x.clone().requires_grad_()
        found = batch_all_quadruplet(x, labels, margin=0.4, negatives=negatives, backend=backend)
        found.loss.backward()
        return found.loss.detach().to(x.dtype), x.grad, found.active

    with use_workspace(workspace):
        value, grad, active = step("cuda", x)
    exact, exact_grad, exact_active = step("reference", x.double())
    assert_all_accurate([value, grad], [exact, exact_grad])
    assert abs(active - exact_active) <= (0 if dtype == torch.float64 else 1e-5 * exact_active)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns, length", [(3, 1), (40, 0), (300, 9), (2200, 33), (300, 1300)])
def test_nearest(columns, length, dtype):
    tile, lists = value_tile(columns, dtype), sorted_lists(3, length, dtype)
    found, expected = (backends.load(name).ordered.nearest(tile, -1.0, lists) for name in ("cuda", "reference"))
    assert torch.equal(found, expected)
    alone = tile._replace(labels=torch.zeros_like(tile.labels), ref_labels=torch.zeros_like(tile.ref_labels))
    assert (backends.load("cuda").ordered.nearest(alone, 1.0, lists) == -1).all()


@pytest.mark.usefixtures("kernels")
def test_the_nearest_of_nans_are_columns():
    tile, lists = value_tile(40, torch.float32), sorted_lists(3, 7, torch.float32)
    tile.v[0, ::2], tile.v[1], lists[2, 3] = torch.nan, torch.nan, torch.nan
    found = backends.load("cuda").ordered.nearest(tile, 1.0, lists)
    assert ((found >= 0) & (found < 40)).all()
    assert (tile.ref_labels[found] != tile.labels[:, None]).all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_anchor", [False, True])
@pytest.mark.parametrize("nodes, lone", [(2, False), (7, False), (7, True), (3000, True)])
def test_histograms(nodes, lone, per_anchor, dtype):
    """With classes of -1, of points without a positive or not, to 3."""
    tile, step = value_tile(300, dtype, rows=5, nan=True), 8.0 / (nodes - 1)
    tile = tile._replace(labels=tile.labels - 1, ref_labels=tile.ref_labels - 1)
    tile.v[3, 0], tile.v[0, 9], tile.v[2, 2] = torch.inf, 7.5, torch.nan  # the last is a point with itself
    shape = (5 if per_anchor else 1, 2, nodes)
    tables, found = torch.randn(shape).to(DEVICE, dtype), []
    for kernels in (backends.load(name).binned for name in ("cuda", "reference")):
        out, spoiled = torch.ones(shape, dtype=torch.int64, device=DEVICE), torch.zeros(5, dtype=torch.bool, device=DEVICE)
        g = torch.ones_like(tile.v)
        kernels.histogram(tile, -4.0, step, lone, 20, out, spoiled)
        kernels.histogram_grads(tile, -4.0, step, lone, tables, g)
        found.append((out.double() / 2**20, spoiled, g))
    torch.testing.assert_close(*found, rtol=1e-4, atol=3e-3 if nodes > 100 else 1e-4)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per_anchor", [False, True])
@pytest.mark.parametrize("columns, rows", [(70_000, 2), (15_000, 5)])
def test_histograms_of_more_values_than_shared_memory_can_count(columns, rows, per_anchor, dtype):
    """All in one bin, at the upper node, where sums are largest."""
    v = torch.full((rows, columns), 0.999999, dtype=dtype, device=DEVICE)
    labels = torch.zeros(columns, dtype=torch.int64, device=DEVICE)
    tile = ValueTile(v, labels[:rows], labels, slice(0, rows), -1)
    out = torch.zeros(rows if per_anchor else 1, 2, 3, dtype=torch.int64, device=DEVICE)
    spoiled = torch.zeros(rows, dtype=torch.bool, device=DEVICE)
    backends.load("cuda").binned.histogram(tile, -1.0, 1.0, False, 40, out, spoiled)
    number = columns * (1 if per_anchor else rows)
    assert (out[:, 0].sum(1) == number << 40).all()
    expected = torch.tensor([0.0, 1 - v[0, 0].item(), v[0, 0].item()], dtype=torch.float64, device=DEVICE) * number
    torch.testing.assert_close(out[:, 0].double() / 2**40, expected.expand(len(out), 3), rtol=1e-7, atol=1e-6 * number)
    assert not out[:, 1].any() and not spoiled.any()


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
def test_wrong_arrays_are_named():
    tile, lists = value_tile(40, torch.float32), sorted_lists(3, 4, torch.float32)
    totals, counts = torch.zeros(3, dtype=torch.float64, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
    good = {"lists": lists, "which": torch.arange(3, device=DEVICE), "totals": totals, "counts": counts, "below": None}
    wrong = {
        "lists": [lists.double(), lists.t().contiguous().t()],
        "which": [torch.arange(2, device=DEVICE), torch.arange(3.0, device=DEVICE)],
        "totals": [totals[:2], totals.float(), totals.expand(2, 3)],
        "counts": [counts[:1], counts.int(), torch.zeros(6, dtype=torch.int64, device=DEVICE)[::2]],
        "below": [torch.zeros(3, 5, dtype=torch.int64, device=DEVICE), torch.zeros(3, 4, device=DEVICE)],
    }
    for name, arrays in wrong.items():
        for array in arrays:
            given = {**good, name: array}
            with pytest.raises(ValueError, match=f"^{name}: expected"):
                backends.load("cuda").ordered.ranks(tile, 1.0, given.pop("lists"), given.pop("which"), 0.0, **given)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name, number", [("step", 0.0), ("low", math.nan), ("bits", 51)])
def test_wrong_numbers_are_named(name, number):
    tile, good = value_tile(40, torch.float32), {"low": 0.0, "step": 1.0, "lone": False, "bits": 20}
    out, spoiled = torch.zeros(1, 2, 5, dtype=torch.int64, device=DEVICE), torch.zeros(3, dtype=torch.bool, device=DEVICE)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        backends.load("cuda").binned.histogram(tile, **{**good, name: number}, out=out, spoiled=spoiled)


@pytest.mark.usefixtures("kernels")
def test_refusals_name_their_reason():
    backend = backends.load("cuda")
    assert "float16" in backend.unsuited(DEVICE, torch.float16)
    assert f"runs on {DEVICE} tensors, not on meta" == backend.unsuited("meta", torch.float32)


@ON_CPU_ONLY
@pytest.mark.usefixtures("kernels")
def test_order_of_preference_on_a_gpu(monkeypatch):
    """The device is not there, but who would run is known before it is asked for."""
    monkeypatch.setattr(sys.modules["metric_kernels._cuda"], "device", "cuda")
    monkeypatch.setattr(backends.load("triton"), "unusable", lambda: None)
    forget()
    chosen = [
        backends.choose_for(wanted, Euclidean, torch.device("cuda"), dtype).name
        for wanted, dtype in ((FORMULA, torch.float32), (FORMULA, torch.float64), ("ordered", torch.float32))
    ]
    assert chosen == ["triton", "cuda", "cuda"]
    assert backends.choose_for("binned", Euclidean, torch.device("cpu"), torch.float32).name != "cuda"
    monkeypatch.undo()
    forget()


@pytest.mark.usefixtures("kernels")
def test_the_report_tells_the_runtime():
    assert re.search(r"^  cuda +usable \(CUDA runtime \d+\.\d+\)$", report(), re.M)


def test_a_missing_extension_says_how_to_build_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "metric_kernels._cuda", None)
    forget()
    assert "METRIC_KERNELS_CUDA=1" in backends.load("cuda").unusable()
    assert "METRIC_KERNELS_CUDA=1" in backends.status()["cuda"]
    monkeypatch.undo()
    forget()


# ---- the emulation itself, and nvcc ----------------------------------------------------------------------------------


@pytest.mark.skipif(COMPILER is None, reason="no g++ on Linux")
def test_faults_of_a_kernel_show_on_the_cpu(tmp_path):
    folder = Path(cuda_on_cpu.__file__).parent
    program = tmp_path / "faults"
    command = [COMPILER, "-std=c++17", "-U_FORTIFY_SOURCE", f"-I{folder}", f"-I{cuda_on_cpu.CSRC}", str(folder / "faults.cpp")]
    subprocess.run([*command, "-o", str(program)], check=True)
    printed = {
        order: subprocess.run([program], env={"CUDA_ON_CPU_ORDER": order}, capture_output=True, text=True, check=True).stdout
        for order in ("forwards", "backwards")
    }
    for order, out in printed.items():
        assert "barrier: CUDA: some threads of a block wait for others that never come\n" in out, order
        assert "sum: 32640\n" in out, order
    assert printed["forwards"] != printed["backwards"]


NVCC = aot_cuda.reason_against()
SLOW = pytest.mark.slow


@pytest.mark.skipif(NVCC is not None, reason=f"{NVCC}")
@pytest.mark.parametrize(
    "source, some",
    [
        ("terms.cu", {"rank_rows<2048, GivenLists<float>, float>", "histogram_rows<double>"}),
        pytest.param("rows.cu", {"stat_rows<CircleLoss_0, float>", "weight_rows<tuple<Sides_0>, true, double>"}, marks=SLOW),
    ],
)
def test_every_kernel_compiles_without_spills(source, some):
    found = dict(aot_cuda.kernels(90, source))
    assert some <= set(found)
    assert all(usage.spilled == 0 and usage.shared <= 48 << 10 for usage in found.values())


def test_spills_are_found_in_a_report():
    report = """ptxas info    : Compiling entry function '_Z1fIfLi32EEvPf' for 'sm_90'
ptxas info    : Function properties for _Z1fIfLi32EEvPf
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 784 bytes smem"""
    assert list(aot_cuda.usages(report)) == [("f<float, 32>", aot_cuda.Usage(255, 784, 36))]


def test_an_nvcc_that_does_not_run_is_none(monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found, reason = aot_cuda._script("nvcc").find()
    assert found is None
    assert reason.startswith(f"{nvcc} cannot be run" if sys.platform == "linux" else "the CUDA kernels are built on Linux")
