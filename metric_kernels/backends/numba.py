"""Kernels compiled by Numba on first use: CPU tensors, any formula."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from metric_kernels.language import Formula, Op
from metric_kernels.tile import Side, Tile

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


class NumbaBackend:
    name = "numba"

    def unusable(self):
        return None if importlib.util.find_spec("numba") else "numba is not installed"

    def supports(self, formula: Formula, metric: type, device: str, dtype: torch.dtype) -> str | None:
        if device != "cpu":
            return f"runs on the CPU, got {device}"
        if dtype not in _DTYPES:
            return f"computes in float32 or float64, got {dtype}"
        return self.unusable()

    def stats(self, op, stage, tile, rows, cols, out, index):
        from metric_kernels.backends import numba_kernels

        kernel = numba_kernels.stats(op.formula, stage, op.metric, _DTYPES[tile.s.dtype])
        _launch(kernel, op, tile, Side(rows, rows, index), Side(cols, cols, index), out, index)

    def weights(self, op, tile, rows, cols, both, norm_grad):
        from metric_kernels.backends import numba_kernels

        kernel = numba_kernels.weights(op.formula, op.metric, both, norm_grad is not None, _DTYPES[tile.s.dtype])
        _launch(kernel, op, tile, rows, cols, tile.s if norm_grad is None else norm_grad, rows.index)

    def input_grads(self, op, stage, tile, rows, cols, swapped):
        from metric_kernels.backends import numba_kernels

        current = op.formula.stages[stage]
        wanted = current.cols if swapped else current.rows
        sides = len({s.side for s in current.stats})
        kernel = numba_kernels.input_grads(op.formula, stage, op.metric, swapped, _DTYPES[tile.s.dtype])
        out = tile.s.new_empty(sides * len(wanted), len(tile.s))
        _launch(kernel, op, tile, rows, cols, out, rows.index)
        return out.view(sides, len(wanted), -1).sum(0)


BACKEND = NumbaBackend()

_lib = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
_parallel = _lib.GOMP_parallel
_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
_parallel.restype = None


def _launch(kernel, op, tile, rows, cols, out, index):
    from metric_kernels.backends.numba_kernels import TABLE

    m, n = tile.s.shape
    dtype = _DTYPES[tile.s.dtype]
    threads = 1 if tile.s.numel() < 32768 else torch.get_num_threads()
    numbers = np.array([tile.eps, *chain.from_iterable(op.params)], dtype)
    scratch = np.empty((2 * threads, n), dtype)
    found = np.empty((threads, n), np.uint32)
    named = dict(s=tile.s, labels=tile.labels, ref_labels=tile.ref_labels, p=tile.p, q=tile.q, row_values=rows.values, row_grads=rows.grads, row_index=rows.index,
    col_values=cols.values, col_grads=cols.grads, col_index=cols.index, out=out, index=index)
    E = {k: _entry(t) for k, t in named.items()}
    E.update(counters=(0, 0, 0), place=(tile.row, tile.diagonal, max(1, 16384 // max(n, 1))), numbers=(numbers.ctypes.data, 1, len(numbers)),
             scratch=(scratch.ctypes.data, 2 * threads, n), found=(found.ctypes.data, threads, n))
    table = np.array([E[k] for k in TABLE], np.int64)
    if threads == 1:
        kernel.ctypes(table.ctypes.data)
    else:
        _parallel(kernel.address, table.ctypes.data, threads, 0)


def _entry(tensor):
    if tensor.ndim == 1:
        return tensor.data_ptr(), 1, len(tensor)
    return tensor.data_ptr(), len(tensor), tensor.stride(0)
