"""Fused deep metric learning losses for PyTorch."""

from metric_kernels import distances, functional, losses, ops, reducers
from metric_kernels.backends import use_backend
from metric_kernels.core import set_workspace, use_workspace, workspace
from metric_kernels.distances import pairwise_distance
from metric_kernels.extremes import RowExtremes, row_extremes
from metric_kernels.report import report

__version__ = "0.1.0"

__all__ = [
    "RowExtremes",
    "distances",
    "functional",
    "losses",
    "ops",
    "pairwise_distance",
    "reducers",
    "report",
    "row_extremes",
    "set_workspace",
    "use_backend",
    "use_workspace",
    "workspace",
]
