"""The picture of what larger classes cost: an algorithm that visits every triplet rises with their number."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.cases import BY_CLASS_SIZE, CLASS_SIZES, Case
from benchmarks.dense_terms import TERMS
from benchmarks.records import Records

BLUE, RED, ORANGE = "#0072B2", "#CC3311", "#E69F00"
TITLES = "Ours, B = 2048", "TripletMarginLoss, B = 512, D = 128"
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 130,
    "figure.constrained_layout.use": True,
}


def class_size(records: Records, path: Path) -> None:
    """Time over that of the matrix products by samples per class; no picture if there is no such number."""
    ours = {
        f"{loss}, D = {dim}": (_ratios(records, Case(loss, 2048, dim)), {"color": colour, "linestyle": line})
        for loss, colour in zip(BY_CLASS_SIZE, (BLUE, RED))
        for dim, line in ((128, "-"), (512, "--"))
    }
    peers = (("ours", "native", BLUE), ("dense PyTorch", "eager", ORANGE), ("pytorch-metric-learning", "pml", RED))
    others = {
        name: (_ratios(records, Case("TripletMarginLoss", 512, 128, provider=provider)), {"color": colour})
        for name, provider, colour in peers
    }
    if not any(ratios for ratios, _ in (*ours.values(), *others.values())):
        return
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.6))
        for ax, title, lines in zip(axes, TITLES, (ours, others)):
            for name, (ratios, look) in lines.items():
                ax.loglog(list(ratios), list(ratios.values()), marker="o", markersize=4, label=name, **look)
            ax.set(title=title, xlabel="samples per class", ylabel="time of a step over three matrix products")
            _plain_ticks(ax)
            ax.legend()
        figure.suptitle("What larger classes cost", fontweight="bold")
        figure.savefig(path)
        plt.close(figure)


def gpu(records: Records, path: Path, loss: str = "SupConLoss") -> None:
    """Rate of a loss by batch, type and dimension; no picture if there is no such number."""
    measured = [case for case in records.cases() if case.loss == loss and records.number(case, "tflops")]
    if not measured:
        return
    kinds, dims = (sorted({getattr(case, name) for case in measured}) for name in ("dtype", "dim"))
    with plt.rc_context(STYLE):
        size = (1 + 3.2 * len(dims), 1 + 2.8 * len(kinds))
        figure, axes = plt.subplots(len(kinds), len(dims), figsize=size, squeeze=False, sharex=True)
        for line, kind in zip(axes, kinds):
            for ax, dim in zip(line, dims):
                here = [case for case in measured if (case.dtype, case.dim) == (kind, dim)]
                for provider in dict.fromkeys(case.provider for case in here):
                    its = sorted((c.batch, records.number(c, "tflops")) for c in here if c.provider == provider)
                    ax.loglog(*zip(*its), marker="o", markersize=4, label=provider)
                ax.set(title=f"{kind}, D = {dim}", xlabel="B", ylabel="6 B² D / time, TFLOP/s")
        axes[0][0].legend()
        figure.suptitle(loss, fontweight="bold")
        figure.savefig(path)
        plt.close(figure)


def gpu_terms(records: Records, path: Path) -> None:
    """Time of losses over triplets and the like over that of the products by batch and type; no picture without a number."""
    shares = {case: records.number(case, "product_share") for case in records.cases() if case.loss in TERMS}
    measured = [case for case, share in shares.items() if share]
    if not measured:
        return
    losses, kinds = (sorted({getattr(case, name) for case in measured}) for name in ("loss", "dtype"))
    with plt.rc_context(STYLE):
        size = (1 + 3.2 * len(kinds), 1 + 2.8 * len(losses))
        figure, axes = plt.subplots(len(losses), len(kinds), figsize=size, squeeze=False, sharex=True)
        for line, loss in zip(axes, losses):
            for ax, kind in zip(line, kinds):
                here = sorted((c for c in measured if (c.loss, c.dtype) == (loss, kind)), key=lambda c: c.batch)
                for provider in dict.fromkeys(case.provider for case in here):
                    its = [(case.batch, 1 / shares[case]) for case in here if case.provider == provider]
                    ax.loglog(*zip(*its), marker="o", markersize=4, label=provider)
                ax.set(title=f"{loss}, {kind}", xlabel="B", ylabel="time over three products")
                if here:
                    ax.legend()
        figure.suptitle("Triplets, quadruplets and histograms, D = 128", fontweight="bold")
        figure.savefig(path)
        plt.close(figure)


def _ratios(records: Records, case: Case) -> dict[int, float]:
    """Samples per class -> time over the floor."""
    found = {k: records.number(case.of_class_size(k), "ratio_to_floor") for k in CLASS_SIZES}
    return {k: ratio for k, ratio in found.items() if ratio}


def _plain_ticks(ax: Axes) -> None:
    ax.set_xticks(CLASS_SIZES, [str(k) for k in CLASS_SIZES])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
