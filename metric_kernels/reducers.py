"""From many losses to one number, named and configured as in pytorch-metric-learning.

A fused loss never has its per-pair losses in memory. It gives a reducer, for each anchor, the sum and the number of those
strictly inside ``window``; a reducer that needs each of them says so by ``needs_each``, and they are then built explicitly.
A NaN is inside every window, so that it reaches the loss.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metric_kernels.checks import of_classes

__all__ = [
    "AvgNonZeroReducer",
    "ClassWeightedReducer",
    "DivisorReducer",
    "DoNothingReducer",
    "MeanReducer",
    "MultipleReducers",
    "PerAnchorReducer",
    "Reducer",
    "SumReducer",
    "ThresholdReducer",
    "adopt",
]


class Reducer(nn.Module):
    """Mean of the losses inside ``window``; the others differ in what they do with the sums."""

    window = (-math.inf, math.inf)
    needs_each = False
    # Whether the result is the sum of the losses in the window ("sum") or that over their number ("mean"), or neither (None):
    # then a backend may reduce by itself.
    plain: str | None = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if hooks := _PML_HOOKS.intersection(cls.__dict__):
            raise TypeError(
                f"{cls.__qualname__}: expected of_pairs or of_anchors, got {min(hooks)}; "
                "with that, subclass pytorch_metric_learning.reducers.BaseReducer, which is accepted too"
            )
        if "plain" not in cls.__dict__ and cls.__dict__.keys() & {"of_pairs", "of_anchors", "inside"}:
            cls.plain = None

    def of_pairs(self, totals: Tensor, counts: Tensor, labels: Tensor) -> Tensor:
        """Reduce from sums and counts (B,) per anchor over the pair losses inside the window."""
        return _mean(totals, counts)

    def of_anchors(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Reduce losses (B,), one per anchor."""
        inside = self.inside(losses)
        return _mean(torch.where(inside, losses, 0.0), inside)

    def inside(self, losses: Tensor) -> Tensor:
        low, high = self.window
        outside = losses <= low
        return ~(outside if high == math.inf else outside | (losses >= high))


_PML_HOOKS = {f"{name}_reduction" for name in ("element", "pos_pair", "neg_pair", "triplet", "already_reduced")}


def _mean(totals: Tensor, counts: Tensor) -> Tensor:
    # 0 / 1 keeps an empty loss connected to the graph.
    return totals.sum() / counts.sum(dtype=totals.dtype).clamp_(min=1.0)


class MeanReducer(Reducer):
    """Mean of all losses; 0 if there are none."""

    plain = "mean"

    def of_anchors(self, losses, labels):
        return losses.sum() / torch.sym_max(losses.shape[0], 1)

    def inside(self, losses):
        return torch.ones_like(losses, dtype=torch.bool)


class ThresholdReducer(Reducer):
    """Mean of the losses with ``low < loss < high``; 0 if there are none."""

    plain = "mean"

    def __init__(self, low: float | None = None, high: float | None = None):
        super().__init__()
        if low is None and high is None:
            raise ValueError("low, high: expected at least one bound, got None for both")
        self.low, self.high = low, high

    @property
    def window(self):
        return (-math.inf if self.low is None else self.low, math.inf if self.high is None else self.high)


class AvgNonZeroReducer(ThresholdReducer):
    """Mean of the losses above 0; 0 if there are none."""

    plain = "mean"

    def __init__(self) -> None:
        super().__init__(low=0.0)

    def of_anchors(self, losses, labels):
        return _mean(losses.relu(), losses > 0)


class SumReducer(Reducer):
    """Sum of the losses."""

    plain = "sum"

    def of_pairs(self, totals, counts, labels):
        return totals.sum()

    def of_anchors(self, losses, labels):
        return losses.sum()


class DivisorReducer(Reducer):
    """Sum of the losses over a divisor that the loss supplies; a loss that supplies none divides by 1."""

    plain = "sum"

    def of_pairs(self, totals, counts, labels):
        return totals.sum()

    def of_anchors(self, losses, labels):
        return losses.sum()


class ClassWeightedReducer(Reducer):
    """Mean of the losses, each times the weight of its anchor's class.

    Args:
        weights: (number of classes,); labels index it.
    """

    def __init__(self, weights: Tensor):
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def _of(self, labels: Tensor | None, like: Tensor) -> Tensor:
        if labels is None:
            raise ValueError("labels: ClassWeightedReducer expects them, got None")
        weights = self.weights.to(like.device, like.dtype)
        return of_classes(weights, labels.long(), "weight")

    def of_pairs(self, totals, counts, labels):
        return _mean(totals * self._of(labels, totals), counts)

    def of_anchors(self, losses, labels):
        return (losses * self._of(labels, losses)).sum() / torch.sym_max(losses.shape[0], 1)


class PerAnchorReducer(Reducer):
    """Mean over the pairs of each anchor (0 if it has none), then ``reducer`` over all anchors.

    ``aggregation_func(losses (B, B), num_per_row (B,))`` replaces the mean; it needs every pair loss.
    """

    def __init__(self, reducer: nn.Module | None = None, aggregation_func=None):
        super().__init__()
        self.reducer = MeanReducer() if reducer is None else adopt(reducer)
        self.aggregation_func = aggregation_func
        if self.reducer.needs_each:
            raise ValueError("reducer: expected one that reduces to a number, got " + type(self.reducer).__name__)

    @property
    def needs_each(self):
        return self.aggregation_func is not None

    def of_pairs(self, totals, counts, labels):
        return self.reducer.of_anchors(totals / counts.clamp(min=1.0), labels)

    def of_anchors(self, losses, labels):
        return self.reducer.of_anchors(losses, labels)

    def of_each(self, loss_dict: dict, embeddings: Tensor, labels: Tensor):
        (info,) = loss_dict.values()
        losses, indices = info["losses"], info["indices"]
        if not torch.is_tensor(losses) or info["reduction_type"] == "element":
            return self.reducer.of_anchors(torch.as_tensor(losses, device=embeddings.device), labels)
        if len(indices) != 2:
            raise ValueError(
                f"aggregation_func: expected None for losses of {info['reduction_type']}s, which are no matrix, "
                f"got {self.aggregation_func}"
            )
        anchors, others = indices
        size = len(embeddings), int(others.max()) + 1 if len(others) else 0
        present = torch.zeros(size, dtype=torch.bool, device=losses.device)
        present[anchors, others] = True
        values = losses.new_zeros(size).index_put((anchors, others), losses)
        return self.reducer.of_anchors(self.aggregation_func(values, present.sum(1)), labels)


class DoNothingReducer(Reducer):
    """Returns the losses themselves: a dict name -> {"losses", "indices", "reduction_type"}."""

    needs_each = True

    def of_each(self, loss_dict, embeddings, labels):
        return loss_dict


class MultipleReducers(Reducer):
    """One reducer for each named sub-loss; the results are added.

    Args:
        reducers: dict from the name of a sub-loss to its reducer.
        default_reducer: for the names not listed; the mean by default.
    """

    def __init__(self, reducers: dict[str, nn.Module], default_reducer: nn.Module | None = None):
        super().__init__()
        self.reducers = nn.ModuleDict({k: adopt(r) for k, r in reducers.items()})
        self.default_reducer = MeanReducer() if default_reducer is None else adopt(default_reducer)

    def part(self, name: str) -> Reducer:
        return self.reducers[name] if name in self.reducers else self.default_reducer


class _Foreign(Reducer):
    """Any module with the interface of a pytorch-metric-learning reducer; it is given every loss."""

    needs_each = True

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def of_each(self, loss_dict, embeddings, labels):
        return self.inner(loss_dict, embeddings, labels)


def adopt(reducer: nn.Module) -> Reducer:
    """A reducer of this package as it is, one of pytorch-metric-learning as its equal here, another wrapped."""
    if isinstance(reducer, Reducer):
        return reducer
    if not callable(reducer):
        raise TypeError(
            f"reducer: expected an object of metric_kernels.reducers or pytorch_metric_learning.reducers, got {type(reducer)}"
        )
    if type(reducer).__module__.startswith("pytorch_metric_learning."):
        name = type(reducer).__name__
        if name in ("MeanReducer", "AvgNonZeroReducer", "SumReducer", "DivisorReducer", "DoNothingReducer"):
            return globals()[name]()
        if name == "ThresholdReducer":
            return ThresholdReducer(reducer.low, reducer.high)
        if name == "ClassWeightedReducer":
            return ClassWeightedReducer(reducer.weights)
        if name == "MultipleReducers":
            return MultipleReducers(dict(reducer.reducers.items()), reducer.default_reducer)
        if name == "PerAnchorReducer":
            default = reducer.aggregation_func.__module__ == type(reducer).__module__
            return PerAnchorReducer(reducer.reducer, None if default else reducer.aggregation_func)
    return _Foreign(reducer)
