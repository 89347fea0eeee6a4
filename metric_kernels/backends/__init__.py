"""Which code runs the row kernels: the order of preference, an explicit choice, and the reasons against each.

native      compiled C++ (CPU tensors, the losses of this package)
numba       compiled on first use (CPU tensors, any loss)
triton      Triton kernels (CUDA tensors; CPU tensors under TRITON_INTERPRET=1)
cuda        compiled CUDA C++ (CUDA tensors, the losses of this package; terms)
reference   plain torch (any device, any loss)
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metric_kernels.choices import choice
from metric_kernels.language import Formula, Op

NAMES = ("native", "numba", "triton", "cuda", "reference")
_chosen = choice("backend")


def check_name(argument: str, name: str | None) -> str | None:
    if name is not None and name not in NAMES:
        raise ValueError(f"{argument}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run the losses called in a ``with`` block on one backend, or raise where it cannot. Overrides all but ``backend=``."""
    token = _chosen.set(check_name("use_backend", name))
    try:
        yield
    finally:
        _chosen.reset(token)


def requested(argument: str | None) -> str | None:
    """The explicit choice in force: the argument, else :func:`use_backend`, else ``METRIC_KERNELS_BACKEND``."""
    if argument is not None:
        return check_name("backend", argument)
    return _chosen.get() or check_name("METRIC_KERNELS_BACKEND", os.environ.get("METRIC_KERNELS_BACKEND") or None)


@functools.cache
def load(name: str) -> object:
    """The backend object; its own ``supports`` says whether it can run here."""
    return importlib.import_module(f"metric_kernels.backends.{name}").BACKEND


def choose(op: Op, device: torch.device, dtype: torch.dtype, argument: str | None = None) -> object:
    """The backend for an op: the requested one or an error with its reason, else the first that supports it.

    A backend supports the terms (see terms.py) of a family if it has kernels of that name.
    """
    wanted = op.formula if isinstance(op.formula, Formula) else op.formula.family
    return choose_for(wanted, op.metric, device, dtype, argument)


def choose_for(
    wanted: Formula | str, metric: type, device: torch.device, dtype: torch.dtype, argument: str | None = None
) -> object:
    """The backend for a formula or for terms of a family."""
    return _choose(wanted, metric, device.type, dtype, requested(argument))


def kernels(family: str, device: torch.device, dtype: torch.dtype, argument: str | None = None) -> object:
    """The kernels of a family that needs no pair values (see vectors.py), chosen likewise."""
    return getattr(_choose(family, None, device.type, dtype, requested(argument)), family)


@functools.lru_cache(maxsize=1024)
def _choose(wanted: Formula | str, metric: type | None, device: str, dtype: torch.dtype, name: str | None) -> object:
    reasons = {}
    for candidate in (name,) if name else NAMES:
        backend = load(candidate)
        reason = _reason(backend, wanted, metric, device, dtype)
        if reason is None:
            return backend
        reasons[candidate] = reason
    listed = "; ".join(f"{k}: {v}" for k, v in reasons.items())
    raise RuntimeError(f"backend {name!r} cannot run {_named(wanted)} on {device} in {dtype}: {listed}")


def _named(wanted: Formula | str) -> str:
    if isinstance(wanted, Formula):
        return wanted.key
    return "distances of vectors" if wanted == "vectors" else f"{wanted} terms"


def _reason(backend: object, wanted: Formula | str, metric: type | None, device: str, dtype: torch.dtype) -> str | None:
    if isinstance(wanted, Formula):
        return backend.supports(wanted, metric, device, dtype)
    return backend.unsuited(device, dtype) or (None if hasattr(backend, wanted) else f"has no kernels for {_named(wanted)}")


def status() -> dict[str, str | None]:
    """For each backend None if it is usable on this machine, else why not."""
    return {name: load(name).unusable() for name in NAMES}
