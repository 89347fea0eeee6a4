"""The project's bars checked against the CSV: ``python -m benchmarks.bars [CSV]``, exit status 1 if one is missed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.cases import GROWING, GROWTH, PAIR_LOSSES, TERM_LOSSES, Case
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
# Triplets, quadruplets and histograms: at 2048 x 512, the first with four samples per class.
TERM_FLOOR_RATIO = {
    "TripletMarginLoss": 1.5,
    "MarginLoss": 1.5,
    "HistogramLoss": 1.5,
    "FastAPLoss": 1.5,
    "QuadrupletMarginLoss": 2.5,
}
LARGE_CLASSES_RATIO = {"TripletMarginLoss": 2}
# Against the libraries at 256 x 128.
TERM_PML_SPEEDUP = {"TripletMarginLoss": 20, "HistogramLoss": 300}
ST_SPEEDUP = {"BatchAllTripletLoss": 5}
# From B = 4096 to 8192; 4 would be quadratic, 8 cubic.
GROWTH_RATIO = 4.6


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
    yield from _pair_bars(records)
    yield from _term_bars(records)
    for loss in PAIR_LOSSES + TERM_LOSSES:
        peak = records.number(Case(loss, 16384, 128), "peak_mb")
        yield Bar(f"{loss} 16384x128, extra peak memory of native", peak, PEAK_MB, unit=" MB")


def _pair_bars(records: Records) -> Iterator[Bar]:
    for dim, limit in FLOOR_RATIO.items():
        for loss in PAIR_LOSSES:
            case = Case(loss, 2048, dim)
            where = f"{loss} 2048x{dim}"
            if loss != "NPairsLoss":
                yield Bar(f"{where}, native over the floor", _ratio(records, case, "native", "floor"), limit)
            yield Bar(f"{where}, numba over native", _ratio(records, case, "numba", "native"), NUMBA_RATIO)
    for loss in PAIR_LOSSES:
        case = Case(loss, 128, 128)
        where = f"{loss} 128x128"
        yield Bar(f"{where}, native", records.number(case, "median_ms"), SMALL_MS, unit=" ms")
        if loss in PML_SPEEDUP:
            yield Bar(f"{where}, PML over native", _ratio(records, case, "pml", "native"), PML_SPEEDUP[loss], at_most=False)
        if loss != "NPairsLoss":
            yield Bar(f"{where}, native over torch.compile", _ratio(records, case, "native", "compile"), 1)


def _term_bars(records: Records) -> Iterator[Bar]:
    for loss, limit in TERM_FLOOR_RATIO.items():
        case, where = Case(loss, 2048, 512), f"{loss} 2048x512"
        yield Bar(f"{where}, native over the floor", _ratio(records, case, "native", "floor"), limit)
        yield Bar(f"{where}, numba over native", _ratio(records, case, "numba", "native"), NUMBA_RATIO)
    for loss, limit in LARGE_CLASSES_RATIO.items():
        ratio = _ratio(records, Case(loss, 2048, 512, per_class=64), "native", "floor")
        yield Bar(f"{loss} 2048x512, 64 per class, native over the floor", ratio, limit)
    for speedup, provider, peer in ((TERM_PML_SPEEDUP, "pml", "PML"), (ST_SPEEDUP, "st", "sentence-transformers")):
        for loss, limit in speedup.items():
            ratio = _ratio(records, Case(loss, 256, 128), provider, "native")
            yield Bar(f"{loss} 256x128, {peer} over native", ratio, limit, at_most=False)
    for loss in GROWING:
        small, large = (records.number(Case(loss, batch, 128), "median_ms") for batch in GROWTH)
        ratio = large / small if large and small else None
        yield Bar(f"{loss} x128, native at B = {GROWTH[1]} over {GROWTH[0]}", ratio, GROWTH_RATIO)


def _ratio(records: Records, case: Case, provider: str, other: str) -> float | None:
    """Median of one provider over that of another."""
    a, b = (records.number(case.by(p), "median_ms") for p in (provider, other))
    return a / b if a and b else None


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
