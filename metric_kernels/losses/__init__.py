"""Losses with the names, arguments and values of pytorch-metric-learning 2.9, one file each."""

from metric_kernels.losses._base import REGISTRY, Loss
from metric_kernels.losses._pair import PairLoss
from metric_kernels.losses.batch_hard_triplet import BatchHardTripletLoss
from metric_kernels.losses.circle import CircleLoss
from metric_kernels.losses.contrastive import ContrastiveLoss
from metric_kernels.losses.dynamic_soft_margin import DynamicSoftMarginLoss
from metric_kernels.losses.fast_ap import FastAPLoss
from metric_kernels.losses.histogram import HistogramLoss
from metric_kernels.losses.lifted_structure import LiftedStructureLoss
from metric_kernels.losses.margin import MarginLoss
from metric_kernels.losses.multi_similarity import MultiSimilarityLoss
from metric_kernels.losses.npairs import NPairsLoss
from metric_kernels.losses.ntxent import NTXentLoss
from metric_kernels.losses.quadruplet import QuadrupletLoss
from metric_kernels.losses.quadruplet_log_sum_exp import QuadrupletLogSumExpLoss
from metric_kernels.losses.quadruplet_margin import QuadrupletMarginLoss
from metric_kernels.losses.semi_hard_triplet import SemiHardTripletLoss
from metric_kernels.losses.supcon import SupConLoss
from metric_kernels.losses.triplet_margin import TripletMarginLoss

__all__ = [
    "REGISTRY",
    "BatchHardTripletLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "DynamicSoftMarginLoss",
    "FastAPLoss",
    "HistogramLoss",
    "LiftedStructureLoss",
    "Loss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NPairsLoss",
    "NTXentLoss",
    "PairLoss",
    "QuadrupletLogSumExpLoss",
    "QuadrupletLoss",
    "QuadrupletMarginLoss",
    "SemiHardTripletLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
