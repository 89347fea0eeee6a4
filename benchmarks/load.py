"""How much of the machine other processes took meanwhile; a steady load does not show in the spread of the timings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # idle and waiting for input or output
_GUEST = 8  # from here on, time that user time includes already


class Usage(NamedTuple):
    """Processor seconds since the start: of the whole machine, in use, and in use by this process."""

    total: float
    busy: float
    own: float


def usage() -> Usage | None:
    """None where the system does not tell."""
    if not _STAT.exists():
        return None
    times = [int(t) / os.sysconf("SC_CLK_TCK") for t in _STAT.read_text().splitlines()[0].split()[1:]][:_GUEST]
    idle = sum(times[i] for i in _IDLE)
    own = os.times()
    return Usage(sum(times), sum(times) - idle, own.user + own.system)


def others(before: Usage | None, after: Usage | None) -> float:
    """The share of the machine that was neither idle nor ours; 0 if unknown."""
    if before is None or after is None or after.total <= before.total:
        return 0.0
    total, busy, own = (b - a for a, b in zip(before, after))
    return max(0.0, (busy - own) / total)
