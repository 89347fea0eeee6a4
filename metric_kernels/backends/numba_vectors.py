"""The kernels of :mod:`metric_kernels.vectors` in Numba; the arguments are described there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metric_kernels.backends import numba_measures as measures
from metric_kernels.backends import numba_vector_kernels as kernels
from metric_kernels.backends.numba_measures import order
from metric_kernels.backends.numba_terms import DTYPES, launch


def distances(kind: str, p: float, x: Tensor, y: Tensor, out: Tensor):
    of, largest = (measures.measure(*which, DTYPES[x.dtype]) for which in ((kind, order(p)), ("lp", math.inf)))
    functions = {"term": of.term, "join": of.join, "finish": of.finish}
    kernel = kernels.distances
    if of.inverse is not None:
        kernel = kernels.scaled_distances
        functions.update(difference=largest.term, larger=largest.join, inverse=of.inverse)
    arrays = {"x": x.contiguous(), "yt": y.t().contiguous(), "out": out}
    _launch(kernel, (p,), len(x), x.shape[1] * len(y), arrays, ("part", "scale"), functions)


def distance_grads(kind: str, p: float, x: Tensor, y: Tensor, d: Tensor, g: Tensor, out: Tensor):
    of = measures.measure(kind, order(p), DTYPES[x.dtype])
    arrays = {"x": x.contiguous(), "y": y.contiguous(), "d": d.contiguous(), "g": g.contiguous(), "out": out}
    functions = {"pair": of.pair, "slope": of.slope}
    _launch(kernels.distance_grads, (p,), len(x), y.numel(), arrays, ("part",), functions)


def triplet_losses(
    p: float,
    margin: float,
    eps: float,
    swap: bool,
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distances: Tensor,
    losses: Tensor,
):
    arrays = {**_points(anchor, positive, negative), "distances": distances, "losses": losses}
    functions = {"length": measures.length(order(p), DTYPES[anchor.dtype])}
    _launch(kernels.triplet_losses, (p, margin, eps), *anchor.shape, arrays, (), functions)


def triplet_grads(
    p: float,
    margin: float,
    eps: float,
    swap: bool,
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distances: Tensor,
    g: Tensor,
    grads: Sequence[Tensor | None],
):
    dtype = DTYPES[anchor.dtype]
    arrays = {**_points(anchor, positive, negative), "distances": distances, "g": g.contiguous()}
    for k, grad in enumerate(grads):
        arrays[f"grad{k}"] = torch.empty_like(arrays["anchor"]) if grad is None else grad
    functions = {"row_pair": measures.row_pair(order(p), dtype), "slope": measures.measure("lp", order(p), dtype).slope}
    _launch(kernels.triplet_grads, (p, margin, eps), *anchor.shape, arrays, (), functions)


def _points(anchor: Tensor, positive: Tensor, negative: Tensor) -> dict[str, Tensor]:
    return {"anchor": anchor.contiguous(), "positive": positive.contiguous(), "negative": negative.contiguous()}


def _launch(
    kernel: Callable,
    numbers: tuple[float, ...],
    rows: int,
    work: int,
    arrays: dict[str, Tensor],
    pieces: Sequence[str],
    functions: dict[str, Callable],
) -> None:
    """Calls a kernel on rows that take so much work each, with pieces of scratch for each thread."""
    like = next(iter(arrays.values()))
    scratch = dict.fromkeys(pieces, (kernels.WIDTH, like.dtype))
    launch(kernel, (rows, work), -1, {"numbers": like.new_tensor(numbers), **arrays}, scratch, **functions)
