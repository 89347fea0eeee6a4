"""A process that runs one loss step and prints the bytes it needed: ``python -m metric_kernels.demo.peak``.

The measure is the growth of the peak resident memory of the process during the step. It sees every allocation, those of
compiled code and of scratch buffers too, which torch's own counters miss. Three things would falsify it:

- an earlier step in the same process leaves memory that this one reuses: a fresh process for each contender;
- imports may have peaked above what is resident now, and a step below that peak looks free: ballast up to the peak;
- first calls start threads and set up libraries: a small step and a product of the right shape come before.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from metric_kernels.demo import contenders, measure

STATUS = Path("/proc/self/status")


def peak_and_now() -> tuple[int, int]:
    """Bytes of resident memory of this process: the highest so far, and now.

    On Linux from /proc, because ``ru_maxrss`` there starts with the size of the parent (kept through fork and exec).
    """
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        peak, now = (1024 * int(fields[name].split()[0]) for name in ("VmHWM", "VmRSS"))
        return peak, now
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def main(contender: str, loss: str, backend: str, size: str) -> int:
    torch.set_num_threads(1)
    module = contenders.build(contender, loss, backend or None)
    measure.step(module, *measure.batch_of(4 * measure.PER_CLASS))
    x, labels = measure.batch_of(int(size))
    with torch.no_grad():
        x @ x.T
    peak, now = peak_and_now()
    ballast = torch.ones(peak - now + 2**20, dtype=torch.uint8)  # resident memory is at its peak now
    before, _ = peak_and_now()
    measure.step(module, x, labels)
    after, _ = peak_and_now()
    del ballast
    return after - before


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
