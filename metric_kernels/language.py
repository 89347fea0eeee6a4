"""What a formula is: stages of row statistics over the pair values of a batch.

A stage declares ``stats`` and two plain functions in the vocabulary of :mod:`metric_kernels.fn`:

    pair(v, ...)   one value per statistic, from the pair value v = v_ij
    dpair(v, ...)  the derivative of each with respect to v

Further argument names say what else the formula needs: ``row0``, ``row1`` ... are the statistics of the anchor i from the
stages before, ``col0`` ... those of the other point j, and any other name is an attribute of the loss (margin, temperature).
``drow`` and ``dcol`` are the derivatives with respect to the row and column statistics used, statistic by statistic; a
stage without them treats these as constants.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

KINDS = ("total", "lse", "count", "largest", "smallest")
SIDES = ("pos", "neg")
_STATISTIC_ARGUMENT = re.compile(r"(row|col)(\d+)$")


class Statistic(NamedTuple):
    """One number per anchor: a reduction (``kind``) over its positives or its negatives (``side``)."""

    kind: str
    side: str


def _statistic(kind: str, meaning: str) -> Callable[[str], Statistic]:
    def make(side: str) -> Statistic:
        if side not in SIDES:
            raise ValueError(f"side: expected one of {SIDES}, got {side!r}")
        return Statistic(kind, side)

    make.__name__ = make.__qualname__ = kind
    make.__doc__ = f"{meaning} over the positives (``side='pos'``) or negatives (``'neg'``) of each anchor."
    return make


total = _statistic("total", "Sum (0 if there are none)")
lse = _statistic("lse", "Log-sum-exp (-inf if there are none)")
count = _statistic("count", "Number of non-zero values; it has no gradient,")
largest = _statistic("largest", "Maximum and its first index (-inf and -1 if there are none)")
smallest = _statistic("smallest", "Minimum and its first index (inf and -1 if there are none)")


@dataclass(frozen=True)
class Stage:
    """A sweep over the pair values that yields ``len(stats)`` numbers per anchor."""

    stats: tuple[Statistic, ...]
    pair: Callable
    dpair: Callable
    drow: Callable | None
    dcol: Callable | None
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    params: tuple[str, ...]

    @classmethod
    def of(cls, owner: type) -> Stage:
        """The stage written in the body of class ``owner``."""
        body = owner.__dict__
        stats = tuple(body.get("stats", ()))
        where = f"{owner.__module__}.{owner.__qualname__}"
        if not stats or not all(isinstance(s, Statistic) for s in stats):
            raise TypeError(f"{where}.stats: expected a non-empty tuple such as (lse('pos'), lse('neg')), got {stats!r}")
        if "dpair" not in body:
            raise TypeError(f"{where}: expected dpair, the derivative of pair with respect to v, beside pair")
        names = list(inspect.signature(body["pair"]).parameters)
        split = [_STATISTIC_ARGUMENT.match(n) for n in names[1:]]
        index = {side: tuple(int(m[2]) for m in split if m and m[1] == side) for side in ("row", "col")}
        number = len(stats)
        values = {"pair": number, "dpair": number, "drow": number * len(index["row"]), "dcol": number * len(index["col"])}
        for name, expected in values.items():
            if name in body:
                if list(inspect.signature(body[name]).parameters) != names:
                    raise TypeError(f"{where}.{name}: expected the arguments of pair, {names}")
                _check_values(f"{where}.{name}", body[name], len(names), expected)
        return cls(
            stats=stats,
            pair=body["pair"],
            dpair=body["dpair"],
            drow=body.get("drow"),
            dcol=body.get("dcol"),
            rows=index["row"],
            cols=index["col"],
            params=tuple(n for n, m in zip(names[1:], split) if not m),
        )


def _check_values(where: str, function: Callable, arguments: int, expected: int) -> None:
    """Raises unless the function returns as many values as there are statistics to reduce."""
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"{where}: expected a plain function, got {type(function).__name__}")
    try:
        values = function(*torch.full((arguments, 1), 0.5))
    except Exception as error:
        raise TypeError(f"{where}: cannot be run on tensors: {error}") from error
    if not isinstance(values, tuple) or len(values) != expected:
        given = f"{len(values)} values" if isinstance(values, tuple) else type(values).__name__
        raise TypeError(f"{where}: expected a tuple of {expected} values, got {given}")


class Formula:
    """The stages of one loss. Backends compile it once, so it is compared by identity."""

    def __init__(self, key: str, stages: tuple[Stage, ...], magnifies: bool = False):
        # Classes made by one function share a qualified name; each formula has a key of its own.
        self.key = key if key not in _FORMULAS else f"{key}#{len(_FORMULAS)}"
        self.stages = stages
        self.stats = tuple(s for stage in stages for s in stage.stats)
        self.first = tuple(sum(len(s.stats) for s in stages[:k]) for k in range(len(stages)))
        self.two_sided = any(stage.cols for stage in stages)
        self.extremes = any(s.kind in ("largest", "smallest") for s in self.stats)
        # Whether the loss magnifies the rounding of the products beyond what is tolerable.
        self.magnifies = magnifies
        self.logarithms = any(s.kind == "lse" for s in self.stats)
        self.groups = tuple(_groups(stages))
        if len(self.groups) > 2:
            raise TypeError(f"{key}: expected at most one stage to read statistics of the other point, got more")
        for number, stage in enumerate(stages):
            for side, known in (("row", stage.rows), ("col", stage.cols)):
                for k in known:
                    if k >= self.first[number]:
                        raise TypeError(
                            f"{key}: expected stage {number} to read statistics of earlier stages, {self.first[number]} in "
                            f"number, got {side}{k}"
                        )
        _FORMULAS[self.key] = self

    def __repr__(self) -> str:
        return f"Formula({self.key!r})"


_FORMULAS: dict[str, Formula] = {}


def formula(key: str) -> Formula:
    """The formula of that key, for operations that are named by strings only."""
    return _FORMULAS[key]


def _groups(stages: tuple[Stage, ...]) -> Iterator[list[int]]:
    """Stages that can share a sweep: one that reads statistics of the other point must wait for all rows."""
    group: list[int] = []
    for number, stage in enumerate(stages):
        if stage.cols and group:
            yield group
            group = []
        group.append(number)
    yield group


class Op(NamedTuple):
    """A formula on a metric with the values of its parameters, stage by stage: all that a backend is told.

    A term (terms.py) takes the place of a formula where it is no sum over single pairs; its numbers are its own.
    """

    formula: Formula
    metric: type
    params: tuple[tuple[float, ...], ...]


def stages_of(owner: type) -> tuple[Stage, ...]:
    """The stages in a class body: the class itself if it has ``pair``, else its nested classes that have one, in order."""
    if "pair" in owner.__dict__:
        return (Stage.of(owner),)
    return tuple(Stage.of(c) for c in owner.__dict__.values() if isinstance(c, type) and "pair" in c.__dict__)


@functools.cache
def bind(function: Callable, vocabulary: types.ModuleType, **extra: object) -> Callable:
    """The same code with other globals: wherever ``function`` says :mod:`metric_kernels.fn` it now means ``vocabulary``.

    The globals live in a named module, because Dynamo guards on globals through ``sys.modules``.
    """
    from metric_kernels import fn

    name = f"{function.__module__}__in__{vocabulary.__name__}"
    module = sys.modules.get(name)
    if module is None:
        module = sys.modules[name] = types.ModuleType(name)
    spelled = {k: vocabulary if v is fn else v for k, v in function.__globals__.items()}
    module.__dict__.update({**spelled, **extra, "__name__": name})
    bound = types.FunctionType(
        function.__code__, module.__dict__, function.__name__, function.__defaults__, function.__closure__
    )
    bound.__module__, bound.__qualname__ = name, function.__qualname__
    return bound
