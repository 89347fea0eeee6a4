"""What this installation is and can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

from metric_kernels import backends, core


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def report() -> str:
    """Versions, devices, CPU features, the workspace, and each backend: usable, or why not."""
    packages = ("metric-kernels", "torch", "numpy", "numba", "triton")
    lines = [f"{name:15s}{_version(name)}" for name in packages]
    lines.append(f"{'python':15s}{platform.python_version()} on {platform.platform()}")
    lines.append(f"{'processor':15s}{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = (torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))
        lines.append(f"{'cuda':15s}{', '.join(names)}")
    else:
        lines.append(f"{'cuda':15s}no device")
    lines.append(f"{'workspace':15s}{core.workspace() >> 20} MiB")
    lines.append(f"{'backend':15s}{_requested()}")
    for name, reason in backends.status().items():
        lines.append(f"  {name:13s}{'usable' if reason is None else reason}{_detail(name) if reason is None else ''}")
    variables = {k: v for k, v in os.environ.items() if k.startswith("METRIC_KERNELS_")}
    lines += [f"{k}={v}" for k, v in sorted(variables.items())]
    return "\n".join(lines)


def _requested() -> str:
    try:
        name = backends.requested(None)
    except ValueError as error:  # a wrong name in the environment, which is for the report to tell
        return str(error)
    return f"{name} (explicit)" if name else "automatic"


def _detail(name: str) -> str:
    detail = getattr(backends.load(name), "detail", None)
    return f" ({detail()})" if detail else ""
