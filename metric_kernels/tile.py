"""What a backend is given: some rows of the product matrix and what is known of their points.

Every backend has the same three methods besides ``name`` and ``supports(op, device, dtype) -> None | reason``. Statistics
are rows of (K, n) tensors, K counted over all stages of the op; ``rows`` belongs to the rows of the tile and ``cols`` to its
columns.

``stats(op, stages, tile, values, cols, index, scale)``
    writes the statistics of some stages, in order, to their rows of ``values`` (K, m), to those of ``index`` the columns of
    extremes, and to those of ``scale`` the scales of log-sum-exps. Stages read those before them: of the anchor from
    ``values``, of the other point from ``cols`` (K, n), which is ``values`` if the tile is the whole matrix of a batch with
    itself. A value is rounded, and a pair's share exp(t - value) of its gradient is wrong by as much; its scale makes up for
    that: 1 / sum of exp(t - value), or 1 if the value is not finite.
``weights(op, tile, rows, cols, both, norm_grad)``
    overwrites the products with dL/ds_ij, from gradients that are multiplied by the scale already. With ``both``, j is an
    anchor too: the two sides hold the same points, or the statistics of the columns enter the loss; then dL/ds_ji is added.
    With ``tile.factors`` that is the gradient with respect to their product x_i . y_j, and goes to ``tile.weights``.
    The row's share of the gradient with respect to the squared norms goes to ``norm_grad`` (m,) unless that is None.
``input_grads(op, stage, tile, rows, cols, swapped) -> (inputs, m)``
    gradients with respect to the statistics that a stage reads: those of i, summed over j, or (``swapped``) those of j as
    the other point of i, again summed over j, so that nothing is ever accumulated across rows.

One that can make the products too has two more. It is given half precision as it is, in ``tile.factors``, and of tiles
without products makes them itself:

``multiplies(n, m, dim, dtype)``
    whether it would, of n and m points of so many coordinates.
``gradients(op, tile, rows, cols, out, norm_grad, there, back)``
    instead of weights: ``out`` (n, dim) is the gradient with respect to ``tile.factors.x``, of dL/ds_ij (``there``: i is the
    anchor) plus dL/ds_ji (``back``: j is), ``norm_grad`` as above. Either side may hold what only one of the two needs.

For small batches it may have two more, which torch does otherwise:

``epilogue(op, epilogue, values) -> (loss, dloss/dvalues)``
    the loss from the statistics.
``step(op, epilogue, tile, both, norm_grad) -> loss``
    all of the above for a tile that is the whole matrix, whose products are overwritten with dloss/ds_ij.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels.language import Op


class Factors(NamedTuple):
    """The points whose products s_ij = x_scale_i y_scale_j (x_i . y_j) are; scales are None where all are 1."""

    x: Tensor
    y: Tensor
    x_scale: Tensor | None
    y_scale: Tensor | None


class Tile(NamedTuple):
    """Rows ``row``, ``row + 1`` ... of the products s = z_i . z_j, with the points on both sides.

    ``diagonal`` is the column of row 0 that is the point itself and is no pair, or -1 when there is none. With ``factors``
    s holds their products, without the scales. A ``fused`` tile has factors and no products, and is the whole matrix.
    """

    s: Tensor
    labels: Tensor
    ref_labels: Tensor
    row: int
    diagonal: int
    p: Tensor
    q: Tensor
    eps: float
    factors: Factors | None = None

    @property
    def fused(self) -> bool:
        return self.s.ndim == 1  # a vector of none

    @property
    def weights(self) -> Tensor:
        """The memory of the products in the type of the weights that overwrite them."""
        return self.s if self.factors is None else overwritten(self.s, weight_type(self.factors.y.dtype))


def weight_type(points: torch.dtype) -> torch.dtype:
    """The type of the weights that multiply points of a type: float16 has not the range for them."""
    return torch.float32 if points == torch.float16 else points


def overwritten(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory of a matrix as that of one of a smaller type, in which each row begins where it did."""
    return matrix if matrix.dtype == dtype else matrix.view(dtype)[:, : matrix.shape[1]]


class Side(NamedTuple):
    """Statistics of the points of one side, the gradient of the loss with respect to each, and the columns of extremes."""

    values: Tensor
    grads: Tensor
    index: Tensor

    def at(self, rows: slice) -> Side:
        """The part that belongs to the rows of a tile."""
        if rows.start == 0 and rows.stop == self.values.shape[1]:
            return self
        return Side(self.values[:, rows], self.grads[:, rows], self.index[:, rows])


class Epilogue(NamedTuple):
    """How statistics become a number: the parameters of ``row`` (see PairLoss), (low, high, mean) for each sub-loss, where
    the losses in between are averaged or summed, and the statistic that some anchor must have.
    """

    params: tuple[float, ...]
    windows: tuple[tuple[float, float, bool], ...]
    required: int | None


def finite(values: Tensor) -> Tensor:
    """Statistics as formulas read them: an empty log-sum-exp is the lowest number, so that differences stay defined."""
    return values.clamp(min=torch.finfo(values.dtype).min)


class StageByStage:
    """``stats`` for a backend that has ``stage_stats(op, stage, tile, rows, cols, out, index, scale)``: one stage at a time,
    given the statistics of the stages before.
    """

    def stats(self, op: Op, stages: Sequence[int], tile: Tile, values: Tensor, cols: Tensor, index: Tensor, scale: Tensor):
        for number in stages:
            stage, first = op.formula.stages[number], op.formula.first[number]
            out = slice(first, first + len(stage.stats))
            before = finite(values[:first]) if stage.rows else values[:0]
            others = finite(cols[:first]) if stage.cols else cols[:0]
            self.stage_stats(op, number, tile, before, others, values[out], index[out], scale[out])
