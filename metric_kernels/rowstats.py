"""Row statistics as an operation of PyTorch: an autograd.Function in eager mode, library operators under torch.compile.

The Function keeps the product matrix between forward and backward if it fits the workspace; the operators, which may not
overwrite what they are given, always compute it again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels import backends, core
from metric_kernels.caller import Caller, as_called
from metric_kernels.language import Formula, Op, formula
from metric_kernels.metrics import METRICS, Dot
from metric_kernels.once import once
from metric_kernels.tile import Epilogue

_METRICS = {m.__name__: m for m in METRICS}


class Call(NamedTuple):
    """A request for the statistics of every row of x (N, D) against y (M, D), or against x if y is None.

    ``exclude_self`` removes the pairs (i, i). With ``given``, x is the matrix (N, M) of pair values itself,
    of a batch with itself if ``same``. ``known`` (N,) are the statistics of a first stage that is not evaluated then; they
    have no gradient. ``half`` is the type of embeddings that were widened.
    """

    op: Op
    x: Tensor
    y: Tensor | None
    labels: Tensor
    ref_labels: Tensor
    known: Tensor | None
    normalize: bool
    exclude_self: bool
    given: bool
    same: bool
    half: torch.dtype | None
    backend: str | None

    @classmethod
    def of(
        cls,
        formula: object,
        params: tuple,
        distance: object,
        batch: object,
        backend: str | None,
        known: Tensor | None = None,
    ) -> Call:
        """Of a formula or term, for the checked arguments of a loss; the matrix is built where a distance is no metric."""
        x, y = batch.x, None if batch.same else batch.y
        metric, normalize, given = distance.metric, distance.normalize_embeddings, distance.metric is None
        if given:
            with _vectors_by(backend):
                x, y, metric, normalize = pair_matrix(distance, x, batch.y), None, Dot, False
        op = Op(formula, metric, params)
        options = normalize, batch.exclude_self, given, batch.same, batch.half, backend
        return cls(op, x, y, batch.targets, batch.ref_labels, known, *options)

    def emptied(self) -> Call:
        """The call without its embeddings, which autograd keeps as long as they are needed."""
        return self._replace(x=None, y=None)

    @property
    def arithmetic(self) -> torch.dtype:
        x, y = self.x, self.y
        return core.arithmetic(x.dtype if y is None else torch.promote_types(x.dtype, y.dtype))

    def chosen(self) -> object:
        return backends.choose(self.op, self.x.device, self.arithmetic, self.backend)


def row_stats(call: Call) -> tuple[tuple[Tensor, ...], Tensor]:
    """Statistics (N,) each, and the columns of extremes (K, N). Differentiable once in x and y."""
    if torch.compiler.is_compiling():
        values, index, _ = torch.ops.metric_kernels.row_stats(*spelled(call))
        return values.unbind(0), index
    *values, index = _RowStats.apply(call.x, call.y, call)
    return tuple(values), index


def has_epilogue(call: Call) -> bool:
    """Whether the backend of a call can do the epilogue of its formula too."""
    return not torch.compiler.is_compiling() and hasattr(call.chosen(), "epilogue")


def row_loss(call: Call, epilogue: Epilogue) -> Tensor:
    """The loss as one operation, for small batches: torch would take as long for the epilogue as for the products."""
    return _RowLoss.apply(call.x, call.y, call, epilogue)


def _vectors_by(backend: str | None):
    """A backend that was asked for builds the matrix too, if it can."""
    able = backend is not None and hasattr(backends.load(backend), "vectors")
    return backends.use_backend(backend) if able else nullcontext()


def pair_matrix(distance: Callable, x: Tensor, y: Tensor) -> Tensor:
    """The matrix (N, M) of a distance that is no function of inner products, in the arithmetic type."""
    dtype = core.arithmetic(torch.promote_types(x.dtype, y.dtype))
    same = y is x
    with core.no_autocast(x.device.type):
        x = x.to(dtype)
        return distance.matrix(x, x if same else y.to(dtype))


class Run:
    """A call under way: the points, the problem, and the products as far as they are kept."""

    def __init__(self, call: Call):
        op, x, y, dtype = call.op, call.x, call.y, call.arithmetic
        self.problem = core.Problem(
            op, call.normalize, call.labels, call.ref_labels, call.exclude_self, call.chosen(), call.known
        )
        self.dtypes = x.dtype, x.dtype if y is None else y.dtype
        self.kept = None
        if call.given:
            self.kept = x.detach().to(dtype).contiguous()
            self.x = core.Points.counted(x.shape[0], self.kept)
            self.y = self.x if call.same else core.Points.counted(x.shape[1], self.kept)
        else:
            half = call.half if hasattr(self.problem.backend, "multiplies") else None
            self.x = core.Points(x, op.metric, call.normalize, dtype, half)
            self.y = self.x if y is None else core.Points(y, op.metric, call.normalize, dtype, half)
            self.problem = self.problem._replace(fused=core.fusible(self.problem, self.x, self.y))

    def step(self, epilogue: Epilogue) -> core.Step | None:
        n, m, z = len(self.x.z), len(self.y.z), self.x.z
        return core.Step.of(self.problem, self.x, self.y, z.new_empty(n, m), epilogue) if core.fits(n, m, z.dtype) else None

    def forward(self, keep: bool) -> tuple[core.Statistics, core.Statistics | None]:
        n, m = len(self.x.z), len(self.y.z)
        if keep and self.kept is None and not self.problem.fused and core.fits(n, m, self.x.z.dtype):
            self.kept = self.x.z.new_empty(n, m)
        return core.forward(self.problem, self.x, self.y, self.kept)

    def backward(self, rows: core.Statistics, cols: core.Statistics | None, grads: Tensor, wanted: tuple[bool, bool]):
        kept = self.kept.clone() if self.x.given else self.kept  # overwritten, and a given matrix is the caller's
        return core.backward(self.problem, self.x, self.y, rows, cols, grads, kept, wanted, self.dtypes)


class _RowStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, call):
        with core.no_autocast(x.device.type):
            run = Run(call)
            rows, cols = run.forward(keep=any(ctx.needs_input_grad[:2]))
        ctx.call, ctx.held, ctx.caller = call.emptied(), (run, None if cols is rows else cols), Caller()
        ctx.save_for_backward(x, y, *rows)
        ctx.mark_non_differentiable(rows.index)
        # One output a statistic: autograd would stack and unstack a matrix of them op by op.
        return *rows.values.unbind(0), rows.index

    @staticmethod
    @as_called
    def backward(ctx, *grads):
        return *_pulled(ctx, torch.stack(grads[:-1]).detach()), None


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, call, epilogue):
        wanted = any(ctx.needs_input_grad[:2])
        ctx.call, ctx.epilogue, ctx.caller = call.emptied(), epilogue, Caller()
        with core.no_autocast(x.device.type):
            run = Run(call)
            step = run.step(epilogue) if wanted else None
            ctx.stepped = step is not None
            if ctx.stepped:
                ctx.held = run, step
                ctx.save_for_backward(x, y)
                return step.loss
            rows, cols = run.forward(keep=wanted)
        ctx.held = run, None if cols is rows else cols
        loss, grads = run.problem.backend.epilogue(call.op, epilogue, rows.values)
        ctx.save_for_backward(x, y, *rows, grads)
        return loss

    @staticmethod
    @as_called
    def backward(ctx, grad):
        if not ctx.stepped:
            return *_pulled(ctx, (ctx.saved_tensors[-1] * grad).detach()), None, None
        x, y = ctx.saved_tensors
        with torch.no_grad(), core.no_autocast(grad.device.type):
            run, step = _taken(ctx, x, y)
            step = run.step(ctx.epilogue) if step is None else step
            wanted = ctx.needs_input_grad[:2]
            if step is not None:
                gx, gy = step.backward(run.x, run.y, grad, wanted, run.dtypes)
            else:  # the workspace has become smaller since
                rows, cols = run.forward(keep=True)
                _, grads = run.problem.backend.epilogue(ctx.call.op, ctx.epilogue, rows.values)
                gx, gy = run.backward(rows, cols, grads * grad, wanted)
        return once(gx, x, y), once(gy, x, y), None, None


def _pulled(ctx, grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, y, values, index, scale, *_ = ctx.saved_tensors
    rows = core.Statistics(values, index, scale)
    with torch.no_grad(), core.no_autocast(grads.device.type):
        run, cols = _taken(ctx, x, y)
        gx, gy = run.backward(rows, cols, grads, ctx.needs_input_grad[:2])
    return once(gx, x, y), once(gy, x, y)


def _taken(ctx, x: Tensor, y: Tensor | None) -> tuple[Run, object]:
    """The run of the forward pass and what it holds; a loss that lives on does not, and a second backward begins again."""
    held, ctx.held = ctx.held, None
    return (Run(ctx.call._replace(x=x, y=y)), None) if held is None else held


# A call as the arguments of an operator.
ARGUMENTS = (
    "Tensor x, Tensor? y, Tensor labels, Tensor ref_labels, Tensor? known, str key, str metric, float[] params, "
    "bool normalize, bool exclude_self, bool given, bool same, ScalarType? half, str backend"
)
TENSORS = 5
library = torch.library.Library("metric_kernels", "DEF")
library.define(f"row_stats({ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
library.define(
    f"row_stats_backward(Tensor grads, Tensor values, Tensor index, Tensor scale, {ARGUMENTS}, bool want_x, bool want_y) "
    "-> (Tensor, Tensor)"
)


def spelled(call: Call) -> tuple:
    """A call as the arguments of an operator."""
    op, *tensors, normalize, exclude_self, given, same, half, backend = call
    flat = [p for stage in op.params for p in stage]
    options = normalize, exclude_self, given, same, half, backend or ""
    return *tensors, op.formula.key, op.metric.__name__, flat, *options


def called(make: Callable[[str, list[float]], tuple], x, y, labels, ref_labels, known, key, metric, params, *options) -> Call:
    """The call that the arguments of an operator spell; ``make`` gives the formula or term and the parameters of an op."""
    *options, backend = options
    _, _, given, _, _ = options
    points = {"labels": (labels, len(x)), "ref_labels": (ref_labels, x.shape[1] if given else len(x if y is None else y))}
    for name, (array, number) in points.items():
        if array.dtype != torch.int64 or array.shape != (number,) or not array.is_contiguous():
            expected = f"a contiguous int64 tensor of shape ({number},)"
            raise ValueError(f"{name}: expected {expected}, got {array.dtype} of shape {tuple(array.shape)}")
    formula, params = make(key, params)
    return Call(Op(formula, _METRICS[metric], params), x, y, labels, ref_labels, known, *options, backend or None)


def _formula(key: str, params: list[float]) -> tuple[Formula, tuple[tuple[float, ...], ...]]:
    found, flat = formula(key), iter(params)
    return found, tuple(tuple(next(flat) for _ in s.params) for s in found.stages)


@torch.library.impl(library, "row_stats", "CompositeExplicitAutograd")
def _row_stats(x, *options):
    with core.no_autocast(x.device.type):
        return tuple(Run(called(_formula, x, *options)).forward(keep=False)[0])


@torch.library.impl(library, "row_stats_backward", "CompositeExplicitAutograd")
def _row_stats_backward(grads, values, index, scale, x, *options):
    *options, want_x, want_y = options
    with core.no_autocast(x.device.type):
        rows = core.Statistics(values, index, scale)
        gx, gy = Run(called(_formula, x, *options)).backward(
            rows, None, grads.clone(memory_format=torch.contiguous_format), (want_x, want_y)
        )
    return x.new_empty(0) if gx is None else gx, x.new_empty(0) if gy is None else gy


@torch.library.register_fake("metric_kernels::row_stats", lib=library)
def _(x, y, labels, ref_labels, known, key, *options):
    of = formula(key)
    dtype = core.arithmetic(x.dtype if y is None else torch.promote_types(x.dtype, y.dtype))
    number, n = len(of.stats), x.shape[0]
    return (
        x.new_empty(number, n, dtype=dtype),
        x.new_empty(number if of.extremes else 0, n, dtype=torch.int64),
        x.new_empty(number if of.logarithms else 0, n, dtype=dtype),
    )


@torch.library.register_fake("metric_kernels::row_stats_backward", lib=library)
def _(grads, values, index, scale, x, y, *options):
    return fake_grads(x, y, *options[-2:])


def fake_grads(x: Tensor, y: Tensor | None, want_x: bool, want_y: bool) -> tuple[Tensor, Tensor]:
    """What a backward operator returns, empty where nothing is wanted."""
    gx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_x else x.new_empty(0)
    has_y = want_y and y is not None
    return gx, torch.empty_like(y, memory_format=torch.contiguous_format) if has_y else x.new_empty(0)


def setup_context(ctx, inputs, output):
    ctx.options = inputs[TENSORS:]
    ctx.save_for_backward(*inputs[:TENSORS], *output)


def input_grads(gx: Tensor, gy: Tensor, ctx) -> tuple:
    """What autograd wants of a backward operator."""
    wanted = ctx.needs_input_grad
    return gx if wanted[0] else None, gy if wanted[1] else None, *([None] * (len(wanted) - 2))


def _derivative(ctx, grads, *_):
    tensors, rows, wanted = ctx.saved_tensors[:TENSORS], ctx.saved_tensors[TENSORS:], ctx.needs_input_grad[:2]
    gx, gy = torch.ops.metric_kernels.row_stats_backward(grads, *rows, *tensors, *ctx.options, *wanted)
    return input_grads(gx, gy, ctx)


torch.library.register_autograd("metric_kernels::row_stats", _derivative, setup_context=setup_context, lib=library)
