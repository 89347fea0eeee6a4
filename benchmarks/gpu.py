"""The GPU benchmark: ``python -m benchmarks.gpu`` fills results/gpu.csv and draws it, within a time budget of 9 minutes.

A step is forward and backward. Both forms of the Triton kernels (metric_kernels/backends/triton_tiles.py) and the CUDA
kernels are measured on every case that they know, beside dense PyTorch, torch.compile of it, pytorch-metric-learning,
siglip-kernel and Inf-CL, the most telling cases first. ``product_share`` is the time that the three products of a step take at
the rate of torch.mm on the same shapes over that of the step, and ``copy_share`` is that of copying what has to be read and
written where a number is kept for each pair. A loss and its gradient are compared with float64 before they are timed.

The Triton kernels are compiled first, by several processes. Then one process measures, and this one keeps the book and the
time: what hangs is ended, what breaks the device is left behind, and nothing that was measured is lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_bars, gpu_jobs, gpu_work
from benchmarks.cases import Case
from benchmarks.gpu_jobs import Job
from benchmarks.gpu_work import Row
from benchmarks.records import DEFAULT, KEY, Records, origin

MEASURED = ("median_ms", "count", "tflops", "product_share", "copy_share", "peak_mb", "loss_error", "grad_error", "note")
# Seconds: of a job with all that is compiled for it, of the start of a process, and the share of the time for compiling ahead.
LIMIT_S, START_S, AHEAD = 90.0, 120.0, 0.2
# A process that compiles does little else.
MOST_PROCESSES = 12


class GpuRecords(Records):
    columns = (*KEY, *MEASURED, "device", "driver", "cuda", "torch", "triton", "version", "date")

    def __init__(self, path: Path):
        super().__init__(path)
        self.device: Row = {}

    def origin(self) -> Row:
        known = origin()
        return {k: known[k] for k in ("torch", "version", "date")} | self.device

    def keep(self, job: Job, row: Row) -> None:
        case, provider = job
        self.update(case.by(provider), dict.fromkeys(MEASURED, "") | row)
        self.save()
        print(provider.ljust(13), case.loss, case.shape, row.get("median_ms", "-"), "ms", row.get("note", ""), flush=True)


Start = Callable[[Sequence[Job]], tuple[Any, Connection]]


def started(todo: Sequence[Job], each_s: float, target: Callable = gpu_work.serve) -> tuple[Any, Connection]:
    """A process that works through jobs, and where its rows come from."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sender, todo, each_s))
    process.start()
    sender.close()
    return process, receiver


def supervise(records: GpuRecords, todo: Sequence[Job], deadline: float, start: Start, limit_s: float = LIMIT_S) -> int:
    """Has jobs done until the time is up, by another process after one that hung or died. Returns the number of those done."""
    done = 0
    while done < len(todo) and time.monotonic() < deadline:
        process, connection = start(todo[done:])
        try:
            rows = _received(process, connection, deadline, limit_s)
            first = next(rows, {"note": "the time is up"})
            if "device" not in first:
                print(f"benchmarks.gpu: no process could be started: {first['note']}", file=sys.stderr)
                return done
            records.device = first
            for job, row in zip(todo[done:], rows):
                records.keep(job, row)
                done += 1
        finally:
            process.kill()
            process.join(START_S)
            connection.close()
    return done


def _received(process: Any, connection: Connection, deadline: float, limit_s: float) -> Iterator[Row]:
    """What a process sends: the device and then rows, the last of which says why there are no more if it hung or died."""
    limit = START_S
    while True:
        left = deadline - time.monotonic()
        if not connection.poll(max(0.0, min(limit, left))):
            if left > limit:
                yield {"note": f"did not end within {limit:g} s"}
            return
        try:
            row = connection.recv()
        except (EOFError, OSError):
            process.join(START_S)
            yield {"note": f"its process ended with exit code {process.exitcode}"}
            return
        if row is None:  # it asks for another process
            return
        yield row
        limit = limit_s


def compile_ahead(todo: Sequence[Job], seconds: float) -> None:
    """Has jobs run by several processes, each its share, as far as the time goes."""
    began, number = time.monotonic(), min(MOST_PROCESSES, os.cpu_count() or 1)
    context = get_context("spawn")
    processes = [context.Process(target=gpu_work.compile_kernels, args=(todo[k::number],)) for k in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, began + seconds - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join(START_S)
    took = f"{time.monotonic() - began:.0f} s"
    print(f"compiled {len(todo)} steps ahead, {number} at a time, in {took}; {len(late)} of them were stopped", flush=True)


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=DEFAULT, help="directory of gpu.csv and the pictures")
    parser.add_argument("--loss", default="", help="only losses whose name contains this, whatever the case")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="leave out the first N cases, of an earlier run")
    parser.add_argument("--seconds", type=float, default=540.0, help="time budget of the run")
    parser.add_argument("--each", type=float, default=0.2, help="seconds of timing of a case by one provider")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: expected a CUDA device and a torch built for CUDA, found none", file=sys.stderr)
        return 1
    chosen = [case for case in gpu_jobs.cases() if options.loss.lower() in case.loss.lower()][options.start :]
    todo, deadline = gpu_jobs.jobs(chosen), began + options.seconds
    records = GpuRecords(options.results / "gpu.csv")
    compile_ahead(gpu_jobs.kernels(todo), AHEAD * options.seconds)
    done = supervise(records, todo, deadline, lambda jobs: started(jobs, options.each))
    return report(records, chosen, todo[done:], options)


def report(records: GpuRecords, chosen: list[Case], left: Sequence[Job], options: argparse.Namespace) -> int:
    """Says what is left, checks the bars, and draws."""
    if left:
        case = left[0][0]
        start = options.start + chosen.index(case)
        print(f"{len(left)} jobs are left, from {case.loss} {case.shape} on; --start {start} goes on with them")
    status = gpu_bars.main(records.path)
    # Only here, so that processes that measure need not wait for matplotlib.
    from benchmarks import pictures

    pictures.gpu(records, options.results / "gpu.png")
    pictures.gpu_terms(records, options.results / "gpu_terms.png")
    return status


if __name__ == "__main__":
    sys.exit(main())
