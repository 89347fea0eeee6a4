"""Row statistics as an operation of PyTorch: an autograd.Function in eager mode, library operators under torch.compile.

The Function keeps the product matrix between forward and backward if it fits the workspace; the operators, which may not
overwrite what they are given, always compute it again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metric_kernels import backends, core
from metric_kernels.language import Op, formula
from metric_kernels.metrics import METRICS

_METRICS = {m.__name__: m for m in METRICS}


def row_stats(
    op: Op,
    x: Tensor,
    y: Tensor | None,
    labels: Tensor,
    ref_labels: Tensor,
    *,
    normalize: bool,
    exclude_self: bool,
    given: bool = False,
    backend: str | None = None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Statistics (N,) each of every row of x (N, D) against y (M, D), or x if y is None, and columns of extremes (K, N).

    Differentiable once in x and y. ``exclude_self`` removes the pairs (i, i). With ``given``, x is the matrix (N, M) of
    pair values itself.
    """
    if torch.compiler.is_compiling():
        flat = [p for stage in op.params for p in stage]
        options = (op.formula.key, op.metric.__name__, flat, normalize, exclude_self, given, backend or "")
        values, index = torch.ops.metric_kernels.row_stats(x, y, labels, ref_labels, *options)
        return values.unbind(0), index
    *values, index = _RowStats.apply(x, y, labels, ref_labels, op, normalize, exclude_self, given, backend)
    return tuple(values), index


class _Call:
    """One evaluation: the points, the problem, and the products as far as they are kept."""

    def __init__(self, x, y, labels, ref_labels, op: Op, normalize, exclude_self, given, backend):
        dtype = core.arithmetic(x.dtype if y is None else torch.promote_types(x.dtype, y.dtype))
        chosen = backends.choose(op, x.device, dtype, backend)
        self.problem = core.Problem(op, normalize, labels, ref_labels, exclude_self, chosen)
        self.dtypes = x.dtype, x.dtype if y is None else y.dtype
        self.kept = None
        if given:
            self.kept = x.detach().to(dtype).contiguous()
            self.x, self.y = (core.Points.counted(n, self.kept) for n in x.shape)
        else:
            self.x = core.Points(x, op.metric, normalize, dtype)
            self.y = self.x if y is None else core.Points(y, op.metric, normalize, dtype)

    def forward(self, keep: bool) -> tuple[core.Statistics, core.Statistics | None]:
        n, m = len(self.x.z), len(self.y.z)
        if keep and self.kept is None and core.fits(n, m, self.x.z.dtype):
            self.kept = self.x.z.new_empty(n, m)
        return core.forward(self.problem, self.x, self.y, self.kept)

    def backward(self, rows: core.Statistics, cols: core.Statistics | None, grads: Tensor, wanted: tuple[bool, bool]):
        if self.x.given:
            kept = self.kept.clone()
        else:  # overwritten below: a second backward computes the products again
            kept, self.kept = self.kept, None
        return core.backward(self.problem, self.x, self.y, rows, cols, grads, kept, wanted, self.dtypes)


class _RowStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, *options):
        with _no_autocast(x.device.type):
            ctx.call = _Call(x, y, *options)
            rows, cols = ctx.call.forward(keep=any(ctx.needs_input_grad[:2]))
        ctx.cols = None if cols is rows else cols
        ctx.save_for_backward(*rows)
        ctx.mark_non_differentiable(rows.index)
        # One output a statistic: autograd would stack and unstack a matrix of them op by op.
        return *rows.values.unbind(0), rows.index

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        rows = core.Statistics(*ctx.saved_tensors)
        with _no_autocast(rows.values.device.type):
            gx, gy = ctx.call.backward(rows, ctx.cols, torch.stack(grads[:-1]), ctx.needs_input_grad[:2])
        return gx, gy, None, None, None, None, None, None, None


def _no_autocast(device: str):
    """The arithmetic type is ours to choose; an autocast region would turn the products into half precision."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


class _Nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return None


_NOTHING = _Nothing()

_ARGUMENTS = (
    "Tensor x, Tensor? y, Tensor labels, Tensor ref_labels, str key, str metric, float[] params, bool normalize, "
    "bool exclude_self, bool given, str backend"
)
_library = torch.library.Library("metric_kernels", "DEF")
_library.define(f"row_stats({_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    f"row_stats_backward(Tensor grads, Tensor values, Tensor index, {_ARGUMENTS}, bool want_x, bool want_y)"
    " -> (Tensor, Tensor)"
)


def _named(x, y, labels, ref_labels, key, metric, params, *options) -> _Call:
    """The call that the arguments of an operator spell."""
    *options, backend = options
    known, flat = formula(key), iter(params)
    op = Op(known, _METRICS[metric], tuple(tuple(next(flat) for _ in s.params) for s in known.stages))
    return _Call(x, y, labels, ref_labels, op, *options, backend or None)


@torch.library.impl(_library, "row_stats", "CompositeExplicitAutograd")
def _row_stats(x, *options):
    with _no_autocast(x.device.type):
        return tuple(_named(x, *options).forward(keep=False)[0])


@torch.library.impl(_library, "row_stats_backward", "CompositeExplicitAutograd")
def _row_stats_backward(grads, values, index, x, *options):
    *options, want_x, want_y = options
    with _no_autocast(x.device.type):
        rows = core.Statistics(values, index)
        gx, gy = _named(x, *options).backward(rows, None, grads, (want_x, want_y))
    return x.new_empty(0) if gx is None else gx, x.new_empty(0) if gy is None else gy


@torch.library.register_fake("metric_kernels::row_stats", lib=_library)
def _(x, y, labels, ref_labels, key, *options):
    known = formula(key)
    dtype = core.arithmetic(x.dtype if y is None else torch.promote_types(x.dtype, y.dtype))
    values = x.new_empty(len(known.stats), x.shape[0], dtype=dtype)
    return values, x.new_empty(len(known.stats) if known.extremes else 0, x.shape[0], dtype=torch.int64)


@torch.library.register_fake("metric_kernels::row_stats_backward", lib=_library)
def _(grads, values, index, x, y, *options):
    *_, want_x, want_y = options
    gx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_x else x.new_empty(0)
    has_y = want_y and y is not None
    return gx, torch.empty_like(y, memory_format=torch.contiguous_format) if has_y else x.new_empty(0)


def _setup_context(ctx, inputs, output):
    x, y, labels, ref_labels, *ctx.options = inputs
    ctx.save_for_backward(x, y, labels, ref_labels, *output)


def _derivative(ctx, grads, _):
    x, y, labels, ref_labels, values, index = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    gx, gy = torch.ops.metric_kernels.row_stats_backward(
        grads, values, index, x, y, labels, ref_labels, *ctx.options, *wanted
    )
    return gx if wanted[0] else None, gy if wanted[1] else None, *([None] * (2 + len(ctx.options)))


torch.library.register_autograd("metric_kernels::row_stats", _derivative, setup_context=_setup_context, lib=_library)
