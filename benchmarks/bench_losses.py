"""Every loss at every shape, side by side with the floor and the other implementations: ``pytest benchmarks``."""

import pytest

from benchmarks.cases import DEFAULT_PROVIDERS, OURS, PROVIDERS
from benchmarks.compare import compare_all
from benchmarks.dense import DENSE
from benchmarks.dense_terms import TERMS
from benchmarks.memory import peak_mb

PEDANTIC_S = 0.2


def test_time(timed_run, benchmark, providers, records, request):
    cases = timed_run.cases
    if cases[0].loss not in DENSE | TERMS:
        pytest.skip("no formula in benchmarks/dense.py or dense_terms.py to check the answer against")
    if not providers:
        pytest.skip("only others are asked for")
    everything = compare_all(cases, providers, request.config.option.seconds * len(providers) / len(DEFAULT_PROVIDERS))
    for case, found in zip(cases, everything):
        records.add_times(case, found)
        benchmark.extra_info[case.shape] = _summary(case, found, records)
    records.save()

    benchmark.group = " and ".join(case.shape for case in cases)
    results = [(p, r) for found in everything for p, r in found.results.items()]
    broken = [f"{p}: {r.note}" for p, r in results if p in OURS and r.failed]
    assert not broken, "; ".join(broken)
    first = everything[0]
    if first.ours is None:
        pytest.skip(f"none of ours can run: {benchmark.extra_info}")
    rounds = int(min(50, max(3, 1e3 * PEDANTIC_S / first.median(first.ours))))
    benchmark.pedantic(first.steps[first.ours], rounds=rounds, warmup_rounds=1)


def _summary(case, found, records):
    times = {p: found.median(p) for p in found.results}
    floor = times.get("floor")
    peaks = {p: records.number(case.by(p), "peak_mb") for p in found.results}
    return {
        "median_ms": times,
        "ratio_to_floor": {p: ms / floor for p, ms in times.items() if ms and floor},
        "notes": {p: r.note for p, r in found.results.items() if r.note},
        "peak_mb": {p: mb for p, mb in peaks.items() if mb},
    }


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
