"""Kernels that Numba compiles on first use: CPU tensors, any formula.

The threads are those of the OpenMP runtime that torch runs its own loops on. They spin for a while after every product,
so that a second set of threads would have to share the cores with them. Where torch has no such runtime, Python threads
do the work. A forked child uses its own thread alone, because the others stayed behind.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

from metric_kernels.language import Formula, Op
from metric_kernels.tile import Side, StageByStage, Tile

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
# Entries of a tile that are worth a thread, and that a thread takes at a time.
_SHARE = 16384
_forked = False


class NumbaBackend(StageByStage):
    name = "numba"

    def unusable(self) -> str | None:
        try:
            import numba
        except ImportError as error:
            return f"numba cannot be imported ({error})"
        return "NUMBA_DISABLE_JIT is set" if numba.config.DISABLE_JIT else None

    def detail(self) -> str:
        return "threads of torch's OpenMP" if _openmp() else "threads of Python"

    def unsuited(self, device: str, dtype: torch.dtype) -> str | None:
        if device != "cpu":
            return f"runs on cpu tensors, not on {device}"
        if dtype not in _DTYPES:
            return f"computes in float32 and float64, not in {dtype}"
        return self.unusable()

    def supports(self, formula: Formula, metric: type, device: str, dtype: torch.dtype) -> str | None:
        return self.unsuited(device, dtype) or _kernels().reason_against(formula, _DTYPES[dtype])

    def stage_stats(
        self, op: Op, stage: int, tile: Tile, rows: Tensor, cols: Tensor, out: Tensor, index: Tensor, scale: Tensor
    ) -> None:
        _run(op, tile, ("stats", stage), row_values=rows, col_values=cols, out=out, index=index, scale=scale)

    def weights(self, op: Op, tile: Tile, rows: Side, cols: Side, both: bool, norm_grad: Tensor | None):
        _run(op, tile, ("weights", both, norm_grad is not None), **_sides(rows, cols), out=norm_grad)

    def input_grads(self, op: Op, stage: int, tile: Tile, rows: Side, cols: Side, swapped: bool) -> Tensor:
        current = op.formula.stages[stage]
        out = tile.s.new_empty(len(current.cols if swapped else current.rows), len(tile.s))
        _run(op, tile, ("input_grads", stage, swapped), **_sides(rows, cols), out=out)
        return out

    @functools.cached_property
    def ordered(self):
        return importlib.import_module("metric_kernels.backends.numba_ordered")

    @functools.cached_property
    def binned(self):
        return importlib.import_module("metric_kernels.backends.numba_binned")

    def values(self, metric: type, tile: Tile) -> Tensor:
        return _terms().values(metric, tile)

    def slopes(self, metric: type, tile: Tile, g: Tensor, norm_grad: Tensor | None) -> None:
        _terms().slopes(metric, tile, g, norm_grad)


def _terms():
    from metric_kernels.backends import numba_terms

    return numba_terms


def _kernels():
    """Imported on first use, with Numba."""
    from metric_kernels.backends import numba_kernels

    return numba_kernels


def _sides(rows: Side, cols: Side) -> dict[str, Tensor]:
    named = (("row", rows), ("col", cols))
    return {f"{side}_{array}": getattr(points, array) for side, points in named for array in Side._fields}


def _run(op: Op, tile: Tile, what: tuple, **arrays: Tensor | None) -> None:
    """Calls a kernel on the rows of a tile, in as many threads as torch would use."""
    kernel = _kernels().kernel(op.formula, op.metric, _DTYPES[tile.s.dtype], *what)
    columns = tile.s.shape[1]
    threads, share = shared_out(*tile.s.shape)
    arrays.update(s=tile.s, row_norms=tile.p, col_norms=tile.q)
    arrays.update(labels=tile.labels.contiguous(), ref_labels=tile.ref_labels.contiguous())
    arrays["numbers"] = tile.s.new_tensor([tile.eps, *itertools.chain.from_iterable(op.params)])
    arrays["scratch"] = tile.s.new_empty(threads * kernel.buffers, columns)
    arrays["found"] = tile.labels.new_empty(threads, columns, dtype=torch.int32)
    entries = {name: entry(name, array) for name, array in arrays.items() if array is not None}
    entries["tile"] = tile.row, tile.diagonal, share
    table = np.array([entries.get(name, (0, 0, 0)) for name in _kernels().TABLE], np.int64)
    call(kernel.function, table.ctypes.data, threads)


def shared_out(rows: int, columns: int) -> tuple[int, int]:
    """The threads for a tile, and the rows that each takes at a time."""
    threads = 1 if _forked else max(1, min(torch.get_num_threads(), rows * columns // _SHARE))
    return threads, max(1, _SHARE // max(1, columns))


def entry(name: str, array: Tensor) -> tuple[int, int, int]:
    rows, columns = array.shape if array.dim() == 2 else (1, len(array))
    distance = array.stride(0) if rows > 1 and columns else columns
    if array.device.type != "cpu" or (array.stride(-1) != 1 and columns > 1) or distance < columns:
        raise ValueError(
            f"{name}: expected rows of contiguous numbers on the cpu, got strides {array.stride()} on {array.device}"
        )
    return array.data_ptr(), rows, distance


def call(function: object, table: int, threads: int) -> None:
    """Every call takes rows from the same counter until none is left."""
    if threads == 1:
        function.ctypes(table)
    elif (start := _openmp()) is not None:
        start(function.address, table, threads, 0)
    else:
        others = [_pool().submit(function.ctypes, table) for _ in range(threads - 1)]
        try:
            function.ctypes(table)
        finally:
            wait(others)  # they hold addresses of arrays that an interrupted caller lets go of


@functools.cache
def _openmp() -> Callable | None:
    """GOMP_parallel(function, argument, threads, flags) of the runtime that torch is linked to; LLVM's has it too."""
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    start.argtypes, start.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return start


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="metric_kernels")


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

BACKEND = NumbaBackend()
