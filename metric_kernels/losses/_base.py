"""The base of every loss: a call in the style of pytorch-metric-learning, its checks, and what becomes of many losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metric_kernels import backends, distances, reducers
from metric_kernels.batch import Batch
from metric_kernels.checks import finite_number
from metric_kernels.language import Formula

REGISTRY: dict[str, type[Loss]] = {}
# The name of a sub-loss -> its losses, what they belong to (anchors, pairs, triplets), and the kind of that.
Each = dict[str, tuple[Tensor, "Tensor | tuple[Tensor, ...] | None", str]]


class Loss(nn.Module):
    """Base class of losses.

    Args:
        distance: a distance of :mod:`metric_kernels.distances` or pytorch_metric_learning.distances.
        reducer: likewise.
        embedding_regularizer: a callable on the embeddings whose value is added.
        embedding_reg_weight: its weight.
        backend: "native", "triton", "numba" or "reference"; the fastest that can run the call by default.
    """

    default_distance: Callable[[], distances.Distance] = distances.CosineSimilarity
    default_reducer: Callable[[], reducers.Reducer] = reducers.MeanReducer
    sub_losses: tuple[str, ...] = ("loss",)
    # What a backend must have to compute it: a formula, or the kernels of a family of terms.
    kernels: Formula | str
    # False for a loss that can do without labels and without an indices_tuple.
    labels_required = True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        package, _, module = cls.__module__.rpartition(".")
        if package == __package__ and not module.startswith("_"):
            REGISTRY[cls.__name__] = cls

    def __init__(
        self,
        distance: object | None = None,
        reducer: object | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        backend: str | None = None,
    ):
        super().__init__()
        self.distance = self.default_distance() if distance is None else distances.adopt(distance)
        self.reducer = self.default_reducer() if reducer is None else reducers.adopt(reducer)
        self.embedding_regularizer = embedding_regularizer
        self.embedding_reg_weight = embedding_reg_weight
        self.backend = backends.check_name("backend", backend)

    @property
    def sign(self) -> float:
        """+1 for a distance, -1 for a similarity."""
        return self.distance.sign

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (B, D), any floating type; half precision is computed in float32.
            labels: (B,), integer or bool.
            indices_tuple: what a miner returns, triplets (a, p, n) or pairs (a1, p, a2, n) of 1-D index tensors; only these
                are used then, and labels may be None.
            ref_emb: (R, D), the other side of every pair; the batch itself by default, without the pairs (i, i).
            ref_labels: (R,).
        Returns:
            A scalar of the type of embeddings (float32 inside an autocast region); what the reducer makes of it.
        Raises:
            ValueError, TypeError: an argument of a wrong shape, type or device.
        """
        batch = Batch(embeddings, labels, indices_tuple, ref_emb, ref_labels, self.labels_required)
        loss = self._loss(batch)
        penalty = None
        if self.embedding_regularizer is not None:
            penalty = self.embedding_reg_weight * self.embedding_regularizer(embeddings)
        if isinstance(loss, dict):
            if penalty is not None:
                loss["embedding_reg_loss"] = {"losses": penalty, "indices": None, "reduction_type": "already_reduced"}
            return loss
        loss = loss.to(batch.result_type)
        return loss if penalty is None else loss + penalty

    def _loss(self, batch: Batch):
        if batch.x.numel() == 0 or batch.y.numel() == 0:
            return batch.nothing()
        return self._evaluate(batch)

    def _evaluate(self, batch: Batch):
        """The loss of a batch that is not empty, or what ``_each`` returns."""
        raise NotImplementedError

    def _reducers(self) -> list[reducers.Reducer]:
        """The reducer of each sub-loss."""
        if isinstance(self.reducer, reducers.MultipleReducers):
            return [self.reducer.part(name) for name in self.sub_losses]
        return [self.reducer] * len(self.sub_losses)

    def _each(self, found: Each, reducer: list[reducers.Reducer], batch: Batch):
        """What the reducers make of losses that are all there."""
        named = {
            name: {"losses": losses, "indices": indices, "reduction_type": kind}
            for name, (losses, indices, kind) in found.items()
        }
        if isinstance(self.reducer, reducers.DoNothingReducer):
            return {name: {**info, "losses": info["losses"].to(batch.result_type)} for name, info in named.items()}
        return sum(_one(r, name, info, batch) for r, (name, info) in zip(reducer, named.items()))

    def _whole(self, loss: Tensor, batch: Batch):
        """A loss that there is nothing to reduce of."""
        return self._each({"loss": (loss, None, "already_reduced")}, self._reducers(), batch)

    def _anchors(self, losses: Tensor, present: Tensor, batch: Batch):
        """The loss of a batch from those of some anchors."""
        (reducer,) = self._reducers()
        if reducer.needs_each:
            return self._each({"loss": (losses[present], batch.rows()[present], "element")}, [reducer], batch)
        reducer = of_elements(reducer)
        inside = present & reducer.inside(losses)
        # A NaN must reach the loss even of an anchor that has none.
        losses = torch.where(inside | losses.isnan(), losses, 0.0)
        return reducer.of_pairs(losses.double(), inside.double(), batch.labels)

    def _number(self, name: str) -> float:
        """An attribute as the kernels take it."""
        value = getattr(self, name, None)
        if isinstance(value, Tensor) and value.requires_grad:
            raise TypeError(f"{name}: expected a number, got a tensor that requires grad; the kernels take it as constant")
        try:
            return finite_number(name, value)
        except TypeError:
            given = repr(value) if hasattr(self, name) else "no such attribute"
            raise TypeError(f"{name}: the formula of {type(self).__name__} expects a number, got {given}") from None

    def _refuse(self, batch: Batch, *, reference: bool = True, listed: bool = False) -> None:
        """Raises for a reference set or an indices_tuple where a loss takes none."""
        if reference and not batch.same:
            raise ValueError(f"ref_emb is not supported for {type(self).__name__}: expected None")
        if listed and batch.pairs is not None:
            raise ValueError(f"indices_tuple: expected None for {type(self).__name__}, which makes its own choice")


def check_unanchored(reducer: reducers.Reducer) -> None:
    """Raises unless the reducer can do without an anchor and without a list of the losses."""
    if reducer.plain is None:
        raise ValueError(
            "reducer: expected a mean or a sum of losses inside a window, since quadruplets have no anchor and are too many to "
            f"list, got {type(reducer).__name__}"
        )


def check_unit_distance(loss: Loss) -> None:
    """Raises unless the distance is the Euclidean one of normalised embeddings, which is at most 2."""
    distance = loss.distance
    if not (distance.is_a(distances.LpDistance) and distance.normalize_embeddings and distance.p == 2):
        raise AssertionError(
            f"distance: {type(loss).__name__} expects LpDistance(normalize_embeddings=True, p=2), got {distance}"
        )


def of_elements(reducer: reducers.Reducer) -> reducers.Reducer:
    """The reducer for losses that are not of pairs or triplets: there is nothing to average for each anchor."""
    return reducer.reducer if isinstance(reducer, reducers.PerAnchorReducer) else reducer


def _one(reducer: reducers.Reducer, name: str, info: dict, batch: Batch) -> Tensor:
    losses, indices = info["losses"], info["indices"]
    if not losses.numel():
        return batch.nothing() + losses.sum()
    if info["reduction_type"] == "already_reduced":
        return losses
    if reducer.needs_each:
        return reducer.of_each({name: info}, batch.x, batch.labels)
    anchors = indices
    if torch.is_tensor(indices):
        reducer = of_elements(reducer)
    else:
        anchors = indices[0]
    inside = reducer.inside(losses)
    zero = losses.new_zeros(len(batch.x), dtype=torch.float64)
    totals = zero.index_add(0, anchors, torch.where(inside, losses, 0.0).double())
    return reducer.of_pairs(totals, zero.index_add(0, anchors, inside.double()), batch.labels)
