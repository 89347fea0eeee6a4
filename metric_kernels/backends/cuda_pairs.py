"""The kernels of :mod:`metric_kernels.positive_pairs` in CUDA C++; the arguments are described there."""

from __future__ import annotations

import torch
from torch import Tensor

from metric_kernels.backends.cuda import call, gradient, integers, on_tile, sums, vector
from metric_kernels.positive_pairs import Places, Segments
from metric_kernels.terms import ValueTile


def values(tile: ValueTile, sign: float, places: Places, rows: slice, out: Tensor):
    on_tile("positive_values", tile, sign, _pairs(places, rows, tile), vector("out", out, len(out), tile.v))


def sorted(values: Tensor, total: Tensor) -> Tensor:
    room = len(values)
    ordered, other = torch.empty_like(values), torch.empty_like(values)
    given, written, spare = (
        vector(n, t, room, values) for n, t in (("values", values), ("ordered", ordered), ("other", other))
    )
    call("sort", values, given, integers("total", total, 1, values), room, written, spare)
    return ordered


def ranks(tile: ValueTile, sign: float, segments: Segments, margin: float, totals: Tensor, counts: Tensor, below: Tensor):
    numbers = integers("below", below, len(segments.values), tile.v)
    on_tile("segment_ranks", tile, sign, _segments(segments, tile), margin, *sums(totals, counts, tile), numbers)


def rank_grads(tile: ValueTile, sign: float, segments: Segments, margin: float, scale: Tensor, g: Tensor):
    on_tile("segment_rank_grads", tile, sign, _segments(segments, tile), margin, *gradient(scale, g, tile))


def grads(
    tile: ValueTile,
    sign: float,
    places: Places,
    rows: slice,
    values: Tensor,
    ordered: Tensor,
    total: Tensor,
    below: Tensor,
    own_below: Tensor | None,
    scale: Tensor,
    g: Tensor,
):
    room = len(values)
    lists = vector("values", values, room, tile.v), vector("ordered", ordered, room, tile.v)
    numbers = (
        integers("total", total, 1, tile.v),
        *(integers(n, t, room, tile.v) for n, t in (("below", below), ("own_below", own_below))),
    )
    on_tile("positive_grads", tile, sign, _pairs(places, rows, tile), *lists, *numbers, *gradient(scale, g, tile))


def _pairs(places: Places, rows: slice, tile: ValueTile) -> tuple:
    m, n = tile.v.shape
    of_rows = (integers(name, getattr(places, name)[rows], m, tile.v) for name in ("place", "first", "number"))
    return integers("order", places.order, n, tile.v), *of_rows


def _segments(segments: Segments, tile: ValueTile) -> tuple:
    values = vector("values", segments.values, len(segments.values), tile.v)
    of_rows = (integers(name, getattr(segments, name), len(tile.v), tile.v) for name in ("first", "number"))
    return values, *of_rows, segments.sorted
