"""The docstrings and the README: their examples run, and they name every argument."""

import doctest
import importlib
import inspect
import itertools
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import metric_kernels
from metric_kernels import distances, functional, losses, reducers

# Submodules that are no part of the public interface, or need what only a demo installs.
PRIVATE = re.compile(r"metric_kernels\.(_native|demo|cli|__main__|backends\.)")
MODULES = [
    info.name for info in pkgutil.walk_packages(metric_kernels.__path__, "metric_kernels.") if not PRIVATE.match(info.name)
]
ARGUMENT = re.compile(r" {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):")


def public():
    """Every public class and function, once, with a readable id."""
    modules = (metric_kernels, losses, distances, reducers, functional)
    values = [(f"{module.__name__}.{name}", getattr(module, name)) for module in modules for name in module.__all__]
    return [pytest.param(v, id=name) for name, v in values if inspect.isclass(v) or inspect.isfunction(v)]


def documented(value):
    """Names in the section Args of a docstring; none without one."""
    lines = iter(inspect.getdoc(value).splitlines())
    for line in lines:
        if line == "Args:":
            break
    section = itertools.takewhile(lambda line: not line or line.startswith("    "), lines)
    return [n for line in section if (found := ARGUMENT.match(line)) for n in found[1].split(", ")]


def test_every_module_says_what_it_is_for():
    silent = [name for name in MODULES if not importlib.import_module(name).__doc__]
    # A file of one loss is described by its class.
    assert all(name.startswith("metric_kernels.losses.") for name in silent)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


@pytest.mark.parametrize("cls", losses.REGISTRY.values(), ids=losses.REGISTRY)
def test_every_loss_has_an_example(cls):
    assert ">>> loss(" in cls.__doc__


@pytest.mark.parametrize("value", public())
def test_public_objects_have_a_docstring(value):
    assert value.__doc__ and value.__doc__.strip()


def constructor_arguments(cls):
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return ["**kwargs" if p.kind is p.VAR_KEYWORD else p.name for p in parameters]


@pytest.mark.parametrize("cls", losses.REGISTRY.values(), ids=losses.REGISTRY)
def test_a_loss_documents_its_arguments(cls):
    assert documented(cls) == constructor_arguments(cls)


def test_the_base_of_losses_documents_its_arguments():
    assert documented(losses.PairLoss) == constructor_arguments(losses.PairLoss)
    assert documented(losses.PairLoss.forward) == list(inspect.signature(losses.PairLoss.forward).parameters)[1:]


@pytest.mark.parametrize("function", [metric_kernels.pairwise_distance, metric_kernels.row_extremes, functional.triplet_margin])
def test_a_function_documents_its_arguments(function):
    assert documented(function) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("value", public())
def test_what_is_documented_exists(value):
    known = inspect.signature(value).parameters
    assert all(name.strip("*") in known for name in documented(value))


@pytest.mark.parametrize("cls", losses.REGISTRY.values(), ids=losses.REGISTRY)
def test_the_defaults_of_a_loss_are_documented(cls):
    text = cls.__doc__
    assert f"``distance`` ({type(cls.default_distance()).__name__}" in text
    assert f"``reducer`` ({cls.default_reducer.__name__}" in text


def test_the_loss_of_the_readme(tmp_path, monkeypatch):
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    tmp_path.joinpath("loss_of_the_readme.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    cls = importlib.import_module("loss_of_the_readme").BinomialDeviance
    x, labels = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 6
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    same, softplus = labels[:, None] == labels, torch.nn.functional.softplus
    positive, negative = same & ~torch.eye(20, dtype=torch.bool), ~same
    expected = softplus(2 * (0.5 - cosine))[positive].sum() + softplus(50 * (cosine - 0.5))[negative].sum()
    for backend in ("numba", "reference"):
        torch.testing.assert_close(cls(backend=backend)(x, labels), expected / 20)
