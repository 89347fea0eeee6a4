"""One process that works on the device: measures jobs one after another, or compiles the kernels that they will need.

The clock is that of the device, caches are as the step before left them, and memory is that of a step which is not the first.
"""

from __future__ import annotations

import functools
import gc
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import gate, gpu_jobs
from benchmarks.blocks import BLOCKS
from benchmarks.cases import Case, Provider, formula, leaves, loss_step
from benchmarks.exact import EXACT
from benchmarks.gpu_jobs import Job
from benchmarks.records import text

Row = dict[str, str]
# Larger ones only where a sum over blocks of rows is the truth.
CHECKED_UP_TO = 8192
BLOCK_ROWS = 8192
# What is kept of a pair is written, read twice, overwritten and read; 4 bytes each, but Triton's weights in bfloat16 are 2.
BYTES_PER_PAIR = 20
ROUNDED_BYTES = 4
KEEPS_PAIRS = ("triton a", "cuda")


def device() -> Row:
    import triton

    known = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda or "", "triton": triton.__version__}
    return known | {"driver": driver()}


def driver() -> str:
    """Its version, or nothing where nobody tells."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if not shutil.which(query[0]):
        return ""
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return found[0] if found else ""


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

    first = once()
    return [once() for _ in range(max(3, min(50, int(1e3 * budget_s / max(first, 1e-3)))))]


def product_ms(batch: int, dim: int, kind: str) -> float:
    """Of three products of all pairs, from those of a block of rows."""
    rows = min(batch, BLOCK_ROWS)
    with multiplied(kind) as dtype:
        x = torch.randn(batch, dim, device=gpu_jobs.DEVICE).to(dtype)
        block, w = x[:rows], torch.randn(rows, batch, device=gpu_jobs.DEVICE).to(dtype)
        total = 0.0
        for product in (lambda: block @ x.t()), (lambda: w @ x), (lambda: w.t() @ block):
            product()
            total += statistics.median(milliseconds(product, 0.05))
    return total * batch / rows


def copy_bytes_per_ms(size: int = 1 << 30) -> float:
    source = torch.empty(size, dtype=torch.uint8, device=gpu_jobs.DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / statistics.median(milliseconds(lambda: target.copy_(source), 0.1))


def truth(case: Case, inputs: Sequence[Tensor]) -> gate.Truth | None:
    """Loss and gradient in float64, where there is room and time for them."""
    if case.loss in BLOCKS:
        loss = BLOCKS[case.loss]
    elif case.batch > CHECKED_UP_TO:
        return None
    elif case.loss in EXACT:
        with torch.device(gpu_jobs.DEVICE):
            loss = EXACT[case.loss](case.batch, case.per_class)
    else:
        loss = formula(case, gpu_jobs.DEVICE)
    exact = [t.detach().double().requires_grad_() if t.requires_grad else t for t in inputs]
    value = loss_step(loss, *exact)()
    return gate.Truth(value.item(), gradient(exact))


def gradient(inputs: Sequence[Tensor]) -> Tensor:
    return torch.cat([leaf.grad for leaf in leaves(inputs)])


def provider_of(job: Job) -> Provider:
    case, name = job
    return gpu_jobs.providers(case.loss)[name]


class Scale(NamedTuple):
    """What the times of a case are compared with."""

    product_ms: float
    copy_bytes_per_ms: float


def measure(job: Job, inputs: Sequence[Tensor], true: gate.Truth | None, scale: Scale, each_s: float) -> Row:
    case, name = job
    step = provider_of(job).step(case, *inputs)
    value = step()
    if true is None:
        found = {"note": "not compared with float64"}
    else:
        errors = gate.errors(true, value, gradient(inputs))
        found = {"loss_error": f"{errors.loss:.1e}", "grad_error": f"{errors.grad:.1e}"}
        if note := gate.verdict(case, errors):
            return found | {"note": note}
    del value
    found["peak_mb"] = text(peak(step, inputs) / 1e6)
    times = milliseconds(step, each_s)
    ms, pairs = statistics.median(times), case.batch**2
    found |= {"median_ms": text(ms), "count": str(len(times)), "tflops": text(6e-9 * pairs * case.dim / ms)}
    found["product_share"] = text(scale.product_ms / ms)
    if name in KEEPS_PAIRS:
        moved = BYTES_PER_PAIR - (ROUNDED_BYTES if (name, case.dtype) == ("triton a", "bfloat16") else 0)
        found["copy_share"] = text(moved * pairs / scale.copy_bytes_per_ms / ms)
    return found


def peak(step: Callable[[], object], inputs: Sequence[Tensor]) -> int:
    """Bytes that a step needs beyond what is there, gradients of the embeddings included."""
    _forget_gradients(inputs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def _forget_gradients(inputs: Sequence[Tensor]) -> None:
    for leaf in leaves(inputs):
        leaf.grad = None


def attempt(function: Callable, *arguments: Any) -> tuple[Any, str]:
    """What it returns, or None and why: out of memory, what a compiler raises, whatever another library does."""
    try:
        return function(*arguments), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def work(send: Callable[[Row | None], None], todo: Sequence[Job], each_s: float) -> None:
    """Sends what the device is, then a row for each job; None instead of the next one if the device is lost to this process."""
    send(device())
    bandwidth = copy_bytes_per_ms()
    floor = functools.cache(product_ms)
    for case, group in groupby(todo, key=lambda job: job[0]):
        with multiplied(case.dtype) as dtype:
            inputs, failed = attempt(gpu_jobs.inputs, case, dtype)
            floor_ms, unknown = attempt(floor, case.batch, case.dim, case.dtype)
            true, unchecked = attempt(truth, case, inputs) if inputs else (None, "")
            attempt(tidy, "", inputs or (), bool(failed or unknown or unchecked))
            for job in group:
                reason, error = attempt(provider_of(job).refuse, case)
                if reason:
                    send({"note": reason})
                    continue
                row, error = None, failed or unknown or error
                if not error:
                    row, error = attempt(measure, job, inputs, true, Scale(floor_ms, bandwidth), each_s)
                if row is None:
                    row = {"note": error}
                elif unchecked and "median_ms" in row:
                    row["note"] = f"not compared with float64: {unchecked}"
                send(row)
                _, lost = attempt(tidy, job[1], inputs or (), "median_ms" not in row)
                if lost:
                    send(None)
                    return


def tidy(provider: str, inputs: Sequence[Tensor], failed: bool) -> None:
    """Leaves the device as if the provider had not been there; raises if it has broken it."""
    _forget_gradients(inputs)
    if provider == "compile":
        torch.compiler.reset()
    if failed or provider == "compile":  # what went wrong may be in a circle with the tensors that it was about
        gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def compile_kernels(todo: Sequence[Job]) -> None:
    """Runs steps, for what the compiler leaves on disk. What one raises will be raised again where it is measured."""
    for job in todo:
        attempt(run_once, job)


def run_once(job: Job) -> None:
    case, _ = job
    with multiplied(case.dtype) as dtype:
        provider_of(job).step(case, *gpu_jobs.inputs(case, dtype))()
    torch.cuda.synchronize()


def serve(connection: Any, todo: Sequence[Job], each_s: float) -> None:
    """``work`` in a process of its own."""
    work(connection.send, todo, each_s)
    connection.close()
