"""Form (b) of the Triton kernels, in which products are made in the kernels and no matrix exists: when, and how.

Form (a) reads products that torch.mm has made. It moves 4 bytes of each product to memory and back; form (b) moves none,
but multiplies once more in the backward pass, and as many times as a program's share of the coordinates fits into D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

FORMS = ("a", "b")
# Of the process: compiled backward passes run on autograd's threads, which know no context.
_form: str | None = None

# Where form (b) is taken: from this many pairs on, up to so many coordinates, by how points are multiplied (``kind``).
# None of these numbers is measured; they await `make bench-gpu`. Until then form (b) is for matrices beyond the
# workspace's default, of so many coordinates that it makes the products of a gradient once. float16 has no limit of coordinates
# and begins with smaller matrices: form (a) multiplies its weights in float32.
CHOICE = {
    "float32": (1 << 26, 64),
    "tf32": (1 << 26, 128),
    "bfloat16": (1 << 26, 128),
    "float16": (1 << 22, math.inf),
}


@dataclass(frozen=True)
class Multiply:
    """How a kernel makes products: of points of ``dim`` coordinates, ``depth`` at a time, in this precision of tl.dot.

    With ``halves`` the two halves of the coordinates are summed apart.
    """

    dim: int
    depth: int
    precision: str
    halves: bool


@dataclass(frozen=True)
class Block:
    """Rows and columns of a program, how many coordinates it holds of either side and of a gradient, and its threads.

    ``registers`` of a thread, if the compiler is not to choose: for two programs side by side it would rather spill a few, but
    told to, it uses as many as it may.
    """

    height: int
    width: int
    depth: int
    span: int
    warps: int
    stages: int
    registers: int | None = None

    def options(self) -> dict[str, int | bool]:
        threads = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"height": self.height, "width": self.width, **threads, **limit}


INTERPRETED = Block(height=32, width=32, depth=16, span=16, warps=4, stages=1)


@contextmanager
def use_form(name: str) -> Iterator[None]:
    """One form of the Triton kernels, "a" or "b", for the duration of a ``with`` block and on every thread, for tests and
    measurements.
    """
    global _form
    if name not in FORMS:
        raise ValueError(f"use_form: expected one of {', '.join(FORMS)}, got {name!r}")
    before, _form = _form, name
    try:
        yield
    finally:
        _form = before


def kind(dtype: torch.dtype) -> str:
    """How points of a type are multiplied, in float32 as the switch of torch says."""
    if dtype == torch.float32:
        # The older allow_tf32 raises where this newer switch was set.
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"
    return str(dtype).removeprefix("torch.")


def chosen(n: int, m: int, dim: int, dtype: torch.dtype) -> bool:
    """Whether form (b) is taken for n times m points of ``dim`` coordinates."""
    if _form:
        return _form == "b"
    pairs, widest = CHOICE[kind(dtype)]
    return n * m >= pairs and dim <= widest


def block(dim: int, dtype: torch.dtype, backward: bool, extremes: bool) -> Block:
    """A program's share, small enough that no formula of this package spills registers (`make aot`).

    With ``extremes`` there are columns to be remembered beside each value.
    """
    whole, width = max(16, 1 << (dim - 1).bit_length()), 16 if extremes else 32
    if kind(dtype) == "float32":
        return Block(height=64, width=width, depth=16, span=min(whole, 64), warps=8, stages=2, registers=255)
    held = 256 // dtype.itemsize
    if backward:
        # Anchors that are held would have the warps share out rows alone, for which there are too few of them.
        depth = max(16, min(whole, held) // 2)
        return Block(height=64, width=width, depth=depth, span=min(whole, 128), warps=8, stages=2, registers=255)
    if whole <= held:
        return Block(height=128, width=32, depth=whole, span=whole, warps=8, stages=3)
    return Block(height=64, width=width, depth=held // 2, span=128, warps=8, stages=2)


def multiply(dim: int, dtype: torch.dtype, depth: int, halves: bool) -> Multiply:
    """In half precision "tf32" means the weights of float16, see :mod:`.triton_products`."""
    ieee = kind(dtype) == "float32"
    return Multiply(dim, depth, "ieee" if ieee else "tf32", halves and ieee and dim >= 2 * depth)
