"""The console command ``metric-kernels``: ``demo`` and ``report``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path

import metric_kernels
from metric_kernels import backends, demo, losses


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command and return its exit status: 0, or 2 where an argument or a package is not there."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "report":
            print(metric_kernels.report())
        else:
            _demo(arguments)
        sys.stdout.flush()
    except _UsageError as reason:
        print(f"metric-kernels demo: {reason}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has enough, as ``head`` does. Python flushes again at exit, which must not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _UsageError(Exception):
    """What the user has to change, in one line."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("metric-kernels", description="Fused losses for deep metric learning.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("report", help="versions, devices, and which backends are usable here")
    add = commands.add_parser(
        "demo", help="train on handwritten digits, compare with PML and plain PyTorch, draw pictures"
    ).add_argument
    add("--loss", default="MultiSimilarityLoss", help=f"one of {', '.join(losses.REGISTRY)} (default: %(default)s)")
    add("--epochs", type=int, default=15, help="passes over the digits 0-5 (default: %(default)s)")
    add("--backend", help=f"one of {', '.join(backends.NAMES)}; without it the fastest that is usable")
    add("--out", default="demo-output", help="folder for the pictures and results.json (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the network, the batches and the views (default: %(default)s)")
    add("--batch-size", type=int, default=120, help="of the training, a multiple of 6 (default: %(default)s)")
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    missing = [package for name, package in demo.NEEDS.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise _UsageError(f"some packages are not installed; run: pip install {shlex.join(missing)}")
    _check(arguments)
    loss = _loss(arguments.loss)
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


def _check_backend(loss: str, backend: str | None) -> None:
    """A backend with a known name may still be unusable on this machine."""
    from metric_kernels.demo import contenders

    try:
        contenders.ran(loss, backend)
    except ValueError as error:  # which names the variable
        raise _UsageError(str(error)) from None
    except RuntimeError as error:
        raise _UsageError(f"{'--backend' if backend else 'METRIC_KERNELS_BACKEND'}: {error}") from None


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _UsageError(f"--out: {error}") from None
