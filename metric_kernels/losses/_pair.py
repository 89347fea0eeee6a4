"""The base of losses on pairs: from a formula to row statistics and back to a number."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from metric_kernels import reducers, tuples
from metric_kernels.batch import Batch
from metric_kernels.language import Formula, stages_of
from metric_kernels.losses._base import Loss
from metric_kernels.rowstats import Call, has_epilogue, row_loss, row_stats
from metric_kernels.tile import Epilogue


class PairLoss(Loss):
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
        cls.kernels = cls.formula
        if cls.row is not None:
            cls.row_params = tuple(inspect.signature(cls.row).parameters)[len(cls.formula.stats) :]
        else:
            kinds = [s.kind for s in cls.formula.stages[-1].stats]
            if kinds != ["total", "count"] * len(cls.sub_losses):
                raise TypeError(
                    f"{cls.__qualname__}: expected row(statistics..., parameters...), or as last statistics a total and a "
                    f"count for each of sub_losses {cls.sub_losses}, got {kinds}"
                )

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
        if self.formula.two_sided and not batch.same and self.distance.metric is not None:
            self.distance.check_symmetric(f"{type(self).__name__} with a reference set")
        return Call.of(self.formula, self._params(), self.distance, batch, self.backend)

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
        return self._each(found, reducer, batch)

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
