"""What editors and type checkers see: they read the files, and run nothing."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import metric_kernels
from metric_kernels import distances, functional, losses, reducers

PUBLIC = (metric_kernels, distances, functional, losses, reducers)
LOSS_FILES = [p.stem for p in sorted(Path(losses.__file__).parent.glob("*.py")) if not p.stem.startswith("_")]


def bound(source):
    """Names that the statements of a module bind by import, definition or assignment."""
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id


def test_the_package_says_that_it_is_typed():
    assert Path(metric_kernels.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize("file", LOSS_FILES)
def test_every_file_of_losses_is_exported(file):
    module = importlib.import_module(f"metric_kernels.losses.{file}")
    here = {n: v for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == module.__name__}
    assert here
    for name, value in here.items():
        if issubclass(value, losses.Loss) and not name.startswith("_"):
            assert name in losses.__all__ and getattr(losses, name) is value is losses.REGISTRY[name]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_public_names_can_be_seen_without_running(module):
    assert set(module.__all__) <= set(bound(Path(module.__file__).read_text(encoding="utf-8")))


def callables():
    for module in PUBLIC:
        for name in module.__all__:
            value = getattr(module, name)
            function = value.__init__ if inspect.isclass(value) else value
            if inspect.isfunction(function) and function.__module__.startswith("metric_kernels"):
                yield pytest.param(function, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("function", list(callables()))
def test_public_callables_are_typed(function):
    """A strict checker refuses to call what has no annotation at all; functional forms have theirs from a protocol."""
    assert function.__annotations__ or inspect.signature(function).return_annotation is not inspect.Signature.empty
