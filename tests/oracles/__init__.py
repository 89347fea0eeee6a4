"""Float64 oracles: every loss as loops written from its definition, for autograd to differentiate.

`ORACLES[name](x, labels, ref=None, ref_labels=None, *, pairs=None, distance=None, normalize=True, reducer=None,
exclude_diagonal=None, **params)` returns a 0-dim float64 tensor connected to x and ref.

pairs              (a1, p, a2, n), the positive pairs (a1[k], p[k]) and the negative pairs (a2[k], n[k]), or None for
                   all that the labels make. Repetitions count in the losses over pairs (contrastive, NT-Xent, lifted),
                   not in those over rows. Triplets (a, p, n) are the pairs (a, p, a, n).
distance           "cosine", "dot", "euclidean", "squared_euclidean", "snr", or None for the default of the loss
normalize          scale rows to unit L2 norm first; "cosine" always does
reducer            "mean", "sum", "avg_non_zero", "per_anchor", ("threshold", low, high), ("class_weighted", weights),
                   or None for the default of the loss
exclude_diagonal   drop the pairs (i, i); None drops them exactly when there is no reference set

`TERM_ORACLES` are those of losses over triplets, quadruplets and histograms, called alike but for

indices_tuple      in place of pairs: triplets (a, p, n), or pairs (a1, p, a2, n), which make a triplet of each positive
                   and each negative of the same anchor. Repetitions count where triplets are summed.
reducer            "per_anchor" averages over the triplets of each anchor, 0 if it has none, then over all rows. There is
                   none for a loss that is one number anyway; triplets and quadruplets of QuadrupletLoss are reduced each
                   on their own.

An oracle has no argument for what its loss has no choice of, such as a normalisation, and refuses a reference set that the
loss does not take.
`TERM_ORACLES["DynamicSoftMarginLoss"]` also takes `histogram` and returns (loss, histogram).
"""

from . import (
    batch_hard,
    circle,
    contrastive,
    dynamic_soft_margin,
    fast_ap,
    histogram,
    lifted_structure,
    margin,
    multi_similarity,
    npairs,
    ntxent,
    quadruplet,
    quadruplet_log_sum_exp,
    quadruplet_margin,
    semi_hard,
    supcon,
    triplet_margin,
)

ORACLES = {
    "ContrastiveLoss": contrastive.oracle,
    "MultiSimilarityLoss": multi_similarity.oracle,
    "SupConLoss": supcon.oracle,
    "CircleLoss": circle.oracle,
    "NTXentLoss": ntxent.oracle,
    "NPairsLoss": npairs.oracle,
    "LiftedStructureLoss": lifted_structure.oracle,
}

TERM_ORACLES = {
    "TripletMarginLoss": triplet_margin.oracle,
    "BatchHardTripletLoss": batch_hard.oracle,
    "SemiHardTripletLoss": semi_hard.oracle,
    "MarginLoss": margin.oracle,
    "QuadrupletMarginLoss": quadruplet_margin.oracle,
    "QuadrupletLoss": quadruplet.oracle,
    "QuadrupletLogSumExpLoss": quadruplet_log_sum_exp.oracle,
    "HistogramLoss": histogram.oracle,
    "FastAPLoss": fast_ap.oracle,
    "DynamicSoftMarginLoss": dynamic_soft_margin.oracle,
}
