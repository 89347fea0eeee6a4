"""Compiles the CUDA kernels without a GPU; needs nvcc and the sources of this package."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

CSRC = Path(__file__).resolve().parents[2] / "csrc"


class Usage(NamedTuple):
    registers: int
    shared: int
    spilled: int


def reason_against() -> str | None:
    if not CSRC.is_dir():
        return f"no sources of the kernels in {CSRC}"
    return _script("nvcc").find()[1]


def kernels(architecture: int, only: str | None = None) -> Iterator[tuple[str, Usage]]:
    """Compiles every source, or one. The name of each kernel and what it needs, according to the assembler."""
    nvcc = _script("nvcc")
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor() as pool:
        folder = Path(temporary)
        _script("generate").write(folder)

        def compiled(source: Path) -> str:
            return nvcc.compile(source, folder / f"{source.name}.o", [folder, CSRC], [architecture], "-Xptxas=-v")

        for report in pool.map(compiled, [source for source in nvcc.KERNELS if only in (None, source.name)]):
            yield from usages(report)


def usages(report: str) -> Iterator[tuple[str, Usage]]:
    """What is said of each kernel in a report of the assembler."""
    entries = re.split(r"Compiling entry function '(\w+)'", report)[1:]
    for name, text in zip(entries[::2], entries[1::2]):
        (registers,) = re.findall(r"Used (\d+) registers", text)
        # Nothing but spilled registers, and arrays that did not fit them, lives on the stack of these kernels.
        spilled = sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", text)))
        shared = sum(map(int, re.findall(r"(\d+) bytes smem", text)))
        yield readable(name), Usage(int(registers), shared, spilled)


def readable(symbol: str) -> str:
    """rank_rows<float, 32>, of a mangled name."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    name = re.sub(r"\(anonymous namespace\)::|std::|^void ", "", name.strip())
    return name[: name.rindex(">(") + 1]


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, CSRC / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
