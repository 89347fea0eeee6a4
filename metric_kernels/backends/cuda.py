"""Compiled CUDA C++ for CUDA tensors. Kernels are queued on torch's current stream, and nothing waits for them."""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from metric_kernels.backends.native import mismatch
from metric_kernels.language import Formula, Op
from metric_kernels.terms import ValueTile
from metric_kernels.tile import Side, StageByStage, Tile

_MODULES = {torch.float32: "float32", torch.float64: "float64"}


@functools.cache
def _extension() -> tuple[object, str | None]:
    """The compiled module, or None and why there is none."""
    try:
        return importlib.import_module("metric_kernels._cuda"), None
    except ImportError as error:
        return None, f"the CUDA extension is missing ({error}); install with nvcc and METRIC_KERNELS_CUDA=1 to build it"


class CudaBackend(StageByStage):
    name = "cuda"

    def unusable(self) -> str | None:
        module, reason = _extension()
        return reason or module.problem()

    def detail(self) -> str:
        runtime = _extension()[0].runtime
        return f"CUDA runtime {runtime // 1000}.{runtime % 1000 // 10}"

    @functools.cached_property
    def ordered(self):
        return importlib.import_module("metric_kernels.backends.cuda_ordered")

    @functools.cached_property
    def binned(self):
        return importlib.import_module("metric_kernels.backends.cuda_binned")

    def unsuited(self, device: str, dtype: torch.dtype) -> str | None:
        module, reason = _extension()
        if reason:
            return reason
        # Asked before the driver is, which must not be started for tensors of another device.
        if device != module.device:
            return f"runs on {module.device} tensors, not on {device}"
        if dtype not in _MODULES:
            return f"computes in float32 and float64, not in {dtype}"
        return self.unusable()

    def supports(self, formula: Formula, metric: type, device: str, dtype: torch.dtype) -> str | None:
        return self.unsuited(device, dtype) or mismatch(_extension()[0], formula, metric)

    def stage_stats(
        self, op: Op, stage: int, tile: Tile, rows: Tensor, cols: Tensor, out: Tensor, index: Tensor, scale: Tensor
    ) -> None:
        before, others = ((_statistics(*of, tile), _NOTHING, _NOTHING) for of in (("rows", rows, 0), ("cols", cols, 1)))
        outputs = (("out", out), ("index", index), ("scale", scale))
        written = (_statistics(name, t, 0, tile) for name, t in outputs)
        call("stats", tile.s, _rows(op, tile, before, others), stage, *written)

    def weights(self, op: Op, tile: Tile, rows: Side, cols: Side, both: bool, norm_grad: Tensor | None):
        others = _side("cols", cols, 1, tile) if both or op.formula.two_sided else _NO_SIDE
        points = _rows(op, tile, _side("rows", rows, 0, tile), others)
        call("weights", tile.s, points, both, vector("norm_grad", norm_grad, len(tile.s), tile.s))

    def input_grads(self, op: Op, stage: int, tile: Tile, rows: Side, cols: Side, swapped: bool) -> Tensor:
        current = op.formula.stages[stage]
        out = tile.s.new_empty(len(current.cols if swapped else current.rows), len(tile.s))
        others = _side("cols", cols, 1, tile) if swapped or current.cols else _NO_SIDE
        points = _rows(op, tile, _side("rows", rows, 0, tile), others)
        call("input_grads", tile.s, points, stage, swapped, _statistics("out", out, 0, tile))
        return out

    def values(self, metric: type, tile: Tile) -> Tensor:
        out = torch.empty_like(tile.s)
        call("pair_values", tile.s, _products(metric, tile), matrix("out", out, tile.s.shape, tile.s))
        return out

    def slopes(self, metric: type, tile: Tile, g: Tensor, norm_grad: Tensor | None) -> None:
        norms = vector("norm_grad", norm_grad, len(tile.s), tile.s)
        call("pair_slopes", tile.s, _products(metric, tile), matrix("g", g, tile.s.shape, tile.s), norms)

    def add_transposed(self, square: Tensor) -> None:
        call("add_transposed", square, matrix("matrix", square, (len(square), len(square)), square), len(square))

    def mirror(self, square: Tensor) -> None:
        call("mirror", square, matrix("matrix", square, (len(square), len(square)), square), len(square))


def call(entry: str, like: Tensor, *arguments: object) -> None:
    """Queues a kernel for the type and the device of a tensor."""
    module = getattr(_extension()[0], _MODULES[like.dtype])
    with torch.cuda.device_of(like):
        stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
        getattr(module, entry)((max(like.get_device(), 0), stream), *arguments)


def on_tile(entry: str, tile: ValueTile, *arguments: object) -> None:
    """Queues a kernel on a tile of pair values."""
    v, (m, n) = tile.v.contiguous(), tile.v.shape
    labels, ref_labels = tile.labels.contiguous(), tile.ref_labels.contiguous()
    points = integers("labels", labels, m, v), integers("ref_labels", ref_labels, n, v)
    call(entry, v, (matrix("v", v, (m, n), v), m, n, *points, tile.diagonal), *arguments)


def matrix(name: str, t: Tensor, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> tuple[int, int]:
    """Address and row stride of a matrix whose rows are contiguous and do not overlap."""
    _check(name, t, shape, like, dtype)
    rows, columns = shape
    if (t.stride(1) != 1 and columns > 1) or (rows > 1 and t.stride(0) < columns):
        raise ValueError(f"{name}: expected contiguous rows, got strides {t.stride()}")
    return t.data_ptr(), t.stride(0)


def vector(name: str, t: Tensor | None, size: int, like: Tensor, dtype: torch.dtype | None = None) -> int:
    """Address of a vector, 0 for none."""
    return 0 if t is None else whole(name, t, (size,), like, dtype)


def integers(name: str, t: Tensor | None, size: int, like: Tensor) -> int:
    return vector(name, t, size, like, torch.int64)


def sums(totals: Tensor, counts: Tensor, tile: ValueTile) -> tuple[int, int]:
    rows = len(tile.v)
    return vector("totals", totals, rows, tile.v, torch.float64), integers("counts", counts, rows, tile.v)


def gradient(scale: Tensor, g: Tensor, tile: ValueTile) -> tuple[int, tuple[int, int]]:
    return vector("scale", scale, len(tile.v), tile.v), matrix("g", g, tile.v.shape, tile.v)


def whole(name: str, t: Tensor, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> int:
    """Address of an array without gaps."""
    _check(name, t, shape, like, dtype)
    if not t.is_contiguous():
        raise ValueError(f"{name}: expected contiguous data, got strides {t.stride()}")
    return t.data_ptr()


def _check(name: str, t: Tensor, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None) -> None:
    expected = tuple(shape), dtype or like.dtype, like.device
    if (tuple(t.shape), t.dtype, t.device) != expected:
        wanted, given = (f"{tuple(s)} {d} on {where}" for s, d, where in (expected, (t.shape, t.dtype, t.device)))
        raise ValueError(f"{name}: expected {wanted}, got {given}")


_NOTHING = (0, 0)
_NO_SIDE = (_NOTHING, _NOTHING, _NOTHING)


def _statistics(name: str, t: Tensor, side: int, tile: Tile) -> tuple[int, int]:
    """Statistics of the points of the rows (0) or columns (1) of a tile; nothing where there are none."""
    dtype = torch.int64 if t.dtype == torch.int64 else None
    return matrix(name, t, (len(t), tile.s.shape[side]), tile.s, dtype) if len(t) else _NOTHING


def _side(name: str, points: Side, side: int, tile: Tile) -> tuple:
    return tuple(_statistics(f"{name}.{field}", t, side, tile) for field, t in zip(Side._fields, points))


def _rows(op: Op, tile: Tile, rows: tuple, cols: tuple) -> tuple:
    """A tile as the entry points of formulas take it."""
    (m, n), integers = tile.s.shape, torch.int64
    labels = vector("labels", tile.labels, m, tile.s, integers), vector("ref_labels", tile.ref_labels, n, tile.s, integers)
    params = [p for stage in op.params for p in stage]
    formula = _extension()[0].formulas[op.formula.key][0]
    return formula, _products(op.metric, tile), *labels, tile.row, tile.diagonal, params, rows, cols


def _products(metric: type, tile: Tile) -> tuple:
    """A tile without labels as the entry points take it."""
    s, (m, n) = tile.s, tile.s.shape
    p, q = (tile.p, tile.q) if metric.norms else (None, None)
    norms = vector("p", p, m, s), vector("q", q, n, s)
    return matrix("s", s, (m, n), s), m, n, _extension()[0].metrics[metric.__name__], *norms, tile.eps


BACKEND = CudaBackend()
