"""The project's bars for a GPU checked against the CSV, those of which something was measured.

``python -m benchmarks.gpu_bars [CSV]``, exit status 1 if one is missed. They are those of an H100.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bars import Bar
from benchmarks.cases import Case
from benchmarks.gpu_jobs import LARGE, OURS, TERM_DIM, sized
from benchmarks.records import DEFAULT, Records

# Losses that are sums over single pairs; siglip-kernel tells 48.8 ms and 1.4 GB for the sigmoid loss of this shape.
TFLOPS, PEAK_MB = 405, 1400
ELEMENTWISE = ("SupConLoss", "SigmoidLoss")
COMPILE_RATIO = 2
TERM_RATIO = 3
TERMS = ("TripletMarginLoss", "QuadrupletMarginLoss", "HistogramLoss")


def bars(records: Records) -> Iterator[Bar]:
    for loss in ELEMENTWISE:
        case = sized(loss, LARGE, 768, "bfloat16")
        if mine := best(records, case):
            where = f"{loss} {case.shape} by {mine.provider}"
            yield Bar(f"{where}, 6 B^2 D over time", records.number(mine, "tflops"), TFLOPS, at_most=False, unit=" TFLOP/s")
            yield Bar(f"{where}, extra peak memory", records.number(mine, "peak_mb"), PEAK_MB, unit=" MB")
    case = sized("SupConLoss", 8192, 128, "bfloat16")
    if mine := best(records, case):
        ms, compiled = (records.number(c, "median_ms") for c in (mine, case.by("compile")))
        ratio = compiled / ms if ms and compiled else None
        yield Bar(f"SupConLoss {case.shape}, torch.compile over {mine.provider}", ratio, COMPILE_RATIO, at_most=False)
    for loss in TERMS:
        case = sized(loss, 8192, TERM_DIM, "float32")
        if mine := best(records, case):
            share = records.number(mine, "product_share")
            yield Bar(f"{loss} {case.shape}, {mine.provider} over the products", 1 / share if share else None, TERM_RATIO)


def best(records: Records, case: Case) -> Case | None:
    """By the one of ours that takes the least time, or by any that was run; None if none was."""
    mine = [case.by(provider) for provider in OURS if records.get(case.by(provider))]
    return min(mine, key=lambda c: records.number(c, "median_ms") or float("inf"), default=None)


def main(path: Path = DEFAULT / "gpu.csv") -> int:
    found = list(bars(Records(path)))
    for bar in found:
        print(bar)
    passed = sum(bar.passed for bar in found)
    print(f"{passed} of {len(found)} bars pass" if found else "no bar was measured")
    return int(passed < len(found) or not found)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
