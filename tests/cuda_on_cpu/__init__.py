"""The CUDA kernels compiled for the CPU: the same sources, with the header beside this file in the place of CUDA's own."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
# As setup.py does.
SANITIZE = ["-g", "-fsanitize=address,undefined"] if os.environ.get("METRIC_KERNELS_SANITIZE") else []
SOURCES = ["bindings.cpp", "terms.cu", "rows.cu"]


def build() -> Path:
    """The module, compiled again where a source has changed."""
    import pybind11

    generate = _generator()
    inputs = [*CSRC.glob("*.h"), *CSRC.glob("cuda/*"), *HERE.rglob("*.h"), *HERE.rglob("*.cuh"), CSRC / "generate.py"]
    text = "".join(path.read_text() for path in sorted(inputs))
    text += generate.generate() + generate.table() + sys.version + repr(SANITIZE)
    folder = ROOT / "build" / "cuda-on-cpu" / hashlib.sha256(text.encode()).hexdigest()[:16]
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    if module.exists():
        return module
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # another run may be at it
        work = Path(temporary)
        generate.write(work)
        include = [HERE, work, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
        # A fortified longjmp refuses to go to another stack.
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-fPIC", "-fvisibility=hidden"]
        flags += [*SANITIZE, *(f"-I{path}" for path in include)]

        def compiled(source: str) -> Path:
            target = work / f"{source}.o"
            _run(["g++", *flags, "-x", "c++", "-c", str(CSRC / "cuda" / source), "-o", str(target)])
            return target

        with ThreadPoolExecutor() as pool:
            objects = list(pool.map(compiled, SOURCES))
        _run(["g++", "-shared", *SANITIZE, *map(str, objects), "-o", str(work / module.name)])
        return (work / module.name).replace(module)


def load(name: str) -> ModuleType:
    """The module under another name."""
    spec = importlib.util.spec_from_file_location(name, build())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CSRC / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
