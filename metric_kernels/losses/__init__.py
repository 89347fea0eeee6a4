"""Losses with the names, arguments and values of pytorch-metric-learning 2.9, one file each."""

import importlib
import pkgutil

from metric_kernels.losses._base import REGISTRY, PairLoss

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update(REGISTRY)

__all__ = ["REGISTRY", "PairLoss", *REGISTRY]
