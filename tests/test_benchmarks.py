"""What judges and records the benchmark: no time for a wrong answer, and no bar that is passed without a number."""

import csv
import importlib.util
import time
from dataclasses import astuple
from functools import partial

import pytest
import torch
from cases import value_and_grads
from oracles import TERM_ORACLES

from benchmarks import bars, crossover, exact, gate, pictures, table
from benchmarks.cases import (
    CLASS_SIZES,
    DEFAULT_PROVIDERS,
    GROWTH,
    PAIR_LOSSES,
    PROVIDERS,
    TERM_LOSSES,
    Case,
    Provider,
    formula,
    loss_step,
    timed,
    weighed,
)
from benchmarks.compare import Comparison, Result, Timing, compare, compare_all, interleaved
from benchmarks.dense import DENSE
from benchmarks.dense_terms import TERMS
from benchmarks.records import Records
from metric_kernels import losses

CASE = Case("ContrastiveLoss", 16, 8)
TRIPLETS = Case("TripletMarginLoss", 16, 8)


@pytest.fixture(scope="module")
def true():
    return gate.truth(CASE)


def judged(true, loss=1.0, grad=1.0):
    """The verdict on a loss and a gradient that are off by these factors."""
    found = gate.errors(true, torch.tensor(loss * true.loss), grad * true.grad)
    return gate.verdict(CASE, found)


def test_the_gate_lets_what_is_right_pass(true):
    assert true.grad.dtype == torch.float64 and true.grad.any()
    assert judged(true) is None
    assert judged(true, 1 + gate.LOSS_TOLERANCE["float32"] / 2, 1 + gate.GRAD_TOLERANCE["float32"] / 2) is None


@pytest.mark.parametrize("wrong", [1.001, -1.0, 0.0, torch.nan, torch.inf])
def test_the_gate_refuses_what_is_wrong(true, wrong):
    assert "another loss" in judged(true, loss=wrong)
    assert "another gradient" in judged(true, grad=wrong)
    one = torch.ones_like(true.grad)
    one[0] = wrong
    assert "another gradient" in judged(true, grad=one)


def test_the_gate_allows_for_a_triplet_on_the_margin():
    true = gate.truth(TRIPLETS)
    for off, passes in ((1e-3 / 2, True), (2e-3, False)):
        found = gate.errors(true, torch.tensor(true.loss), (1 + off) * true.grad)
        assert (gate.verdict(TRIPLETS, found) is None) == passes


@pytest.mark.parametrize("per_class", [2, 6])
@pytest.mark.parametrize("loss", TERMS)
def test_dense_formulas_and_the_truth_are_the_oracle(loss, per_class, monkeypatch):
    monkeypatch.setattr(exact, "_BLOCK", 200)  # a few rows
    case = Case(loss, 24, 5, "float64", per_class)
    x, labels = case.inputs()
    name, options = loss, {}
    if loss not in TERM_ORACLES:
        name, options = "TripletMarginLoss", {"margin": 5, "normalize": False}

    def oracle(x):
        found = TERM_ORACLES[name](x, labels, **options)
        return found[0] if isinstance(found, tuple) else found

    expected = value_and_grads(oracle, x)
    assert expected[1][0].any()
    for written in (formula(case), exact.EXACT[loss](case.batch, per_class)):
        found = value_and_grads(partial(written, labels=labels), x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_every_loss_is_written_down():
    assert set(DENSE) == set(PAIR_LOSSES) and set(TERMS) == set(exact.EXACT) == {*TERM_LOSSES, "BatchAllTripletLoss"}
    assert {*PAIR_LOSSES, *TERM_LOSSES} == set(losses.REGISTRY)


def raises(x, labels):
    raise ArithmeticError("out of numbers\nand more")


def test_only_what_is_right_is_timed(monkeypatch):
    def provider(loss, refusal=None):
        return Provider(lambda case, x, labels: loss_step(loss, x, labels), lambda case: refusal)

    dense = DENSE[CASE.loss]
    made = {
        "right": provider(dense),
        "wrong_loss": provider(lambda x, labels: dense(x, labels) + 0.01),
        "wrong_grad": provider(lambda x, labels: dense(x, labels).detach() + 0 * x.sum()),
        "raises": provider(raises),
        "refused": provider(dense, "not here"),
    }
    for name, one in made.items():
        monkeypatch.setitem(PROVIDERS, name, one)
    found = compare(CASE, tuple(made), 0.01).results
    assert {name for name, result in found.items() if result.timing} == {"right"}
    assert {name for name, result in found.items() if result.failed} == {"wrong_loss", "wrong_grad", "raises"}
    assert found["raises"].note == "ArithmeticError: out of numbers" and found["refused"].note == "not here"


def test_cases_take_turns():
    cases = CASE, Case(CASE.loss, 8, 8), TRIPLETS
    found = compare_all(cases, ("native", "floor"), 0.01)
    assert [set(one.results) for one in found] == [{"native", "floor"}] * 3
    assert all(result.timing for one in found for result in one.results.values())
    assert [one.ours for one in found] == ["native"] * 3


def test_sentence_transformers():
    pytest.importorskip("sentence_transformers")
    case = Case("BatchAllTripletLoss", 32, 8)
    found = compare(case, ("native", "eager", "st"), 0.01)
    assert all(result.timing for result in found.results.values()), found.results


def test_sentence_transformers_where_there_is_none(monkeypatch):
    refuse = PROVIDERS["st"].refuse
    assert refuse(TRIPLETS) == "not in sentence-transformers with these parameters"
    assert "16384 x 3 x 16384 numbers" in refuse(Case("BatchAllTripletLoss", 16384, 8))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refuse(Case("BatchAllTripletLoss", 32, 8)) == "sentence-transformers is not installed"


def test_what_is_too_large_is_refused():
    def refusal(provider, loss, *shape):
        return PROVIDERS[provider].refuse(Case(loss, *shape)) or ""

    assert "3072 x 2093056 numbers, 25.7 GB" in refusal("eager", "QuadrupletMarginLoss", 2048, 128)
    assert "8192 x 3 x 8192 numbers" in refusal("compile", "TripletMarginLoss", 8192, 128)
    assert "13 million triplets as columns" in refusal("pml", "HistogramLoss", 2048, 128)
    assert "201 million triplets, three" in refusal("pml", "MarginLoss", 8192, 128)
    assert "16384^2" in refusal("pml", "FastAPLoss", 16384, 128)
    for loss in TERM_LOSSES:
        assert not refusal("eager", loss, 256, 128) and not refusal("native", loss, 16384, 128)


def measured(**milliseconds):
    return Comparison({name: Result(Timing(ms, ms, ms, 9), gate.Errors(0.0, 0.0)) for name, ms in milliseconds.items()}, {})


def test_records_replace_what_was_measured_and_keep_the_rest(tmp_path):
    path, other = tmp_path / "new" / "cpu.csv", Case("SupConLoss", 16, 8)
    first = Records(path)
    first.add_times(CASE, measured(native=2.0, floor=1.0))
    first.add_times(other, measured(native=5.0))
    first.add_peak(CASE, 12.34)
    first.save()
    second = Records(path)
    second.add_times(CASE, measured(native=3.0, floor=1.0))
    second.add_refusal(other.by("pml"), "too large")
    second.save()
    third = Records(path)
    assert third.number(CASE, "median_ms") == third.number(CASE, "ratio_to_floor") == 3.0
    assert third.number(CASE, "peak_mb") == 12.34
    assert third.number(other, "median_ms") == 5.0 and third.number(other, "ratio_to_floor") is None
    assert third.get(other.by("pml"))["note"] == "too large"
    assert third.get(CASE.by("eager")) is None and third.number(CASE.by("eager"), "median_ms") is None
    assert set(third.cases()) == {CASE, CASE.by("floor"), other, other.by("pml")}


TIMES = {"native": 1.0, "floor": 1.0, "numba": 1.5, "compile": 2.0, "eager": 2.0, "pml": 500.0, "st": 500.0}


def all_of(case, **changed):
    """Times by every provider that pass every bar, but for what is changed."""
    unit = 0.1 * (case.batch / 128) ** 2
    return measured(**{provider: unit * factor for provider, factor in {**TIMES, **changed}.items()})


@pytest.fixture
def passing(tmp_path):
    """Records of all that a session measures, in which every bar is passed."""
    records = Records(tmp_path / "cpu.csv")
    for run in timed(full=False):
        for case in run.cases:
            found = all_of(case)
            results = {p: found.results[p] for p in run.providers or DEFAULT_PROVIDERS}
            records.add_times(case, found._replace(results=results))
    for case in weighed(full=False):
        records.add_peak(case, 100.0)
    return records


def test_bars_that_are_passed(passing, capsys):
    passing.save()
    assert bars.main(passing.path) == 0
    number = len(list(bars.bars(passing)))
    assert f"{number} of {number} bars pass" in capsys.readouterr().out


LARGE, SMALL = Case("SupConLoss", 2048, 128), Case("SupConLoss", 128, 128)
TRIPLET, HISTOGRAM, BATCH_ALL = "TripletMarginLoss", "HistogramLoss", "BatchAllTripletLoss"


def forget(records, case):
    for provider in PROVIDERS:
        records.rows.pop(tuple(map(str, astuple(case.by(provider)))), None)


@pytest.mark.parametrize(
    "case, change",
    [
        pytest.param(LARGE, {"floor": 0.6}, id="floor"),
        pytest.param(LARGE, {"numba": 2.1}, id="numba"),
        pytest.param(SMALL, {"native": 3.1}, id="small"),
        pytest.param(SMALL, {"compile": 0.9}, id="compile"),
        pytest.param(SMALL, {"pml": 2.0}, id="pml"),
        pytest.param(SMALL, None, id="not_measured"),
        pytest.param(Case(TRIPLET, 2048, 512), {"floor": 0.6}, id="triplet-floor"),
        pytest.param(Case("QuadrupletMarginLoss", 2048, 512), {"floor": 0.39}, id="quadruplet-floor"),
        pytest.param(Case(HISTOGRAM, 2048, 512), {"numba": 2.1}, id="histogram-numba"),
        pytest.param(Case(TRIPLET, 2048, 512, per_class=64), {"floor": 0.49}, id="large_classes"),
        pytest.param(Case(TRIPLET, 256, 128), {"pml": 19.0}, id="triplet-pml"),
        pytest.param(Case(HISTOGRAM, 256, 128), {"pml": 299.0}, id="histogram-pml"),
        pytest.param(Case(BATCH_ALL, 256, 128), {"st": 4.9}, id="sentence-transformers"),
        pytest.param(Case("FastAPLoss", GROWTH[1], 128), {"native": 1.16}, id="growth"),
        pytest.param(Case("MarginLoss", GROWTH[0], 128), None, id="growth_not_measured"),
    ],
)
def test_a_missed_bar_is_the_exit_status(passing, case, change, capsys):
    if change is None:
        forget(passing, case)
    else:
        passing.add_times(case, all_of(case, **change))
    passing.save()
    assert bars.main(passing.path) == 1
    assert f"MISSED  {case.loss}" in capsys.readouterr().out


def test_a_missed_peak_is_the_exit_status(passing, capsys):
    for loss in ("SupConLoss", TRIPLET):
        passing.add_peak(Case(loss, 16384, 128), 401.0)
    passing.save()
    assert bars.main(passing.path) == 1
    printed = capsys.readouterr().out
    assert "MISSED  SupConLoss 16384x128" in printed and "MISSED  TripletMarginLoss 16384x128" in printed


def test_no_records_pass_no_bar(tmp_path):
    assert bars.main(tmp_path / "missing.csv") == 1


def test_the_table(tmp_path):
    records = Records(tmp_path / "cpu.csv")
    records.add_times(CASE, measured(native=2.0, floor=1.0, eager=5.0))
    records.add_refusal(CASE.by("pml"), "not installed")
    text = table.render(records)
    assert "## B = 16, D = 8, float32, 4 per class" in text and "- pml: not installed (Contrastive)" in text
    header, _, row = (line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|"))
    cells = dict(zip(map(str.strip, header), map(str.strip, row)))
    assert cells["ours / floor"] == "2" and cells["eager / ours"] == "2.5x" and cells["floor ms"] == "1"
    # Nobody has a number there.
    assert not any("numba" in name or "MB" in name for name in cells)
    assert "no results" in table.render(Records(tmp_path / "missing.csv"))


def test_triplets_and_quadruplets_have_a_table_of_their_own(passing):
    text = table.render(passing)
    section = text.split("## B = 2048, D = 512, float32, 4 per class")[1].split("\n## ")[0]
    pairs, terms = section.split("### Triplets, quadruplets and histograms")
    assert "### Pairs" in pairs and "SupCon" in pairs and "TripletMargin" not in pairs
    assert "TripletMargin" in terms and "SupCon" not in terms
    assert "### Pairs" not in text.split("## B = 256, D = 128")[1].split("\n## ")[0]
    assert "st / ours" in text


def test_class_sizes_share_a_table(passing):
    text = table.render(passing)
    assert "D = 512, float32, 2 per class" not in text
    section = text.split("## Time over the floor by samples per class")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert rows[0] == ["loss", "B", "D", "by", *map(str, CLASS_SIZES)]
    assert ["TripletMargin", "512", "128", "pml", *["500"] * 8] in rows
    assert {tuple(row[:4]) for row in rows} >= {
        ("QuadrupletMargin", "2048", "512", "ours"),
        ("TripletMargin", "512", "128", "eager"),
    }
    assert not any("floor" in row for row in rows)


def test_the_picture(passing, tmp_path):
    pictures.class_size(passing, tmp_path / "class_size.png")
    assert (tmp_path / "class_size.png").stat().st_size > 10_000
    pictures.class_size(Records(tmp_path / "missing.csv"), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_runs_have_names_of_their_own():
    for full in (False, True):
        names = [run.name for run in timed(full)]
        assert len(names) == len(set(names))


def test_the_crossover_has_a_row_for_everything(monkeypatch, tmp_path):
    native = pytest.importorskip("metric_kernels._native")
    isa = native.isa()
    monkeypatch.setattr(crossover, "build", lambda folder, *limits: native)
    monkeypatch.setattr(crossover, "LENGTHS", (4, 100))
    monkeypatch.setattr("sys.argv", ["crossover", "--results", str(tmp_path), "--seconds", "0.001"])
    try:
        crossover.main()
    finally:
        native.use_isa(isa)
    with (tmp_path / "crossover.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [(row["isa"], row["dtype"], row["kernel"], row["length"], row["active"]) for row in rows]
    assert len(set(keys)) == len(keys) == len(native.isas()) * 2 * 2 * 2 * 2
    assert all(float(row[f"{way}_ns"]) > 0 and row["ordered_h"] for row in rows for way in crossover.WAYS)


def test_timings_take_turns():
    calls = []

    def step(name, seconds):
        def run():
            calls.append(name)
            time.sleep(seconds)

        return run

    found = interleaved({"fast": step("fast", 0.001), "slow": step("slow", 0.02)}, 0.3)
    assert found["slow"].median >= 20 and 1 <= found["fast"].p20 <= found["fast"].median <= found["fast"].p80
    # The slow one has several turns, with the fast one in between.
    assert found["slow"].count >= 5 and found["fast"].count > found["slow"].count
    measured = calls[calls.index("slow") :]
    assert sum(a != b for a, b in zip(measured, measured[1:])) >= 5
