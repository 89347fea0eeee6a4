"""The console command ``metric-kernels``: ``demo`` and ``report``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import metric_kernels
from metric_kernels import backends, demo


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command and return its exit status: 0, or 2 where an argument or a package is not there."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "report":
        print(metric_kernels.report())
        return 0
    try:
        _demo(arguments)
    except _UsageError as reason:
        print(f"metric-kernels demo: {reason}", file=sys.stderr)
        return 2
    return 0


class _UsageError(Exception):
    """What the user has to change, in one line."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("metric-kernels", description="Fused losses for deep metric learning.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report", help="versions, devices, and which backends are usable here")
    add = commands.add_parser(
        "demo",
        help="train on handwritten digits, compare with PML and eager PyTorch, draw pictures",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    ).add_argument
    add("--loss", default="MultiSimilarityLoss", help="a loss that PML has too")
    add("--epochs", type=int, default=15, help="passes over the digits 0-5")
    add("--backend", help=f"one of {', '.join(backends.NAMES)}; without it the fastest that is usable")
    add("--out", default="demo-output", help="folder for the pictures and results.json")
    add("--seed", type=int, default=0, help="of the network, the batches and the views")
    add("--batch-size", type=int, default=120, help="of the training, a multiple of 6")
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    missing = [name for name in demo.NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise _UsageError(f"{', '.join(missing)} not installed; run: pip install 'metric-kernels[demo]'")
    _check(arguments)
    loss = _loss(arguments.loss)
    if arguments.backend:
        _check_backend(loss, arguments.backend)
    _make_folder(arguments.out)
    demo.run(loss, arguments.epochs, arguments.backend, arguments.out, arguments.seed, arguments.batch_size)


def _loss(given: str) -> str:
    """The class name for a name in any case, with or without "Loss" at the end."""
    from metric_kernels.demo import contenders

    names = contenders.names()
    short = {name.lower().removesuffix("loss"): name for name in names}
    try:
        return short[given.lower().removesuffix("loss")]
    except KeyError:
        raise _UsageError(f"--loss: expected one of {', '.join(names)}, got {given}") from None


def _check(arguments: argparse.Namespace) -> None:
    from metric_kernels.demo.data import BATCH_SIZES, SEEDS

    if arguments.epochs < 1:
        raise _UsageError(f"--epochs: expected 1 or more, got {arguments.epochs}")
    if arguments.batch_size not in BATCH_SIZES:
        sizes = f"a multiple of {BATCH_SIZES.step} from {BATCH_SIZES[0]} to {BATCH_SIZES[-1]}"
        raise _UsageError(f"--batch-size: expected {sizes}, got {arguments.batch_size}")
    if arguments.seed not in SEEDS:
        raise _UsageError(f"--seed: expected {SEEDS[0]} to {SEEDS[-1]}, got {arguments.seed}")
    if arguments.backend not in (None, *backends.NAMES):
        raise _UsageError(f"--backend: expected one of {', '.join(backends.NAMES)}, got {arguments.backend}")


def _check_backend(loss: str, backend: str) -> None:
    """A backend with a known name may still be unusable on this machine, and says why when it is called."""
    from metric_kernels.demo import contenders, measure

    try:
        measure.step(contenders.build(contenders.OURS, loss, backend), *measure.batch_of(8))
    except RuntimeError as error:
        raise _UsageError(f"--backend: {error}") from None


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _UsageError(f"--out: {error}") from None
