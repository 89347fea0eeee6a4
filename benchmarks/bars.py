"""The project's bars checked against the CSV: ``python -m benchmarks.bars [CSV]``, exit status 1 if one is missed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.cases import LOSSES, Case
from benchmarks.records import DEFAULT, Records

FLOOR_RATIO = {512: 1.2, 128: 1.5}
NUMBA_RATIO = 2
SMALL_MS = 0.3
PML_SPEEDUP = {
    "ContrastiveLoss": 3,
    "MultiSimilarityLoss": 3,
    "SupConLoss": 3,
    "NTXentLoss": 100,
    "LiftedStructureLoss": 100,
}
PEAK_MB = 400


class Bar(NamedTuple):
    what: str
    number: float | None
    limit: float
    at_most: bool = True
    unit: str = "x"

    @property
    def passed(self) -> bool:
        """A number that was never measured has not been shown to pass."""
        if self.number is None:
            return False
        return self.number <= self.limit if self.at_most else self.number >= self.limit

    def __str__(self) -> str:
        verdict = "pass  " if self.passed else "MISSED"
        number = "not measured" if self.number is None else f"{self.number:.3g}{self.unit}"
        return f"{verdict}  {self.what}: {number} ({'at most' if self.at_most else 'at least'} {self.limit}{self.unit})"


def bars(records: Records) -> Iterator[Bar]:
    def ratio(case, provider, other):
        """Median of one provider over that of another."""
        a, b = (records.number(case.by(p), "median_ms") for p in (provider, other))
        return a / b if a and b else None

    for dim, limit in FLOOR_RATIO.items():
        for loss in LOSSES:
            case = Case(loss, 2048, dim)
            where = f"{loss} 2048x{dim}"
            if loss != "NPairsLoss":
                yield Bar(f"{where}, native over the floor", ratio(case, "native", "floor"), limit)
            yield Bar(f"{where}, numba over native", ratio(case, "numba", "native"), NUMBA_RATIO)
    for loss in LOSSES:
        case = Case(loss, 128, 128)
        where = f"{loss} 128x128"
        yield Bar(f"{where}, native", records.number(case, "median_ms"), SMALL_MS, unit=" ms")
        if loss in PML_SPEEDUP:
            yield Bar(f"{where}, PML over native", ratio(case, "pml", "native"), PML_SPEEDUP[loss], at_most=False)
        if loss != "NPairsLoss":
            yield Bar(f"{where}, native over torch.compile", ratio(case, "native", "compile"), 1)
    for loss in LOSSES:
        peak = records.number(Case(loss, 16384, 128), "peak_mb")
        yield Bar(f"{loss} 16384x128, extra peak memory of native", peak, PEAK_MB, unit=" MB")


def main(path: Path = DEFAULT / "cpu.csv") -> int:
    records = Records(path)
    found = list(bars(records))
    print(*found, sep="\n")
    for case in records.cases():
        row = records.get(case)
        if case.provider == "floor" and row["note"]:
            print(f"{case.loss} {case.shape}: {row['note']}; run it again")
    passed = sum(bar.passed for bar in found)
    print(f"{passed} of {len(found)} bars pass")
    return int(passed < len(found))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
