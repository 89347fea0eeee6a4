"""The demonstration: a small network learns to compare handwritten digits, with a loss of this library and with that of a peer.

The peer is PML, or plain PyTorch where PML has not the loss or fails.

Needs the packages of the extra ``demo``. ``metric-kernels demo`` and ``make demo`` call :func:`run`.
"""

from __future__ import annotations

from pathlib import Path

# What is imported, and how pip calls it.
NEEDS = {
    "matplotlib": "matplotlib",
    "pytorch_metric_learning": "pytorch-metric-learning>=2.9,<3",
    "sklearn": "scikit-learn",
    "tqdm": "tqdm",
}


def run(
    loss: str = "MultiSimilarityLoss",
    epochs: int = 15,
    backend: str | None = None,
    out: str | Path = "demo-output",
    seed: int = 0,
    batch_size: int = 120,
) -> dict:
    """Train, measure, draw; print a summary; write the pictures and ``results.json`` to ``out``.

    Args:
        loss: name of a loss that needs no arguments, see :func:`metric_kernels.demo.contenders.names`.
        epochs: passes over the training classes.
        backend: passed to the loss; None leaves the choice to ``use_backend``, METRIC_KERNELS_BACKEND, or the library.
        out: folder, made if it is not there.
        seed: of the network, the batches and the views of the digits.
        batch_size: of the training; a multiple of the six training classes.
    Returns:
        What ``results.json`` holds.
    """
    # Imported here: the child processes that measure memory import this package and should start quickly.
    from metric_kernels.demo.pipeline import pipeline

    return pipeline(loss, epochs, backend, Path(out), seed, batch_size)
