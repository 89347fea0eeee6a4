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
"""

from . import circle, contrastive, lifted_structure, multi_similarity, npairs, ntxent, supcon

ORACLES = {
    "ContrastiveLoss": contrastive.oracle,
    "MultiSimilarityLoss": multi_similarity.oracle,
    "SupConLoss": supcon.oracle,
    "CircleLoss": circle.oracle,
    "NTXentLoss": ntxent.oracle,
    "NPairsLoss": npairs.oracle,
    "LiftedStructureLoss": lifted_structure.oracle,
}
