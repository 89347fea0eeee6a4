"""The compiled extension by itself: every argument is checked, and every instruction set gives the same numbers."""

import threading
import time

import numpy as np
import pytest
import torch
from accuracy import relative_error
from cases import LOSSES, embeddings, unbalanced_labels, value_and_grads
from truth import check_self

from metric_kernels import distances, losses
from metric_kernels.extremes import FORMULA as EXTREMES
from metric_kernels.language import Formula
from metric_kernels.losses.quadruplet import FORMULA as MEANS

native = pytest.importorskip("metric_kernels._native")

ROWS, COLUMNS = 3, 5
TILE = ["formula", "metric", "s", "labels", "ref_labels", "row", "diagonal", "p", "q", "eps", "params", "threads"]
SIDES = ["statistics", "gradients", "index", "ref_statistics", "ref_gradients", "ref_index"]
ENTRIES = {
    "stats": [*TILE, "first", "last", "statistics", "ref_statistics", "index", "scale"],
    "weights": [*TILE, *SIDES, "both", "norm_grad"],
    "input_grads": [*TILE, "stage", *SIDES, "swapped", "out"],
    "epilogue": ["formula", "row_params", "windows", "required", "statistics", "grads"],
    "step": [*TILE, "row_params", "windows", "required", "both", "norm_grad"],
}


def number_of(formula):
    return native.formulas[formula.key][0]


def arguments(entry, formula=losses.LiftedStructureLoss.formula, params=(1.0, 1.0, 1.0, 0.0, -np.inf, np.inf)):
    """Valid arguments by name, in float32. The formula by default has two stages, the second reads both sides."""
    number, random = len(formula.stats), np.random.default_rng(0)
    columns = ROWS if entry == "step" else COLUMNS  # a step is that of a batch with itself

    def floats(*shape):
        return random.standard_normal(shape).astype(np.float32)

    tile = {
        "formula": number_of(formula),
        "metric": native.metrics["Euclidean"],
        "s": floats(ROWS, columns),
        "labels": np.array([0, 1, 0]),
        "ref_labels": np.array([0, 1, 1, 0, 2])[:columns],
        "row": 0,
        "diagonal": -1,
        "p": 4 + np.abs(floats(ROWS)),
        "q": 4 + np.abs(floats(columns)),
        "eps": 1e-6,
        "params": list(params),
        "threads": 1,
        "first": 0,
        "last": len(formula.stages),
        "statistics": floats(number, ROWS),
        "gradients": floats(number, ROWS),
        "index": np.zeros((number, ROWS), np.int64) if formula.extremes else None,
        "scale": floats(number, ROWS) if formula.logarithms else None,
        "ref_statistics": floats(number, COLUMNS),
        "ref_gradients": floats(number, COLUMNS),
        "ref_index": np.zeros((number, COLUMNS), np.int64) if formula.extremes else None,
        "both": True,
        "norm_grad": floats(ROWS),
        "stage": 1,
        "swapped": False,
        "out": floats(1, ROWS),
        "row_params": [],
        "windows": [(-np.inf, np.inf, True)],
        "required": 0,
        "grads": floats(number, ROWS),
    }
    return {name: tile[name] for name in ENTRIES[entry]}


def call(entry, given):
    return getattr(native, entry)(*given.values())


EXTREMES_ONLY = {"formula": EXTREMES, "params": ()}


@pytest.mark.parametrize("entry", ENTRIES)
def test_valid_arguments_pass(entry):
    call(entry, arguments(entry))
    if entry in ("stats", "weights"):
        call(entry, arguments(entry, **EXTREMES_ONLY))


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array):
    """The same numbers, in every other place."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def misaligned(array):
    copy = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def overlapping(array):
    return np.lib.stride_tricks.as_strided(array, array.shape, (array.itemsize, array.itemsize))


# What each array may not be. Arrays that are written to may not be read-only either.
MISTAKES = {
    "none": (lambda a: None, TypeError),
    "list": (lambda a: a.tolist(), TypeError),
    "float16": (lambda a: a.astype(np.float16), TypeError),
    "int32": (lambda a: a.astype(np.int32), TypeError),
    "other_float": (lambda a: a.astype(np.float64 if a.dtype != np.float64 else np.float32), TypeError),
    "complex": (lambda a: a.astype(np.complex64), TypeError),
    "object": (lambda a: a.astype(object), TypeError),
    "big_endian": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError),
    "shorter": (lambda a: a[..., :-1].copy(), ValueError),
    "longer": (lambda a: np.concatenate([a, a], axis=-1), ValueError),
    "empty": (lambda a: a[..., :0].copy(), ValueError),
    "flat": (lambda a: a.ravel() if a.ndim > 1 else a[None], ValueError),
    "deep": (lambda a: a[None, None], ValueError),
    "scalar": (lambda a: a.ravel()[0:1].reshape(()), ValueError),
    "strided": (strided, ValueError),
    "misaligned": (misaligned, ValueError),
    "reversed": (lambda a: a[..., ::-1], ValueError),
}
MATRIX_MISTAKES = {
    "transposed": (lambda a: np.asfortranarray(a), ValueError),
    "fewer_rows": (lambda a: a[:-1].copy(), ValueError),
    "rows_reversed": (lambda a: a[::-1], ValueError),
}
WRITTEN = {
    "stats": ["s", "statistics", "index", "scale"],
    "weights": ["s", "norm_grad"],
    "input_grads": ["s", "out"],
    "epilogue": ["grads"],
    "step": ["s", "norm_grad"],
}
MATRICES = {"s", "out", "grads", "scale", *SIDES}
# How the messages call what stands on either side.
NAMES = {"ref_statistics": "statistics", "ref_gradients": "gradients", "ref_index": "index"}


# These are read by the formulas with extremes only. No stage reads extremes of a stage before.
INDICES = [("stats", "index"), ("weights", "index"), ("weights", "ref_index")]
ARRAYS = [(e, n) for e in ENTRIES for n, v in arguments(e).items() if isinstance(v, np.ndarray)] + INDICES


def mistakes_of(entry, name):
    """The ways in which an array can be wrong."""
    known = dict(MISTAKES)
    if name in WRITTEN[entry]:
        known["read_only"] = (read_only, ValueError)
    if "labels" in name:
        del known["other_float"]
    if name in MATRICES:
        known |= MATRIX_MISTAKES
        if name in WRITTEN[entry]:
            known["rows_that_overlap"] = (overlapping, ValueError)
    if name == "out":  # it has one row
        for mistake in ("fewer_rows", "rows_reversed", "transposed", "rows_that_overlap"):
            del known[mistake]
    return known


def wrong_arrays():
    for entry, name in ARRAYS:
        options = EXTREMES_ONLY if (entry, name) in INDICES else {}
        for mistake, (spoil, error) in mistakes_of(entry, name).items():
            yield pytest.param(entry, name, spoil, error, options, id=f"{entry}-{name}-{mistake}")


@pytest.mark.parametrize("entry, name, spoil, error, options", list(wrong_arrays()))
def test_wrong_arrays(entry, name, spoil, error, options):
    """The message names the argument. All sizes are measured by those of s, or of the statistics of an epilogue."""
    given = arguments(entry, **options)
    if name == "norm_grad" and spoil(given[name]) is None:
        call(entry, {**given, name: None})
        return
    with pytest.raises(error) as raised:
        call(entry, {**given, name: spoil(given[name])})
    message = str(raised.value)
    # A list is no array for pybind11, which answers with the whole signature.
    is_measure = name == "s" or entry == "epilogue" and name == "statistics"
    assert "incompatible function arguments" in message or NAMES.get(name, name) in message or is_measure


NUMBERS = {
    "formula": [(-1, ValueError), (10_000, ValueError), (None, TypeError), (0.5, TypeError), (2**40, TypeError)],
    "metric": [(-1, ValueError), (99, ValueError), ("Dot", TypeError)],
    "row": [(-1, ValueError), (2**63 - 2, ValueError), (1.5, TypeError)],
    "diagonal": [(-2, ValueError), (6, ValueError), (2**63 - 1, ValueError), (None, TypeError)],
    "threads": [(0, ValueError), (-3, ValueError), (10**6, ValueError), (None, TypeError)],
    "params": [([], ValueError), ([1.0] * 20, ValueError), (None, TypeError), (["a"] * 6, TypeError)],
    "eps": [(None, TypeError), ("a", TypeError)],
    "stage": [(-1, ValueError), (2, ValueError)],
    "first": [(-1, ValueError), (2, ValueError)],
    "last": [(0, ValueError), (3, ValueError)],
    "row_params": [([1.0], ValueError), (None, TypeError)],
    "windows": [([], ValueError), ([(0.0, 1.0, True)] * 2, ValueError), ([(0.0, 1.0)], TypeError), (None, TypeError)],
    "required": [(-2, ValueError), (3, ValueError)],
}
# How the messages call these.
NUMBER_NAMES = {"first": "stages", "last": "stages", "row_params": "params"}


@pytest.mark.parametrize(
    "entry, name, wrong, error",
    [
        pytest.param(entry, name, wrong, error, id=f"{entry}-{name}-{wrong}")
        for entry, names in ENTRIES.items()
        for name in names
        for wrong, error in NUMBERS.get(name, [])
    ],
)
def test_wrong_numbers(entry, name, wrong, error):
    with pytest.raises(error) as raised:
        call(entry, {**arguments(entry), name: wrong})
    message = str(raised.value)
    assert "incompatible function arguments" in message or NUMBER_NAMES.get(name, name) in message


def test_a_step_is_of_a_batch_with_itself():
    given = arguments("step")
    with pytest.raises(ValueError, match="both: expected True for a formula that reads the other point, got False"):
        call("step", {**given, "both": False})
    given |= {name: given[name][:2].copy() for name in ("ref_labels", "q")} | {"s": given["s"][:, :2].copy()}
    with pytest.raises(ValueError, match=r"s: expected the matrix of a batch with itself, got shape \(3, 2\)"):
        call("step", given)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_wrong_number_of_arguments(entry):
    given = list(arguments(entry).values())
    for wrong in (given[:-1], [*given, 0], []):
        with pytest.raises(TypeError):
            getattr(native, entry)(*wrong)


@pytest.mark.parametrize("rows, columns", [(0, 0), (0, 5), (3, 0)], ids=str)
def test_empty_tiles(rows, columns):
    def cut(given):
        result = {}
        for name, value in given.items():
            if isinstance(value, np.ndarray):
                size = columns if name in ("q", "ref_labels") or name.startswith("ref_") else rows
                value = value[:rows, :columns] if name == "s" else value[..., :size]
            result[name] = value
        return result

    given = cut(arguments("stats"))
    call("stats", given)
    if rows:
        assert np.isneginf(given["statistics"][0]).all() and not given["statistics"][1:].any()
    given = cut(arguments("weights"))
    call("weights", given)
    assert not given["norm_grad"].any()
    given = cut(arguments("input_grads"))
    call("input_grads", given)
    assert not given["out"].any()
    given = cut(arguments("epilogue"))
    loss = call("epilogue", given)
    assert rows or loss == 0


def test_nothing_beside_the_output_is_written():
    """The outputs are slices of larger arrays, and the inputs are read-only."""
    for entry in ENTRIES:
        given = arguments(entry)
        around = {}
        for name in given:
            if not isinstance(given[name], np.ndarray):
                continue
            if name in WRITTEN[entry] and given[name].ndim == 2:
                around[name] = np.full((given[name].shape[0] + 2, given[name].shape[1] + 16), 7.5, np.float32)
                inner = around[name][1:-1, 8:-8]
                inner[:] = given[name]
                given[name] = inner
            elif name not in WRITTEN[entry]:
                given[name] = read_only(given[name])
        call(entry, given)
        for name, whole in around.items():
            whole[1:-1, 8:-8] = 7.5
            assert (whole == 7.5).all(), (entry, name)


def test_rows_that_are_far_apart(tmp_path):
    """Offsets beyond 32 bits: the third row starts at element 2 ** 31."""
    given, stride = arguments("stats"), 2**30
    path = tmp_path / "sparse"
    try:
        whole = np.memmap(path, np.float32, "w+", shape=(2 * stride + COLUMNS,))
    except OSError as error:
        pytest.skip(f"no sparse file: {error}")
    far = np.lib.stride_tricks.as_strided(whole, (ROWS, COLUMNS), (4 * stride, 4))
    far[:] = given["s"]
    call("stats", given)
    again = {**arguments("stats"), "s": far}
    call("stats", again)
    assert np.array_equal(again["statistics"], given["statistics"])


@pytest.fixture(params=native.isas())
def isa(request):
    """Each instruction set of this processor, the one in use restored at the end."""
    before = native.isa()
    native.use_isa(request.param)
    yield request.param
    native.use_isa(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_every_instruction_set(name, dtype, isa):
    assert native.isa() == isa
    check_self(name, getattr(losses, name)(backend="native"), dtype, 257, 64, "unbalanced")


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="isa: expected one of .*baseline, got mmx"):
        native.use_isa("mmx")


@pytest.mark.parametrize("name", ["CircleLoss", "MultiSimilarityLoss", "NTXentLoss"])
def test_weights_see_the_exponents_that_the_statistics_saw(name, isa):
    """Plain torch rounds an exponent the same way in both; an unrounded one would move a weight by its last place."""
    x, labels = embeddings(150, 32, dtype=torch.float32), unbalanced_labels(150, classes=6)

    def step(backend):
        loss = getattr(losses, name)(backend=backend)
        value, (grad,) = value_and_grads(lambda x: loss(x, labels), x)
        return torch.cat([value[None], grad.flatten()]).double()

    assert relative_error(step("native"), step("reference")) < 5e-7


def test_exp(isa):
    x = np.linspace(-100, 100, 2_000_001, dtype=np.float32)
    y = native.exp(x)
    exact = np.exp(x.astype(np.float64))
    inside = (x >= -87.3) & (x <= 88.37)
    assert np.max(np.abs(y[inside] / exact[inside] - 1)) < 3e-7
    assert not y[x < -87.3].any() and np.isposinf(y[x > 88.38]).all()
    # Exact where that is easy to see.
    assert native.exp(np.float32([0.0, -0.0])).tolist() == [1.0, 1.0]


def test_exp_of_special_values(isa):
    assert np.isnan(native.exp(np.float32([np.nan]))).all()
    assert native.exp(np.float32([np.inf, -np.inf, 1e30, -1e30])).tolist() == [np.inf, 0.0, np.inf, 0.0]
    assert native.exp(np.zeros((0, 2), np.float32)).shape == (0, 2)


class Given(distances.CosineSimilarity):
    """A matrix made before, since torch may split its own product differently among more threads."""

    metric = None

    def __init__(self, values):
        super().__init__()
        self.values = values

    def matrix(self, x, y):
        return self.values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "NPairsLoss"])
def test_threads_do_not_change_a_bit(name, dtype):
    before = torch.get_num_threads()
    x, labels = embeddings(150, 32, dtype=dtype), unbalanced_labels(150, classes=6)
    matrix, results = distances.CosineSimilarity()(x), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values = matrix.clone().requires_grad_()
            value = getattr(losses, name)(distance=Given(values), backend="native")(x, labels)
            results.append((value.detach(), torch.autograd.grad(value, values)[0]))
    finally:
        torch.set_num_threads(before)
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0]) and torch.equal(grad, results[0][1])


def longest_silence(function):
    """The longest time in which another thread did not come to run during a call, as a fraction of the call."""
    stamps, running, stop = [], threading.Event(), threading.Event()

    def tick():
        running.set()
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0)

    thread = threading.Thread(target=tick)
    thread.start()
    assert running.wait(10)
    try:
        start = time.perf_counter()
        function()
        end = time.perf_counter()
    finally:
        stop.set()
        thread.join()
    during = [start, *(t for t in stamps if start < t < end), end]
    return max(b - a for a, b in zip(during, during[1:])) / (end - start)


def lets_others_run(function):
    # A busy machine may silence the other thread once; a held lock does it every time.
    return min(longest_silence(function) for _ in range(5)) < 0.5


def test_the_silence_of_other_threads_is_heard():
    assert lets_others_run(lambda: time.sleep(0.2))
    assert not lets_others_run(lambda: sum(range(5_000_000)))


def test_other_threads_go_on_during_a_call():
    size = 3000
    given = arguments("stats", losses.CircleLoss.formula, (80.0, 1.4, -0.4, 0.6, 0.4))
    given |= {
        "metric": native.metrics["Dot"],
        "s": np.random.default_rng(0).random((size, size)),
        "labels": np.arange(size) // 4,
        "ref_labels": np.arange(size) // 4,
        "p": None,
        "q": None,
        "statistics": np.empty((2, size)),
        "scale": np.empty((2, size)),
        "ref_statistics": None,
    }
    assert lets_others_run(lambda: call("stats", given))


@pytest.mark.parametrize("with_self", [False, True])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 511, 512, 513, 1024, 1100])
def test_the_point_itself_is_found_in_every_chunk(size, with_self):
    """One class only: each row has all columns as positives, but for its own if that is excluded."""
    formula = losses.SupConLoss.formula
    number = [s.kind for s in formula.stats].index("count")
    given = arguments("stats", formula, (-1.0, 1.0))
    given |= {
        "metric": native.metrics["Dot"],
        "s": np.zeros((size, size), np.float32),
        "labels": np.zeros(size, np.int64),
        "ref_labels": np.zeros(size, np.int64),
        "diagonal": -1 if with_self else 0,
        "p": None,
        "q": None,
        "statistics": np.full((len(formula.stats), size), np.nan, np.float32),
        "scale": np.full((len(formula.stats), size), np.nan, np.float32),
        "ref_statistics": None,
    }
    call("stats", given)
    assert (given["statistics"][number] == (size if with_self else size - 1)).all()


def test_tables():
    assert set(native.metrics) == {"Dot", "Euclidean", "SquaredEuclidean", "SNR"}
    used = {loss.kernels.key for loss in losses.REGISTRY.values() if isinstance(loss.kernels, Formula)}
    assert used | {MEANS.key} == set(native.formulas)
    assert native.isas()[-1] == "baseline" and isinstance(native.openmp, bool)
