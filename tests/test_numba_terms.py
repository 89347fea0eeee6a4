"""The kernels of terms in Numba against those of the reference backend, and their threads."""

from __future__ import annotations

import math
import os

import pytest
import torch
from cases import embeddings, unbalanced_labels
from forked import works_in_a_forked_child

from metric_kernels import backends, ops
from metric_kernels.language import Op
from metric_kernels.metrics import METRICS, Dot
from metric_kernels.ordered import BatchAllTriplets
from metric_kernels.terms import ValueTile
from metric_kernels.tile import Tile

pytest.importorskip("numba")

from metric_kernels.backends import numba as backend  # noqa: E402

ROWS, COLUMNS, FIRST = 23, 700, 3
# Compared one by one, and bisected.
LENGTHS = [0, 1, 6, 48, 49, 200]


def tile_of(same=True, dtype=torch.float32, rows=ROWS, columns=COLUMNS):
    """Rows of a matrix with more columns than a chunk, some of which have the same values and none of which are in order."""
    generator = torch.Generator().manual_seed(3)
    v = torch.randn(rows, columns, generator=generator, dtype=dtype)
    v[:, 100:110] = v[:, 90:100]
    ref_labels = torch.randint(0, 6, (columns,), generator=generator)
    labels = ref_labels[FIRST : FIRST + rows] if same else torch.randint(0, 7, (rows,), generator=generator)
    return ValueTile(v, labels, ref_labels, slice(FIRST, FIRST + rows), FIRST if same else -1)


def lists_of(number, length, dtype=torch.float32):
    """Sorted lists, many of which begin with empty places."""
    generator = torch.Generator().manual_seed(4)
    lists = torch.randn(number, length, generator=generator, dtype=dtype)
    lists[torch.rand(number, length, generator=generator) < 0.1] = -math.inf
    return lists.sort(1).values


# Lists of their own, one list for all, and lists that several rows share.
WHICH = {
    "own": lambda: torch.arange(ROWS),
    "one": lambda: torch.zeros(ROWS, dtype=torch.int64),
    "some": lambda: torch.arange(ROWS) % 4,
}


def not_contiguous(tensor):
    """The same numbers in the rows of a wider tensor."""
    rows, columns = tensor.shape
    wide = torch.full((rows, columns + 5), math.nan, dtype=tensor.dtype)
    wide[:, 2:-3] = tensor
    return wide[:, 2:-3]


def some(*shape, dtype=torch.float64):
    """What is there before a kernel adds to it."""
    return torch.arange(math.prod(shape)).view(shape).to(dtype) % 7


def ordered(name):
    return backends.load(name).ordered


def binned(name):
    return backends.load(name).binned


def ranks(name, tile, lists, which, sign=1.0, margin=0.2):
    totals, counts, below = some(len(which)), some(len(which), dtype=torch.int64), some(*lists.shape, dtype=torch.int64)
    ordered(name).ranks(tile, sign, lists, which, margin, totals, counts, below)
    return totals, counts, below


def rank_grads(name, tile, lists, which, sign=1.0, margin=0.2):
    scale, g, below = some(len(which), dtype=tile.v.dtype), some(*tile.v.shape, dtype=tile.v.dtype), some(*lists.shape).long()
    ordered(name).rank_grads(tile, sign, lists, which, margin, scale, g, below)
    return g, below


def sums(name, tile, lists, shape, low, high, sign=-1.0, margin=0.2):
    totals, counts = some(len(lists)), some(len(lists), dtype=torch.int64)
    ordered(name).sums(tile, sign, lists, margin, shape, low, high, totals, counts)
    return totals, counts


def sum_grads(name, tile, lists, shape, low, high, sign=-1.0, margin=0.2):
    scale, g, slopes = some(len(lists), dtype=tile.v.dtype), some(*tile.v.shape, dtype=tile.v.dtype), some(*lists.shape)
    ordered(name).sum_grads(tile, sign, lists, margin, shape, low, high, scale, g, slopes)
    return g, slopes


def histogram(name, tile, per_anchor, lone=False, bits=40):
    out = some(len(tile.v) if per_anchor else 1, 2, 9, dtype=torch.int64)
    spoiled = torch.zeros(len(tile.v), dtype=torch.bool)
    binned(name).histogram(tile, -1.5, 0.375, lone, bits, out, spoiled)
    return out.double() * 2.0**-bits, spoiled


def histogram_grads(name, tile, per_anchor, lone=False):
    tables = torch.sin(torch.arange((len(tile.v) if per_anchor else 1) * 18.0)).view(-1, 2, 9).to(tile.v.dtype)
    g = some(*tile.v.shape, dtype=tile.v.dtype)
    binned(name).histogram_grads(tile, -1.5, 0.375, lone, tables, g)
    return (g,)


def assert_same(run, *arguments, **options):
    """Integers are equal, and sums of floats agree."""
    for found, expected in zip(run("numba", *arguments, **options), run("reference", *arguments, **options), strict=True):
        if found.is_floating_point():
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5, equal_nan=True)
        else:
            assert torch.equal(found, expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("same", [True, False], ids=["self", "reference"])
@pytest.mark.parametrize("which", WHICH.values(), ids=WHICH)
@pytest.mark.parametrize("length", LENGTHS)
def test_ranks(length, which, same, sign):
    tile, which = tile_of(same), which()
    lists = lists_of(int(which.max()) + 1, length)
    lists[:, -3:] = tile.v[0, 90]  # a hinge of exactly 0 is not counted
    for run in (ranks, rank_grads):
        assert_same(run, tile, lists.sort(1).values, which, sign, 0.0)


@pytest.mark.parametrize("low, high", [(0.0, math.inf), (-math.inf, math.inf), (-1.0, 0.3), (0.2, 1.1)])
@pytest.mark.parametrize("shape", ["hinge", "squared_hinge", "softplus"])
@pytest.mark.parametrize("same", [True, False], ids=["self", "reference"])
def test_sums(same, shape, low, high):
    for length in (0, 7):
        for run in (sums, sum_grads):
            assert_same(run, tile_of(same), lists_of(ROWS, length), shape, low, high)


@pytest.mark.parametrize("same", [True, False], ids=["self", "reference"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nearest(sign, same):
    tile, lists = tile_of(same), lists_of(ROWS, 8)
    lists[:, -1] = 9.0  # none is beyond
    lists[:, 3:5] = sign * tile.v[:, 95:96]
    lists = lists.sort(1).values
    alone = tile._replace(ref_labels=torch.full_like(tile.ref_labels, 5))
    for given in (tile, alone):
        assert_same(lambda name, given: (ordered(name).nearest(given, sign, lists),), given)


@pytest.mark.parametrize("per_anchor", [False, True], ids=["one", "per_anchor"])
@pytest.mark.parametrize("same", [True, False], ids=["self", "reference"])
def test_histograms(same, per_anchor):
    tile = tile_of(same)
    lonely = tile._replace(labels=tile.labels - 1, ref_labels=tile.ref_labels - 1)
    for run in (histogram, histogram_grads):
        for given, lone in ((tile, False), (lonely, False), (lonely, True)):
            assert_same(run, given, per_anchor, lone)


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("metric", METRICS)
def test_pair_values(metric, norms):
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(ROWS, 5, generator=generator), torch.randn(COLUMNS, 5, generator=generator)
    x[3], y[9], x[4] = y[7], y[8], 0.0
    p, q = (z.square().sum(1) if metric.norms else torch.empty(0) for z in (x, y))
    tile = Tile(x @ y.t(), torch.zeros(ROWS).long(), torch.zeros(COLUMNS).long(), 0, -1, p, q, 1e-6)
    g, found = torch.randn(ROWS, COLUMNS, generator=generator), []
    for name in ("numba", "reference"):
        mine, norm_grad = tile._replace(s=tile.s.clone()), torch.empty(ROWS) if norms else None
        v = backends.load(name).values(metric, mine) if metric is not Dot else mine.s.clone()
        backends.load(name).slopes(metric, mine, g, norm_grad)
        found.append((v, mine.s, norm_grad))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


RUNS = {
    "ranks": lambda tile, lists: ranks("numba", tile, lists, torch.arange(len(lists))),
    "ranks of one list": lambda tile, lists: ranks("numba", tile, lists[:1], torch.zeros(len(lists)).long()),
    "rank_grads": lambda tile, lists: rank_grads("numba", tile, lists, torch.arange(len(lists)) // 5),
    "sums": lambda tile, lists: sums("numba", tile, lists, "softplus", 0.0, math.inf),
    "sum_grads": lambda tile, lists: sum_grads("numba", tile, lists, "softplus", 0.0, math.inf),
    "nearest": lambda tile, lists: (ordered("numba").nearest(tile, 1.0, lists),),
    "histogram": lambda tile, lists: histogram("numba", tile, False),
    "histograms": lambda tile, lists: histogram("numba", tile, True),
    "histogram_grads": lambda tile, lists: histogram_grads("numba", tile, False),
}


def all_results(tile, lists):
    return [result for run in RUNS.values() for result in run(tile, lists)]


def large(rows=150, columns=COLUMNS):
    """Work for several threads."""
    return tile_of(rows=rows, columns=columns), lists_of(rows, 60)


def assert_identical(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("openmp", [True, False], ids=["OpenMP", "Python threads"])
def test_the_number_of_threads_changes_nothing(threads, monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(backend, "_openmp", lambda: None)
    threads(1)
    expected = all_results(*large())
    for number in (2, 5):
        threads(number)
        assert backend.shared_out(150, COLUMNS)[0] == number
        for _ in range(3):
            assert_identical(all_results(*large()), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_no_threads_to_wait_for(threads):
    # As small as it can be for two threads, and too small for torch to use more than one, which would wait.
    rows, columns = 64, 512
    threads(2)
    assert backend.shared_out(rows, columns)[0] == 2
    expected = all_results(*large(rows, columns))
    assert works_in_a_forked_child(lambda: assert_identical(all_results(*large(rows, columns)), expected))


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_rows_that_are_apart(run):
    tile, lists = tile_of(), lists_of(ROWS, 6)
    expected = run(tile, lists)
    assert_identical(run(tile._replace(v=not_contiguous(tile.v)), not_contiguous(lists)), expected)
    assert_identical(run(tile._replace(v=tile.v.t().contiguous().t()), lists), expected)


@pytest.mark.parametrize("length", [6, 60])
@pytest.mark.parametrize("column", [FIRST + 5, 690])
def test_a_nan_makes_the_total_of_its_row_nan(length, column):
    tile, lists = tile_of(), lists_of(ROWS, length)
    tile.v[5, column] = math.nan
    for total, count, *_ in (
        ranks("numba", tile, lists, torch.arange(ROWS)),
        sums("numba", tile, lists, "softplus", 0.0, math.inf),
    ):
        assert torch.equal(total.isnan(), torch.arange(ROWS) == 5)
        assert count[5] < tile.v.shape[1] * length
    _, spoiled = histogram("numba", tile, True)
    assert torch.equal(spoiled, (torch.arange(ROWS) == 5) & (column != FIRST + 5))  # the pair of a point with itself


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 600), (5, 1), (5, 512), (5, 513)])
def test_sizes_around_that_of_a_chunk(rows, columns):
    tile = tile_of(same=False, rows=rows, columns=columns)
    assert_same(ranks, tile, lists_of(rows, 2), torch.arange(rows))
    assert_same(sums, tile, lists_of(rows, 2), "softplus", 0.0, math.inf)
    assert_same(histogram, tile, False)
    assert_same(histogram_grads, tile, True)


def test_one_list_in_the_strides_of_a_column():
    """A list of one row may have any stride."""
    tile, lists = tile_of(), lists_of(1, 9)
    strided = lists.as_strided((1, 9), (1, 1))
    assert strided.is_contiguous()
    which = torch.zeros(ROWS, dtype=torch.int64)
    assert_identical(ranks("numba", tile, strided, which), ranks("numba", tile, lists, which))


def test_columns_that_are_apart_cannot_be_written():
    tile = tile_of()
    with pytest.raises(ValueError, match="g: expected rows of contiguous numbers"):
        binned("numba").histogram_grads(tile, 0.0, 1.0, False, torch.zeros(1, 2, 3), torch.zeros(COLUMNS, ROWS).t())


def test_a_list_that_is_too_long():
    lists = torch.zeros(1, 1).expand(1, 2**30)
    with pytest.raises(ValueError, match="lists: expected fewer than .* values each, got 1073741824"):
        ordered("numba").rank_grads(tile_of(), 1.0, lists, torch.zeros(ROWS).long(), 0.1, torch.zeros(ROWS), tile_of().v, lists)


def test_numba_is_chosen_where_there_is_no_native_code(monkeypatch):
    op = Op(BatchAllTriplets("hinge", 1.0, 0.0, math.inf, (0.1,)), Dot, ((),))
    monkeypatch.setattr(backends.load("native"), "unsuited", lambda device, dtype: "not built")
    backends._choose.cache_clear()
    try:
        assert backends.choose(op, torch.device("cpu"), torch.float32).name == "numba"
    finally:
        backends._choose.cache_clear()


def test_nothing_more_is_compiled_for_another_size():
    from metric_kernels.backends import numba_terms

    def calls(size):
        x, labels = embeddings(size, 8, dtype=torch.float32).requires_grad_(), unbalanced_labels(size)
        for reference in ((), (embeddings(9, 8, dtype=torch.float32), unbalanced_labels(9))):
            ops.batch_all_triplet(x, labels, *reference, backend="numba").loss.sum().backward()

    calls(20)
    before = numba_terms._compiled.cache_info().currsize
    calls(600)
    assert numba_terms._compiled.cache_info().currsize == before
