"""The base of every loss: from a call in the style of pytorch-metric-learning to row statistics and back to a number."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from metric_kernels import backends, distances, reducers, tuples
from metric_kernels.language import Formula, stages_of
from metric_kernels.rowstats import Call, has_epilogue, row_loss, row_stats
from metric_kernels.tile import Epilogue

REGISTRY: dict[str, type[PairLoss]] = {}


class PairLoss(nn.Module):
    """Base class of losses on pairs. A subclass writes a formula and, if it has a loss per anchor, ``row``.

    The formula is a class body in the language of :mod:`metric_kernels.language`: ``stats``, ``pair`` and ``dpair``, or
    nested classes that have these, one per stage. Arguments of ``pair`` other than the pair value and earlier statistics
    are attributes of the loss, read at each call as Python floats.

    ``row(statistics..., parameters...)``, in the same language, makes of all statistics of an anchor its loss. A loss without
    it is a loss per pair: its last stage has ``total`` and ``count`` for each of ``sub_losses``, the sum and number of the
    pair losses inside the reducer's window (``low0 < loss < high0`` for the first sub-loss, ``low1`` ... for the second).
    With ``magnifies``, inner products are summed more carefully, for a loss that has a large derivative.
    If ``required`` is the number of a log-sum-exp statistic, the loss is 0 unless some anchor has it.

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
    counts_repetitions = False
    required: int | None = None
    magnifies = False
    formula: Formula
    row: Callable[..., Tensor] | None = None
    row_params: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        stages = stages_of(cls)
        if not stages and "row" in cls.__dict__:
            stages = cls.formula.stages  # another formula all the same: compiled code has a row of its own
        if stages:
            cls.formula = Formula(f"{cls.__module__}.{cls.__qualname__}", stages, cls.magnifies)
        if not stages and (alone := cls.__dict__.keys() & {"stats", "dpair", "drow", "dcol"}):
            raise TypeError(f"{cls.__qualname__}: expected pair beside {min(alone)}; a formula is not inherited in parts")
        for stage in stages:
            if (stage.drow or stage.dcol) and not {s.kind for s in stage.stats} <= {"total", "count"}:
                kinds = [s.kind for s in stage.stats]
                raise TypeError(
                    f"{cls.__qualname__}: expected a stage with drow or dcol to have totals and counts, got {kinds}"
                )
        if not hasattr(cls, "formula"):
            raise TypeError(f"{cls.__qualname__}: expected a formula (stats, pair and dpair) in the class body")
        if cls.row is not None:
            cls.row_params = tuple(inspect.signature(cls.row).parameters)[len(cls.formula.stats) :]
        else:
            kinds = [s.kind for s in cls.formula.stages[-1].stats]
            if kinds != ["total", "count"] * len(cls.sub_losses):
                raise TypeError(
                    f"{cls.__qualname__}: expected row(statistics..., parameters...), or as last statistics a total and a "
                    f"count for each of sub_losses {cls.sub_losses}, got {kinds}"
                )
        if cls.__module__.startswith("metric_kernels.losses."):
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
                pairs are used then, and labels may be None.
            ref_emb: (R, D), the other side of every pair; the batch itself by default, without the pairs (i, i).
            ref_labels: (R,).
        Returns:
            A scalar of the type of embeddings (float32 inside an autocast region); what the reducer makes of it.
        Raises:
            ValueError, TypeError: an argument of a wrong shape, type or device.
        """
        batch = Batch(embeddings, labels, indices_tuple, ref_emb, ref_labels)
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
        reducer = self._reducers()
        if batch.pairs is not None or any(r.needs_each for r in reducer):
            return self._explicit(batch, reducer)
        call = self._call(batch)
        epilogue = self._epilogue(reducer)
        if epilogue is not None and has_epilogue(call):
            return row_loss(call, epilogue)
        values, _ = row_stats(call)
        return self._reduce(values, reducer, batch)

    def _call(self, batch: Batch) -> Call:
        call = Call.of(self.formula, self._params(), self.distance, batch, self.backend)
        if self.formula.two_sided and not batch.same and not call.op.metric.symmetric:
            raise ValueError(
                f"distance: {type(self).__name__} with a reference set expects a symmetric one, "
                f"got {type(self.distance).__name__}"
            )
        return call

    def _epilogue(self, reducer: list[reducers.Reducer]) -> Epilogue | None:
        """What a backend needs to reduce by itself, or None if a reducer is not a plain sum or mean."""
        if any(r.plain is None for r in reducer):
            return None
        windows = tuple((*r.window, r.plain == "mean") for r in reducer)
        return Epilogue(tuple(float(getattr(self, name)) for name in self.row_params), windows, self.required)

    def _explicit(self, batch: Batch, reducer: list[reducers.Reducer]):
        each_needed = any(r.needs_each for r in reducer)
        if batch.pairs is None and self.row is not None:  # a loss of each anchor, which needs no list of its pairs
            values, each = row_stats(self._call(batch))[0], []
        else:
            pairs = batch.pairs or tuples.all_pairs(batch.targets, batch.ref_labels, batch.exclude_self)
            if batch.pairs is not None and not self.counts_repetitions:
                pairs = tuples.distinct(*pairs, len(batch.x), len(batch.y))
            params = self._params(windows=not each_needed)
            summed = self.row is None and all(r.plain is not None for r in reducer)
            values, each = tuples.statistics(
                self.formula, params, self.distance, batch.x, batch.y, batch.same, *pairs, each=each_needed, summed=summed
            )
        if not each_needed:
            return self._reduce(values, reducer, batch)
        present = self._present(values)
        if self.row is not None:
            found = {"loss": (self._rows(values), batch.rows(), "element")}
        else:
            found = {name: (t, (p.anchors, p.others), f"{side}_pair") for name, (side, p, t) in zip(self.sub_losses, each)}
        if present is not None:
            found = {name: (torch.where(present, t, 0.0), *rest) for name, (t, *rest) in found.items()}
        named = {
            name: {"losses": losses.to(batch.result_type), "indices": indices, "reduction_type": kind}
            for name, (losses, indices, kind) in found.items()
        }
        if isinstance(self.reducer, reducers.DoNothingReducer):
            return named
        return sum(self._one(r, name, info, batch) for r, (name, info) in zip(reducer, named.items()))

    def _one(self, reducer: reducers.Reducer, name: str, info: dict, batch: Batch) -> Tensor:
        if not info["losses"].numel():
            return batch.nothing()
        if reducer.needs_each:
            return reducer.of_each({name: info}, batch.x, batch.labels)
        losses = info["losses"]
        inside = reducer.inside(losses)
        anchors = info["indices"][0]
        zero = losses.new_zeros(len(batch.x))
        totals = zero.index_add(0, anchors, torch.where(inside, losses, 0.0))
        return reducer.of_pairs(totals, zero.index_add(0, anchors, inside.to(losses.dtype)), batch.labels)

    def _reduce(self, values: tuple[Tensor, ...], reducer: list[reducers.Reducer], batch: Batch) -> Tensor:
        if self.row is not None:
            loss = reducer[0].of_anchors(self._rows(values), batch.labels)
        else:
            first = self.formula.first[-1]
            losses = [
                r.of_pairs(values[first + 2 * k], values[first + 2 * k + 1].detach(), batch.labels)
                for k, r in enumerate(reducer)
            ]
            loss = losses[0] if len(losses) == 1 else sum(losses)
        present = self._present(values)
        return loss if present is None else torch.where(present, loss, 0.0)

    def _rows(self, values: tuple[Tensor, ...]) -> Tensor:
        """The loss of each anchor."""
        return type(self).row(*values, *(float(getattr(self, name)) for name in self.row_params))

    def _present(self, values: tuple[Tensor, ...]) -> Tensor | None:
        """A bool scalar: whether some anchor has the required statistic. None if none is required."""
        return None if self.required is None else ~torch.isneginf(values[self.required]).all()

    def _reducers(self) -> list[reducers.Reducer]:
        """The reducer of each sub-loss."""
        if isinstance(self.reducer, reducers.MultipleReducers):
            return [self.reducer.part(name) for name in self.sub_losses]
        return [self.reducer] * len(self.sub_losses)

    def _params(self, windows: bool = True) -> tuple[tuple[float, ...], ...]:
        """The numbers that the formula asks for by name; without ``windows`` no pair loss is outside of one."""
        known = {}
        for k, reducer in enumerate(self._reducers()):
            low, high = reducer.window if windows else reducers.Reducer.window
            known[f"low{k}"], known[f"high{k}"] = low, high
        for stage in self.formula.stages:
            for name in stage.params:
                if name not in known:
                    known[name] = self._number(name)
        return tuple([tuple([known[name] for name in stage.params]) for stage in self.formula.stages])

    def _number(self, name: str) -> float:
        value = getattr(self, name, None)
        if isinstance(value, Tensor) and value.requires_grad:
            raise TypeError(f"{name}: expected a number, got a tensor that requires grad; the kernels take it as constant")
        try:
            return float(value)
        except (TypeError, ValueError):
            given = repr(value) if hasattr(self, name) else "no such attribute"
            raise TypeError(f"{name}: the formula of {type(self).__name__} expects a number, got {given}") from None


class Batch:
    """The checked arguments of a call."""

    def __init__(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        self.x = _checked_embeddings("embeddings", embeddings)
        self.labels = _checked_labels("labels", labels, embeddings, "embeddings")
        self.y, self.ref_labels, self.exclude_self = self.x, self.labels, True
        self.targets = self.labels
        self.anchors = None
        self.same = ref_emb is None or (ref_emb is embeddings and ref_labels is labels)
        if ref_emb is None:
            if ref_labels is not None and ref_labels is not labels:
                raise ValueError("ref_labels: expected ref_emb along with it, got None")
        else:
            if ref_emb is not embeddings:
                self.y = _checked_embeddings("ref_emb", ref_emb)
                if ref_emb.shape[1] != embeddings.shape[1]:
                    raise ValueError(
                        f"ref_emb: expected shape (R, {embeddings.shape[1]}) to match embeddings, got {tuple(ref_emb.shape)}"
                    )
                if ref_emb.device != embeddings.device:
                    raise ValueError(f"ref_emb: expected device {embeddings.device}, got {ref_emb.device}")
            self.exclude_self = labels is not None and ref_labels is labels
            if not self.exclude_self:
                self.ref_labels = _checked_labels("ref_labels", ref_labels, ref_emb, "ref_emb")
            elif len(ref_emb) != len(embeddings):
                raise ValueError(f"ref_labels: expected shape ({len(ref_emb)},), got {tuple(labels.shape)}")
        self.pairs = None
        if indices_tuple is not None:
            self.pairs = tuples.listed(indices_tuple, len(self.x), len(self.y), embeddings.device)
        if self.pairs is None and (self.labels is None or self.ref_labels is None):
            raise ValueError("labels, ref_labels: expected both, or an indices_tuple, got None")

    def pairing(self, pairs: Tensor) -> Batch:
        """The batch in which each anchor, a row of ``pairs[0]``, matches its positive in ``pairs[1]`` and no other."""
        batch = copy.copy(self)
        rows = self.x.index_select(0, pairs.flatten()).unflatten(0, pairs.shape)
        batch.x, batch.y = rows[0], rows[1]  # unpacked at once, autocast would meddle with their gradients
        batch.same, batch.exclude_self, batch.pairs = False, False, None
        batch.anchors = pairs[0]
        batch.labels = self.labels.index_select(0, batch.anchors)
        batch.targets = batch.ref_labels = torch.arange(len(batch.anchors), device=self.x.device)
        return batch

    def nothing(self) -> Tensor:
        """0, connected to the graph; NaN if an embedding is not finite."""
        zero = (self.x * 0.0).sum()
        return zero if self.same else zero + (self.y * 0.0).sum()

    def rows(self) -> Tensor:
        """The index in the batch of each row of x."""
        return torch.arange(len(self.x), device=self.x.device) if self.anchors is None else self.anchors

    @property
    def result_type(self) -> torch.dtype:
        half = self.x.dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if half and torch.is_autocast_enabled(self.x.device.type) else self.x.dtype


def _checked_embeddings(name: str, x: object) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.ndim != 2:
        raise ValueError(f"{name} must be a 2D tensor of shape (batch_size, embedding_size), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating type, got {x.dtype}")
    return x


def _checked_labels(name: str, labels: object, x: Tensor, of: str) -> Tensor | None:
    if labels is None:
        return None
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(labels).__name__}")
    if labels.ndim != 1:
        raise ValueError(f"{name} must be a 1D tensor of shape (batch_size,), got {tuple(labels.shape)}")
    if len(labels) != len(x):
        raise ValueError(
            f"Number of {of} must equal number of {name}: expected {name} of shape ({len(x)},), got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name}: expected an integer or bool type, got {labels.dtype}")
    # A copy, so that labels may be changed in place between forward and backward.
    return labels.to(x.device, torch.int64, copy=True, memory_format=torch.contiguous_format)
