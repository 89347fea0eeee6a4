"""Blocks of products for the kernels: read from a matrix, or made of the points, in which case no matrix exists.

``factors`` are (x, y, x_scale, y_scale): points as rows of ``multiply.dim`` coordinates, and numbers to multiply them with, or
None. ``multiply`` is a :class:`~metric_kernels.backends.triton_tiles.Multiply`, or None where products are read, for which
no points are needed. Coordinates lie as (height, depth) on the side of the anchors and as (depth, width) on the other. Sums
are in float32.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _load(pointers, points, number, axis: tl.constexpr):
    """What is known of each point, 0 beyond their number, as a row or column."""
    return tl.expand_dims(tl.load(pointers, mask=points < number, other=0), axis)


@triton.jit
def _coordinates(x, points, number, k, dim: tl.constexpr, axis: tl.constexpr):
    """Coordinates k of the points, which lie along ``axis``; 0 where there is none.

    There are a power of two of k, and the first is a multiple of their number.
    """
    at = x + tl.expand_dims(points.to(tl.int64) * dim, 1 - axis)
    inside = tl.expand_dims(points < number, 1 - axis)
    if (k.shape[0] - 1) & dim != 0:
        inside &= tl.expand_dims(k < dim, axis)
    return tl.load(at + tl.expand_dims(k, axis), mask=inside, other=0.0)


@triton.jit
def _dot(a, b, total, multiply: tl.constexpr):
    if INTERPRETED:
        # It would multiply the bits of bfloat16.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total, input_precision=multiply.precision)


@triton.jit
def _resident(factors, i, m, multiply: tl.constexpr):
    """The anchors, where they have few enough coordinates to be held from block to block."""
    if multiply is None or multiply.dim > multiply.depth:
        return 0.0
    else:
        return _coordinates(factors[0], i, m, tl.arange(0, multiply.depth), multiply.dim, 0)


@triton.jit
def _product(s, factors, anchors, i, j, m, n, multiply: tl.constexpr):
    """s_ij."""
    if multiply is None:
        at = i[:, None].to(tl.int64) * n + j[None, :]
        product = tl.load(s + at, mask=(i < m)[:, None] & (j < n)[None, :], other=0.0)
    else:
        if multiply.dim <= multiply.depth:
            others = _coordinates(factors[1], j, n, tl.arange(0, multiply.depth), multiply.dim, 1)
            product = _dot(anchors, others, tl.full((i.shape[0], j.shape[0]), 0.0, tl.float32), multiply)
        elif multiply.halves:
            # A sum of two halves is up to half as wrong.
            middle: tl.constexpr = multiply.dim // (2 * multiply.depth) * multiply.depth
            product = _summed_products(factors, i, j, m, n, 0, middle, multiply)
            product += _summed_products(factors, i, j, m, n, middle, multiply.dim, multiply)
        else:
            product = _summed_products(factors, i, j, m, n, 0, multiply.dim, multiply)
    return _scaled(product, factors, i, j, m, n)


@triton.jit
def _scaled(block, factors, i, j, m, n):
    """s_ij from the products of points, or the gradient with respect to these from dL/ds_ij."""
    if factors[2] is not None:
        block *= _load(factors[2] + i, i, m, 1) * _load(factors[3] + j, j, n, 0)
    return block


@triton.jit
def _summed_products(factors, i, j, m, n, first: tl.constexpr, last: tl.constexpr, multiply: tl.constexpr):
    """Over the coordinates from first to last."""
    total = tl.full((i.shape[0], j.shape[0]), 0.0, tl.float32)
    for start in range(first, last, multiply.depth):
        k = start + tl.arange(0, multiply.depth)
        anchors = _coordinates(factors[0], i, m, k, multiply.dim, 0)
        others = _coordinates(factors[1], j, n, k, multiply.dim, 1)
        total = _dot(anchors, others, total, multiply)
    return total


@triton.jit
def _add_weighted(grad, w, factors, j, n, first, span: tl.constexpr, multiply: tl.constexpr):
    """grad + w y, as to the coordinates first, first + 1 ... of y."""
    others = _coordinates(factors[1], j, n, first + tl.arange(0, span), multiply.dim, 0)
    if factors[3] is not None:
        w *= _load(factors[3] + j, j, n, 0)
    if others.dtype == tl.float16:
        # Weights would leave its range; TF32 has as many bits and the range of float32.
        others = others.to(tl.float32)
    return _dot(w.to(others.dtype), others, grad, multiply)
