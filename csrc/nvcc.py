"""How nvcc compiles the CUDA kernels: for the package in setup.py, and to be looked at in metric_kernels/backends/aot.py."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CUDA = Path(__file__).resolve().parent / "cuda"
KERNELS = (CUDA / "terms.cu", CUDA / "rows.cu")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "--compress-mode=size", "-Xcompiler=-fPIC,-fvisibility=hidden"]
OLDEST = (12, 8)


@functools.cache
def find() -> tuple[str | None, str | None]:
    """The compiler, or None and the reason why there is none to use."""
    if platform.system() != "Linux":
        return None, f"the CUDA kernels are built on Linux, not on {platform.system()}"
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which(str(Path(home, "bin", "nvcc")) if home else "nvcc")
    if nvcc is None:
        return None, "no nvcc on the path nor in CUDA_HOME"
    try:
        printed = run([nvcc, "--version"])
    except (OSError, RuntimeError) as error:
        return None, f"{nvcc} cannot be run ({error})"
    found = re.search(r"release (\d+)\.(\d+)", printed)
    if found is None or tuple(map(int, found.groups())) < OLDEST:
        return None, f"nvcc is older than {'.'.join(map(str, OLDEST))}"
    return nvcc, None


def compile(source: Path, target: Path, include: Sequence[Path | str], architectures: Sequence[int], *flags: str) -> str:
    """Compiles a source for some architectures, and as PTX for what comes after the last. Returns what nvcc prints."""
    newest = f"arch=compute_{architectures[-1]},code=compute_{architectures[-1]}"
    codes = [f"arch=compute_{number},code=sm_{number}" for number in architectures] + [newest]
    options = [*FLAGS, *flags, *(f"-gencode={code}" for code in codes), *(f"-I{path}" for path in include)]
    return run([str(find()[0]), *options, "-c", str(source), "-o", str(target)])


def link(objects: Sequence[Path], target: Path) -> None:
    run([str(find()[0]), "-shared", "--cudart=static", *map(str, objects), "-o", str(target)])


def run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout
