"""How a list of some length should be searched: ``python -m benchmarks.crossover`` compiles the kernels of csrc/ordered.h three
times, so that they always compare every column, always gather those that matter and compare these, or gather and bisect, and
times all three beside each other.

The table says for each instruction set, type, kernel, length of list and share of columns that matter (nearly all at the start
of a training, few later) what a column costs in nanoseconds of one thread, and with which ordered.h (the start of its SHA-256).
The compiler must take its options from CPPFLAGS.
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
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np

from benchmarks.records import DEFAULT, origin
from metric_kernels.demo.timing import interleaved

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "csrc" / "ordered.h"
# What DENSE_UP_TO and DIRECT_UP_TO have to be for every list to be treated one way.
WAYS = {"dense": (1 << 30, 0), "gathered": (0, 1 << 30), "bisection": (0, 0)}
ACTIVE = (1.0, 0.02)
LENGTHS = (1, 3, 5, 8, 11, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 512, 1024)
# So few rows that a call is over before another process has its turn.
ROWS, COLUMNS = 64, 2048
COLUMNS_OF_TABLE = ("isa", "dtype", "kernel", "length", "active", *(f"{way}_ns" for way in WAYS), "best")


def build(folder: Path, dense_up_to: int, direct_up_to: int) -> ModuleType:
    """The extension compiled with these limits."""
    command = [
        sys.executable,
        "setup.py",
        "build_ext",
        "--build-lib",
        str(folder / "lib"),
        "--build-temp",
        str(folder / "temp"),
    ]
    environment = {**os.environ, "CPPFLAGS": f"-DDENSE_UP_TO={dense_up_to} -DDIRECT_UP_TO={direct_up_to}"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    (path,) = (folder / "lib" / "metric_kernels").glob("_native*")
    # pybind11 hands out a module that it has made before under the same name.
    spec = importlib.util.spec_from_file_location(f"{folder.name}._native", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kernels(native: ModuleType, dtype: str, length: int, active: float) -> dict[str, Callable[[], None]]:
    """Calls of both kernels with a list for each row; the place of a value in its list is random."""
    random = np.random.default_rng(0)
    v = random.random((ROWS, COLUMNS)).astype(dtype)
    labels, ref_labels = np.arange(ROWS), np.arange(COLUMNS) + ROWS
    lists = np.sort(random.random((ROWS, length)).astype(dtype) * np.dtype(dtype).type(active), axis=1)
    given = v, labels, ref_labels, -1, 1, 1.0, lists, np.arange(ROWS), 0.0
    totals, counts, below = np.zeros(ROWS), np.zeros(ROWS, np.int64), np.zeros((ROWS, length), np.int64)
    scale, g = np.ones(ROWS, dtype), np.zeros_like(v)
    return {
        "ranks": lambda: native.ranks(*given, totals, counts, below),
        "rank_grads": lambda: native.rank_grads(*given, scale, g, below),
    }


def measure(seconds: float) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        found = {way: build(Path(folder) / way, *limits) for way, limits in WAYS.items()}
        for isa in found["dense"].isas():
            for native in found.values():
                native.use_isa(isa)
            for dtype in ("float32", "float64"):
                for length, active in product(LENGTHS, ACTIVE):
                    calls = {way: kernels(native, dtype, length, active) for way, native in found.items()}
                    for kernel in calls["dense"]:
                        times = interleaved({way: calls[way][kernel] for way in WAYS}, seconds)
                        ns = {way: 1e6 * times[way].p20 / (ROWS * COLUMNS) for way in WAYS}
                        yield {
                            "isa": isa,
                            "dtype": dtype,
                            "kernel": kernel,
                            "length": length,
                            "active": active,
                            **{f"{way}_ns": f"{value:.3g}" for way, value in ns.items()},
                            "best": min(ns, key=ns.get),
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
