"""Distances and similarities, named and configured as in pytorch-metric-learning.

A distance either is a metric of :mod:`metric_kernels.metrics`, and then the fused kernels work on inner products, or it
supplies the whole matrix by :meth:`Distance.matrix`, and the kernels work on that. A matrix of distances that are no function
of inner products comes from kernels of its own, in :mod:`metric_kernels.vectors`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from metric_kernels import metrics
from metric_kernels.core import arithmetic, no_autocast
from metric_kernels.pairwise import gram_matrix
from metric_kernels.vectors import JensenShannonRows, distance_matrix

__all__ = [
    "CosineSimilarity",
    "Distance",
    "DotProductSimilarity",
    "JensenShannonDistance",
    "LpDistance",
    "SNRDistance",
    "adopt",
    "pairwise_distance",
]


class Distance(torch.nn.Module):
    """Base of all distances.

    Args:
        normalize_embeddings: divide each embedding by its p-norm (at least 1e-12) first.
        p: order of the norm and of the distance.
        power: exponent applied to the distance.
        is_inverted: whether large values mean similar.
    """

    def __init__(self, normalize_embeddings: bool = True, p: float = 2, power: float = 1, is_inverted: bool = False):
        super().__init__()
        self.normalize_embeddings = normalize_embeddings
        self.p = p
        self.power = power
        self.is_inverted = is_inverted

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if hooks := {"compute_mat", "pairwise_distance"}.intersection(cls.__dict__):
            raise TypeError(
                f"{cls.__qualname__}: expected matrix and rowwise, got {min(hooks)}; "
                "with that, subclass pytorch_metric_learning.distances.BaseDistance, which is accepted too"
            )
        if "metric" not in cls.__dict__ and cls.__dict__.keys() & {"matrix", "normalized"}:
            cls.metric = Distance.metric

    @property
    def symmetric(self) -> bool:
        """Whether the value of (i, j) is that of (j, i). A distance of one's own has to say so."""
        if self.metric is not None:
            return self.metric.symmetric
        return any(self.is_a(kind) for kind in (LpDistance, DotProductSimilarity, CosineSimilarity))

    def check_symmetric(self, of: str = "the call") -> None:
        """Raises unless symmetric."""
        if not self.symmetric:
            raise ValueError(
                f"distance: {of} expects a symmetric one, such as CosineSimilarity() or LpDistance(), got {type(self).__name__}"
            )

    @property
    def sign(self) -> float:
        """+1 for a distance, -1 for a similarity: ``sign * v`` grows with dissimilarity."""
        return -1.0 if self.is_inverted else 1.0

    def is_a(self, kind: type[Distance]) -> bool:
        """Whether this is a distance of that kind, or one of pytorch-metric-learning's of that name."""
        return isinstance(self, kind)

    @property
    def metric(self) -> type[metrics.Metric] | None:
        """The function of inner products that this distance is, or None."""
        return None

    def margin(self, x, y):
        """x - y for a distance, y - x for a similarity."""
        return y - x if self.is_inverted else x - y

    def normalized(self, x: Tensor) -> Tensor:
        return F.normalize(x, p=self.p, dim=1) if self.normalize_embeddings else x

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        """Matrix (N, M) of values between the rows of query_emb (N, D) and of ref_emb (M, D), by default query_emb."""
        return self.matrix(query_emb, query_emb if ref_emb is None else ref_emb)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no matrix form")

    def rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        """Values (N,) between corresponding rows of x and y, both (N, D)."""
        raise NotImplementedError(f"{type(self).__name__} has no rowwise form")

    def extra_repr(self) -> str:
        return f"normalize_embeddings={self.normalize_embeddings}, p={self.p}, power={self.power}"


class LpDistance(Distance):
    """``||x_i - y_j||_p ** power``, on normalised embeddings unless ``normalize_embeddings=False``.

    p = 2 with power 1 or 2 runs on inner products; at distances below the rounding error of that form, value and
    gradient are 0. Other p > 0, with inf for the largest difference, build the matrix from differences. A gradient is 0 between
    coincident points and, for any p, at coincident coordinates; for p = inf each of several equal largest differences has the
    whole gradient, as in torch.cdist.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if self.is_inverted:
            raise AssertionError("is_inverted: expected False for LpDistance, got True")

    @property
    def metric(self):
        if self.p != 2:
            return None
        return {1: metrics.Euclidean, 2: metrics.SquaredEuclidean}.get(self.power)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        if self.p == 2:
            squared = self.power == 2
            metric = metrics.SquaredEuclidean if squared else metrics.Euclidean
            mat = gram_matrix(x, None if y is x else y, metric, self.normalize_embeddings)
            return mat if squared else _power(mat, self.power)
        return _of_differences(self, x, y, "lp")

    def rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        return _power(torch.linalg.vector_norm(self.normalized(x) - self.normalized(y), ord=self.p, dim=1), self.power)


def _of_differences(distance: Distance, x: Tensor, y: Tensor, kind: str) -> Tensor:
    """The matrix of a distance that is no function of inner products."""
    dtype = arithmetic(torch.promote_types(x.dtype, y.dtype))
    with no_autocast(x.device.type):
        rows = distance.normalized(x.to(dtype))
        cols = None if y is x else distance.normalized(y.to(dtype))
        return _power(distance_matrix(rows, cols, kind, distance.p), distance.power).to(x.dtype)


def _power(d: Tensor, power: float) -> Tensor:
    """d ** power, with gradient 0 at d = 0, where that of a root is infinite."""
    if power >= 1:
        return d if power == 1 else d**power
    zero = d == 0
    return torch.where(zero, d, torch.where(zero, 1.0, d) ** power)


class DotProductSimilarity(Distance):
    """``x_i . y_j``, on normalised embeddings unless ``normalize_embeddings=False`` (as in pytorch-metric-learning)."""

    def __init__(self, **kwargs) -> None:
        super().__init__(is_inverted=True, **kwargs)

    @property
    def metric(self):
        return metrics.Dot if self.power == 1 and (self.p == 2 or not self.normalize_embeddings) else None

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        if self.metric is None:
            mat = gram_matrix(self.normalized(x), None if y is x else self.normalized(y), metrics.Dot, False)
            return mat**self.power
        return gram_matrix(x, None if y is x else y, metrics.Dot, self.normalize_embeddings)

    def rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.normalized(x) * self.normalized(y)).sum(1) ** self.power


class CosineSimilarity(DotProductSimilarity):
    """``x_i . y_j / (||x_i|| ||y_j||)``."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if not self.normalize_embeddings:
            raise AssertionError("normalize_embeddings: expected True for CosineSimilarity, got False")


class SNRDistance(Distance):
    """``var(x_i - y_j) / var(x_i)`` over the features: the signal-to-noise ratio (Yuan et al. 2019), not symmetric."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        if self.is_inverted:
            raise AssertionError("is_inverted: expected False for SNRDistance, got True")

    @property
    def metric(self):
        return metrics.SNR if self.power == 1 and (self.p == 2 or not self.normalize_embeddings) else None

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        mat = gram_matrix(self.normalized(x), None if y is x else self.normalized(y), metrics.SNR, False)
        return mat**self.power

    def rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.normalized(x), self.normalized(y)
        centred = x - x.mean(1, keepdim=True)
        difference = x - y
        noise = (difference - difference.mean(1, keepdim=True)).square().sum(1)
        variance = centred.square().sum(1)
        ratio = torch.where(variance > 0, noise, 0.0) / torch.where(variance > 0, variance, 1.0)
        return ratio**self.power


class JensenShannonDistance(Distance):
    """``sqrt(1/2 sum_k (p_k log(p_k / m_k) + q_k log(q_k / m_k))) ** power``, m = (p + q) / 2, of non-negative rows.

    Rows are divided by their sums to become the distributions p and q. With the natural logarithm and 0 log 0 = 0 the distance
    is at most sqrt(log 2), that of scipy.spatial.distance.jensenshannon. A negative entry counts as NaN, and a row of zeros as
    no distribution but zeros. The gradient is 0 between equal rows, and at an entry of 0, where the logarithm has none.

    Endres and Schindelin, "A new metric for probability distributions", 2003.

    Args:
        normalize_embeddings: divide each row by its sum (at least 1e-12) first; otherwise the formula takes them as they are.
        power: exponent applied to the distance; 2 makes it the divergence.

    Example:
        >>> import torch
        >>> from metric_kernels.distances import JensenShannonDistance
        >>> JensenShannonDistance()(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [2.0, 2.0]]))
        tensor([[0.8326, 0.4645]])
    """

    def __init__(self, normalize_embeddings: bool = True, power: float = 1):
        super().__init__(normalize_embeddings, p=1, power=power)

    def normalized(self, x: Tensor) -> Tensor:
        return super().normalized(torch.where(x < 0, torch.nan, x))

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        return _of_differences(self, x, y, "jensen_shannon")

    def rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        return _power(JensenShannonRows.apply(self.normalized(x), self.normalized(y)), self.power)


class _Foreign(Distance):
    """Any object with the interface of a pytorch-metric-learning distance: it builds the matrix itself."""

    def __init__(self, inner):
        super().__init__(inner.normalize_embeddings, inner.p, inner.power, inner.is_inverted)
        self.inner = inner

    @property
    def symmetric(self):
        return getattr(self.inner, "symmetric", super().symmetric)

    def is_a(self, kind):
        return any(base.__name__ == kind.__name__ for base in type(self.inner).__mro__)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x, y)

    def rowwise(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner.pairwise_distance(self.normalized(x), self.normalized(y)) ** self.power


_KNOWN = {c.__name__: c for c in (LpDistance, DotProductSimilarity, CosineSimilarity, SNRDistance)}


def adopt(distance: object, argument: str = "distance") -> Distance:
    """A distance of this package as it is, one of pytorch-metric-learning as its equal here, another wrapped."""
    if isinstance(distance, Distance):
        return distance
    kind = type(distance)
    wanted = ("normalize_embeddings", "p", "power", "is_inverted")
    if not callable(distance) or not all(hasattr(distance, name) for name in wanted):
        raise TypeError(
            f"{argument}: expected an object of metric_kernels.distances or pytorch_metric_learning.distances, got {kind}"
        )
    if kind.__module__.startswith("pytorch_metric_learning.") and kind.__name__ in _KNOWN:
        options = {name: getattr(distance, name) for name in wanted[:3]}
        return _KNOWN[kind.__name__](**options)
    return _Foreign(distance)


_METRICS = {
    "cosine": (CosineSimilarity, {}),
    "dot": (DotProductSimilarity, {"normalize_embeddings": False}),
    "euclidean": (LpDistance, {"normalize_embeddings": False}),
    "squared_euclidean": (LpDistance, {"normalize_embeddings": False, "power": 2}),
    "snr": (SNRDistance, {"normalize_embeddings": False}),
    "manhattan": (LpDistance, {"normalize_embeddings": False, "p": 1}),
    "chebyshev": (LpDistance, {"normalize_embeddings": False, "p": math.inf}),
    "jensen_shannon": (JensenShannonDistance, {}),
}


def pairwise_distance(x: Tensor, y: Tensor | None = None, metric: str | Distance = "euclidean") -> Tensor:
    """The differentiable matrix of a metric between all rows of x and of y.

    Args:
        x: (N, D), any floating type.
        y: (M, D); x by default.
        metric: "euclidean", "squared_euclidean", "cosine" (a similarity), "dot" (a similarity), "snr", "manhattan" (the sum of
            absolute differences), "chebyshev" (the largest) or "jensen_shannon" (rows are divided by their sums), none of which
            normalises but the cosine and the last; or an object of :mod:`metric_kernels.distances`, such as
            ``LpDistance(p=3, normalize_embeddings=False)``.
    Returns:
        (N, M) in the type of x, computed in float32 (float64 for float64).
    Raises:
        ValueError: an unknown metric, shapes or devices that do not match, or p that is not above 0.
        RuntimeError: the backend that was asked for cannot compute it.

    The first five by the Gram identity, with two or three matrix products in all; a Euclidean distance below its rounding error
    is 0, and so is its gradient. The others from differences of coordinates, which are computed again for the gradient, in
    O(N M) memory; see :class:`LpDistance` and :class:`JensenShannonDistance` for gradients at kinks. NaN reaches the matrix. A
    second derivative raises.

    Example:
        >>> import torch
        >>> from metric_kernels import pairwise_distance
        >>> pairwise_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[0., 5.],
                [5., 0.]])
    """
    if isinstance(metric, str):
        if metric not in _METRICS:
            raise ValueError(f"metric: expected one of {', '.join(_METRICS)} or a distance, got {metric!r}")
        kind, options = _METRICS[metric]
        metric = kind(**options)
    else:
        metric = adopt(metric, "metric")
    for name, value in (("x", x), ("y", x if y is None else y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: expected a tensor of a floating type, got {getattr(value, 'dtype', type(value))}")
        columns = x.shape[-1] if x.ndim else "columns"
        if value.ndim != 2 or value.shape[1] != columns:
            raise ValueError(f"{name}: expected shape (rows, {columns}), got {tuple(value.shape)}")
        if value.device != x.device:
            raise ValueError(f"{name}: expected device {x.device}, got {value.device}")
    return metric(x, y)
