"""The entry points of the kernels of terms in the compiled extension: every argument is checked."""

import numpy as np
import pytest
import torch
from test_native import MATRIX_MISTAKES, MISTAKES, overlapping, read_only

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
GRID = {"low": lambda: -1.0, "step": lambda: 0.5}
ENTRIES = {
    "pair_values": {**PRODUCTS, "out": lambda: floats(ROWS, COLUMNS)},
    "pair_slopes": {**PRODUCTS, **G, "norm_grad": lambda: floats(ROWS)},
    "ranks": {**TILE, **LISTS, "margin": lambda: 0.1, **SUMS, **BELOW},
    "rank_grads": {**TILE, **LISTS, "margin": lambda: 0.1, **SCALE, **G, **BELOW},
    "sums": {**TILE, **OWN_LISTS, **SHAPE, **SUMS},
    "sum_grads": {**TILE, **OWN_LISTS, **SHAPE, **SCALE, **G, "slopes": lambda: np.zeros((ROWS, LENGTH))},
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
            written = name in WRITTEN and (entry, name) != ("pair_slopes", "g")
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
