"""The demonstration from the data to the pictures, and what it prints."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from metric_kernels import backends
from metric_kernels.demo import contenders, measure, pictures
from metric_kernels.demo.contenders import DTYPES, OURS, PLAIN, PML, Contenders
from metric_kernels.demo.data import Digits, digits
from metric_kernels.demo.network import network
from metric_kernels.demo.retrieval import KS, auc, pairs, recall
from metric_kernels.demo.threads import one_thread
from metric_kernels.demo.train import Training, difference, train

# Enough to tell another loss from rounding; float64 convolutions are slow.
FLOAT64_EPOCHS = 3
# PML takes seconds for one step of a loss over pairs of pairs, even at the size of a training batch.
PML_LIMIT_S = 5
# Some hundred times the epsilon of the type: in the first epoch training has hardly amplified the rounding.
SAME = {"float32": 1e-5, "float64": 1e-13}
# The embeddings of an untrained network are nearly equal. Differences of their distances, and which of these is the largest,
# magnify rounding several hundred times; so does a histogram with bins as narrow as they are wide.
MAGNIFIED = 500
MAGNIFYING = (
    "BatchHardTripletLoss",
    "DynamicSoftMarginLoss",
    "HistogramLoss",
    "SemiHardTripletLoss",
    "TripletMarginLoss",
)


@one_thread()
def pipeline(loss: str, epochs: int, backend: str | None, out: Path, seed: int, batch_size: int) -> dict:
    """See :func:`metric_kernels.demo.run`."""
    start = time.perf_counter()
    results: dict = {
        "loss": loss,
        "backend": {"requested": backends.requested(backend), **contenders.ran(loss, backend)},
        "seed": seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "machine": _machine(),
    }
    print(f"{loss}, {_backend(results)}, seed {seed}, one thread")
    out.mkdir(parents=True, exist_ok=True)
    data = digits(seed)
    ours, theirs, taking_part = _train_both(data, loss, backend, epochs, batch_size, seed)
    results |= {"contenders": list(taking_part.names), "left_out": taking_part.left_out}
    results["curves"] = _compared(ours, theirs, taking_part.peer)
    embeddings = {
        "raw pixels": data.held_out_views.flatten(1),
        "before training": _embed(network(seed), data),
        "after training": _embed(ours["float32"].net, data),
    }
    results |= _retrieval(embeddings, data.held_out_labels)
    results["step"] = _step(loss, backend, taking_part.names)
    results["pictures"] = _draw(out, results, embeddings, data)
    results["seconds"] = time.perf_counter() - start
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(summary(results, out))
    return results


def _train_both(
    data: Digits, loss: str, backend: str | None, epochs: int, batch_size: int, seed: int
) -> tuple[dict[str, Training], dict[str, Training], Contenders]:
    """Our trainings and those of the peer, {dtype: training}, and the contenders without PML if it fails."""

    def run(contender: str) -> dict[str, Training]:
        limit = PML_LIMIT_S if contender == PML else math.inf
        trainings = {}
        for dtype in DTYPES:
            module = contenders.build(contender, loss, backend)
            some = epochs if dtype == "float32" else min(epochs, FLOAT64_EPOCHS)
            title = f"training: {contender.split(' (')[0]}, {dtype}"
            trainings[dtype] = train(module, data, some, batch_size, seed, getattr(torch, dtype), title, limit)
        return trainings

    taking_part = contenders.of(loss)
    ours = run(OURS)
    if taking_part.peer == PML:
        try:
            return ours, run(PML), taking_part
        except Exception as error:  # of any kind: it is PML's result
            taking_part = taking_part.without(PML, f"training fails with {type(error).__name__}: {_first_sentence(error)}")
    return ours, run(taking_part.peer), taking_part


def _compared(ours: dict[str, Training], theirs: dict[str, Training], peer: str) -> dict:
    epoch = ours["float32"].epoch
    curves = {dtype: {OURS: ours[dtype].curve, peer: theirs[dtype].curve} for dtype in DTYPES}
    apart = {
        dtype: {
            "first_epoch": difference(*(curve[:epoch] for curve in both.values())),
            "all_steps": difference(*both.values()),
            "steps": min(map(len, both.values())),
        }
        for dtype, both in curves.items()
    }
    return {"peer": peer, "steps_per_epoch": epoch, **curves, "largest_relative_difference": apart}


def _first_sentence(error: Exception) -> str:
    return re.split(r"[.(\n]", str(error), maxsplit=1)[0].strip()


def _embed(net: torch.nn.Module, data: Digits) -> torch.Tensor:
    with torch.no_grad():
        return net(data.held_out_views)


def _retrieval(embeddings: dict[str, torch.Tensor], labels: torch.Tensor) -> dict:
    return {
        "held_out_images": len(labels),
        "recall": {name: recall(x, labels) for name, x in embeddings.items()},
        "pair_auc": {name: auc(*pairs(x, labels)) for name, x in embeddings.items()},
    }


def _step(loss: str, backend: str | None, names: tuple[str, ...]) -> dict:
    milliseconds = measure.times({c: contenders.build(c, loss, backend) for c in names})
    largest = max(milliseconds)
    return {
        "width": measure.WIDTH,
        "per_class": measure.PER_CLASS,
        "milliseconds": milliseconds,
        "peak_memory_batch": largest,
        "peak_memory_bytes": measure.peak_memory(names, loss, backend, largest),
    }


def _draw(out: Path, results: dict, embeddings: dict, data: Digits) -> list[str]:
    panels = {name: embeddings[name] for name in ("before training", "after training")}
    loss = results["loss"]
    pictures.similarity_histograms(out / "similarity_histograms.png", panels, data.held_out_labels, loss)
    pictures.embedding_map(out / "embedding_map.png", panels, data.held_out_labels, loss, results["seed"])
    pictures.loss_curves(out / "loss_curves.png", results["curves"], loss)
    pictures.loss_step(out / "loss_step.png", results["step"], loss)
    return ["similarity_histograms.png", "embedding_map.png", "loss_curves.png", "loss_step.png"]


def summary(results: dict, out: Path) -> str:
    """The results as a few lines of text."""
    step, curves = results["step"], results["curves"]
    apart = curves["largest_relative_difference"]
    names = results["contenders"]
    shown = {c: c for c in names} | {OURS: f"{OURS} ({results['backend']['float32']})"}
    lines = [
        "",
        f"Recall@K on the held-out digits 6-9 ({results['held_out_images']} images, cosine similarity), and AUC of their pairs",
        _row("", *(f"R@{k}" for k in KS), "AUC"),
        *(
            _row(name, *(f"{r[k]:.3f}" for k in KS), f"{results['pair_auc'][name]:.3f}")
            for name, r in results["recall"].items()
        ),
        "",
        f"Training loss against that of {curves['peer']}, same seed, largest relative difference",
        _row("", "epoch 1", "all", "steps"),
        *(_row(dtype, f"{d['first_epoch']:.0e}", f"{d['all_steps']:.0e}", d["steps"]) for dtype, d in apart.items()),
        f"  {_verdict(results)}",
        *(f"  {name} is left out: {reason}" for name, reason in results["left_out"].items()),
        "",
        f"Loss step (forward, backward), one thread, median ms; {step['width']}-d, {step['per_class']} of each class",
        _row("batch size", *step["milliseconds"]),
        *(_row(shown[c], *(_three_digits(row[c]) for row in step["milliseconds"].values())) for c in names),
        *_busy(results["machine"]),
        "",
        f"Peak memory of that step at batch size {step['peak_memory_batch']}, MiB",
        *(_row(shown[c], f"{step['peak_memory_bytes'][c] / 2**20:,.1f}") for c in names),
        "",
        f"{results['seconds']:.0f} s; pictures and numbers:",
        *(f"  {_shown(out / name)}" for name in (*results["pictures"], "results.json")),
    ]
    return "\n".join(lines)


def _verdict(results: dict) -> str:
    curves = results["curves"]
    apart, peer = curves["largest_relative_difference"], curves["peer"]
    if peer == PLAIN and all(results["backend"][dtype] == "reference" for dtype in DTYPES):
        return "the same code: another backend is needed for a comparison"
    precisions = {dtype: contenders.precision(peer, results["loss"], dtype) for dtype in DTYPES}
    times = MAGNIFIED if results["loss"] in MAGNIFYING else 1
    same = all(apart[dtype]["first_epoch"] < times * SAME[precision] for dtype, precision in precisions.items())
    verdict = "the same loss, up to rounding, which training amplifies" if same else "NOT the same loss"
    notes = []
    if precisions["float64"] != "float64":
        notes.append(f"{peer} computes it in float32")
    if any(d["steps"] < len(curves[dtype][OURS]) for dtype, d in apart.items()):
        notes.append(f"{peer} was stopped after {PML_LIMIT_S} s")
    return f"{verdict} ({', '.join(notes)})" if notes else verdict


def _backend(results: dict) -> str:
    backend = results["backend"]
    names = " and ".join(dict.fromkeys(backend[dtype] for dtype in DTYPES))
    return f"backend {names} ({'as requested' if backend['requested'] else 'chosen automatically'})"


def _row(name: str, *cells: object) -> str:
    return f"  {name:<34}" + "".join(f"{cell!s:>9}" for cell in cells)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _shown(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    try:
        return min(os.path.relpath(path), str(path), key=len)
    except ValueError:  # another drive on Windows
        return str(path)


def _busy(machine: dict) -> list[str]:
    load = machine["load_average_before"]
    if load is None or load < 0.75 * machine["cores"]:
        return []
    return [f"  load {load:.1f} on {machine['cores']} cores before the start: other programs distort these times"]


def _machine() -> dict:
    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {name: installed(name) for name in ("metric-kernels", "torch", "pytorch-metric-learning")},
        "unusable_backends": {name: reason for name, reason in backends.status().items() if reason},
    }
