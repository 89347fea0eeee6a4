"""From what length on a sorted list should be bisected: ``python -m benchmarks.crossover`` compiles the kernels of
csrc/ordered.h twice, always comparing directly and always bisecting, and times both beside each other.

The table says for each instruction set, type, kernel and length of list what a column costs in nanoseconds of one thread, and
with which ordered.h (the start of its SHA-256). The compiler must take its options from CPPFLAGS.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.records import DEFAULT, origin
from metric_kernels.demo.timing import interleaved

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "csrc" / "ordered.h"
# What DIRECT_UP_TO has to be for every list to be treated one way.
WAYS = {"direct": 1 << 30, "bisection": 0}
LENGTHS = (4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 512, 1024)
# So few rows that a call is over before another process has its turn.
ROWS, COLUMNS = 64, 2048
COLUMNS_OF_TABLE = ("isa", "dtype", "kernel", "length", *(f"{way}_ns" for way in WAYS), "direct_over_bisection")


def build(folder: Path, direct_up_to: int) -> ModuleType:
    """The extension compiled with this limit."""
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(folder / "lib"),
        "--build-temp",
        str(folder / "temp"),
    ]
    environment = {**os.environ, "CPPFLAGS": f"-DDIRECT_UP_TO={direct_up_to}"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    (path,) = (folder / "lib" / "metric_kernels").glob("_native*")
    # pybind11 hands out a module that it has made before under the same name.
    spec = importlib.util.spec_from_file_location(f"{folder.name}._native", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernels(native: ModuleType, dtype: str, length: int) -> dict[str, Callable[[], None]]:
    """Calls of both kernels with a list for each row; the place of a value in its list is random."""
    random = np.random.default_rng(0)
    v = random.random((ROWS, COLUMNS)).astype(dtype)
    labels, ref_labels = np.arange(ROWS), np.arange(COLUMNS) + ROWS
    lists = np.sort(random.random((ROWS, length)).astype(dtype), axis=1)
    given = v, labels, ref_labels, -1, 1, 1.0, lists, np.arange(ROWS), 0.0
    totals, counts, below = np.zeros(ROWS), np.zeros(ROWS, np.int64), np.zeros((ROWS, length), np.int64)
    scale, g = np.ones(ROWS, dtype), np.zeros_like(v)
    return {
        "ranks": lambda: native.ranks(*given, totals, counts, below),
        "rank_grads": lambda: native.rank_grads(*given, scale, g, below),
    }


def measure(seconds: float) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        found = {way: build(Path(folder) / way, limit) for way, limit in WAYS.items()}
        for isa in found["direct"].isas():
            for native in found.values():
                native.use_isa(isa)
            for dtype in ("float32", "float64"):
                for length in LENGTHS:
                    calls = {way: kernels(native, dtype, length) for way, native in found.items()}
                    for kernel in calls["direct"]:
                        times = interleaved({way: calls[way][kernel] for way in WAYS}, seconds)
                        ns = {way: 1e6 * times[way].p20 / (ROWS * COLUMNS) for way in WAYS}
                        yield {
                            "isa": isa,
                            "dtype": dtype,
                            "kernel": kernel,
                            "length": length,
                            **{f"{way}_ns": f"{value:.3g}" for way, value in ns.items()},
                            "direct_over_bisection": f"{ns['direct'] / ns['bisection']:.3g}",
                        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=DEFAULT, help="directory of crossover.csv")
    parser.add_argument("--seconds", type=float, default=0.3, help="time budget of a row")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    came_from = origin() | {"threads": "1", "ordered_h": hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}
    with (options.results / "crossover.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS_OF_TABLE, *came_from), lineterminator="\n")
        writer.writeheader()
        for row in measure(options.seconds):
            print(*row.values(), flush=True)
            writer.writerow(row | came_from)


if __name__ == "__main__":
    main()
