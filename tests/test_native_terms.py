"""The entry points of the kernels of terms in the compiled extension: every argument is checked."""

import numpy as np
import pytest
import torch
from test_native import MATRIX_MISTAKES, MISTAKES, overlapping, read_only

from metric_kernels import ordered
from metric_kernels.backends import native_ordered, reference_ordered
from metric_kernels.terms import ValueTile

native = pytest.importorskip("metric_kernels._native")

ROWS, COLUMNS, LENGTH, NODES = 3, 5, 4, 6
RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def integers(*shape):
    return np.zeros(shape, np.int64)


TILE = {
    "v": lambda: floats(ROWS, COLUMNS),
    "labels": lambda: np.array([0, 1, 0]),
    "ref_labels": lambda: np.array([0, 1, 1, 0, 2]),
    "diagonal": lambda: -1,
    "threads": lambda: 1,
}
OWN_LISTS = {"sign": lambda: 1.0, "lists": lambda: np.sort(floats(ROWS, LENGTH), 1)}
LISTS = {**OWN_LISTS, "which": lambda: np.arange(ROWS)}
PRODUCTS = {
    "metric": lambda: native.metrics["Euclidean"],
    "s": lambda: floats(ROWS, COLUMNS),
    "p": lambda: 4 + np.abs(floats(ROWS)),
    "q": lambda: 4 + np.abs(floats(COLUMNS)),
    "eps": lambda: 1e-6,
    "threads": lambda: 1,
}
SUMS = {"totals": lambda: np.zeros(ROWS), "counts": lambda: integers(ROWS)}
G = {"g": lambda: floats(ROWS, COLUMNS)}
SHAPE = {"margin": lambda: 0.1, "shape": lambda: "softplus", "low": lambda: 0.0, "high": lambda: np.inf}
BELOW = {"below": lambda: integers(ROWS, LENGTH)}
SCALE = {"scale": lambda: floats(ROWS)}
GRID = {"low": lambda: -1.0, "step": lambda: 0.5, "lone": lambda: True}
ENTRIES = {
    "pair_values": {**PRODUCTS, "out": lambda: floats(ROWS, COLUMNS)},
    "pair_slopes": {**PRODUCTS, **G, "norm_grad": lambda: floats(ROWS)},
    "ranks": {**TILE, **LISTS, "margin": lambda: 0.1, **SUMS, **BELOW},
    "rank_grads": {**TILE, **LISTS, "margin": lambda: 0.1, **SCALE, **G, **BELOW},
    "sums": {**TILE, **OWN_LISTS, **SHAPE, **SUMS},
    "sum_grads": {**TILE, **OWN_LISTS, **SHAPE, **SCALE, **G, "slopes": lambda: np.zeros((ROWS, LENGTH))},
    "positives": {**TILE, "sign": lambda: 1.0},
    "triplets_step": {
        **PRODUCTS,
        **{name: TILE[name] for name in ("labels", "ref_labels", "diagonal")},
        "sign": lambda: 1.0,
        "margin": lambda: 0.1,
        "both": lambda: False,
        "norm_grad": lambda: floats(ROWS),
    },
    "nearest": {**TILE, **OWN_LISTS, "columns": lambda: integers(ROWS, LENGTH)},
    "histogram": {
        **TILE,
        **GRID,
        "bits": lambda: 20,
        "out": lambda: integers(ROWS, 2 * NODES),
        "spoiled": lambda: np.zeros(ROWS, bool),
    },
    "histogram_grads": {**TILE, **GRID, "tables": lambda: floats(ROWS, 2 * NODES), **G},
}
# The products are overwritten by these.
OVERWRITTEN = {("pair_slopes", "s"), ("triplets_step", "s")}
WRITTEN = {"out", "g", "norm_grad", "totals", "counts", "below", "slopes", "columns", "spoiled"}
MATRICES = {"v", "s", "lists", "out", "g", "below", "slopes", "columns", "tables"}


def arguments(entry):
    return {name: make() for name, make in ENTRIES[entry].items()}


def call(entry, given):
    return getattr(native, entry)(*given.values())


@pytest.mark.parametrize("entry", ENTRIES)
def test_valid_arguments_pass(entry):
    call(entry, arguments(entry))


def wrong_arrays():
    for entry, makers in ENTRIES.items():
        for name, make in makers.items():
            array = make()
            if not isinstance(array, np.ndarray):
                continue
            known = dict(MISTAKES)
            written = (entry, name) in OVERWRITTEN or name in WRITTEN and (entry, name) != ("pair_slopes", "g")
            if written:
                known["read_only"] = (read_only, ValueError)
            if name in MATRICES:
                known |= MATRIX_MISTAKES
                if written:
                    known["rows_that_overlap"] = (overlapping, ValueError)
            if array.dtype == bool:
                known = {k: v for k, v in known.items() if k not in ("big_endian", "misaligned")}
            if name in ("v", "s") or array.dtype.kind == "i":
                known.pop("other_float", None)  # the type of all others is measured by theirs, or it is another error
            if (entry, name) in (("histogram", "out"), ("histogram_grads", "tables")):
                # Any even number of columns is a number of nodes.
                known = {k: v for k, v in known.items() if k not in ("longer", "fewer_rows")}
            if name == "lists":  # as many and as long as one likes, but for what goes with them
                known = {k: v for k, v in known.items() if k not in ("shorter", "longer", "fewer_rows", "empty")}
            if name in ("norm_grad", "below"):
                del known["none"]
            for mistake, (spoil, _) in known.items():
                yield pytest.param(entry, name, spoil, id=f"{entry}-{name}-{mistake}")


@pytest.mark.parametrize("entry, name, spoil", list(wrong_arrays()))
def test_wrong_arrays(entry, name, spoil):
    given = arguments(entry)
    with pytest.raises((TypeError, ValueError)):
        call(entry, {**given, name: spoil(given[name])})


NUMBERS = {
    "diagonal": [-2, 6, 2**63 - 1],
    "threads": [0, 10**6],
    "metric": [-1, 99],
    "bits": [0, 51],
    "step": [0.0, -1.0, np.nan, np.inf],
    "low": [np.nan, -np.inf],
    "high": [np.nan],
    "shape": ["cubic"],
}


@pytest.mark.parametrize(
    "entry, name, wrong",
    [(entry, name, wrong) for entry, names in ENTRIES.items() for name in names for wrong in NUMBERS.get(name, [])],
)
def test_wrong_numbers(entry, name, wrong):
    with pytest.raises(ValueError, match=name):
        call(entry, {**arguments(entry), name: wrong})


@pytest.mark.parametrize("entry", [name for name, makers in ENTRIES.items() if "which" in makers])
def test_a_list_that_is_not_there(entry):
    for wrong in ([-1, 0, 0], [0, 0, ROWS]):
        with pytest.raises(ValueError, match="which: expected 0 to 2"):
            call(entry, {**arguments(entry), "which": np.array(wrong)})


@pytest.mark.parametrize("entry", ["sums", "sum_grads", "nearest"])
@pytest.mark.parametrize("number", [ROWS - 1, ROWS + 1])
def test_a_list_for_each_row(entry, number):
    with pytest.raises(ValueError, match="lists: expected shape"):
        call(entry, {**arguments(entry), "lists": floats(number, LENGTH)})


@pytest.mark.parametrize("diagonal", [COLUMNS - ROWS + 1, COLUMNS])
def test_positives_of_a_row_beyond_the_columns(diagonal):
    with pytest.raises(ValueError, match="diagonal: expected a column for each row"):
        call("positives", {**arguments("positives"), "diagonal": diagonal})


def test_a_step_of_other_points_has_no_diagonal_and_no_transpose():
    with pytest.raises(ValueError, match="diagonal: expected -1, or 0 for a batch with itself, got 0"):
        call("triplets_step", {**arguments("triplets_step"), "diagonal": 0})
    with pytest.raises(ValueError, match="s: expected the matrix of a batch with itself"):
        call("triplets_step", {**arguments("triplets_step"), "both": True})


def test_a_point_whose_own_column_has_another_label():
    """It is in nobody's list, and there is a place for all others."""
    given = {**arguments("positives"), "diagonal": 1}  # of the columns 1, 2 and 3
    columns, lists = call("positives", given)
    assert [sorted(row[row < COLUMNS]) for row in columns] == [[0, 3], [1], [0]]
    np.testing.assert_array_equal(np.isinf(lists), columns == COLUMNS)


def tile(size, rows=None, diagonal=0, number=4):
    """Values that are all different, and labels of a few classes."""
    rows = size if rows is None else rows
    generator = torch.Generator().manual_seed(size)
    ref_labels = torch.randint(number, (size,), generator=generator)
    labels = (
        ref_labels[diagonal : diagonal + rows] if diagonal >= 0 else torch.randint(number + 1, (rows,), generator=generator)
    )
    return ValueTile(torch.randn(rows, size, generator=generator), labels, ref_labels, slice(0, rows), diagonal)


def rounded(given):
    return given._replace(v=given.v.round())


def with_special_values(given):
    v = given.v.clone()
    v[::2, ::5], v[::3, 1::5], v[1::3, 2::5] = torch.nan, torch.inf, -torch.inf
    return given._replace(v=v)


TILES = {
    "batch": lambda: tile(40),
    "some_rows": lambda: tile(600, 25, 300),
    "last_rows": lambda: tile(60, 25, 35),
    "reference": lambda: tile(40, 23, -1),
    "threads": lambda: tile(300),
    "ties": lambda: rounded(tile(50)),
    "special_values": lambda: with_special_values(tile(60)),
    "special_values_of_reference": lambda: with_special_values(tile(60, 40, -1)),
    "lone_points": lambda: tile(40, number=30),
    "all_different": lambda: tile(12)._replace(labels=torch.arange(12), ref_labels=torch.arange(12)),
    "one_class": lambda: tile(33, number=1),
    "apart": lambda: tile(41)._replace(v=tile(82).v[::2, ::2]),
    "one_point": lambda: tile(1),
    "no_columns": lambda: tile(0, 3, -1),
    "nothing": lambda: tile(0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("case", TILES)
def test_positives_are_those_of_torch(case, sign, dtype):
    given = TILES[case]()
    given = given._replace(v=given.v.to(dtype))
    columns, lists = native_ordered.positives(given, sign)
    expected_columns, expected = ordered.positives(given, sign)
    torch.testing.assert_close(lists, expected, rtol=0, atol=0, equal_nan=True)
    # Equal values may come in any order, and here by their columns.
    assert torch.equal(columns.sort(1).values, expected_columns.sort(1).values)
    present = columns < given.v.shape[1]
    found = sign * given.v.gather(1, torch.where(present, columns, 0)) if given.v.numel() else lists
    torch.testing.assert_close(lists[present], found[present], rtol=0, atol=0, equal_nan=True)
    assert (lists[~present] == -torch.inf).all()
    same = (lists[:, 1:] == lists[:, :-1]) & present[:, 1:] & present[:, :-1]
    assert (columns.diff(dim=1)[same] > 0).all()


# Looked for one by one, and all at once.
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("case", [case for case in TILES if not case.startswith(("special", "nothing"))])
def test_nearest_is_that_of_torch(case, sign, dtype, length):
    """Beyond values of the row itself, which are no gap, beyond all, beyond none, and where places are empty."""
    given = TILES[case]()
    given = given._replace(v=given.v.to(dtype))
    rows, columns = given.v.shape
    lists = torch.randn(rows, length, dtype=dtype)
    if columns:
        lists[:, ::2] = sign * given.v[:, torch.randint(columns, (len(range(0, length, 2)),))]
    lists[1::4, :2], lists[2::4, -1:], lists[3::4, -1:] = -torch.inf, 99.0, torch.inf
    lists = lists.sort(1).values
    found, expected = (kernels.nearest(given, sign, lists) for kernels in (native_ordered, reference_ordered))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("isa", native.isas())
def test_every_instruction_set(isa):
    """The same integers, and sums that agree."""
    given = arguments("ranks")
    first = native.isa()
    try:
        native.use_isa(isa)
        call("ranks", given)
    finally:
        native.use_isa(first)
    u, lists, negative = given["v"] - np.float32(0.1), given["lists"], given["labels"][:, None] != given["ref_labels"]
    gaps = np.maximum(lists[:, :, None] - u[:, None, :], 0) * negative[:, None, :]
    np.testing.assert_array_equal(given["counts"], (gaps > 0).sum((1, 2)))
    np.testing.assert_array_equal(given["below"], (gaps > 0).sum(2))
    np.testing.assert_allclose(given["totals"], gaps.sum((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 300])
def test_a_matrix_plus_its_transpose(size, dtype):
    matrix = torch.arange(size * (size + 3), dtype=dtype).view(size, size + 3)[:, :size]
    expected = matrix + matrix.t()
    native.add_transposed(matrix.numpy(), 2)
    assert torch.equal(matrix, expected)


def test_a_matrix_that_is_not_square():
    with pytest.raises(ValueError, match="a: expected shape"):
        native.add_transposed(np.zeros((3, 4)), 1)
