"""What judges and records the benchmark: no time for a wrong answer, and no bar that is passed without a number."""

import time

import pytest
import torch

from benchmarks import bars, gate, table
from benchmarks.cases import LOSSES, PROVIDERS, Case, Provider, loss_step
from benchmarks.compare import Comparison, Result, Timing, compare, interleaved
from benchmarks.dense import DENSE
from benchmarks.records import Records

CASE = Case("ContrastiveLoss", 16, 8)


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


def timed(**milliseconds):
    return Comparison({name: Result(Timing(ms, ms, ms, 9), gate.Errors(0.0, 0.0)) for name, ms in milliseconds.items()}, {})


def test_records_replace_what_was_measured_and_keep_the_rest(tmp_path):
    path, other = tmp_path / "new" / "cpu.csv", Case("SupConLoss", 16, 8)
    first = Records(path)
    first.add_times(CASE, timed(native=2.0, floor=1.0))
    first.add_times(other, timed(native=5.0))
    first.add_peak(CASE, 12.34)
    first.save()
    second = Records(path)
    second.add_times(CASE, timed(native=3.0, floor=1.0))
    second.add_refusal(other.by("pml"), "too large")
    second.save()
    third = Records(path)
    assert third.number(CASE, "median_ms") == third.number(CASE, "ratio_to_floor") == 3.0
    assert third.number(CASE, "peak_mb") == 12.34
    assert third.number(other, "median_ms") == 5.0 and third.number(other, "ratio_to_floor") is None
    assert third.get(other.by("pml"))["note"] == "too large"
    assert third.get(CASE.by("eager")) is None and third.number(CASE.by("eager"), "median_ms") is None
    assert set(third.cases()) == {CASE, CASE.by("floor"), other, other.by("pml")}


@pytest.fixture
def passing(tmp_path):
    """Records in which every bar is passed."""
    records = Records(tmp_path / "cpu.csv")
    for loss in LOSSES:
        for dim in bars.FLOOR_RATIO:
            records.add_times(Case(loss, 2048, dim), timed(native=1.0, floor=1.0, numba=1.5))
        records.add_times(Case(loss, 128, 128), timed(native=0.1, compile=0.2, pml=50.0))
        records.add_peak(Case(loss, 16384, 128), 100.0)
    return records


def test_bars_that_are_passed(passing, capsys):
    passing.save()
    assert bars.main(passing.path) == 0
    number = len(list(bars.bars(passing)))
    assert f"{number} of {number} bars pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records.add_times(Case("SupConLoss", 2048, 128), timed(native=1.6, floor=1.0, numba=1.6)),
        lambda records: records.add_times(Case("SupConLoss", 2048, 128), timed(native=1.0, floor=1.0, numba=2.1)),
        lambda records: records.add_times(Case("SupConLoss", 128, 128), timed(native=0.31, compile=1.0, pml=50.0)),
        lambda records: records.add_times(Case("SupConLoss", 128, 128), timed(native=0.1, compile=0.09, pml=50.0)),
        lambda records: records.add_times(Case("SupConLoss", 128, 128), timed(native=0.1, compile=0.2, pml=0.2)),
        lambda records: records.add_peak(Case("SupConLoss", 16384, 128), 401.0),
        lambda records: records.rows.pop(next(k for k in records.rows if k[:3] == ("SupConLoss", "128", "128"))),
    ],
    ids=["floor", "numba", "small", "compile", "pml", "peak", "not_measured"],
)
def test_a_missed_bar_is_the_exit_status(passing, change, capsys):
    change(passing)
    passing.save()
    assert bars.main(passing.path) == 1
    assert "MISSED  SupConLoss" in capsys.readouterr().out


def test_no_records_pass_no_bar(tmp_path):
    assert bars.main(tmp_path / "missing.csv") == 1


def test_the_table(tmp_path):
    records = Records(tmp_path / "cpu.csv")
    records.add_times(CASE, timed(native=2.0, floor=1.0, eager=5.0))
    records.add_refusal(CASE.by("pml"), "not installed")
    text = table.render(records)
    assert "## B = 16, D = 8, float32, 4 per class" in text and "- pml: not installed (Contrastive)" in text
    header, _, row = (line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|"))
    cells = dict(zip(map(str.strip, header), map(str.strip, row)))
    assert cells["ours / floor"] == "2" and cells["eager / ours"] == "2.5x" and cells["floor ms"] == "1"
    # Nobody has a number there.
    assert not any("numba" in name or "MB" in name for name in cells)
    assert "no results" in table.render(Records(tmp_path / "missing.csv"))


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
