"""The forward kernel of SupCon as one would write it by hand for this one loss, tiled as the generic one is.

Tests hold what the compiler makes of the two against each other.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["m"])
def supcon(
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
        inside = here[:, None] & there[None, :]
        same = label[:, None] == tl.load(labels + j, mask=there, other=0)[None, :]
        positive = inside & same & (i[:, None] != j[None, :])
        negative = inside & ~same

        masked = tl.where(positive, logit, float("-inf"))
        top = tl.maximum(top_positive, tl.max(masked, 1))
        terms = tl.exp(tl.where(masked == top[:, None], 0.0, masked - top[:, None]))
        positives *= tl.exp(tl.where(top_positive == top, 0.0, top_positive - top))
        positives += tl.sum(tl.where(positive, terms, 0.0), 1)
        top_positive = top

        masked = tl.where(negative, logit, float("-inf"))
        top = tl.maximum(top_negative, tl.max(masked, 1))
        terms = tl.exp(tl.where(masked == top[:, None], 0.0, masked - top[:, None]))
        negatives *= tl.exp(tl.where(top_negative == top, 0.0, top_negative - top))
        negatives += tl.sum(tl.where(negative, terms, 0.0), 1)
        top_negative = top

        logits += tl.sum(tl.where(positive, logit, 0.0), 1)
        number += tl.sum((positive & ((cosine == cosine) | (cosine != cosine))).to(tl.int32), 1)
    value = top_positive + tl.log(positives)
    tl.store(out + i, value, mask=here)
    tl.store(scale + i, tl.where(tl.abs(value) < float("inf"), tl.exp(value - top_positive) / positives, 1.0), mask=here)
    value = top_negative + tl.log(negatives)
    tl.store(out + stride + i, value, mask=here)
    tl.store(
        scale + stride + i, tl.where(tl.abs(value) < float("inf"), tl.exp(value - top_negative) / negatives, 1.0), mask=here
    )
    tl.store(out + 2 * stride + i, logits, mask=here)
    tl.store(out + 3 * stride + i, number.to(tl.float32), mask=here)
