"""The positive pairs i < j of a batch with itself, their values u as sorted lists, and how many negatives are below each.

There are two ways to hold them. A host that may read numbers lists the pairs; for a GPU, which nobody should wait for, they
stay where they are found, in arrays with room for as many as there can be. Both do the same: ``ranks`` and ``own_ranks`` are
the kernel ``ranks`` of :mod:`metric_kernels.ordered` with all positive pairs as the list of each row, or those of its class;
``rank_grads`` and ``own_rank_grads`` its gradients at the negatives; and ``grads`` those at the positives, which are half the
number of all negatives below, since each was seen from both its ends, without those of the class.

What a backend needs for the second way are the functions of ``kernels.pairs``:

``values(tile, sign, places, rows, out)``
    writes u of the positive pairs of the rows to their places in out.
``sorted(values, total)``
    the first total (1,) values sorted; what is behind them is not read.
``ranks(tile, sign, segments, margin, totals, counts, below)``, ``rank_grads(tile, sign, segments, margin, scale, g)``
    those of :mod:`metric_kernels.ordered` with a part of an array as the list of each row, see Segments.
``grads(tile, sign, places, rows, values, ordered, total, below, own_below, scale, g)``
    adds sign * scale_i * (below / 2 - own_below) to g_ij at the positive pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels.core import workspace
from metric_kernels.ordered import none_below, positive_columns
from metric_kernels.terms import Tiles, ValueTile


def positive_pairs(kernels: ModuleType) -> type[ListedPairs] | type[QueuedPairs]:
    """How a backend holds them."""
    return QueuedPairs if hasattr(kernels, "pairs") else ListedPairs


class ListedPairs(NamedTuple):
    """Pairs (P,), all values as one list (1, P), the place of each pair in it, and the lists of classes."""

    first: Tensor
    second: Tensor
    everywhere: Tensor
    rank: Tensor
    below: Tensor
    own: ListsByClass

    @classmethod
    def of(cls, kernels: ModuleType, tiles: Tiles, sign: float, by_class: bool) -> ListedPairs:
        found = []
        for tile in tiles:
            columns = positive_columns(tile)
            row, place = (
                (columns > torch.arange(tile.rows.start, tile.rows.stop, device=columns.device)[:, None])
                .logical_and(columns < tile.v.shape[1])
                .nonzero(as_tuple=True)
            )
            column = columns[row, place]
            found.append((row + tile.rows.start, column, sign * tile.v[row, column]))
        first, second, u = (torch.cat(parts) for parts in zip(*found))
        everywhere, order = u.sort()
        rank = torch.empty_like(order).index_put_((order,), torch.arange(len(order), device=order.device))
        own = ListsByClass.of(everywhere, rank, tiles.labels, first) if by_class else ListsByClass(rank[:0], rank[:0], ())
        return cls(first, second, everywhere[None], rank, none_below(everywhere), own)

    def tensors(self) -> tuple[Tensor, ...]:
        return *self[:-1], *self.own[:-1], *self.own.groups

    @classmethod
    def restored(cls, tensors: Sequence[Tensor]) -> ListedPairs:
        *pairs, place, below = tensors[:7]
        return cls(*pairs, ListsByClass(place, below, tuple(tensors[7:])))

    def ranks(self, kernels: ModuleType, tile: ValueTile, sign: float, margin: float, totals: Tensor, counts: Tensor) -> None:
        kernels.ranks(tile, sign, self.everywhere, _shared(tile), margin, totals, counts, self.below[None])

    def own_ranks(
        self, kernels: ModuleType, tile: ValueTile, sign: float, margin: float, totals: Tensor, counts: Tensor
    ) -> None:
        for rows, part, lists, which, below in self.own.parts(tile):
            sums, numbers = totals.new_zeros(len(which)), counts.new_zeros(len(which))
            kernels.ranks(part, sign, lists, which, margin, sums, numbers, below)
            totals.index_add_(0, rows, sums)
            counts.index_add_(0, rows, numbers)

    def rank_grads(self, kernels: ModuleType, tile: ValueTile, sign: float, margin: float, scale: Tensor, g: Tensor) -> None:
        kernels.rank_grads(tile, sign, self.everywhere, _shared(tile), margin, scale, g, None)

    def own_rank_grads(
        self, kernels: ModuleType, tile: ValueTile, sign: float, margin: float, scale: Tensor, g: Tensor
    ) -> None:
        for rows, part, lists, which, _ in self.own.parts(tile):
            share = torch.zeros_like(part.v)
            kernels.rank_grads(part, sign, lists, which, margin, scale[rows], share, None)
            g.index_add_(0, rows, share)

    def grads(self, kernels: ModuleType, tile: ValueTile, sign: float, scale: Tensor, g: Tensor) -> None:
        here = (self.first >= tile.rows.start) & (self.first < tile.rows.stop)
        active = 0.5 * self.below[self.rank[here]].double()
        if len(self.own.place):
            active -= self.own.below[self.own.place[here]]
        row = self.first[here] - tile.rows.start
        g.index_put_((row, self.second[here]), (sign * scale[row] * active).to(g.dtype), accumulate=True)


class ListsByClass(NamedTuple):
    """The values of the positive pairs of each class, sorted, -inf first.

    Classes of about the same number of pairs share a matrix of lists, so that all of them have at most twice as many places
    as there are pairs. ``groups`` are these matrices, and after each the list (N,) of every point, -1 where it is in another.
    ``place`` (P,) is that of each pair in all matrices one after another, and ``below`` the kernels' counts for these places.
    """

    place: Tensor
    below: Tensor
    groups: tuple[Tensor, ...]

    @classmethod
    def of(cls, u: Tensor, rank: Tensor, labels: Tensor, first: Tensor) -> ListsByClass:
        """Of sorted values, the place of each pair among them, and its first point."""
        different, classes = labels.unique(return_inverse=True)
        of_value = torch.empty_like(rank).index_put_((rank,), classes[first])
        number = of_value.bincount(minlength=len(different))
        grouped, order = of_value.sort(stable=True)
        within = torch.arange(len(u), device=u.device) - (number.cumsum(0) - number)[grouped]
        size = torch.where(number > 0, number.clamp(min=1).double().log2().long(), -1)
        groups, place, used = [], torch.empty_like(rank), 0
        for exponent in size.unique().tolist():
            if exponent < 0:
                continue
            members = (size == exponent).nonzero()[:, 0]
            index = torch.full_like(number, -1).index_put_((members,), torch.arange(len(members), device=u.device))
            length = int(number[members].max())
            lists = u.new_full((len(members), length), -torch.inf)
            here = index[grouped] >= 0
            at = (index[grouped] + 1) * length - number[grouped] + within
            lists.view(-1)[at[here]] = u[order[here]]
            place[order[here]] = used + at[here]
            used += lists.numel()
            groups += [lists, index[classes]]
        return cls(place[rank], torch.zeros(used, dtype=torch.int64, device=u.device), tuple(groups))

    def parts(self, tile: ValueTile) -> Iterator[tuple[Tensor, ValueTile, Tensor, Tensor, Tensor]]:
        """For each matrix, the rows of a tile that have a list there, a tile of them, the matrix, their lists, its counts."""
        used = 0
        for lists, of_point in zip(self.groups[::2], self.groups[1::2]):
            which = of_point[tile.rows]
            rows = (which >= 0).nonzero()[:, 0]
            below = self.below[used : used + lists.numel()].view(lists.shape)
            used += lists.numel()
            if len(rows) == len(which):
                yield rows, tile, lists, which, below
            elif len(rows):
                part = tile._replace(v=tile.v[rows], labels=tile.labels[rows], diagonal=-1)
                yield rows, part, lists, which[rows], below


class Places(NamedTuple):
    """Where the pairs of each point i are in an array of all, class by class; all (N,), but for the number of pairs (1,).

    Those with i as the first point are ``number`` from ``first`` on, and the others are the points after ``place`` in the
    ``order`` of labels. Those of its class are ``of_class`` from ``class_first`` on.
    """

    order: Tensor
    place: Tensor
    first: Tensor
    number: Tensor
    class_first: Tensor
    of_class: Tensor
    total: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> Places:
        by_label, order = labels.sort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        begin, end = torch.searchsorted(by_label, labels), torch.searchsorted(by_label, labels, right=True)
        number, size = end - place - 1, end - begin
        in_order = number[order]
        first = in_order.cumsum(0) - in_order
        return cls(order, place, first[place], number, first[begin], size * (size - 1) // 2, in_order.sum()[None])


class Segments(NamedTuple):
    """The list of row i is values[first[i] : first[i] + number[i]], which may be ``sorted``."""

    values: Tensor
    first: Tensor
    number: Tensor
    sorted: bool


class QueuedPairs(NamedTuple):
    """Values class by class, and sorted, and the numbers of negatives below: of the sorted ones, and of those by class.

    There is room for the pairs of a batch of a single class, if that fits the workspace; else the host asks for their number.
    """

    values: Tensor
    ordered: Tensor
    below: Tensor
    own_below: Tensor
    places: Places

    @classmethod
    def of(cls, kernels: ModuleType, tiles: Tiles, sign: float, by_class: bool) -> QueuedPairs:
        places, like = Places.of(tiles.labels), tiles.sweep.x.z
        n = len(tiles.labels)
        room = n * (n - 1) // 2
        # Values thrice, since sorting takes a copy, and numbers.
        if room * (3 * like.element_size() + 8 * (1 + by_class)) > workspace():
            room = int(places.total)
        values = like.new_empty(room)
        for tile in tiles:
            kernels.pairs.values(tile, sign, places, tile.rows, values)
        numbers = [torch.zeros(size, dtype=torch.int64, device=like.device) for size in (room, room if by_class else 0)]
        return cls(values, kernels.pairs.sorted(values, places.total), *numbers, places)

    def tensors(self) -> tuple[Tensor, ...]:
        return *self[:-1], *self.places

    @classmethod
    def restored(cls, tensors: Sequence[Tensor]) -> QueuedPairs:
        return cls(*tensors[:4], Places(*tensors[4:]))

    def ranks(self, kernels: ModuleType, tile: ValueTile, sign: float, margin: float, totals: Tensor, counts: Tensor) -> None:
        kernels.pairs.ranks(tile, sign, self._everywhere(tile), margin, totals, counts, self.below)

    def own_ranks(
        self, kernels: ModuleType, tile: ValueTile, sign: float, margin: float, totals: Tensor, counts: Tensor
    ) -> None:
        kernels.pairs.ranks(tile, sign, self._of_class(tile), margin, totals, counts, self.own_below)

    def rank_grads(self, kernels: ModuleType, tile: ValueTile, sign: float, margin: float, scale: Tensor, g: Tensor) -> None:
        kernels.pairs.rank_grads(tile, sign, self._everywhere(tile), margin, scale, g)

    def own_rank_grads(
        self, kernels: ModuleType, tile: ValueTile, sign: float, margin: float, scale: Tensor, g: Tensor
    ) -> None:
        kernels.pairs.rank_grads(tile, sign, self._of_class(tile), margin, scale, g)

    def grads(self, kernels: ModuleType, tile: ValueTile, sign: float, scale: Tensor, g: Tensor) -> None:
        numbers = self.below, self.own_below if len(self.own_below) else None
        lists = self.values, self.ordered, self.places.total
        kernels.pairs.grads(tile, sign, self.places, tile.rows, *lists, *numbers, scale, g)

    def _everywhere(self, tile: ValueTile) -> Segments:
        return Segments(self.ordered, _shared(tile), self.places.total.expand(len(tile.v)).contiguous(), True)

    def _of_class(self, tile: ValueTile) -> Segments:
        return Segments(self.values, self.places.class_first[tile.rows], self.places.of_class[tile.rows], False)


def _shared(tile: ValueTile) -> Tensor:
    """The same list, or the same beginning, for each row."""
    return torch.zeros(len(tile.v), dtype=torch.int64, device=tile.v.device)
