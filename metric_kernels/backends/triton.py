"""Triton kernels for CUDA tensors, and for CPU tensors in Triton's interpreter.

They read the products (form (a)) or make them (form (b), see :mod:`.triton_tiles`).

The interpreter is on if ``TRITON_INTERPRET=1`` is set before anything imports Triton.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from metric_kernels.backends import triton_tiles
from metric_kernels.language import SIDES, Formula, Op, bind
from metric_kernels.tile import Side, StageByStage, Tile

# In a block of one row whatever is read of its columns is spread over the threads in the same way, so that no thread
# waits for another before the end of the row.
BLOCK = {"height": 1, "width": 512, "num_warps": 4, "enable_fp_fusion": True}
# Left alone, the compiler would rather spill the columns of extremes than use more than 64 registers.
EXTREMES_BLOCK = BLOCK | {"maxnreg": 104}
# An operation of the interpreter costs the same whatever its size.
INTERPRETED_BLOCK = {"height": 32, "width": 32}


class TritonBackend(StageByStage):
    """``launch(kernel, tile, chunks, *arguments, **constants)`` runs ``chunks`` programs of a kernel for every ``height``
    rows of a tile.
    """

    name = "triton"

    def __init__(self, launch: Callable | None = None):
        self.launch = launch or _launch

    def unusable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if not torch.cuda.is_available() and not _interpreted():
            return "no CUDA device, and TRITON_INTERPRET=1 is not set"
        return None

    def unsuited(self, device: str, dtype: torch.dtype) -> str | None:
        if reason := self.unusable():
            return reason
        if device != "cuda" and not (device == "cpu" and _interpreted()):
            return f"no kernels for {device} tensors"
        return None if dtype == torch.float32 else f"computes in float32, not {dtype}"

    def supports(self, formula: Formula, metric: type, device: str, dtype: torch.dtype) -> str | None:
        if reason := self.unsuited(device, dtype):
            return reason
        if not all(_has_source(stage.pair) for stage in formula.stages):
            return "compiles from source, which is not available for the formula"
        return None

    def multiplies(self, n: int, m: int, dim: int, dtype: torch.dtype) -> bool:
        return triton_tiles.chosen(n, m, dim, dtype)

    def stage_stats(
        self, op: Op, stage: int, tile: Tile, rows: Tensor, cols: Tensor, out: Tensor, index: Tensor, scale: Tensor
    ) -> None:
        current = op.formula.stages[stage]
        self.launch(
            _kernels().stats,
            tile,
            1,
            *_points(op, tile),
            _matrix(rows),
            _matrix(cols),
            _matrix(out),
            _matrix(index),
            _matrix(scale),
            op.params[stage],
            value=_compiled(op.metric.value),
            pair=_compiled(current.pair),
            formula=_structure(op.formula),
            stage=stage,
            counts=(len(rows), len(cols) if current.cols else 0),
            **_products(op, tile),
        )

    def weights(self, op: Op, tile: Tile, rows: Side, cols: Side, both: bool, norm_grad: Tensor | None):
        formula, number = op.formula, len(op.formula.stats)
        counts = (number, number, number if formula.extremes else 0)
        self.launch(
            _kernels().weights,
            tile,
            1,
            *_points(op, tile),
            tuple(map(_matrix, rows)),
            tuple(map(_matrix, cols)),
            norm_grad,
            None if tile.weights is tile.s else _matrix(tile.weights),
            tile.row,
            op.params,
            tuple(_compiled(stage.pair) for stage in formula.stages),
            tuple(_compiled(stage.dpair) for stage in formula.stages),
            value=_compiled(op.metric.value),
            dvalue=_compiled(op.metric.dvalue),
            formula=_structure(formula),
            both=both,
            row_counts=counts,
            col_counts=counts if both else (number if formula.two_sided else 0, 0, 0),
            **_row_block(op),
        )

    def gradients(
        self, op: Op, tile: Tile, rows: Side, cols: Side, out: Tensor, norm_grad: Tensor | None, there: bool, back: bool
    ) -> None:
        formula, number = op.formula, len(op.formula.stats)
        anchor, other = (number, number, number if formula.extremes else 0), (number if formula.two_sided else 0, 0, 0)
        block = _block(op, tile, backward=True)
        self.launch(
            _kernels().gradients,
            tile,
            -(-out.shape[1] // block.span),
            *_points(op, tile),
            tuple(map(_matrix, rows)),
            tuple(map(_matrix, cols)),
            out,
            norm_grad,
            op.params,
            tuple(_compiled(stage.pair) for stage in formula.stages),
            tuple(_compiled(stage.dpair) for stage in formula.stages),
            value=_compiled(op.metric.value),
            dvalue=_compiled(op.metric.dvalue),
            formula=_structure(formula),
            there=there,
            back=back,
            row_counts=anchor if there else other,
            col_counts=anchor if back else other,
            multiply=_multiply(op, tile, block),
            span=block.span,
            **block.options(),
        )

    def input_grads(self, op: Op, stage: int, tile: Tile, rows: Side, cols: Side, swapped: bool) -> Tensor:
        current, number = op.formula.stages[stage], len(op.formula.stats)
        out = rows.values.new_empty(len(current.cols if swapped else current.rows), len(tile.labels))
        self.launch(
            _kernels().input_grads,
            tile,
            1,
            *_points(op, tile),
            tuple(map(_matrix, rows)),
            tuple(map(_matrix, cols)),
            _matrix(out),
            op.params[stage],
            value=_compiled(op.metric.value),
            slope=_compiled(current.dcol if swapped else current.drow),
            formula=_structure(op.formula),
            stage=stage,
            swapped=swapped,
            inputs=len(out),
            row_counts=(number, 0 if swapped else number, 0),
            col_counts=(number if swapped or current.cols else 0, number if swapped else 0, 0),
            **_products(op, tile),
        )
        return out


@dataclass(frozen=True)
class Structure:
    """What the kernels know of a formula beside its functions: tuples by stage, of one entry per statistic or input."""

    kinds: tuple[tuple[str, ...], ...]
    sides: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, ...], ...]
    cols: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]


@functools.cache
def _structure(formula: Formula) -> Structure:
    stages = formula.stages
    return Structure(
        kinds=tuple(tuple(stat.kind for stat in stage.stats) for stage in stages),
        sides=tuple(tuple(SIDES.index(stat.side) for stat in stage.stats) for stage in stages),
        rows=tuple(stage.rows for stage in stages),
        cols=tuple(stage.cols for stage in stages),
        first=formula.first,
    )


@functools.cache
def _compiled(function: Callable) -> object:
    """A function of a formula or metric as kernels call it."""
    import triton

    from metric_kernels.backends import triton_fn

    spelled = bind(function, triton_fn, tl=triton.language)
    # Triton tells the functions that a kernel calls apart by their qualified names.
    spelled.__qualname__ = function.__qualname__
    return triton.jit(spelled)


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("metric_kernels.backends.triton_kernels")


def _launch(kernel, tile: Tile, chunks: int, *arguments: object, **constants: object) -> None:
    programs = -(-len(tile.labels) // constants["height"])
    with torch.cuda.device_of(tile.labels):
        kernel[(programs, chunks)](*arguments, **constants)


def _row_block(op: Op) -> dict[str, int | bool]:
    if _interpreting():
        return INTERPRETED_BLOCK
    return EXTREMES_BLOCK if op.formula.extremes else BLOCK


def _block(op: Op, tile: Tile, backward: bool) -> triton_tiles.Block:
    if _interpreting():
        return triton_tiles.INTERPRETED
    x = tile.factors.x
    return triton_tiles.block(x.shape[1], x.dtype, backward, op.formula.extremes)


def _multiply(op: Op, tile: Tile, block: triton_tiles.Block) -> triton_tiles.Multiply:
    x = tile.factors.x
    return triton_tiles.multiply(x.shape[1], x.dtype, block.depth, op.formula.magnifies)


def _products(op: Op, tile: Tile) -> dict[str, object]:
    """What a kernel needs to know to read products or make them."""
    if not tile.fused:
        return {"multiply": None, **_row_block(op)}
    block = _block(op, tile, backward=False)
    return {"multiply": _multiply(op, tile, block), **block.options()}


def _interpreting() -> bool:
    """Whether Triton was imported with its interpreter."""
    from metric_kernels.backends.triton_products import INTERPRETED

    return bool(INTERPRETED)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _has_source(function: Callable) -> bool:
    try:
        return bool(inspect.getsource(function))
    except OSError:
        return False


def _matrix(statistics: Tensor) -> tuple[Tensor, int]:
    return statistics, statistics.stride(0)


def _points(op: Op, tile: Tile) -> tuple:
    p, q = (tile.p, tile.q) if op.metric.norms else (None, None)
    x, y, *scales = tile.factors or (None,) * 4
    factors = (x, y, *scales) if tile.fused else (None, None, *scales)  # products that are read need no points
    known = tile.s, tile.labels, tile.ref_labels, p, q, factors
    # None is known to the compiler.
    diagonal = None if tile.diagonal < 0 else tile.diagonal
    return known, len(tile.labels), len(tile.ref_labels), diagonal, tile.eps


BACKEND = TritonBackend()
