"""How the kernels of terms are called: compiled for the arrays at hand, on the threads of the Numba backend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from metric_kernels.backends import numba as backend
from metric_kernels.backends import numba_term_kernels as kernels
from metric_kernels.backends.numba_jit import EXACT, formula_function, matrix, pointer, take
from metric_kernels.terms import ValueTile
from metric_kernels.tile import Tile

DTYPES = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
}
# The width of scratch arrays, and their type.
Scratch = dict[str, tuple[int, torch.dtype]]


def values(metric: type, tile: Tile) -> Tensor:
    out = torch.empty_like(tile.s)
    launch(
        kernels.pair_values, tile.s.shape, -1, {**_products(metric, tile), "out": out}, {}, value=_function(metric.value, tile)
    )
    return out


def slopes(metric: type, tile: Tile, g: Tensor, norm_grad: Tensor | None) -> None:
    arrays = {**_products(metric, tile), "g": g}
    arrays["norm_grad"] = tile.s.new_empty(len(tile.s)) if norm_grad is None else norm_grad
    launch(kernels.pair_slopes, tile.s.shape, -1, arrays, {}, dvalue=_function(metric.dvalue, tile))


def _products(metric: type, tile: Tile) -> dict[str, Tensor]:
    norms = (tile.p, tile.q) if metric.norms else (tile.s.new_zeros(size) for size in tile.s.shape)
    return {"numbers": tile.s.new_tensor([tile.eps]), "s": tile.s, **dict(zip("pq", norms))}


def _function(function: Callable, tile: Tile) -> Callable:
    return formula_function(function, DTYPES[tile.s.dtype])


def run(kernel: Callable, tile: ValueTile, numbers: tuple[float, ...], arrays: dict, scratch: Scratch, **functions: Callable):
    """Calls a kernel on a tile with numbers, arrays, one row of every scratch array for each thread, and functions."""
    v = tile.v.contiguous()
    points = {"v": v, "labels": tile.labels.contiguous(), "ref_labels": tile.ref_labels.contiguous()}
    launch(kernel, v.shape, tile.diagonal, {"numbers": v.new_tensor(numbers), **points, **arrays}, scratch, **functions)


def launch(
    kernel: Callable, shape: Sequence[int], diagonal: int, arrays: dict, scratch: Scratch, **functions: Callable
) -> None:
    """Calls a kernel on the rows of a matrix of a shape; its entries say how much work they are."""
    threads, share = backend.shared_out(*shape)
    private = {name: torch.empty(threads, width, dtype=dtype) for name, (width, dtype) in scratch.items()}
    given = {**arrays, **private}
    kinds = tuple((name, DTYPES[array.dtype], array.dim(), name in private) for name, array in given.items())
    function = _compiled(kernel, kinds, tuple(functions.items()))
    entries = [backend.entry(name, array) for name, array in given.items()]
    table = np.array([(0, 0, share), (shape[0], diagonal, 0), *entries], np.int64)
    backend.call(function, table.ctypes.data, threads)


@functools.cache
def _compiled(kernel: Callable, kinds: tuple[tuple, ...], functions: tuple[tuple[str, Callable], ...]) -> object:
    """A C function of the address of a table, which calls a kernel with the arrays there, by their names."""
    arguments = [f"{name}={name}" for name, _ in functions]
    for k, (name, kind, dimensions, private) in enumerate(kinds, 2):
        row = "[thread]" if private else "[0]" if dimensions == 1 else ""
        arguments.append(f"{name}=matrix(table[{k}], {kind.__name__}){row}")
    source = f"""\
def call(address):
    table = carray(address, ({2 + len(kinds)}, 3), int64)
    thread = take(pointer(table.ctypes.data + 8, int64), 1)
    kernel(table, {", ".join(arguments)})
"""
    scope = {
        **{"carray": numba.carray, "matrix": matrix, "pointer": pointer, "take": take, "kernel": kernel},
        **{kind.__name__: kind for kind in DTYPES.values()},
        **dict(functions),
    }
    exec(source, scope)
    return numba.cfunc(types.void(types.voidptr), **EXACT)(scope["call"])
