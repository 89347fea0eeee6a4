"""Interleaved timing: the actions take turns, so a slow moment of the machine falls on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

TURN_S = 2e-3
MAX_BURST = 50
MIN_TURNS, MAX_TURNS = 5, 100
WARM_UP_S, MAX_WARM_UPS = 0.05, 20


class Timing(NamedTuple):
    """Milliseconds of one step, and how many were timed."""

    median: float
    p20: float
    p80: float
    count: int


def interleaved(actions: dict[str, Callable[[], object]], budget_s: float, min_turns: int = MIN_TURNS) -> dict[str, Timing]:
    """Medians of each action within about ``budget_s`` seconds in all.

    Every action has the same share of the time. One that is too slow for a turn in every round gets its turns evenly
    spread over the rounds, at least ``min_turns``. A turn is a burst of steps that lasts TURN_S, whose first step is not
    counted if there are several: threads of the action before may still be spinning.
    """
    plans = {name: _plan(_warm(action), budget_s / len(actions), min_turns) for name, action in actions.items()}
    rounds = max(turns for turns, _ in plans.values())
    taken = {name: [] for name in actions}
    for number in range(rounds):
        # Alternate the order, or an action would always follow the same one.
        for name in list(actions)[:: 1 if number % 2 else -1]:
            turns, burst = plans[name]
            if (number + 1) * turns // rounds > number * turns // rounds:
                steps = [_seconds(actions[name]) for _ in range(burst)]
                taken[name] += steps[1:] or steps
    return {name: _summary(seconds) for name, seconds in taken.items()}


def _warm(action: Callable[[], object]) -> float:
    """Seconds of a step once caches and threads are warm."""
    best, spent, calls = math.inf, 0.0, 0
    while calls < 2 or (spent < WARM_UP_S and calls < MAX_WARM_UPS):
        seconds = _seconds(action)
        best, spent, calls = min(best, seconds), spent + seconds, calls + 1
    return best


def _plan(step_s: float, share_s: float, min_turns: int) -> tuple[int, int]:
    """Turns, and steps in a turn."""
    burst = min(MAX_BURST, math.ceil(TURN_S / step_s))
    burst += burst > 1
    return min(MAX_TURNS, max(min_turns, int(share_s / (step_s * burst)))), burst


def _summary(seconds: list[float]) -> Timing:
    p20, median, p80 = np.percentile(np.array(seconds) * 1e3, [20, 50, 80])
    return Timing(float(median), float(p20), float(p80), len(seconds))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
