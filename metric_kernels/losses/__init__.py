"""Losses with the names, arguments and values of pytorch-metric-learning 2.9, one file each."""

from metric_kernels.losses._base import REGISTRY, Loss
from metric_kernels.losses._pair import PairLoss
from metric_kernels.losses.circle import CircleLoss
from metric_kernels.losses.contrastive import ContrastiveLoss
from metric_kernels.losses.lifted_structure import LiftedStructureLoss
from metric_kernels.losses.multi_similarity import MultiSimilarityLoss
from metric_kernels.losses.npairs import NPairsLoss
from metric_kernels.losses.ntxent import NTXentLoss
from metric_kernels.losses.supcon import SupConLoss

__all__ = [
    "REGISTRY",
    "CircleLoss",
    "ContrastiveLoss",
    "LiftedStructureLoss",
    "Loss",
    "MultiSimilarityLoss",
    "NPairsLoss",
    "NTXentLoss",
    "PairLoss",
    "SupConLoss",
]
