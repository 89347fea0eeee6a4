"""The keyed CSV: a run replaces what it measured and keeps every other row."""

from __future__ import annotations

import csv
import datetime
import os
import platform
from dataclasses import astuple, fields
from pathlib import Path

import torch

import metric_kernels
from benchmarks.cases import PROVIDERS, Case
from benchmarks.compare import Comparison

KEY = tuple(f.name for f in fields(Case))
_TIMES = ("median_ms", "p20_ms", "p80_ms", "count", "ratio_to_floor", "ours_to_it", "loss_error", "grad_error", "note")
_ORIGIN = ("torch", "version", "cpu", "threads", "date")
COLUMNS = (*KEY, *_TIMES, "peak_mb", *_ORIGIN)
DEFAULT = Path(__file__).parent / "results"


class Records:
    """Rows as dictionaries of strings, by key; an empty string is a number that was not measured."""

    columns: tuple[str, ...] = COLUMNS

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if path.exists():
            with path.open(newline="") as file:
                self.rows = {tuple(row[k] for k in KEY): row for row in csv.DictReader(file)}

    def get(self, case: Case) -> dict[str, str] | None:
        return self.rows.get(tuple(map(str, astuple(case))))

    def number(self, case: Case, column: str) -> float | None:
        row = self.get(case)
        return float(row[column]) if row and row[column] else None

    def cases(self) -> list[Case]:
        return [Case(k[0], int(k[1]), int(k[2]), k[3], int(k[4]), k[5]) for k in self.rows]

    def add_times(self, case: Case, found: Comparison) -> None:
        ours, floor = found.median(found.ours), found.median("floor")
        for provider, (timing, errors, note, _) in found.results.items():
            times = dict.fromkeys(_TIMES, "") | {"note": note}
            if timing:
                its = timing.median
                times |= {"median_ms": text(its), "p20_ms": text(timing.p20), "p80_ms": text(timing.p80)}
                times |= {"ratio_to_floor": text(floor and its / floor), "ours_to_it": text(ours and ours / its)}
                times["count"] = str(timing.count)
            if errors:
                times |= {"loss_error": f"{errors.loss:.1e}", "grad_error": f"{errors.grad:.1e}"}
            self.update(case.by(provider), times)

    def add_peak(self, case: Case, megabytes: float) -> None:
        row = self.get(case)
        refused = row and not row["median_ms"] and not row["loss_error"]
        self.update(case, {"peak_mb": text(megabytes)} | ({"note": ""} if refused else {}))

    def add_refusal(self, case: Case, reason: str) -> None:
        self.update(case, {"peak_mb": "", "note": reason})

    def update(self, case: Case, values: dict[str, str]) -> None:
        key = tuple(map(str, astuple(case)))
        row = self.rows.setdefault(key, dict.fromkeys(self.columns, "") | dict(zip(KEY, key)))
        row |= values | self.origin()

    def origin(self) -> dict[str, str]:
        return origin()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        order = {p: i for i, p in enumerate(PROVIDERS)}
        cases = sorted(self.cases(), key=lambda c: (*astuple(c)[:-1], order.get(c.provider, len(order))))
        # What ends the process meanwhile must not take earlier rows with it.
        fresh = self.path.with_suffix(".part")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.get(case) for case in cases)
        fresh.replace(self.path)


def text(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"


def origin() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "version": metric_kernels.__version__,
        "cpu": _cpu(),
        "threads": str(torch.get_num_threads()),
        "date": datetime.date.today().isoformat(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
