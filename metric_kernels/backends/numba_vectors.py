"""The kernels of :mod:`metric_kernels.vectors` in Numba; the arguments are described there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metric_kernels.backends import numba as backend
from metric_kernels.backends import numba_vector_kernels as kernels

_TYPES = {torch.float32: np.float32, torch.float64: np.float64}


def distances(kind: str, p: float, x: Tensor, y: Tensor, out: Tensor):
    arrays = {"x": x.contiguous(), "yt": y.t().contiguous(), "out": out}
    _run("distances", kind, (p,), len(x), x.numel() * len(y), arrays, scratch=2)


def distance_grads(kind: str, p: float, x: Tensor, y: Tensor, d: Tensor, g: Tensor, out: Tensor):
    arrays = {"x": x.contiguous(), "y": y.contiguous(), "d": d.contiguous(), "g": g.contiguous(), "out": out}
    _run("distance_grads", kind, (p,), len(x), x.numel() * len(y), arrays, scratch=1)


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
    arrays = {**_triplets(anchor, positive, negative), "distances": distances, "losses": losses}
    _run("triplet_losses", "lp", (p, margin, eps), len(anchor), anchor.numel(), arrays)


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
    arrays = {**_triplets(anchor, positive, negative), "distances": distances, "g": g.contiguous()}
    for k, grad in enumerate(grads):
        arrays[f"grad{k}"] = torch.empty_like(anchor, memory_format=torch.contiguous_format) if grad is None else grad
    _run("triplet_grads", "lp", (p, margin, eps), len(anchor), anchor.numel(), arrays)


def _triplets(anchor: Tensor, positive: Tensor, negative: Tensor) -> dict[str, Tensor]:
    return {"anchor": anchor.contiguous(), "positive": positive.contiguous(), "negative": negative.contiguous()}


def _run(
    what: str, kind: str, numbers: tuple[float, ...], rows: int, work: int, arrays: dict[str, Tensor], scratch: int = 0
) -> None:
    """Calls a kernel on the rows of a result that takes ``work`` coordinates, with so many rows of scratch for each thread."""
    like = arrays[next(iter(arrays))]
    threads, share = backend.shared_out(rows, work // max(1, rows))
    order = f"{numbers[0]:g}" if numbers[0] in kernels.ORDERS else "p"
    given = {"numbers": like.new_tensor(numbers), **arrays}
    if scratch:
        given["scratch"] = like.new_empty(scratch * threads, kernels.WIDTH)
    entries = [backend.entry(name, array) for name, array in given.items()]
    table = np.array([(0, 0, share), (rows, 0, 0), *entries], np.int64)
    function = kernels.kernel(what, order if kind == "lp" else kind, _TYPES[like.dtype], len(given))
    backend.call(function, table.ctypes.data, threads)
