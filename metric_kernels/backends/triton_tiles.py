"""Form (b) of the Triton kernels, in which products are made in the kernels and no matrix exists: when, and how.

Form (a) reads products that torch.mm has made. It moves 4 bytes of each product to memory and back; form (b) moves none,
but multiplies once more in the backward pass, and as many times as a program's share of the coordinates fits into D.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

FORMS = ("a", "b")
_REGISTERS = 65536  # of a multiprocessor
_form: ContextVar[str | None] = ContextVar("metric_kernels_triton_form", default=None)

# Where form (b) is taken: from this many pairs on, up to so many coordinates, by type of the points that are multiplied.
# None of these numbers is measured; they await `make bench-gpu`. Until then form (b) is for matrices beyond the
# workspace's default, and in float32, which it multiplies without tensor cores unless TF32 is allowed, for few coordinates.
# Half precision has no limit of coordinates: form (a) widens it to float32.
CHOICE = {
    torch.float32: (1 << 26, 64),
    torch.bfloat16: (1 << 22, math.inf),
    torch.float16: (1 << 22, math.inf),
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
    """Rows and columns of a program, how many coordinates it holds of either side and of a gradient, and its threads."""

    height: int
    width: int
    depth: int
    span: int
    warps: int
    stages: int

    def options(self) -> dict[str, int | bool]:
        return {
            "height": self.height,
            "width": self.width,
            "num_warps": self.warps,
            "num_stages": self.stages,
            # For two programs side by side the compiler would rather spill a few.
            "maxnreg": min(255, _REGISTERS // (32 * self.warps)),
            "enable_fp_fusion": True,
        }


INTERPRETED = Block(height=32, width=32, depth=16, span=16, warps=4, stages=1)


@contextmanager
def use_form(name: str) -> Iterator[None]:
    """One form of the Triton kernels, "a" or "b", for the duration of a ``with`` block, for tests and measurements."""
    if name not in FORMS:
        raise ValueError(f"use_form: expected one of {', '.join(FORMS)}, got {name!r}")
    token = _form.set(name)
    try:
        yield
    finally:
        _form.reset(token)


def chosen(n: int, m: int, dim: int, dtype: torch.dtype) -> bool:
    """Whether form (b) is taken for n times m points of ``dim`` coordinates."""
    if _form.get():
        return _form.get() == "b"
    pairs, widest = CHOICE[dtype]
    return n * m >= pairs and dim <= widest


def block(dim: int, dtype: torch.dtype, backward: bool) -> Block:
    """A program's share, small enough that no formula of this package spills registers (`make aot`)."""
    whole = max(16, 1 << (dim - 1).bit_length())
    if dtype == torch.float32:
        return Block(height=64, width=32, depth=16, span=min(whole, 64), warps=8, stages=2)
    if not backward and whole <= 128:
        return Block(height=128, width=32, depth=whole, span=whole, warps=8, stages=3)
    return Block(height=64, width=32, depth=min(whole, 64), span=min(whole, 128), warps=8, stages=2)


def multiply(dim: int, dtype: torch.dtype, depth: int, halves: bool) -> Multiply:
    """In half precision "tf32" means the weights of float16, see :mod:`.triton_products`."""
    tf32 = dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32
    return Multiply(dim, depth, "tf32" if tf32 else "ieee", halves and dim >= 2 * depth)
