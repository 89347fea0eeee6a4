"""A case or several by every provider: which of them are right, and how long those take."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks import gate, load
from benchmarks.cases import OURS, PROVIDERS, Case, Step
from metric_kernels.demo.timing import Timing, interleaved

MAX_OTHERS = 0.05


class Result(NamedTuple):
    """A timing, or a note that says why there is none: not to be run here, or run and ``failed``.

    The floor has a note beside its timing if the machine was too busy for the timings to be trusted.
    """

    timing: Timing | None = None
    errors: gate.Errors | None = None
    note: str = ""
    failed: bool = False


class Comparison(NamedTuple):
    results: dict[str, Result]
    steps: dict[str, Step]

    @property
    def ours(self) -> str | None:
        """The first of our backends that has a time."""
        return next((p for p in OURS if p in self.results and self.results[p].timing), None)

    def median(self, provider: str | None) -> float | None:
        result = self.results.get(provider)
        return result.timing.median if result and result.timing else None


def compare(case: Case, providers: tuple[str, ...], budget_s: float) -> Comparison:
    return compare_all((case,), providers, budget_s)[0]


def compare_all(cases: tuple[Case, ...], providers: tuple[str, ...], budget_s: float) -> list[Comparison]:
    """For each case; all of them take turns, so that their times can be compared with one another too."""
    found = []
    for case in cases:
        true = gate.truth(case)
        admitted = {name: _admit(case.by(name), true) for name in providers}
        results = {name: result for name, (result, _) in admitted.items()}
        found.append(Comparison(results, {name: step for name, (_, step) in admitted.items() if step is not None}))
    before = load.usage()
    timings = interleaved({(i, name): step for i, one in enumerate(found) for name, step in one.steps.items()}, budget_s)
    others = load.others(before, load.usage())
    note = f"busy machine: other processes took {others:.0%} of it" if others > MAX_OTHERS else ""
    for (i, name), timing in timings.items():
        results = found[i].results
        results[name] = results[name]._replace(timing=timing, note=note if name == "floor" else "")
    return found


def _admit(case: Case, true: gate.Truth) -> tuple[Result, Step | None]:
    provider = PROVIDERS[case.provider]
    note = provider.refuse(case)
    if note:
        return Result(note=note), None
    x, labels = case.inputs()
    try:
        step = provider.step(case, x, labels)
        loss = step()
    except Exception as error:  # whatever another library or a compiler raises is its result here
        return Result(note=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", failed=True), None
    if loss is None:
        return Result(), step
    found = gate.errors(true, loss, x.grad)
    note = gate.verdict(case, found)
    return Result(errors=found, note=note or "", failed=bool(note)), None if note else step
