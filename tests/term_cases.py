"""Constructor arguments and random batches for the losses over triplets, quadruplets and histograms."""

import torch
from hypothesis import strategies as st

# Arguments other than the defaults. No margin is a difference of squared distances on the grid below, and no inner node is at
# one or at a difference of such distances: a loss has a kink there, or a jump, on either side of which rounding may land.
PARAMS = {
    "TripletMarginLoss": {"margin": 0.33},
    "BatchHardTripletLoss": {"margin": 0.33},
    "SemiHardTripletLoss": {"margin": 0.33},
    "MarginLoss": {"margin": 0.16, "beta": 1.08},
    "QuadrupletMarginLoss": {"margin": 0.33, "negatives": "other_class"},
    "QuadrupletLoss": {"margin1": 0.67, "margin2": 0.33},
    "QuadrupletLogSumExpLoss": {"scale": 7.0},
    "HistogramLoss": {"n_bins": 7},
    "FastAPLoss": {"num_bins": 7},
    "DynamicSoftMarginLoss": {"min_val": -2.3, "num_bins": 7, "momentum": 0.3},
}
# Arguments that select another formula, to be added to those above.
VARIANTS = {
    "TripletMarginLoss": [{}, {"swap": True}, {"smooth_loss": True}, {"squared": True}, {"swap": True, "squared": True}],
    "BatchHardTripletLoss": [
        {},
        {"soft_margin": True},
        {"lone_anchors": "zero"},
        {"soft_margin": True, "lone_anchors": "zero"},
    ],
    "SemiHardTripletLoss": [{}, {"soft_margin": True}],
    "MarginLoss": [
        {},
        {"learn_beta": True, "nu": 0.3},
        {"num_classes": 12},
        {"num_classes": 12, "learn_beta": True, "nu": 0.3},
    ],
    "QuadrupletMarginLoss": [{"negatives": negatives} for negatives in ("all", "disjoint", "other_class")],
    "QuadrupletLoss": [{}, {"adaptive": True}, {"adaptive": True, "detach_margins": False}],
    "QuadrupletLogSumExpLoss": [{}],
    "HistogramLoss": [
        {"pairs": pairs, **kernel}
        for pairs in ("triplets", "all")
        for kernel in (
            {"kernel": "step"},
            {"kernel": "linear", "margin": 0.11},
            {"kernel": "exp", "margin": 0.11, "alpha": 3.0},
        )
    ],
    "FastAPLoss": [{}],
    "DynamicSoftMarginLoss": [{}],
}


@st.composite
def batches(draw, rows=12, dim=6, grid=None):
    """Embeddings (B, D) with equal rows and labels (B,) from 0, of one class or more, or all different.

    grid: coordinates that are multiples of 1/2, so that distances without normalisation are exact and many are equal. Always,
    never, or at times for None.
    """
    size, dim = draw(st.integers(0, rows)), draw(st.integers(0, dim))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    if draw(st.booleans()) if grid is None else grid:
        x = torch.randint(-2, 3, (size, dim), generator=generator).double() / 2
    else:
        x = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    if size and draw(st.booleans()):
        x = x[torch.tensor(draw(st.lists(st.integers(0, size - 1), min_size=size, max_size=size)))]
    if draw(st.booleans()):
        classes = draw(st.integers(1, 4))
        labels = draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
    else:
        labels = draw(st.permutations(range(size)))
    return x, torch.tensor(labels, dtype=torch.int64)
