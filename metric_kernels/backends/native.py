"""Compiled C++ for CPU tensors: the formulas of this package, printed into it when it was built."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from metric_kernels.digest import digest
from metric_kernels.language import Formula, Op
from metric_kernels.tile import Epilogue, Side, Tile


@functools.cache
def _extension() -> tuple[object, str | None]:
    """The compiled module, or None and why there is none."""
    try:
        return importlib.import_module("metric_kernels._native"), None
    except ImportError as error:
        return None, f"the compiled extension is missing ({error}); install with a C++17 compiler to build it"


def extension() -> object:
    """The compiled module; only for a backend that is usable."""
    return _extension()[0]


class NativeBackend:
    name = "native"

    def unusable(self) -> str | None:
        return _extension()[1]

    def detail(self) -> str:
        native = _extension()[0]
        threads = "OpenMP" if native.openmp else "no OpenMP"
        return f"{native.isa()} of {', '.join(native.isas())}; {threads}"

    @functools.cached_property
    def ordered(self):
        return importlib.import_module("metric_kernels.backends.native_ordered")

    @functools.cached_property
    def binned(self):
        return importlib.import_module("metric_kernels.backends.native_binned")

    @functools.cached_property
    def vectors(self):
        return importlib.import_module("metric_kernels.backends.native_vectors")

    def unsuited(self, device: str, dtype: torch.dtype) -> str | None:
        if reason := self.unusable():
            return reason
        if device != "cpu":
            return f"runs on cpu tensors, not on {device}"
        if dtype not in (torch.float32, torch.float64):
            return f"computes in float32 and float64, not in {dtype}"
        return None

    def supports(self, formula: Formula, metric: type, device: str, dtype: torch.dtype) -> str | None:
        if reason := self.unsuited(device, dtype):
            return reason
        return mismatch(_extension()[0], formula, metric)

    def stats(self, op: Op, stages: Sequence[int], tile: Tile, values: Tensor, cols: Tensor, index: Tensor, scale: Tensor):
        mine = values.numpy()
        others = mine if cols is values else cols.numpy() if op.formula.two_sided else None
        first, last = stages[0], stages[-1] + 1
        _extension()[0].stats(*_arguments(op, tile), first, last, mine, others, _optional(index), _optional(scale))

    def weights(self, op: Op, tile: Tile, rows: Side, cols: Side, both: bool, norm_grad: Tensor | None):
        norm = None if norm_grad is None else norm_grad.numpy()
        mine = _side(rows)
        other = mine if cols is rows else _side(cols)
        _extension()[0].weights(*_arguments(op, tile), *mine, *other, both, norm)

    def input_grads(self, op: Op, stage: int, tile: Tile, rows: Side, cols: Side, swapped: bool) -> Tensor:
        current = op.formula.stages[stage]
        out = tile.s.new_empty(len(current.cols if swapped else current.rows), tile.s.shape[0])
        _extension()[0].input_grads(*_arguments(op, tile), stage, *_side(rows), *_side(cols), swapped, out.numpy())
        return out

    def values(self, metric: type, tile: Tile) -> Tensor:
        out = torch.empty_like(tile.s)
        _extension()[0].pair_values(*products(metric, tile), out.numpy())
        return out

    def slopes(self, metric: type, tile: Tile, g: Tensor, norm_grad: Tensor | None) -> None:
        norm = None if norm_grad is None else norm_grad.numpy()
        _extension()[0].pair_slopes(*products(metric, tile), g.numpy(), norm)

    def add_transposed(self, matrix: Tensor) -> None:
        _extension()[0].add_transposed(matrix.numpy(), min(torch.get_num_threads(), 1024))

    def epilogue(self, op: Op, epilogue: Epilogue, values: Tensor) -> tuple[Tensor, Tensor]:
        native = _extension()[0]
        grads = torch.empty_like(values)
        formula = native.formulas[op.formula.key][0]
        loss = native.epilogue(formula, *_reduction(epilogue), values.numpy(), grads.numpy())
        return values.new_tensor(loss), grads

    def step(self, op: Op, epilogue: Epilogue, tile: Tile, both: bool, norm_grad: Tensor | None) -> Tensor:
        norm = None if norm_grad is None else norm_grad.numpy()
        return tile.s.new_tensor(_extension()[0].step(*_arguments(op, tile), *_reduction(epilogue), both, norm))


def mismatch(module: object, formula: Formula, metric: type) -> str | None:
    """Why an extension is not compiled from a formula and a metric as they are now."""
    if formula.key not in module.formulas:
        return f"{formula.key} is not among the formulas compiled into the extension"
    _, owner, built = module.formulas[formula.key]
    for name, digest_built in ((owner, built), (metric.__module__, module.metrics_digest)):
        if _changed(name, digest_built):
            return _stale(name)
    return None


@functools.cache
def _stale(module: str) -> str:
    """The reason against a formula that was edited since the extension was built; warns once."""
    reason = f"{module} has changed since the extension was built; install again to rebuild it"
    warnings.warn(f"metric_kernels: {reason}; until then another backend computes its losses", stacklevel=2)
    return reason


def _changed(module: str, built: str) -> bool:
    return digest(sys.modules[module].__file__) != built


def _arguments(op: Op, tile: Tile) -> tuple:
    native = _extension()[0]
    labels = tile.labels.numpy()
    return (
        native.formulas[op.formula.key][0],
        native.metrics[op.metric.__name__],
        tile.s.numpy(),
        labels,
        labels if tile.ref_labels is tile.labels else tile.ref_labels.numpy(),
        tile.row,
        tile.diagonal,
        _optional(tile.p),
        _optional(tile.q),
        tile.eps,
        [p for stage in op.params for p in stage],
        min(torch.get_num_threads(), 1024),
    )


def products(metric: type, tile: Tile) -> tuple:
    """A tile without labels as the entry points take it."""
    native = _extension()[0]
    threads = min(torch.get_num_threads(), 1024)
    return native.metrics[metric.__name__], tile.s.numpy(), _optional(tile.p), _optional(tile.q), tile.eps, threads


def _reduction(epilogue: Epilogue) -> tuple:
    return epilogue.params, epilogue.windows, -1 if epilogue.required is None else epilogue.required


def _side(side: Side) -> tuple:
    return side.values.numpy(), side.grads.numpy(), _optional(side.index)


def _optional(tensor: Tensor):
    return tensor.numpy() if tensor.numel() else None


BACKEND = NativeBackend()
