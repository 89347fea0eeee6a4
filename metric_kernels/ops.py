"""What the losses are made of as operations of their own, for losses that are not here yet.

Each is exact, far below cubic cost, keeps no more than the product matrix (see :func:`metric_kernels.set_workspace`), gives the
same bits on every run and has first derivatives. Sums and shares are float64, counts int64.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from metric_kernels import distances, rowstats
from metric_kernels.batch import Batch
from metric_kernels.binned import PairHistogram
from metric_kernels.checks import finite_number
from metric_kernels.language import Formula, stages_of
from metric_kernels.ordered import SHAPES, BatchAllTriplets, SemiHardTriplets
from metric_kernels.quadruplets import NEGATIVES, BatchAllQuadruplets, valid_quadruplets
from metric_kernels.terms import evaluate

__all__ = [
    "HingeSum",
    "PairHistograms",
    "batch_all_quadruplet",
    "batch_all_triplet",
    "pair_histogram",
    "row_stats",
    "semi_hard_triplet",
]


class HingeSum(NamedTuple):
    """Sum of a loss over tuples, the number of those where it is above 0, and the number of all."""

    loss: Tensor
    active: Tensor
    valid: Tensor


class PairHistograms(NamedTuple):
    """Histograms of the positive and of the negative pairs, each with the number of pairs as its sum."""

    positive: Tensor
    negative: Tensor


def batch_all_triplet(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.05,
    shape: str = "hinge",
    distance: object | None = None,
    backend: str | None = None,
) -> HingeSum:
    """For each anchor a, ``sum_{p in P(a), n in N(a)} f(d_ap - d_an + margin)`` over all its triplets.

    f is ``[t]_+``, its square, or ``log(1 + e^t)``. The hinge takes O(B^2 log K) time for K positives an anchor, the others
    O(B^2 K); neither lists triplets. With a similarity the difference changes sign.

    Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017.

    Args:
        embeddings: (B, D), any floating type.
        labels: (B,), integer.
        ref_emb: (R, D), the other side of every pair; the batch itself, without the pairs (i, i), by default.
        ref_labels: (R,), its labels.
        margin: added to the difference of distances.
        shape: "hinge", "squared_hinge" or "softplus".
        distance: as for a loss; LpDistance() by default.
        backend: as for a loss.
    Returns:
        :class:`HingeSum` of (B,) tensors; 0 for an anchor without positives or without negatives.
    Raises:
        ValueError, TypeError: an argument of a wrong shape, type or name.

    Example:
        >>> import torch
        >>> from metric_kernels import ops
        >>> found = ops.batch_all_triplet(torch.eye(4), torch.tensor([0, 0, 1, 1]), margin=0.5)
        >>> found.loss.sum() / found.active.sum()
        tensor(0.5000, dtype=torch.float64)
    """
    _one_of("shape", shape, SHAPES)
    batch, distance = Batch(embeddings, labels, None, ref_emb, ref_labels), _distance(distance)
    term = BatchAllTriplets(shape, distance.sign, 0.0, torch.inf, (_number("margin", margin),))
    loss, active = evaluate(term, batch, distance, backend)
    positives, negatives = batch.numbers()
    return HingeSum(loss[0], active[0], positives * negatives)


def semi_hard_triplet(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    shape: str = "hinge",
    distance: object | None = None,
    backend: str | None = None,
) -> HingeSum:
    """For each anchor a, ``sum_{p in P(a)} f(d_ap - d_an + margin)`` with one negative n for each positive p.

    n is the nearest negative beyond p, ``d_an > d_ap``, or else the farthest negative; the first of equals. The choice has no
    gradient. With a similarity the order and the difference are reversed.

    Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015.

    Args:
        embeddings: (B, D), any floating type.
        labels: (B,), integer.
        ref_emb: (R, D), the other side of every pair; the batch itself, without the pairs (i, i), by default.
        ref_labels: (R,), its labels.
        margin: added to the difference of distances.
        shape: "hinge", "squared_hinge" or "softplus".
        distance: as for a loss; LpDistance() by default.
        backend: as for a loss.
    Returns:
        :class:`HingeSum` of (B,) tensors; 0 for an anchor without positives or without negatives.
    Raises:
        ValueError, TypeError: an argument of a wrong shape, type or name.

    Example:
        >>> import torch
        >>> from metric_kernels import ops
        >>> ops.semi_hard_triplet(torch.eye(4), torch.tensor([0, 0, 1, 1]), margin=0.5).loss
        tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
    """
    _one_of("shape", shape, SHAPES)
    batch, distance = Batch(embeddings, labels, None, ref_emb, ref_labels), _distance(distance)
    loss, active = evaluate(
        SemiHardTriplets(shape, distance.sign, 0.0, torch.inf, _number("margin", margin)), batch, distance, backend
    )
    positives, negatives = batch.numbers()
    return HingeSum(loss[0], active[0], torch.where(negatives > 0, positives, 0))


def batch_all_quadruplet(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.2,
    negatives: str = "disjoint",
    distance: object | None = None,
    backend: str | None = None,
) -> HingeSum:
    """``sum_{(i,j), (k,l)} [d_ij - d_kl + margin]_+`` over unordered positive pairs (i, j) and unordered negative pairs (k, l).

    Exact in O(B^2 log B) time: the negative pairs are ranked among the sorted positive pairs. With a similarity the difference
    changes sign.

    Chen et al., "Beyond Triplet Loss: A Deep Quadruplet Network for Person Re-identification", CVPR 2017, has "other_class".

    Args:
        embeddings: (B, D), any floating type.
        labels: (B,), integer.
        margin: added to the difference of distances.
        negatives: "all"; "disjoint", those that share no point with the positive pair; or "other_class", those with no point of
            its class.
        distance: as for a loss, symmetric; LpDistance() by default.
        backend: as for a loss.
    Returns:
        :class:`HingeSum` of scalars; 0 if there is no quadruplet.
    Raises:
        ValueError, TypeError: an argument of a wrong shape, type or name.

    Example:
        >>> import torch
        >>> from metric_kernels import ops
        >>> ops.batch_all_quadruplet(torch.eye(6), torch.arange(6) // 2, margin=0.5, negatives="other_class").active
        tensor(12)
    """
    _one_of("negatives", negatives, NEGATIVES)
    batch, distance = Batch(embeddings, labels, None, None, None), _distance(distance)
    distance.check_symmetric("batch_all_quadruplet")
    loss, active = evaluate(BatchAllQuadruplets(distance.sign, _number("margin", margin), negatives), batch, distance, backend)
    return HingeSum(loss[0], active[0], valid_quadruplets(batch.labels, negatives))


def pair_histogram(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    low: float = -1.0,
    high: float = 1.0,
    bins: int = 100,
    per_anchor: bool = False,
    distance: object | None = None,
    backend: str | None = None,
) -> PairHistograms:
    """Soft histograms of pair values on the nodes ``low, low + step, ... high``, ``step = (high - low) / bins``.

    A value shares itself linearly between its two nearest nodes; one beyond the nodes counts as the last of its side, without
    a gradient. Both (i, j) and (j, i) count. Shares are added as integers, in any order to the same result.

    Ustinova and Lempitsky, "Learning Deep Embeddings with Histogram Loss", NeurIPS 2016.

    Args:
        embeddings: (B, D), any floating type.
        labels: (B,), integer.
        ref_emb: (R, D), the other side of every pair; the batch itself, without the pairs (i, i), by default.
        ref_labels: (R,), its labels.
        low: first node.
        high: last node.
        bins: number of intervals, 1 or more.
        per_anchor: one histogram for each anchor instead of one for all.
        distance: as for a loss; CosineSimilarity() by default.
        backend: as for a loss.
    Returns:
        :class:`PairHistograms` of (bins + 1,) or (B, bins + 1) tensors.
        NaN where a value that is not finite would have to be counted.
    Raises:
        ValueError, TypeError: an argument of a wrong shape, type or range.

    Example:
        >>> import torch
        >>> from metric_kernels import ops
        >>> ops.pair_histogram(torch.eye(3), torch.tensor([0, 0, 1]), bins=4).negative
        tensor([0., 0., 4., 0., 0.], dtype=torch.float64)
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins < 1 << 24:
        raise ValueError(f"bins: expected an integer from 1 to {(1 << 24) - 1}, got {bins!r}")
    low, high = _number("low", low), _number("high", high)
    if not low < high < torch.inf or low == -torch.inf:
        raise ValueError(f"low, high: expected finite numbers in order, got {low} and {high}")
    batch = Batch(embeddings, labels, None, ref_emb, ref_labels)
    distance = distances.CosineSimilarity() if distance is None else distances.adopt(distance)
    values, _ = evaluate(PairHistogram(low, (high - low) / bins, bins + 1, bool(per_anchor)), batch, distance, backend)
    positive, negative = values.unbind(1)
    return PairHistograms(positive, negative) if per_anchor else PairHistograms(positive[0], negative[0])


def row_stats(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    formula: type,
    params: dict[str, float] | None = None,
    distance: object | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """Sums, log-sum-exps, counts, maxima or minima of functions of the pair values, over positives or negatives of each row.

    ``T_ik = reduce_j f_k(v_ij)``: what the losses on pairs are made of, see :class:`metric_kernels.losses.PairLoss`. The matrix
    of pair values is never kept longer than it must (:func:`metric_kernels.set_workspace`).

    Args:
        embeddings: (B, D), any floating type.
        labels: (B,), integer.
        ref_emb: (R, D), the other side of every pair; the batch itself, without the pairs (i, i), by default.
        ref_labels: (R,), its labels.
        formula: a class with ``stats``, ``pair`` and ``dpair`` in the language of :mod:`metric_kernels.language`, or nested
            classes with these, one for each stage. It is compiled once.
        params: the value of every argument of ``pair`` that is neither the pair value nor an earlier statistic.
        distance: as for a loss; LpDistance() by default.
        backend: as for a loss; formulas that are not of this package run on all but "native".
    Returns:
        A tuple of (B,) tensors in the arithmetic type, float32 or float64, differentiable once. Over no pairs a sum or a count
        is 0, a log-sum-exp or a maximum -inf, a minimum inf.
    Raises:
        ValueError, TypeError: an argument of a wrong shape or type, a formula that is not one, or a missing parameter.

    Example:
        >>> import torch
        >>> from metric_kernels import ops
        >>> from metric_kernels.language import lse, total
        >>> class Energies:
        ...     stats = (total("pos"), lse("neg"))
        ...     def pair(v, scale):
        ...         return v, -scale * v
        ...     def dpair(v, scale):
        ...         return 1.0, -scale
        >>> x, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> ops.row_stats(x, labels, formula=Energies, params={"scale": 2.0}, backend="reference")
        (tensor([1.4142, 1.4142, 1.4142, 1.4142]), tensor([-2.1353, -2.1353, -2.1353, -2.1353]))
    """
    batch, distance, known = Batch(embeddings, labels, None, ref_emb, ref_labels), _distance(distance), _formula(formula)
    params = params or {}
    if missing := [name for stage in known.stages for name in stage.params if name not in params]:
        raise ValueError(f"params: expected a number for each of {', '.join(missing)}, got {sorted(params)}")
    if known.two_sided and not batch.same:
        distance.check_symmetric(f"{known.key} with a reference set")
    numbers = tuple(tuple(_number(f"params[{name!r}]", params[name]) for name in stage.params) for stage in known.stages)
    return rowstats.row_stats(rowstats.Call.of(known, numbers, distance, batch, backend))[0]


def _formula(owner: type) -> Formula:
    if not isinstance(owner, type):
        raise TypeError(f"formula: expected a class, got {type(owner).__name__}")
    if isinstance(getattr(owner, "formula", None), Formula):
        return owner.formula
    return _made(owner)


@functools.cache
def _made(owner: type) -> Formula:
    if not (stages := stages_of(owner)):
        raise TypeError(f"formula: expected a class with stats, pair and dpair, got {owner.__qualname__}")
    return Formula(f"{owner.__module__}.{owner.__qualname__}", stages)


def _number(name: str, value: object) -> float:
    try:
        return finite_number(name, value)
    except TypeError:
        raise TypeError(f"{name}: expected a number, got {value!r}") from None


def _distance(distance: object | None) -> distances.Distance:
    return distances.LpDistance() if distance is None else distances.adopt(distance)


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
