"""Peak memory of an action: the growth of the peak resident memory of its process.

It sees every allocation, those of compiled code and of scratch buffers too, which torch's own counters miss. Three things
would falsify it:

- an earlier action in the same process leaves memory that this one reuses: :func:`in_processes`, one for each;
- imports may have peaked above what is resident now, and an action below that peak looks free: ballast up to the peak;
- first calls start threads and set up libraries: the caller runs something small before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def growth(action: Callable[[], object]) -> int:
    """Bytes that the action needs at its peak beyond what is in use now. A lower bound where there is no /proc."""
    peak, now = _peak_and_now()
    ballast = torch.ones(peak - now + 2**20, dtype=torch.uint8)  # resident memory is at its peak now
    before, _ = _peak_and_now()
    action()
    after, _ = _peak_and_now()
    del ballast
    return after - before


def _peak_and_now() -> tuple[int, int]:
    """Bytes of resident memory of this process: the highest so far, and now.

    On Linux from /proc, because ``ru_maxrss`` there starts with the size of the parent (kept through fork and exec).
    """
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        peak, now = (1024 * int(fields[name].split()[0]) for name in ("VmHWM", "VmRSS"))
        return peak, now
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def in_processes(module: str, cases: Sequence[Sequence[object]]) -> list[int]:
    """The number that ``python -m module *case`` prints for each case, all running at the same time."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        # With a fixed threshold glibc returns freed blocks at once; blocks that it keeps would hide a later peak.
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, case)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for case in cases
    ]
    printed = [child.communicate() for child in children]
    for case, child, (_, error) in zip(cases, children, printed):
        if child.returncode:
            raise RuntimeError(f"{module} {' '.join(map(str, case))}: exit status {child.returncode}: {error[-500:]}")
    return [int(output) for output, _ in printed]
