"""Peak memory of one step in a process of its own: ``python -m benchmarks.memory CASE`` prints the bytes.

It is the growth of the process's resident high-water mark during the step, so that scratch buffers of compiled code
count, which torch's own counters do not see. The mark is reset just before the step where the system can do that;
``ru_maxrss`` never falls, so without a reset a step below the peak of the imports would look free.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import torch

from benchmarks.cases import PROVIDERS, Case

ROOT = Path(__file__).parents[1]
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_TINY = 32


def peak_mb(case: Case, threads: int) -> float:
    """Extra megabytes (1e6 bytes) that a step of the case needs at its peak; the gradient of the embeddings counts."""
    # With a fixed threshold glibc returns freed blocks at once; blocks that it keeps would hide a later peak.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, astuple(case)), str(threads)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case}: exit status {done.returncode}: {done.stderr[-500:]}")
    return int(done.stdout) / 1e6


def step_peak(case: Case) -> int:
    """Bytes, measured in this process, which must not have run anything large before."""
    provider = PROVIDERS[case.provider]
    # A compiled function belongs to one shape, so that its warm-up has to be the case itself.
    tiny = case if case.provider == "compile" else Case(case.loss, _TINY, case.dim, case.dtype, 4, case.provider)
    provider.step(tiny, *tiny.inputs())()
    step = provider.step(case, *case.inputs())
    before = _reset()
    step()
    return _high_water() - before


def _reset() -> int:
    """Resets the high-water mark to what is resident now, and returns it."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        print("the high-water mark cannot be reset here: the result is a lower bound", file=sys.stderr)
    return _high_water()


def _high_water() -> int:
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return 1024 * int(fields["VmHWM"].split()[0])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _main(loss, batch, dim, dtype, per_class, provider, threads) -> None:
    torch.set_num_threads(int(threads))
    print(step_peak(Case(loss, int(batch), int(dim), dtype, int(per_class), provider)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
