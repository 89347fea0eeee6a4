"""The entry points of the kernels of vectors in the compiled extension: every argument is checked."""

import numpy as np
import pytest
from test_native import MATRIX_MISTAKES, MISTAKES, overlapping, read_only

native = pytest.importorskip("metric_kernels._native")

ROWS, COLUMNS, FEATURES = 3, 5, 4
RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.random(shape).astype(np.float32)


DISTANCE = {"kind": lambda: "lp", "p": lambda: 3.0, "threads": lambda: 1, "x": lambda: floats(ROWS, FEATURES)}
TRIPLETS = {
    **{name: lambda: floats(ROWS, FEATURES) for name in ("anchor", "positive", "negative")},
    **{"p": lambda: 2.0, "margin": lambda: 1.0, "eps": lambda: 1e-6, "swap": lambda: True, "threads": lambda: 1},
    "distances": lambda: floats(3, ROWS),
}
ENTRIES = {
    "distances": {**DISTANCE, "yt": lambda: floats(FEATURES, COLUMNS), "out": lambda: floats(ROWS, COLUMNS)},
    "distance_grads": {
        **DISTANCE,
        "y": lambda: floats(COLUMNS, FEATURES),
        "d": lambda: floats(ROWS, COLUMNS),
        "g": lambda: floats(ROWS, COLUMNS),
        "out": lambda: floats(ROWS, FEATURES),
    },
    "triplet_losses": {**TRIPLETS, "losses": lambda: floats(ROWS)},
    "triplet_grads": {
        **TRIPLETS,
        "g": lambda: floats(ROWS),
        **{f"{name}_grad": lambda: floats(ROWS, FEATURES) for name in ("anchor", "positive", "negative")},
    },
}
VECTORS = {("triplet_losses", "losses"), ("triplet_grads", "g")}
WRITTEN = {"out", "losses", "anchor_grad", "positive_grad", "negative_grad"}


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
            if not isinstance(make(), np.ndarray):
                continue
            known = dict(MISTAKES)
            if (entry, name) not in VECTORS:
                known |= MATRIX_MISTAKES
            if name in WRITTEN or (entry, name) == ("triplet_losses", "distances"):
                known["read_only"] = (read_only, ValueError)
                if (entry, name) not in VECTORS:
                    known["rows_that_overlap"] = (overlapping, ValueError)
            if name in ("x", "anchor"):  # the type of all others is measured by theirs
                del known["other_float"]
            if name == "yt":  # as many columns as one likes, but for what goes with them
                known = {k: v for k, v in known.items() if k not in ("shorter", "longer", "empty")}
            if name == "y":
                del known["fewer_rows"]
            if name.endswith("_grad"):
                del known["none"]
            for mistake, (spoil, _) in known.items():
                yield pytest.param(entry, name, spoil, id=f"{entry}-{name}-{mistake}")


@pytest.mark.parametrize("entry, name, spoil", list(wrong_arrays()))
def test_wrong_arrays(entry, name, spoil):
    given = arguments(entry)
    with pytest.raises((TypeError, ValueError)):
        call(entry, {**given, name: spoil(given[name])})


@pytest.mark.parametrize("spoil", [lambda a: a[:, :-1].copy(), lambda a: a[:-1].copy()], ids=["columns", "rows"])
@pytest.mark.parametrize("entry, name", [("distances", "yt"), ("distance_grads", "y")])
def test_others_that_do_not_go_with_the_rest(entry, name, spoil):
    given = arguments(entry)
    with pytest.raises(ValueError, match="expected shape"):
        call(entry, {**given, name: spoil(given[name])})


@pytest.mark.parametrize(
    "entry, name, wrong",
    [
        (entry, name, wrong)
        for entry, makers in ENTRIES.items()
        for name, values in {"p": [0.0, -1.0, np.nan], "threads": [0, 10**6], "kind": ["cosine"]}.items()
        for wrong in values
        if name in makers
    ],
)
def test_wrong_numbers(entry, name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        call(entry, {**arguments(entry), name: wrong})


def test_gradients_that_are_not_wanted():
    given = arguments("triplet_grads")
    call("triplet_grads", given)
    alone = {
        **given,
        "anchor_grad": None,
        "positive_grad": np.full((ROWS, FEATURES), np.nan, np.float32),
        "negative_grad": None,
    }
    call("triplet_grads", alone)
    np.testing.assert_array_equal(alone["positive_grad"], given["positive_grad"])


@pytest.mark.parametrize(
    "kind, p", [("lp", 1.0), ("lp", 2.0), ("lp", 3.0), ("lp", 2.5), ("lp", np.inf), ("jensen_shannon", 1.0)]
)
@pytest.mark.parametrize("isa", native.isas())
def test_every_instruction_set(isa, kind, p):
    x, y = floats(9, 70).astype(np.float64), floats(20, 70).astype(np.float64)
    if kind == "lp":
        gaps = np.abs(x[:, None] - y)
        expected = gaps.max(2) if p == np.inf else (gaps**p).sum(2) ** (1 / p)
    else:
        middle = (x[:, None] + y) / 2
        expected = np.sqrt((x[:, None] * np.log(x[:, None] / middle) + y * np.log(y / middle)).sum(2) / 2)
    first = native.isa()
    for dtype, within in ((np.float32, 1e-6), (np.float64, 1e-13)):
        out = np.empty((9, 20), dtype)
        try:
            native.use_isa(isa)
            native.distances(kind, p, 2, x.astype(dtype), y.T.astype(dtype).copy(), out)
        finally:
            native.use_isa(first)
        np.testing.assert_allclose(out, expected, rtol=within)
