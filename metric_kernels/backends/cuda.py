"""Compiled CUDA C++ for CUDA tensors. Kernels are queued on torch's current stream, and nothing waits for them."""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from metric_kernels.language import Formula
from metric_kernels.tile import Tile

_MODULES = {torch.float32: "float32", torch.float64: "float64"}


@functools.cache
def _extension() -> tuple[object, str | None]:
    """The compiled module, or None and why there is none."""
    try:
        return importlib.import_module("metric_kernels._cuda"), None
    except ImportError as error:
        return None, f"the CUDA extension is missing ({error}); install with nvcc and METRIC_KERNELS_CUDA=1 to build it"


class CudaBackend:
    name = "cuda"

    def unusable(self) -> str | None:
        module, reason = _extension()
        return reason or module.problem()

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
        return "has no row kernels"

    def values(self, metric: type, tile: Tile) -> Tensor:
        out = torch.empty_like(tile.s)
        call("pair_values", tile.s, _products(metric, tile), matrix("out", out, tile.s.shape, tile.s))
        return out

    def slopes(self, metric: type, tile: Tile, g: Tensor, norm_grad: Tensor | None) -> None:
        norms = vector("norm_grad", norm_grad, len(tile.s), tile.s)
        call("pair_slopes", tile.s, _products(metric, tile), matrix("g", g, tile.s.shape, tile.s), norms)

    def add_transposed(self, square: Tensor) -> None:
        call("add_transposed", square, matrix("matrix", square, (len(square), len(square)), square), len(square))


def call(entry: str, like: Tensor, *arguments: object) -> None:
    """Queues a kernel for the type and the device of a tensor."""
    module = getattr(_extension()[0], _MODULES[like.dtype])
    with torch.cuda.device_of(like):
        stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
        getattr(module, entry)((max(like.get_device(), 0), stream), *arguments)


def matrix(
    name: str, t: Tensor, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None
) -> tuple[int, int]:
    """Address and row stride of a matrix whose rows are contiguous and do not overlap."""
    _check(name, t, shape, like, dtype)
    rows, columns = shape
    if (t.stride(1) != 1 and columns > 1) or (rows > 1 and t.stride(0) < columns):
        raise ValueError(f"{name}: expected contiguous rows, got strides {t.stride()}")
    return t.data_ptr(), t.stride(0)


def vector(name: str, t: Tensor | None, size: int, like: Tensor, dtype: torch.dtype | None = None) -> int:
    """Address of a vector, 0 for none."""
    return 0 if t is None else whole(name, t, (size,), like, dtype)


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


def _products(metric: type, tile: Tile) -> tuple:
    """A tile without labels as the entry points take it."""
    from metric_kernels.metrics import METRICS

    s, (m, n) = tile.s, tile.s.shape
    p, q = (tile.p, tile.q) if metric.norms else (None, None)
    norms = vector("p", p, m, s), vector("q", q, n, s)
    return matrix("s", s, (m, n), s), m, n, METRICS.index(metric), *norms, tile.eps


BACKEND = CudaBackend()
