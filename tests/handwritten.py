"""Kernels of SupCon as one would write them by hand for this one loss, tiled as the generic ones are.

``made`` kernels make the products of the points (form (b)), for all rows of a batch with itself; ``read`` kernels are given
some rows of them (form (a)). Tests hold what the compiler makes of them and of the generic kernels against each other.
"""

import triton
import triton.language as tl


@triton.jit
def _masks(i, j, here, there, own, label, ref_labels):
    inside = here[:, None] & there[None, :]
    same = label[:, None] == tl.load(ref_labels + j, mask=there, other=0)[None, :]
    return inside & same & (own[:, None] != j[None, :]), inside & ~same


@triton.jit
def _made(
    x, inverse_norms, i, j, here, there, dim: tl.constexpr, depth: tl.constexpr, height: tl.constexpr, width: tl.constexpr
):
    """Cosines from points of more coordinates than are held at a time."""
    product = tl.zeros((height, width), tl.float32)
    for first in range(0, dim, depth):
        k = first + tl.arange(0, depth)
        anchors = tl.load(x + i[:, None].to(tl.int64) * dim + k[None, :], mask=here[:, None], other=0.0)
        others = tl.load(x + j[None, :].to(tl.int64) * dim + k[:, None], mask=there[None, :], other=0.0)
        product = tl.dot(anchors, others, product)
    inverse = tl.load(inverse_norms + i, mask=here, other=0.0)
    return product * (inverse[:, None] * tl.load(inverse_norms + j, mask=there, other=0.0)[None, :])


@triton.jit
def _add_rows(top, total, logit, mask):
    masked = tl.where(mask, logit, float("-inf"))
    highest = tl.maximum(top, tl.max(masked, 1))
    terms = tl.exp(tl.where(masked == highest[:, None], 0.0, masked - highest[:, None]))
    total *= tl.exp(tl.where(top == highest, 0.0, top - highest))
    return highest, total + tl.sum(tl.where(mask, terms, 0.0), 1)


@triton.jit
def _add_lanes(top, total, logit, mask):
    """By one exponential: of the pair, or of what was before."""
    masked = tl.where(mask, logit, float("-inf"))
    larger = masked > top
    ratio = tl.exp(tl.where(masked == top, 0.0, -tl.abs(masked - top)))
    after = tl.where(larger, total * ratio + 1.0, total + ratio)
    return tl.where(larger, masked, top), tl.where(mask, after, total)


@triton.jit
def _of_lanes(top, total):
    highest = tl.max(top, 1)
    return highest, tl.sum(total * tl.exp(tl.where(top == highest[:, None], 0.0, top - highest[:, None])), 1)


@triton.jit
def _store(out, scale, i, here, top, total):
    value = top + tl.log(total)
    tl.store(out + i, value, mask=here)
    tl.store(scale + i, tl.where(tl.abs(value) < float("inf"), tl.exp(value - top) / total, 1.0), mask=here)


@triton.jit(do_not_specialize=["m"])
def stats_made(
    x,
    inverse_norms,
    labels,
    m,
    n,
    sign,
    temperature,
    out,
    scale,
    stride,
    dim: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    k = tl.arange(0, dim)
    i = tl.program_id(0) * height + tl.arange(0, height)
    here = i < m
    label = tl.load(labels + i, mask=here, other=0)
    inverse = tl.load(inverse_norms + i, mask=here, other=0.0)
    anchors = tl.load(x + i[:, None].to(tl.int64) * dim + k[None, :], mask=here[:, None], other=0.0)
    top_positive = tl.full((height,), float("-inf"), tl.float32)
    top_negative = tl.full((height,), float("-inf"), tl.float32)
    positives = tl.zeros((height,), tl.float32)
    negatives = tl.zeros((height,), tl.float32)
    logits = tl.zeros((height,), tl.float32)
    number = tl.zeros((height,), tl.int32)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        there = j < n
        others = tl.load(x + j[None, :].to(tl.int64) * dim + k[:, None], mask=there[None, :], other=0.0)
        cosine = tl.dot(anchors, others) * (inverse[:, None] * tl.load(inverse_norms + j, mask=there, other=0.0)[None, :])
        logit = -sign * cosine / temperature
        positive, negative = _masks(i, j, here, there, i, label, labels)
        top_positive, positives = _add_rows(top_positive, positives, logit, positive)
        top_negative, negatives = _add_rows(top_negative, negatives, logit, negative)
        logits += tl.sum(tl.where(positive, logit, 0.0), 1)
        # Of the mask alone Triton does not know that it lies where cosines do, and would make another for this sum.
        number += tl.sum((positive & ((cosine == cosine) | (cosine != cosine))).to(tl.int32), 1)
    _store(out, scale, i, here, top_positive, positives)
    _store(out + stride, scale + stride, i, here, top_negative, negatives)
    tl.store(out + 2 * stride + i, logits, mask=here)
    tl.store(out + 3 * stride + i, number.to(tl.float32), mask=here)


@triton.jit(do_not_specialize=["m", "diagonal"])
def stats_read(
    cosines,
    labels,
    ref_labels,
    m,
    n,
    diagonal,
    sign,
    temperature,
    out,
    scale,
    stride,
    height: tl.constexpr,
    width: tl.constexpr,
):
    i = tl.program_id(0) * height + tl.arange(0, height)
    here = i < m
    label = tl.load(labels + i, mask=here, other=0)
    top_positive = tl.full((height, width), float("-inf"), tl.float32)
    top_negative = tl.full((height, width), float("-inf"), tl.float32)
    positives = tl.zeros((height, width), tl.float32)
    negatives = tl.zeros((height, width), tl.float32)
    logits = tl.zeros((height, width), tl.float32)
    number = tl.zeros((height, width), tl.int32)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        there = j < n
        place = cosines + i[:, None].to(tl.int64) * n + j[None, :]
        cosine = tl.load(place, mask=here[:, None] & there[None, :], other=0.0)
        logit = -sign * cosine / temperature
        positive, negative = _masks(i, j, here, there, i + diagonal, label, ref_labels)
        top_positive, positives = _add_lanes(top_positive, positives, logit, positive)
        top_negative, negatives = _add_lanes(top_negative, negatives, logit, negative)
        logits += tl.where(positive, logit, 0.0)
        number += (positive & ((cosine == cosine) | (cosine != cosine))).to(tl.int32)
    top_positive, positives = _of_lanes(top_positive, positives)
    top_negative, negatives = _of_lanes(top_negative, negatives)
    _store(out, scale, i, here, top_positive, positives)
    _store(out + stride, scale + stride, i, here, top_negative, negatives)
    tl.store(out + 2 * stride + i, tl.sum(logits, 1), mask=here)
    tl.store(out + 3 * stride + i, tl.sum(number, 1).to(tl.float32), mask=here)


@triton.jit
def _slopes(logit, positive, negative, positives, negatives, by_positives, by_negatives, by_logits):
    """dL/dlogit of each pair, as to the statistics of one of its points."""
    slope = tl.where(positive, by_positives * tl.exp(logit - positives) + by_logits, 0.0)
    return slope + tl.where(negative, by_negatives * tl.exp(logit - negatives), 0.0)


@triton.jit
def _read_statistics(values, grads, stride, points, inside, axis: tl.constexpr):
    positives = tl.expand_dims(tl.load(values + points, mask=inside, other=0.0), axis)
    negatives = tl.expand_dims(tl.load(values + stride + points, mask=inside, other=0.0), axis)
    by_positives = tl.expand_dims(tl.load(grads + points, mask=inside, other=0.0), axis)
    by_negatives = tl.expand_dims(tl.load(grads + stride + points, mask=inside, other=0.0), axis)
    by_logits = tl.expand_dims(tl.load(grads + 2 * stride + points, mask=inside, other=0.0), axis)
    return positives, negatives, by_positives, by_negatives, by_logits


@triton.jit(do_not_specialize=["m"])
def gradients_made(
    x,
    inverse_norms,
    labels,
    m,
    n,
    sign,
    temperature,
    values,
    grads,
    stride,
    out,
    dim: tl.constexpr,
    depth: tl.constexpr,
    span: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    i = tl.program_id(0) * height + tl.arange(0, height)
    here = i < m
    label = tl.load(labels + i, mask=here, other=0)
    mine = _read_statistics(values, grads, stride, i, here, 1)
    coordinates = tl.program_id(1) * span + tl.arange(0, span)
    grad = tl.zeros((height, span), tl.float32)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        there = j < n
        cosine = _made(x, inverse_norms, i, j, here, there, dim, depth, height, width)
        logit = -sign * cosine / temperature
        positive, negative = _masks(i, j, here, there, i, label, labels)
        theirs = _read_statistics(values, grads, stride, j, there, 0)
        w = _slopes(logit, positive, negative, *mine) + _slopes(logit, positive, negative, *theirs)
        w *= -sign / temperature * tl.load(inverse_norms + j, mask=there, other=0.0)[None, :]
        others = tl.load(x + j[:, None].to(tl.int64) * dim + coordinates[None, :], mask=there[:, None], other=0.0)
        grad = tl.dot(w.to(others.dtype), others, grad)
    grad *= tl.load(inverse_norms + i, mask=here, other=0.0)[:, None]
    tl.store(out + i[:, None].to(tl.int64) * dim + coordinates[None, :], grad, mask=here[:, None])


@triton.jit(do_not_specialize=["m", "diagonal"])
def weights_read(
    cosines,
    labels,
    ref_labels,
    m,
    n,
    diagonal,
    sign,
    temperature,
    values,
    grads,
    stride,
    ref_values,
    ref_grads,
    ref_stride,
    height: tl.constexpr,
    width: tl.constexpr,
):
    i = tl.program_id(0) * height + tl.arange(0, height)
    here = i < m
    label = tl.load(labels + i, mask=here, other=0)
    mine = _read_statistics(values, grads, stride, i, here, 1)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        there = j < n
        place = cosines + i[:, None].to(tl.int64) * n + j[None, :]
        cosine = tl.load(place, mask=here[:, None] & there[None, :], other=0.0)
        logit = -sign * cosine / temperature
        positive, negative = _masks(i, j, here, there, i + diagonal, label, ref_labels)
        theirs = _read_statistics(ref_values, ref_grads, ref_stride, j, there, 0)
        w = _slopes(logit, positive, negative, *mine) + _slopes(logit, positive, negative, *theirs)
        tl.store(place, -sign / temperature * w, mask=here[:, None] & there[None, :])
