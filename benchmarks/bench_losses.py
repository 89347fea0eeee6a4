"""Every loss at every shape, side by side with the floor and the other implementations: ``pytest benchmarks``."""

import pytest

from benchmarks.cases import OURS, PROVIDERS
from benchmarks.compare import compare
from benchmarks.dense import DENSE
from benchmarks.memory import peak_mb

PEDANTIC_S = 0.2


def test_time(timed_case, benchmark, providers, records, request):
    if timed_case.loss not in DENSE:
        pytest.skip("no formula in benchmarks/dense.py to check the answer against")
    found = compare(timed_case, providers, request.config.option.seconds)
    records.add_times(timed_case, found)
    records.save()

    benchmark.group = timed_case.shape
    floor = found.median("floor")
    benchmark.extra_info["median_ms"] = {p: found.median(p) for p in found.results}
    benchmark.extra_info["notes"] = {p: r.note for p, r in found.results.items() if r.note}
    if floor:
        times = benchmark.extra_info["median_ms"].items()
        benchmark.extra_info["ratio_to_floor"] = {p: ms / floor for p, ms in times if ms}
    peaks = {p: records.number(timed_case.by(p), "peak_mb") for p in providers}
    benchmark.extra_info["peak_mb"] = {p: mb for p, mb in peaks.items() if mb}

    broken = [f"{p}: {r.note}" for p, r in found.results.items() if p in OURS and r.failed]
    assert not broken, "; ".join(broken)
    if found.ours is None:
        pytest.skip(f"none of ours can run: {benchmark.extra_info['notes']}")
    rounds = int(min(50, max(3, 1e3 * PEDANTIC_S / found.median(found.ours))))
    benchmark.pedantic(found.steps[found.ours], rounds=rounds, warmup_rounds=1)


def test_peak_memory(weighed_case, benchmark, records, threads):
    """The time that pytest-benchmark prints here is that of the measuring process; the result is in the table."""
    benchmark.group = "peak memory (seconds of the measuring process)"
    reason = PROVIDERS[weighed_case.provider].refuse(weighed_case)
    if reason:
        records.add_refusal(weighed_case, reason)
        pytest.skip(reason)
    megabytes = benchmark.pedantic(peak_mb, args=(weighed_case, threads), rounds=1)
    benchmark.extra_info["peak_mb"] = megabytes
    records.add_peak(weighed_case, megabytes)
    records.save()
