"""One thread for everything that the demonstration computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread in torch, in this library, which follows torch, and in scikit-learn.

    All of them wait actively for their other threads, up to a hundred times longer than they compute where another
    program has taken the core. One thread gives times that can be compared on a busy machine as well.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
