"""The GPU benchmark: ``python -m benchmarks.gpu`` fills results/gpu.csv and gpu.png within a time budget of 9 minutes.

A step is forward and backward. Both forms of the Triton kernels (metric_kernels/backends/triton_tiles.py) are measured on every
case beside dense PyTorch, torch.compile of it and pytorch-metric-learning, the most telling cases first. ``product_share`` is
the time that the three products of a step take at the rate of torch.mm on the same shapes over that of the step, and
``copy_share`` is that of copying what form (a) has to read and write. A loss and its gradient are compared with float64 before
they are timed where that fits.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import gate, pictures
from benchmarks.cases import PROVIDERS, Case, Step, formula, loss_step, ours
from benchmarks.records import DEFAULT, KEY, Records, origin, text
from metric_kernels import backends, losses
from metric_kernels.backends.triton_tiles import FORMS, use_form
from metric_kernels.metrics import Dot

DEVICE = "cuda"
LOSSES = ("SupConLoss", "MultiSimilarityLoss", "NTXentLoss", "ContrastiveLoss", "CircleLoss", "LiftedStructureLoss")
BATCHES, DIMS, TYPES = (1024, 4096, 8192, 16384, 65536), (128, 512, 768), ("bfloat16", "tf32", "float32")
# The bars of the project, which come first.
FIRST = (Case("SupConLoss", 65536, 768, "bfloat16"), Case("SupConLoss", 8192, 128, "bfloat16"))
OTHERS = ("eager", "compile", "pml")
# Compilation takes half a minute a case.
COMPILED_LOSSES, COMPILED_UP_TO, CHECKED_UP_TO = ("SupConLoss", "ContrastiveLoss"), 8192, 8192
BLOCK_ROWS = 8192
MEASURED = ("median_ms", "count", "tflops", "product_share", "copy_share", "peak_mb", "loss_error", "grad_error", "note")
# A kept matrix is written, read twice, overwritten and read; 4 bytes each, but weights in bfloat16 are 2.
BYTES_PER_PAIR = {"bfloat16": 16, "tf32": 20, "float32": 20}


class GpuRecords(Records):
    columns = (*KEY, *MEASURED, "device", "driver", "cuda", "torch", "triton", "version", "date")

    @staticmethod
    def origin() -> dict[str, str]:
        known = origin()
        return {k: known[k] for k in ("torch", "version", "date")} | device()


def device() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver[0] if driver else "",
        "cuda": torch.version.cuda or "",
        "triton": importlib.metadata.version("triton"),
    }


def cases() -> Iterator[Case]:
    """The bars first, then by what one would ask first: large batches, half precision, the first losses."""
    yield from FIRST
    for loss in LOSSES:
        for kind in TYPES:
            for batch in sorted(BATCHES, key=lambda b: (b not in (8192, 65536), b)):
                for dim in DIMS:
                    case = Case(loss, batch, dim, kind)
                    if case not in FIRST:
                        yield case


def providers() -> dict[str, Callable[[Case, Tensor, Tensor], Step]]:
    """Both forms, what else of ours can run here, and the others."""

    def of_form(name: str) -> Callable[[Case, Tensor, Tensor], Step]:
        def make(case: Case, x: Tensor, labels: Tensor) -> Step:
            loss = ours(case, backend="triton")

            def evaluate(x: Tensor, labels: Tensor) -> Tensor:
                with use_form(name):
                    return loss(x, labels)

            return loss_step(evaluate, x, labels)

        return make

    def of_backend(name: str) -> Callable[[Case, Tensor, Tensor], Step]:
        return lambda case, x, labels: loss_step(ours(case, backend=name), x, labels)

    probe = losses.REGISTRY[LOSSES[0]]
    more = [
        name
        for name in backends.NAMES
        if name not in ("triton", "reference")
        and backends.load(name).supports(probe.formula, Dot, "cuda", torch.float32) is None
    ]
    return (
        {f"triton {form}": of_form(form) for form in FORMS}
        | {name: of_backend(name) for name in more}
        | {name: PROVIDERS[name].step for name in OTHERS}
    )


def refusal(case: Case) -> str | None:
    if case.provider == "compile" and (case.loss not in COMPILED_LOSSES or case.batch > COMPILED_UP_TO):
        return "not compiled, to save time"
    known = PROVIDERS.get(case.provider)
    return known.refuse(case) if known else None


@contextmanager
def multiplied(kind: str) -> Iterator[torch.dtype]:
    """The type of the embeddings, while torch multiplies as ``kind`` says."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        yield getattr(torch, kind, torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)


def milliseconds(step: Callable[[], object], budget_s: float) -> list[float]:
    """Of each of 3 to 50 steps, by the clock of the device."""

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    once()
    first = once()
    return [once() for _ in range(max(3, min(50, int(1e3 * budget_s / max(first, 1e-3)))))]


def product_ms(case: Case, dtype: torch.dtype) -> float:
    """Of three products of all pairs, from those of a block of rows."""
    rows = min(case.batch, BLOCK_ROWS)
    x = torch.randn(case.batch, case.dim, device=DEVICE).to(dtype)
    block, w = x[:rows], torch.randn(rows, case.batch, device=DEVICE).to(dtype)
    products = (lambda: block @ x.t()), (lambda: w @ x), (lambda: w.t() @ block)
    return sum(statistics.median(milliseconds(p, 0.05)) for p in products) * case.batch / rows


def copy_bytes_per_ms(size: int = 1 << 30) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * size / statistics.median(milliseconds(lambda: target.copy_(source), 0.1))


def truth(case: Case, x: Tensor, labels: Tensor) -> gate.Truth | None:
    if case.batch > CHECKED_UP_TO:
        return None
    exact = x.detach().double().requires_grad_()
    loss = loss_step(formula(case), exact, labels)()
    return gate.Truth(loss.item(), exact.grad)


def measure(case: Case, make: Callable, x: Tensor, labels: Tensor, true: gate.Truth | None, budget_s: float) -> dict[str, str]:
    step = make(case, x, labels)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = step()
    found = {"peak_mb": text((torch.cuda.max_memory_allocated() - before) / 1e6)}
    if true is None:
        found["note"] = "not compared with float64"
    else:
        errors = gate.errors(true, loss, x.grad)
        found |= {"loss_error": f"{errors.loss:.1e}", "grad_error": f"{errors.grad:.1e}"}
        if note := gate.verdict(case, errors):
            return found | {"note": note}
    times = milliseconds(step, budget_s)
    return found | {"median_ms": text(statistics.median(times)), "count": str(len(times))}


def run(records: GpuRecords, chosen: list[Case], seconds: float, each_s: float) -> list[Case]:
    """Measures until the time is up, and returns what is left."""
    deadline, bandwidth = time.monotonic() + seconds, copy_bytes_per_ms()
    for number, case in enumerate(chosen):
        with multiplied(case.dtype) as dtype:
            floor = product_ms(case, dtype)
            x, labels = replace(case, dtype=str(dtype).removeprefix("torch.")).inputs()
            x, labels = x.detach().to(DEVICE).requires_grad_(), labels.to(DEVICE)
            true = truth(case, x, labels)
            for provider, make in providers().items():
                if time.monotonic() > deadline:
                    return chosen[number:]
                mine = case.by(provider)
                row = dict.fromkeys(MEASURED, "")
                if reason := refusal(mine):
                    row["note"] = reason
                else:
                    try:
                        row |= measure(mine, make, x, labels, true, each_s)
                    except (RuntimeError, ImportError) as error:  # out of memory, or what a compiler raises
                        row["note"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                if row["median_ms"]:
                    ms, pairs = float(row["median_ms"]), case.batch**2
                    row |= {"tflops": text(6e-9 * pairs * case.dim / ms), "product_share": text(floor / ms)}
                    if provider == "triton a":
                        row["copy_share"] = text(BYTES_PER_PAIR[case.dtype] * pairs / bandwidth / ms)
                records.update(mine, row)
                print(provider.ljust(10), case.loss, case.shape, row["median_ms"], "ms", row["note"], flush=True)
                x.grad = None
                torch.cuda.empty_cache()
        records.save()
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=DEFAULT, help="directory of gpu.csv and gpu.png")
    parser.add_argument("--loss", default="", help="only losses whose name contains this, whatever the case")
    parser.add_argument("--seconds", type=float, default=540.0, help="time budget of the run")
    parser.add_argument("--each", type=float, default=0.3, help="seconds of a case by one provider")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu: expected a CUDA device and a torch built for CUDA, found none", file=sys.stderr)
        return 1
    records = GpuRecords(options.results / "gpu.csv")
    left = run(records, [c for c in cases() if options.loss.lower() in c.loss.lower()], options.seconds, options.each)
    records.save()
    pictures.gpu(records, options.results / "gpu.png")
    if left:
        print(f"{len(left)} cases are left, from {left[0].loss} {left[0].shape}; give more --seconds, or --loss")
    return 0


if __name__ == "__main__":
    sys.exit(main())
