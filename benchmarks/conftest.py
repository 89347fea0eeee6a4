"""Options of the benchmark, and the records that a session updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import pictures, table
from benchmarks.cases import DEFAULT_PROVIDERS, PROVIDERS, timed, weighed
from benchmarks.records import DEFAULT, Records


def pytest_addoption(parser):
    group = parser.getgroup("metric-kernels")
    group.addoption("--full", action="store_true", help="also 1024, 4096 and 8192 samples, and the reference backend")
    group.addoption("--loss", default="", help="only losses whose name contains this, whatever the case")
    group.addoption("--providers", default="", help=f"comma-separated, among {','.join(PROVIDERS)}")
    group.addoption("--seconds", type=float, default=3.0, help="time budget of a case by all usual providers, uncompiled")
    group.addoption("--threads", type=int, default=2)
    group.addoption("--results", type=Path, default=DEFAULT, help="directory of cpu.csv, cpu.md and class_size.png")


def pytest_generate_tests(metafunc):
    config = metafunc.config
    part = config.option.loss.lower()
    if "timed_run" in metafunc.fixturenames:
        chosen = [run for run in timed(config.option.full) if part in run.cases[0].loss.lower()]
        metafunc.parametrize("timed_run", chosen, ids=[run.name for run in chosen])
    if "weighed_case" in metafunc.fixturenames:
        chosen = [c for c in weighed(config.option.full) if part in c.loss.lower()]
        if config.option.providers:
            chosen = [c for c in chosen if c.provider in config.option.providers.split(",")]
        metafunc.parametrize("weighed_case", chosen, ids=[f"{c.loss}-{c.shape}-{c.provider}" for c in chosen])


@pytest.fixture(scope="session", autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.option.threads)
    yield request.config.option.threads
    torch.set_num_threads(before)


@pytest.fixture
def providers(request, timed_run) -> tuple[str, ...]:
    option = request.config.option
    if not option.providers:
        return timed_run.providers or (tuple(PROVIDERS) if option.full else DEFAULT_PROVIDERS)
    unknown = set(option.providers.split(",")) - set(PROVIDERS)
    if unknown:
        raise pytest.UsageError(f"--providers: {', '.join(sorted(unknown))} not among {', '.join(PROVIDERS)}")
    return tuple(p for p in timed_run.providers or PROVIDERS if p in option.providers.split(","))


@pytest.fixture(scope="session")
def records(request):
    """Saved after every case, for a long run that is cut short; the table is written at the end."""
    directory = request.config.option.results
    found = Records(directory / "cpu.csv")
    yield found
    found.save()
    table.write(found, directory / "cpu.md")
    pictures.class_size(found, directory / "class_size.png")
