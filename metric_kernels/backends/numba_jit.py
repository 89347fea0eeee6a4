"""How every kernel of the Numba backend is compiled: arrays by their address, and rows for as many threads as there are.

A kernel is a C function of the address of a table of three integers a row. The first two are its own: counters that begin
at 0, and whatever numbers it needs. The others are arrays: address, number of rows and the distance between them; a vector
is one row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numba
from numba import types
from numba.extending import intrinsic

from metric_kernels.backends import numba_fn
from metric_kernels.backends.numba_fn import OPTIONS, typed
from metric_kernels.language import bind

# Nothing is contracted outside of the vocabulary: the weight of a pair is the exponential of its logit less a
# log-sum-exp, where the error of the logit cancels if the same rounded number went in.
EXACT = {**OPTIONS, "fastmath": False}
jit = numba.njit(**EXACT)
jit_sum = numba.njit(**{**OPTIONS, "fastmath": {"contract", "reassoc", "nsz"}})


@functools.cache
def formula_function(function: Callable, dtype: type) -> Callable:
    """A function of a formula or metric, for numbers of one float type."""
    return jit(typed(bind(function, numba_fn), dtype))


@intrinsic
def pointer(context, address, dtype):
    """An address as a pointer to numbers of a type."""
    signature = types.CPointer(dtype.dtype)(address, dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@intrinsic
def take(context, pointer, amount):
    """The number at a pointer, which is raised by ``amount`` in the same instant."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", *arguments, "monotonic")

    return types.int64(types.CPointer(types.int64), types.int64), generate


@jit
def matrix(entry, dtype):
    return numba.carray(pointer(entry[0], dtype), (entry[1], entry[2]), dtype)
