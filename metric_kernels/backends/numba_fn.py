"""The vocabulary of a formula, in its Numba spelling: functions of numbers that compiled code may call.

A float32 stays a float32. Its exponential and logarithm are polynomials, so that LLVM vectorises the loops around them;
a float64 goes to the C library.
"""

import math
import types

import numpy as np
from numba import float64
from numba.extending import overload

__all__ = [
    "abs",
    "exp",
    "log",
    "logaddexp",
    "maximum",
    "minimum",
    "relu",
    "sigmoid",
    "softplus",
    "sqrt",
    "step",
    "stop",
    "where",
    "within",
]

# Never nnan or ninf, since a NaN must pass, nor reassoc, since the exponential relies on the order of its operations.
# A call that is not inlined keeps a loop from being vectorised.
OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}, "forceinline": True}
OPTIONS.update(no_cpython_wrapper=True, no_cfunc_wrapper=True)


def typed(function, dtype):
    """``function`` with the numbers in its code, globals and closure of one float type.

    Numba takes them for float64, and a float32 times a float64 is a float64.
    """

    def convert(value):
        if type(value) in (float, int):
            return dtype(value)
        return tuple(map(convert, value)) if type(value) is tuple else value

    code = function.__code__.replace(co_consts=convert(function.__code__.co_consts))
    scope = {name: convert(value) for name, value in function.__globals__.items()}
    cells = tuple(types.CellType(convert(cell.cell_contents)) for cell in function.__closure__ or ())
    return types.FunctionType(code, scope, function.__name__, function.__defaults__, cells)


def _spelled(double=None):
    """Lets compiled code call a function, in float64 by way of ``double`` if there is one."""

    def register(function):
        def implementation(*arguments):
            if float64 in arguments:
                return typed(double or function, np.float64)
            return typed(function, np.float32)

        overload(function, jit_options=OPTIONS, strict=False)(implementation)
        return function

    return register


_EXPONENT_BITS, _HALF, _BIAS = np.int32(23), np.int32(1), np.int32(127)
_LOG2_E = 1.4426950408889634
# The first part has zeros at the end: times an exponent it is exact.
_LN2, _LN2_REST = 0.693145751953125, 1.42860682030941723e-6
# Added to a small float, it leaves the nearest integer in the last bits.
_ROUND, _ROUND_BITS = 12582912.0, np.int32(0x4B400000)


@_spelled(double=lambda x: math.exp(x))
def exp(x):
    # Beyond these bounds the result is inf or 0. A NaN fails both comparisons.
    x = 89.0 if x > 89.0 else x
    x = -104.0 if x < -104.0 else x
    shifted = x * _LOG2_E + _ROUND
    power = np.float32(shifted).view(np.int32) - _ROUND_BITS
    n = shifted - _ROUND
    r = x - n * _LN2 - n * _LN2_REST
    series = (((1.39261835877e-3 * r + 8.36317905272e-3) * r + 4.16665546172e-2) * r + 1.66665769897e-1) * r + 0.5
    # Two factors, because 2 ** power itself may be out of range where the result is not.
    half = power >> _HALF
    return (series * (r * r) + r + 1.0) * _power_of_two(half) * _power_of_two(power - half)


@_spelled()
def _power_of_two(n):
    return np.int32((n + _BIAS) << _EXPONENT_BITS).view(np.float32)


@_spelled(double=lambda x: math.log1p(x))
def log1p(x):
    """log(1 + x) for -0.3 < x <= 1."""
    s = x / (2.0 + x)
    z = s * s
    series = ((0.268514980228 * z + 0.282366198053) * z + 0.400075606449) * z + 0.666666403367
    return x - s * (x - z * series)


_SMALLEST_NORMAL, _SCALE, _SCALE_BITS = 1.1754943508222875e-38, 8388608.0, 23.0
_INF, _NAN = math.inf, math.nan
_SQRT_HALF_BITS = np.int32(0x3F3504F3)


@_spelled(double=lambda x: math.log(x))
def log(x):
    scaled = x * _SCALE if x < _SMALLEST_NORMAL else x
    bits = np.float32(scaled).view(np.int32)
    power = (bits - _SQRT_HALF_BITS) >> _EXPONENT_BITS
    mantissa = np.int32(bits - (power << _EXPONENT_BITS)).view(np.float32)
    n = np.float32(power) - (_SCALE_BITS if x < _SMALLEST_NORMAL else 0.0)
    finite = n * _LN2 + (n * _LN2_REST + log1p(mantissa - 1.0))
    below = -_INF if x == 0.0 else _NAN
    return x if not x < _INF else finite if x > 0.0 else below


@_spelled()
def abs(x):
    return math.fabs(x)


@_spelled()
def sqrt(x):
    return math.sqrt(x)


@_spelled()
def where(condition, x, y):
    return x if condition else y


@_spelled()
def maximum(x, y):
    return x if x > y or x != x else y


@_spelled()
def minimum(x, y):
    return x if x < y or x != x else y


@_spelled()
def relu(x):
    return 0.0 if x < 0.0 else x


@_spelled()
def step(x):
    """1 where x > 0, else 0."""
    return 1.0 if x > 0.0 else 0.0


@_spelled()
def within(x, low, high):
    """1 where low < x < high, else 0."""
    return 1.0 if (x > low) & (x < high) else 0.0


@_spelled()
def stop(x):
    """x: a backend differentiates nothing."""
    return x


@_spelled()
def sigmoid(x):
    return 1.0 / (1.0 + exp(-x))


@_spelled()
def softplus(x):
    """log(1 + e^x)."""
    return relu(x) + log1p(exp(-abs(x)))


@_spelled()
def logaddexp(x, y):
    # Equal infinities have no difference.
    gap = 0.0 if x == y else abs(x - y)
    return maximum(x, y) + log1p(exp(-gap))
