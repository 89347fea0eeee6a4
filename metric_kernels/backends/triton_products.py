"""Blocks of products for the kernels: read from a matrix, or made of the points, in which case no matrix exists.

``factors`` are (x, y, x_scale, y_scale): points as rows of ``multiply.dim`` coordinates, and numbers to multiply them with, or
None. ``multiply`` is a :class:`~metric_kernels.backends.triton_tiles.Multiply`, or None where products are read. Coordinates
lie as (height, depth) on the side of the anchors and as (depth, width) on the other. Sums are in float32.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _coordinates(points, at, inside, k, dim: tl.constexpr):
    """Coordinates k of the points at ``at``, whichever of the two is the row; 0 where there is none."""
    return tl.load(points + at.to(tl.int64) * dim + k, mask=inside & (k < dim), other=0.0)


@triton.jit
def _dot(a, b, total, multiply: tl.constexpr):
    if INTERPRETED:
        # It would multiply the bits of bfloat16.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total, input_precision=multiply.precision)


@triton.jit
def _resident(factors, i, m, multiply: tl.constexpr):
    """The anchors, where they are few enough coordinates to be held from block to block."""
    if multiply is None or multiply.dim > multiply.depth:
        return None
    else:
        return _coordinates(factors[0], i, i < m, tl.arange(0, multiply.depth)[None, :], multiply.dim)


@triton.jit
def _product(s, factors, anchors, i, j, m, n, multiply: tl.constexpr):
    """s_ij."""
    if multiply is None:
        return tl.load(s + i.to(tl.int64) * n + j, mask=(i < m) & (j < n), other=0.0)
    else:
        if anchors is not None:
            others = _coordinates(factors[1], j, j < n, tl.arange(0, multiply.depth)[:, None], multiply.dim)
            product = _dot(anchors, others, tl.full((i.shape[0], j.shape[1]), 0.0, tl.float32), multiply)
        elif multiply.halves:
            # A sum of two halves is up to half as wrong.
            middle: tl.constexpr = multiply.dim // (2 * multiply.depth) * multiply.depth
            product = _summed_products(factors, i, j, m, n, 0, middle, multiply)
            product += _summed_products(factors, i, j, m, n, middle, multiply.dim, multiply)
        else:
            product = _summed_products(factors, i, j, m, n, 0, multiply.dim, multiply)
        if factors[2] is not None:
            product *= tl.load(factors[2] + i, mask=i < m, other=0.0) * tl.load(factors[3] + j, mask=j < n, other=0.0)
        return product


@triton.jit
def _summed_products(factors, i, j, m, n, first: tl.constexpr, last: tl.constexpr, multiply: tl.constexpr):
    """Over the coordinates from first to last."""
    total = tl.full((i.shape[0], j.shape[1]), 0.0, tl.float32)
    for start in range(first, last, multiply.depth):
        k = start + tl.arange(0, multiply.depth)
        anchors = _coordinates(factors[0], i, i < m, k[None, :], multiply.dim)
        others = _coordinates(factors[1], j, j < n, k[:, None], multiply.dim)
        total = _dot(anchors, others, total, multiply)
    return total


@triton.jit
def _add_weighted(grad, w, factors, j, n, first, span: tl.constexpr, multiply: tl.constexpr):
    """grad + w y, as to the coordinates first, first + 1 ... of y."""
    others = _coordinates(factors[1], j, j < n, (first + tl.arange(0, span))[:, None], multiply.dim)
    if factors[3] is not None:
        w *= tl.load(factors[3] + j, mask=j < n, other=0.0)
    if others.dtype == tl.float16:
        # Weights would leave its range; TF32 has as many bits and the range of float32.
        others = others.to(tl.float32)
    return _dot(w.to(others.dtype), tl.trans(others), grad, multiply)
