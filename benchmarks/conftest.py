"""Options of the benchmark, and the records that a session updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import table
from benchmarks.cases import DEFAULT_PROVIDERS, PROVIDERS, timed, weighed
from benchmarks.records import DEFAULT, Records


def pytest_addoption(parser):
    group = parser.getgroup("metric-kernels")
    group.addoption("--full", action="store_true", help="also 1024, 4096 and 8192 samples, and the reference backend")
    group.addoption("--loss", default="", help="only losses whose name contains this, whatever the case")
    group.addoption("--providers", default="", help=f"comma-separated, among {','.join(PROVIDERS)}")
    group.addoption("--seconds", type=float, default=3.0, help="time budget of a case, without compilation")
    group.addoption("--threads", type=int, default=2)
    group.addoption("--results", type=Path, default=DEFAULT, help="directory of cpu.csv and cpu.md")


def pytest_generate_tests(metafunc):
    config = metafunc.config
    for name, cases in (("timed_case", timed), ("weighed_case", weighed)):
        if name in metafunc.fixturenames:
            chosen = [c for c in cases(config.option.full) if config.option.loss.lower() in c.loss.lower()]
            if name == "weighed_case" and config.option.providers:
                chosen = [c for c in chosen if c.provider in config.option.providers.split(",")]
            with_provider = name == "weighed_case"
            ids = [f"{c.loss}-{c.shape}" + (f"-{c.provider}" if with_provider else "") for c in chosen]
            metafunc.parametrize(name, chosen, ids=ids)


@pytest.fixture(scope="session", autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.option.threads)
    yield request.config.option.threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def providers(request) -> tuple[str, ...]:
    given = request.config.option.providers
    if not given:
        return tuple(PROVIDERS) if request.config.option.full else DEFAULT_PROVIDERS
    unknown = set(given.split(",")) - set(PROVIDERS)
    if unknown:
        raise pytest.UsageError(f"--providers: {', '.join(sorted(unknown))} not among {', '.join(PROVIDERS)}")
    return tuple(p for p in PROVIDERS if p in given.split(","))


@pytest.fixture(scope="session")
def records(request):
    """Saved after every case, for a long run that is cut short; the table is written at the end."""
    directory = request.config.option.results
    found = Records(directory / "cpu.csv")
    yield found
    found.save()
    table.write(found, directory / "cpu.md")
