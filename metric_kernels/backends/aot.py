"""Compiles every Triton and CUDA kernel without a GPU and prints what each needs.

    python -m metric_kernels.backends.aot [--only {triton,cuda}] [LOSS ...]

The CUDA kernels are left out where there is no nvcc, and where losses are named. The exit status is 1 if a kernel does not
compile or does not fit the registers.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from metric_kernels import extremes, losses
from metric_kernels.backends import aot_cuda
from metric_kernels.backends.triton import TritonBackend
from metric_kernels.core import NOISE
from metric_kernels.language import Formula, Op
from metric_kernels.metrics import METRICS
from metric_kernels.tile import Factors, Side, Tile

ARCHITECTURES = (80, 90)
POINTS = 64
# Kind (triton_tiles.py) of points, and their coordinates for kernels that make the products, held whole or in chunks; None for
# those that read them.
SHAPES: tuple[tuple[str, int | None], ...] = (
    ("float32", None),
    ("bfloat16", None),
    ("float16", None),
    ("float32", 128),
    ("tf32", 64),
    ("tf32", 128),
    ("float16", 64),
    ("bfloat16", 128),
    ("bfloat16", 768),
)
# More of what the compiler is told.
OPTIONS: dict[str, object] = {}


class Usage(NamedTuple):
    registers: int
    shared: int
    spilled: int
    instructions: int


class Target:
    """As much of a driver as Triton asks for before it launches a kernel."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> None:
        return None


def cases() -> Iterator[tuple[Formula, type]]:
    """Every formula on its usual metric, and one on each."""
    for loss in losses.REGISTRY.values():
        if isinstance(loss.kernels, Formula):
            yield loss.kernels, loss.default_distance().metric
    for metric in METRICS:
        yield extremes.FORMULA, metric


def calls(
    formula: Formula, metric: type, backend: TritonBackend, shape: tuple[str, int | None]
) -> Iterator[tuple[str, Callable]]:
    """A call of the backend for every kernel that the formula has, for points of a shape."""
    kind, dim = shape
    op = Op(formula, metric, tuple((0.5,) * len(stage.params) for stage in formula.stages))
    values, norms = torch.zeros(len(formula.stats), POINTS), torch.ones(POINTS)
    labels = torch.zeros(POINTS, dtype=torch.int64)
    side = Side(values, values, values.to(torch.int64))
    eps = NOISE * torch.finfo(torch.float32).eps
    tile = Tile(torch.zeros(POINTS, POINTS), labels, labels, 0, 0, norms, norms, eps)
    torch.backends.cuda.matmul.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    x = torch.zeros(POINTS, dim or 1, dtype=getattr(torch, kind, torch.float32))
    half = x.dtype != torch.float32
    if dim or half:
        scale = norms if half else None
        tile = tile._replace(s=norms[:0] if dim else tile.s, factors=Factors(x, x, scale, scale))
    for number, stage in enumerate(formula.stages):
        yield f"stats {number}", partial(backend.stage_stats, op, number, tile, values, values, values, side.index, values)
        for swapped, slope in ((False, stage.drow), (True, stage.dcol)):
            if slope is not None:
                name = f"input_grads {number} {slope.__name__}"
                yield name, partial(backend.input_grads, op, number, tile, side, side, swapped)
    norm_grad = norms if metric.norms else None
    # One direction is that of a reference set.
    apart = tile._replace(diagonal=-1)
    if dim is None:
        for name, both in (("weights", False), ("weights both", True)):
            yield name, partial(backend.weights, op, tile if both else apart, side, side, both, norm_grad)
    else:
        for name, there, back in (("there", True, False), ("back", False, True), ("both", True, True)):
            of = tile if there and back else apart
            call = partial(backend.gradients, op, of, side, side, torch.zeros(x.shape), norm_grad, there, back)
            yield f"gradients {name}", call


def usage(kernel: object) -> Usage:
    """What a compiled kernel needs, according to its binary."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(kernel.asm["cubin"])
        binary.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    instructions = re.findall(r"^\s+(?:@!?%p\d+ )?[a-z][\w.:]*\s.*;", kernel.asm["ptx"], re.MULTILINE)
    # Nothing but spilled registers lives on the stack of these kernels.
    return Usage(found["REG"], kernel.metadata.shared, found["STACK"] + found["LOCAL"], len(instructions))


def compiled(
    formula: Formula, metric: type, architecture: int, shape: tuple[str, int | None]
) -> Iterator[tuple[str, Callable[[], Usage]]]:
    """Every kernel of a formula, and what it needs; its name comes first, in case the compiler raises."""
    from triton.runtime import driver

    made: list[object] = []

    def compile_only(kernel, tile, chunks, *arguments, **constants):
        made.append(kernel.warmup(*arguments, **constants | OPTIONS, grid=(1,)))

    def needs(call: Callable) -> Usage:
        call()
        return usage(made.pop())

    driver.set_active(Target(architecture))
    for name, call in calls(formula, metric, TritonBackend(compile_only), shape):
        yield name, partial(needs, call)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the GPU kernels without a GPU and print what each needs.")
    parser.add_argument("losses", nargs="*", metavar="LOSS", help="name of a loss (default: all)")
    parser.add_argument("--only", choices=("triton", "cuda"), help="the kernels of one backend")
    arguments = parser.parse_args()
    reason = aot_cuda.reason_against()
    if arguments.only == "cuda" and reason:
        parser.error(reason)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 replaces the compiler; unset it")
    spilled = 0
    if arguments.only != "cuda":
        spilled += compile_triton(arguments.losses)
    if arguments.only != "triton" and not arguments.losses:
        if reason:
            print(f"no CUDA kernels: {reason}")
        else:
            spilled += compile_cuda()
    return 1 if spilled else 0


def compile_triton(wanted: list[str]) -> int:
    """Prints what each kernel of some losses, or of all, needs. Returns the bytes that are spilled."""
    what, needs = "{:<22} {:<20} {:<17} {:<13} {:<6}", " {:>9} {:>6} {:>7} {:>12}"
    print(what.format("kernel", "formula", "metric", "points", "target") + needs.format(*Usage._fields))
    spilled = 0
    for architecture in ARCHITECTURES:
        for formula, metric in dict.fromkeys(cases()):
            name = formula.key.rpartition(".")[2]
            if wanted and name not in wanted:
                continue
            for shape in SHAPES:
                points = " ".join(str(of) for of in shape if of)
                for kernel, needed in compiled(formula, metric, architecture, shape):
                    print(what.format(kernel, name, metric.__name__, points, f"sm_{architecture}"), end="", flush=True)
                    found = needed()
                    print(needs.format(*found))
                    spilled += found.spilled
    return spilled


def compile_cuda() -> int:
    """Prints what each CUDA kernel needs. Returns the bytes that are spilled."""
    line = "{:<80} {:<6} {:>9} {:>6} {:>7}"
    print(line.format("CUDA kernel", "target", *aot_cuda.Usage._fields))
    spilled = 0
    for architecture in ARCHITECTURES:
        for name, found in aot_cuda.kernels(architecture):
            print(line.format(name, f"sm_{architecture}", *found))
            spilled += found.spilled
    return spilled


if __name__ == "__main__":
    sys.exit(main())
