"""What holds for every test: fixed seeds and examples, and no fresh memory that happens to hold zeros."""

import importlib
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# benchmarks/ is a folder of the repository, not of the installed package. Last, so that PYTHONPATH can name another package.
sys.path.append(str(Path(__file__).parents[1]))

# Where the registry is tested: "cpu", "cuda", or "cuda-on-cpu", which is the CUDA kernels compiled for the CPU.
DEVICE = os.environ.get("METRIC_KERNELS_TEST_DEVICE", "cpu")
if DEVICE == "cuda":
    torch.set_default_device("cuda")
elif DEVICE == "cuda-on-cpu":
    import cuda_on_cpu

    sys.modules["metric_kernels._cuda"] = cuda_on_cpu.load("metric_kernels._cuda")
elif DEVICE != "cpu":
    raise ValueError(f"METRIC_KERNELS_TEST_DEVICE: expected cpu, cuda or cuda-on-cpu, got {DEVICE!r}")

# A run must not depend on the day it is run on; the slow sweeps draw afresh and print what fails.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets torch's number of threads, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def float64_by_default():
    """For the histograms of pytorch-metric-learning, which multiply integers by a width of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="session")
def _poisoned_memory():
    """Fresh memory holds NaN and the largest integers, so that an output that nobody wrote cannot pass.

    Torch does this itself where it is told to be deterministic. The Numba backend is given another numpy; numpy itself
    is left alone, since Numba looks its functions up in there.
    """
    # The plain formulas that kernels are compared with have no deterministic form on a GPU.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = True
    with pytest.MonkeyPatch.context() as patch:
        try:
            backend = importlib.import_module("metric_kernels.backends.numba")
        except ImportError:
            backend = None
        if backend is not None:
            patch.setattr(backend, "np", poisoned_numpy())
        yield
    torch.use_deterministic_algorithms(False)


def poisoned_numpy() -> types.ModuleType:
    """numpy with an ``empty`` that fills what it returns."""

    def empty(*args, **kwargs):
        array = np.empty(*args, **kwargs)
        array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max)
        return array

    module = types.ModuleType("numpy")
    module.__dict__.update({**np.__dict__, "empty": empty})
    return module
