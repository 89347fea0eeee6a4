"""Constructor arguments, distances and random batches for the losses over triplets, quadruplets and histograms."""

import pytest
import torch
from cases import PARAMS as PAIR_PARAMS
from cases import SELF_AND_REF
from hypothesis import strategies as st
from oracles import TERM_ORACLES

from metric_kernels import losses
from metric_kernels.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance

# Arguments other than the defaults. No margin is a difference of squared distances on the grid below, and no inner node is at
# one or at a difference of such distances: a loss has a kink there, or a jump, on either side of which rounding may land.
# MarginLoss keeps its beta in float32.
PARAMS = {
    "TripletMarginLoss": {"margin": 0.33},
    "BatchHardTripletLoss": {"margin": 0.33},
    "SemiHardTripletLoss": {"margin": 0.33},
    "MarginLoss": {"margin": 0.16, "beta": 1.078125},
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
        {"num_classes": 320},
        {"num_classes": 320, "learn_beta": True, "nu": 0.3},
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

OVER_TRIPLETS = ["TripletMarginLoss", "BatchHardTripletLoss", "SemiHardTripletLoss", "MarginLoss"]
WITH_REF = [*OVER_TRIPLETS, "DynamicSoftMarginLoss"]
# Each loss of any kind with and without a reference set, and its arguments, for tests of (name, with_ref).
ALL_SELF_AND_REF = SELF_AND_REF + [
    pytest.param(name, with_ref, id=f"{name}-{'reference' if with_ref else 'self'}")
    for name in PARAMS
    for with_ref in (False, True)
    if name in WITH_REF or not with_ref
]
ALL_PARAMS = {**PAIR_PARAMS, **PARAMS}
# Those that pytorch-metric-learning has too.
PEERS = ["TripletMarginLoss", "MarginLoss", "HistogramLoss", "FastAPLoss", "DynamicSoftMarginLoss"]
# Each variant of each loss, for tests of (name, params).
CASES = [
    pytest.param(name, {**PARAMS[name], **variant}, id="-".join([name, *map(str, variant.values())]))
    for name in PARAMS
    for variant in VARIANTS[name]
]
# Distances, and what the oracles call them.
PAIR_VALUES = {
    ("cosine", True): CosineSimilarity(),
    ("dot", False): DotProductSimilarity(normalize_embeddings=False),
    ("euclidean", True): LpDistance(),
    ("euclidean", False): LpDistance(normalize_embeddings=False),
    ("squared_euclidean", True): LpDistance(power=2),
    ("squared_euclidean", False): LpDistance(normalize_embeddings=False, power=2),
    ("snr", False): SNRDistance(normalize_embeddings=False),
}
_SYMMETRIC = [kind for kind in PAIR_VALUES if kind[0] != "snr"]
_ALLOWED = {
    "QuadrupletMarginLoss": _SYMMETRIC,
    "QuadrupletLoss": _SYMMETRIC,
    "QuadrupletLogSumExpLoss": _SYMMETRIC,
    "HistogramLoss": [("cosine", True), ("dot", False)],
    "FastAPLoss": [("euclidean", True), ("squared_euclidean", True)],
    "DynamicSoftMarginLoss": [("euclidean", True), ("squared_euclidean", True)],
}
# Each variant with each distance that its loss takes.
CASES_AND_PAIR_VALUES = [
    pytest.param(*case.values, kind, id=f"{case.id}-{kind[0]}-{kind[1]}")
    for case in CASES
    for kind in _ALLOWED.get(case.values[0], PAIR_VALUES)
]


def takes_ref(name: str, params: dict) -> bool:
    return name in WITH_REF and params.get("lone_anchors") != "zero"


def build(name: str, params: dict, pair_value: tuple[str, bool] | None = None, **options) -> losses.Loss:
    """The loss, with the distance of that name."""
    if pair_value is not None:
        options["distance"] = PAIR_VALUES[pair_value]
    return getattr(losses, name)(**params, **options)


def oracle(name: str, *args, pair_value: tuple[str, bool] | None = None, **params) -> torch.Tensor:
    """The exact loss alone."""
    if pair_value is not None:
        params["distance"] = pair_value[0]
        if name not in ("FastAPLoss", "DynamicSoftMarginLoss"):  # which always normalise
            params["normalize"] = pair_value[1]
    result = TERM_ORACLES[name](*args, **params)
    return result[0] if name == "DynamicSoftMarginLoss" else result


@st.composite
def batches(draw, rows=12, dim=6, grid=None, repeated=True):
    """Embeddings (B, D), with equal rows if ``repeated``, and labels (B,) from 0, of one class or more, or all different.

    grid: coordinates that are multiples of 1/2, so that distances without normalisation are exact and many are equal. Always,
    never, or at times for None.
    """
    size, dim = draw(st.integers(0, rows)), draw(st.integers(0, dim))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    if draw(st.booleans()) if grid is None else grid:
        x = torch.randint(-2, 3, (size, dim), generator=generator).double() / 2
    else:
        x = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    if repeated and size and draw(st.booleans()):
        x = x[torch.tensor(draw(st.lists(st.integers(0, size - 1), min_size=size, max_size=size)))]
    if draw(st.booleans()):
        classes = draw(st.integers(1, 4))
        labels = draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
    else:
        labels = draw(st.permutations(range(size)))
    return x, torch.tensor(labels, dtype=torch.int64)
