"""Compiles every Triton kernel ahead of time, without a GPU, and prints what each needs: ``python -m metric_kernels.backends.aot``.

The exit status is 1 if one of them does not compile or keeps registers in memory.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from typing import Iterator, NamedTuple

import torch

from metric_kernels import extremes, losses
from metric_kernels.backends.triton import BLOCK, TritonBackend
from metric_kernels.core import NOISE
from metric_kernels.language import Formula, Op
from metric_kernels.metrics import METRICS
from metric_kernels.tile import Side, Tile

ARCHITECTURES = (80, 90)


class Usage(NamedTuple):
    registers: int
    shared: int
    spilled: int
    instructions: int


class _Absent:
    """As much of a driver as a compilation asks for."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def usage(compiled: object) -> Usage:
    """What a compiled kernel needs of a multiprocessor, as its binary says."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", report)}
    instructions = re.findall(r"^\s+(?:@!?%p\d+ )?[a-z][\w.]*\s.*;$", compiled.asm["ptx"], re.MULTILINE)
    # Registers are spilled to the stack, and nothing else of a kernel lives there.
    spilled = found["STACK"] + found["LOCAL"]
    return Usage(found["REG"], max(found["SHARED"], compiled.metadata.shared), spilled, len(instructions))


def cases() -> Iterator[tuple[Formula, type]]:
    """Every formula on its usual metric, and one of them on all."""
    for loss in losses.REGISTRY.values():
        yield loss.formula, loss.default_distance().metric
    for metric in METRICS:
        yield extremes.FORMULA, metric


def compiled(formula: Formula, metric: type) -> Iterator[tuple[str, object]]:
    """The kernels of a formula with what tells them apart, for the driver in force."""
    found = []

    def compile_only(kernel, tile, *arguments, **constants):
        made = kernel.warmup(*arguments, **constants, **BLOCK, enable_fp_fusion=True, grid=(1,))
        found.append((kernel.__name__, made))

    n = 64
    norms = torch.ones(n)
    labels = torch.zeros(n, dtype=torch.int64)
    statistics = torch.zeros(len(formula.stats), n)
    side = Side(statistics, statistics, torch.zeros(statistics.shape, dtype=torch.int64))
    tile = Tile(torch.zeros(n, n), labels, labels, 0, 0, norms, norms, NOISE * torch.finfo(torch.float32).eps)
    op = Op(formula, metric, tuple((0.5,) * len(stage.params) for stage in formula.stages))
    backend = TritonBackend(compile_only)
    for number, stage in enumerate(formula.stages):
        backend.stats(op, number, tile, statistics, statistics, statistics, side.index)
        if stage.drow:
            backend.input_grads(op, number, tile, side, side, False)
        if stage.dcol:
            backend.input_grads(op, number, tile, side, side, True)
    for both in (False, True):
        backend.weights(op, tile, side, side, both, norms if metric.norms else None)
    return found


def main() -> int:
    print(list((k, usage(c)) for k, c in compiled(extremes.FORMULA, METRICS[1])))


if __name__ == "__main__":
    from triton.runtime import driver
    driver.set_active(_Absent(90))
    sys.exit(main())
