"""The pictures of the demonstration."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from PIL import Image
from sklearn.manifold import TSNE
from torch import Tensor

from metric_kernels.demo.contenders import OURS, PLAIN, PML
from metric_kernels.demo.retrieval import auc, pairs
from metric_kernels.demo.train import difference

COLOURS = {OURS: "#0072B2", PLAIN: "#E69F00", PML: "#CC3311"}
POSITIVE, NEGATIVE = "#0072B2", "#E69F00"
CLASSES = ("#0072B2", "#CC3311", "#009E73", "#7B3294")
PALETTE = 64
STYLE: dict = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 120,
    "figure.constrained_layout.use": True,
}


def similarity_histograms(path: Path, embeddings: dict[str, Tensor], labels: Tensor, loss: str) -> None:
    """Cosines of positive and negative held-out pairs, one panel for each title."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(embeddings), figsize=(10, 4))
        for ax, (title, x) in zip(axes, embeddings.items(), strict=True):
            positive, negative = (values.numpy() for values in pairs(x, labels))
            # Each panel has its own scale: an untrained network gives all pairs nearly the same cosine.
            bins = np.linspace(np.quantile(negative, 0.0005), positive.max(), 80)
            for values, colour, name in ((negative, NEGATIVE, "different digits"), (positive, POSITIVE, "same digit")):
                ax.hist(values, bins, density=True, histtype="stepfilled", color=colour, alpha=0.4, label=name)
                ax.hist(values, bins, density=True, histtype="step", color=colour, linewidth=1.4)
            score = auc(*map(torch.from_numpy, (positive, negative)))
            ax.set(title=f"{title}: AUC {score:.3f}", xlabel="cosine similarity of a pair (scales differ)")
        axes[0].set_ylabel("density")
        axes[0].legend(loc="upper left")
        figure.suptitle(f"{loss}: pairs of the digits 6-9, never seen in training", fontweight="bold")
        _save(figure, path)


def embedding_map(path: Path, embeddings: dict[str, Tensor], labels: Tensor, loss: str, seed: int) -> None:
    """t-SNE of the held-out embeddings, one panel for each title."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(embeddings), figsize=(10, 5.2))
        for ax, (title, x) in zip(axes, embeddings.items(), strict=True):
            flat = TSNE(init="pca", perplexity=30, random_state=seed).fit_transform(F.normalize(x).numpy())
            for colour, digit in zip(CLASSES, labels.unique().tolist(), strict=True):
                points = flat[(labels == digit).numpy()]
                ax.scatter(*points.T, s=34, marker=f"${digit}$", color=colour, linewidths=0.3, label=f"digit {digit}")
            ax.set(title=title, xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), markerscale=1.6)
        figure.suptitle(f"{loss}: embeddings of the digits 6-9, never seen in training", fontweight="bold")
        _save(figure, path)


def loss_curves(path: Path, curves: dict, loss: str) -> None:
    """Both float32 curves, and below them the relative difference of the float32 and of the float64 ones."""
    peer = curves["peer"]
    with plt.rc_context(STYLE):
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5.6), sharex=True, height_ratios=(3, 2))
        for name, look in ((peer, {"linewidth": 5, "alpha": 0.35}), (OURS, {"linewidth": 1.4})):
            values = curves["float32"][name]
            top.plot(range(1, len(values) + 1), values, color=COLOURS[name], label=name, **look)
        top.set(ylabel="training loss (float32)")
        top.legend()
        for dtype, colour in (("float32", "#444444"), ("float64", "#009E73")):
            eps = torch.finfo(getattr(torch, dtype)).eps
            apart = [difference([a], [b]) for a, b in zip(*curves[dtype].values())]
            # Equal values have no place on a logarithmic axis: they are drawn below the rounding of their type.
            drawn = [max(a, eps / 8) for a in apart]
            steps = range(1, len(drawn) + 1)
            bottom.semilogy(steps, drawn, ".-", color=colour, linewidth=1, label=f"trained in {dtype}")
            bottom.axhline(eps, color=colour, linewidth=0.8, linestyle=":")
            at_right_edge = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
            bottom.annotate(f"{dtype} epsilon", (1, eps), (-4, 3), color=colour, **at_right_edge)
        bottom.set(xlabel=f"training step ({curves['steps_per_epoch']} an epoch)", ylabel="relative difference")
        bottom.margins(y=0.15)
        bottom.legend(loc="center right")
        figure.suptitle(f"{loss}: the same training by two implementations", fontweight="bold")
        _save(figure, path)


def loss_step(path: Path, step: dict, loss: str) -> None:
    """Time of a step over the batch size, and peak memory at one batch size."""
    memory = step["peak_memory_bytes"]
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), width_ratios=(3, 2))
        sizes = list(step["milliseconds"])
        for name in memory:
            values = [row[name] for row in step["milliseconds"].values()]
            left.loglog(sizes, values, "o-", color=COLOURS[name], label=name)
        _plain_ticks(left, sizes)
        left.set(title="median time, float32, one thread", xlabel="batch size", ylabel="milliseconds (log scale)")
        megabytes = [used / 2**20 for used in memory.values()]
        colours = [COLOURS[name] for name in memory]
        bars = right.bar([name.split(" (")[0] for name in memory], megabytes, color=colours, width=0.6)
        right.bar_label(bars, [f"{m:,.1f}" for m in megabytes], padding=2)
        right.set(title=f"peak memory at batch size {step['peak_memory_batch']}", ylabel="MiB")
        right.margins(y=0.12)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(memory))
        figure.suptitle(f"One step of {loss} (forward and backward)", fontweight="bold")
        _save(figure, path)


def _plain_ticks(ax: Axes, sizes: list[int]) -> None:
    ax.set_xticks(sizes, [str(b) for b in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)


def _save(figure: Figure, path: Path) -> None:
    """As a PNG with a palette, which takes a third of the space."""
    buffer = BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(PALETTE).save(path, optimize=True)
