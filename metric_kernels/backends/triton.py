"""Triton kernels for CUDA tensors, and for CPU tensors in Triton's interpreter (``TRITON_INTERPRET=1``)."""

from __future__ import annotations

import functools
import importlib.util
import os
from types import ModuleType
from typing import Callable

import torch
from torch import Tensor

from metric_kernels.language import KINDS, SIDES, Formula, Op, bind
from metric_kernels.tile import Side, Tile

# Row by row the columns of a block are laid out over the threads in the same way whatever is read of them, so that nothing
# is exchanged between threads before the end of a row; four columns a thread keep the registers few.
BLOCK = {"HEIGHT": 1, "WIDTH": 512, "num_warps": 4, "enable_fp_fusion": True}
# An operation of the interpreter costs the same whatever its size.
INTERPRETED_BLOCK = {"HEIGHT": 32, "WIDTH": 32}



class TritonBackend:
    name = "triton"

    def __init__(self, launch: Callable | None = None):
        self.launch = launch or _launch

    def unusable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if not torch.cuda.is_available() and not _interpreted():
            return "there is no CUDA device, and TRITON_INTERPRET=1 is not set"
        return None

    def supports(self, formula: Formula, metric: type, device: str, dtype: torch.dtype) -> str | None:
        reason = self.unusable()
        if reason is not None:
            return reason
        if device != "cuda" and not (device == "cpu" and _interpreted()):
            return f"it runs on CUDA tensors, or on CPU tensors with TRITON_INTERPRET=1, not on {device}"
        if dtype != torch.float32:
            return f"it computes in float32, not in {dtype}"
        return None

    def stats(self, op: Op, stage: int, tile: Tile, rows: Tensor, cols: Tensor, out: Tensor, index: Tensor):
        current = op.formula.stages[stage]
        self.launch(
            _kernels().stats,
            tile,
            *_points(op, tile),
            _matrix(rows),
            _matrix(cols),
            _matrix(out),
            _matrix(index),
            op.params[stage],
            VALUE=_functor(op.metric.value),
            PAIR=_functor(current.pair),
            STAGE=stage,
            COUNTS=(len(rows), len(cols) if current.cols else 0),
            **_structure(op.formula),
        )

    def weights(self, op: Op, tile: Tile, rows: Side, cols: Side, both: bool, norm_grad: Tensor | None):
        counts = _counts(op.formula)
        col_counts = counts if both else (counts[0] if op.formula.two_sided else 0, 0, 0)
        self.launch(
            _kernels().weights,
            tile,
            *_points(op, tile),
            tuple(map(_matrix, rows)),
            tuple(map(_matrix, cols)),
            norm_grad,
            tile.row,
            op.params,
            tuple(_functor(stage.pair) for stage in op.formula.stages),
            tuple(_functor(stage.dpair) for stage in op.formula.stages),
            VALUE=_functor(op.metric.value),
            DVALUE=_functor(op.metric.dvalue),
            BOTH=both,
            ROW_COUNTS=counts,
            COL_COUNTS=col_counts,
            **_structure(op.formula),
        )

    def input_grads(self, op: Op, stage: int, tile: Tile, rows: Side, cols: Side, swapped: bool) -> Tensor:
        current = op.formula.stages[stage]
        wanted = len(current.cols if swapped else current.rows)
        out = tile.s.new_empty(wanted, len(tile.s))
        number = len(op.formula.stats)
        self.launch(
            _kernels().input_grads,
            tile,
            *_points(op, tile),
            tuple(map(_matrix, rows)),
            tuple(map(_matrix, cols)),
            _matrix(out),
            op.params[stage],
            VALUE=_functor(op.metric.value),
            SLOPE=_functor(current.dcol if swapped else current.drow),
            STAGE=stage,
            SWAPPED=swapped,
            WANTED=wanted,
            ROW_COUNTS=(number, 0 if swapped else number, 0),
            COL_COUNTS=(number if swapped or current.cols else 0, number if swapped else 0, 0),
            **_structure(op.formula),
        )
        return out


def _launch(kernel, tile: Tile, *arguments: object, **constants: object) -> None:
    block = INTERPRETED_BLOCK if _kernels().INTERPRETED else BLOCK
    programs = -(-len(tile.s) // block["HEIGHT"])
    with torch.cuda.device_of(tile.s):
        kernel[(programs,)](*arguments, **constants, **block)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("metric_kernels.backends.triton_kernels")


@functools.cache
def _functor(function: Callable) -> object:
    """A function of a formula or metric as Triton compiles it."""
    import triton

    from metric_kernels.backends import triton_fn

    return triton.jit(bind(function, triton_fn, tl=triton.language))


@functools.cache
def _structure(formula: Formula) -> dict[str, tuple]:
    stages = formula.stages
    return {
        "KINDS": tuple(tuple(KINDS.index(s.kind) for s in stage.stats) for stage in stages),
        "SIDES": tuple(tuple(SIDES.index(s.side) for s in stage.stats) for stage in stages),
        "ROWS": tuple(stage.rows for stage in stages),
        "COLS": tuple(stage.cols for stage in stages),
        "FIRST": formula.first,
    }


def _counts(formula: Formula) -> tuple[int, int, int]:
    number = len(formula.stats)
    return number, number, number if formula.extremes else 0


def _matrix(statistics: Tensor) -> tuple[Tensor, int]:
    return statistics, statistics.stride(0)


def _points(op: Op, tile: Tile) -> tuple:
    p, q = (tile.p, tile.q) if op.metric.norms else (None, None)
    return tile.s, tile.labels, tile.ref_labels, p, q, *tile.s.shape, tile.diagonal, tile.eps


BACKEND = TritonBackend()
