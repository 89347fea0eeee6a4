"""Builds the compiled row kernels. Everything else about the package stands in pyproject.toml."""

import ctypes
import importlib.util
import os
import platform
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import Extension, setup
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).resolve().parent
CUDA = "metric_kernels._cuda"
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mprefer-vector-width=512"]
ISAS = {"baseline": {"unix": [], "msvc": []}}
if X86:
    ISAS["avx2"] = {"unix": ["-mavx2", "-mfma"], "msvc": ["/arch:AVX2"]}
    ISAS["avx512"] = {"unix": AVX512, "msvc": ["/arch:AVX512"]}
# Comparisons and square roots vectorise only if they need not raise; NaN and infinity keep their meaning.
FLAGS = {"unix": ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"], "msvc": ["/O2"]}
SANITIZE = bool(os.environ.get("METRIC_KERNELS_SANITIZE"))
if SANITIZE:
    FLAGS["unix"] = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", *FLAGS["unix"][1:]]
OPENMP = {"unix": ["-fopenmp"], "msvc": ["/openmp"]}


class BuildKernels(build_ext):
    """Compiles kernels.cpp once for each instruction set, and the CUDA kernels, from formulas printed out of the Python
    sources.
    """

    def build_extension(self, ext):
        self.force = True  # the formulas are inputs that setuptools does not see
        if ext.name == CUDA:
            self._build_cuda()
        else:
            self._build_native(ext)

    def _build_cuda(self):
        folder, target = Path(self.build_temp) / "cuda", Path(self.get_ext_fullpath(CUDA))
        GENERATE.write(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        include = [folder, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]

        def compiled(source):
            NVCC.compile(source, folder / f"{source.name}.o", include, NVCC.ARCHITECTURES)
            return folder / f"{source.name}.o"

        try:
            with ThreadPoolExecutor() as pool:
                NVCC.link(list(pool.map(compiled, [*NVCC.KERNELS, ROOT / "csrc" / "cuda" / "bindings.cpp"])), target)
        except RuntimeError as error:
            raise CompileError(str(error)) from error

    def _build_native(self, ext):
        kind = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        folder = Path(self.build_temp)
        GENERATE.write(folder)
        ext.include_dirs += [str(folder), str(ROOT / "csrc")]
        openmp = OPENMP[kind] if self._compiles(folder, OPENMP[kind]) else []
        flags = [*FLAGS[kind], *openmp]
        standard = "/std:c++17" if kind == "msvc" else "-std=c++17"

        def kernels(isa):
            return self.compiler.compile(
                ["csrc/kernels.cpp"],
                output_dir=str(folder / isa),
                macros=[("ISA", isa)],
                include_dirs=ext.include_dirs,
                extra_postargs=[standard, *flags, *ISAS[isa][kind]],
            )

        isas = [isa for isa, extra in ISAS.items() if not extra[kind] or self._compiles(folder, extra[kind])]
        with ThreadPoolExecutor() as pool:
            for objects in pool.map(kernels, isas):
                ext.extra_objects += objects
        ext.define_macros += [(f"HAVE_{isa.upper()}", "1") for isa in isas]
        ext.extra_compile_args += flags
        ext.extra_link_args += [f for f in flags if f.startswith(("-fopenmp", "-fsanitize"))]
        super().build_extension(ext)

    def _compiles(self, folder, flags):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / "probe.cpp"
        probe.write_text("int main() { return 0; }\n")
        try:
            objects = self.compiler.compile([str(probe)], output_dir=str(folder), extra_postargs=flags)
            self.compiler.link_executable(objects, str(folder / "probe"), extra_postargs=flags)
        except (CompileError, LinkError) as error:
            print(f"metric_kernels: the compiler refuses {' '.join(flags)}, going on without it ({error})")
            return False
        return True


def _script(name):
    """A module of csrc/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "csrc" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE, NVCC = _script("generate"), _script("nvcc")


def _driver():
    """Whether there is a driver with a GPU, and not its library alone."""
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


def _cuda():
    """The CUDA extension, if METRIC_KERNELS_CUDA=1 asks for it, or where there is a driver to run it and an nvcc."""
    wanted = os.environ.get("METRIC_KERNELS_CUDA") or "auto"
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"METRIC_KERNELS_CUDA: expected 0, 1 or auto, got {wanted!r}")
    if wanted == "0" or wanted == "auto" and not _driver():
        return []
    if reason := NVCC.find()[1]:
        if wanted == "1":
            sys.exit(f"METRIC_KERNELS_CUDA=1: {reason}")
        return []
    # What was not asked for may fail.
    return [Extension(CUDA, ["csrc/cuda/bindings.cpp"], optional=wanted == "auto")]


native = Pybind11Extension("metric_kernels._native", ["csrc/bindings.cpp"], cxx_std=17)
native.optional = True  # without a compiler the package installs all the same and runs on Numba
# A folder of its own, so that a failing build never installs what the other left behind.
options = {"build": {"build_base": "build/with-sanitizers" if SANITIZE else "build"}}
setup(ext_modules=[native, *_cuda()], cmdclass={"build_ext": BuildKernels}, options=options)
