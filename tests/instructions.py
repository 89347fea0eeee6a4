"""What the compiler makes of the generic kernels for SupCon, and of those by hand.

    python tests/instructions.py

Instructions of PTX and of SASS, which is what the GPU runs, in all and in the loop over columns, and registers. No GPU is
needed.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import handwritten
import torch
from triton import knobs
from triton.runtime import driver

from metric_kernels import losses
from metric_kernels.backends import aot, triton_tiles
from metric_kernels.backends.triton import BLOCK, TritonBackend
from metric_kernels.metrics import Dot

DIM = 128


class Size(NamedTuple):
    ptx: int
    ptx_loop: int
    sass: int
    sass_loop: int
    registers: int


def generic(call: str, made: bool) -> object:
    kernels = []

    def compile_only(kernel, tile, chunks, *arguments, **constants):
        kernels.append(kernel.warmup(*arguments, **constants, grid=(1,)))

    shape = ("bfloat16", DIM) if made else ("float32", None)
    dict(aot.calls(losses.SupConLoss.formula, Dot, TritonBackend(compile_only), shape))[call]()
    return kernels.pop()


def by_hand() -> Iterator[tuple[str, bool, object]]:
    """The call of the backend that each takes the place of, and whether products are made."""
    n, signed = aot.POINTS, (0.5, 0.5)
    x, labels = torch.zeros(n, DIM, dtype=torch.bfloat16), torch.zeros(n, dtype=torch.int64)
    cosines, values = torch.zeros(n, n), torch.zeros(4, n)
    known, given = (x, values[0], labels, n, n, *signed), (cosines, labels, labels, n, n, 0, *signed)
    forward, backward = (triton_tiles.block(DIM, x.dtype, backward=b, extremes=False) for b in (False, True))
    constants = {"dim": DIM, "grid": (1,)}
    yield "stats 0", True, handwritten.stats_made.warmup(*known, values, values, n, **constants, **forward.options())
    constants |= {"depth": backward.depth, "span": backward.span}
    kernel = handwritten.gradients_made.warmup(*known, values, values, n, values, **constants, **backward.options())
    yield "gradients both", True, kernel
    yield "stats 0", False, handwritten.stats_read.warmup(*given, values, values, n, grid=(1,), **BLOCK)
    sides = (values, values, n) * 2
    yield "weights both", False, handwritten.weights_read.warmup(*given, *sides, grid=(1,), **BLOCK)


def size(kernel: object) -> Size:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(kernel.asm["cubin"])
        binary.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-sass", binary.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ptx = count(kernel.asm["ptx"], r"(\$\w+):", r"\s+(?:@!?%p\d+ )?[a-z][\w.:]*\s.*;", r"\bbra(?:\.uni)?\s+(\$\w+);")
    # Each has its address before it. It is NOP that the end is filled with.
    return Size(
        *ptx,
        *count(sass, r"\s+/\*0*([0-9a-f]+)\*/", r"\s+/\*\w+\*/\s+(?!\s|NOP).*;", r"\bBRA\b[^;]* 0x([0-9a-f]+)"),
        aot.usage(kernel).registers,
    )


def count(text: str, place: str, instruction: str, jump: str) -> tuple[int, int]:
    """Instructions in all, and in the longest loop."""
    places, jumps, number = {}, [], 0
    for line in text.splitlines():
        if found := re.match(place, line):
            places[found[1]] = number
        if re.match(instruction, line):
            if found := re.search(jump, line):
                jumps.append((number, found[1]))
            number += 1
    return number, max(at - places[to] + 1 for at, to in jumps if to in places)


def compared() -> Iterator[tuple[int, str, str, Size, Size]]:
    """Architecture, form and call of the backend; the generic kernel, and the one by hand."""
    for architecture in aot.ARCHITECTURES:
        driver.set_active(aot.Target(architecture))
        for call, made, kernel in by_hand():
            yield architecture, "b" if made else "a", call, size(generic(call, made)), size(kernel)


def main() -> None:
    what, needs = "{:<6} {:<5} {:<15} {:<8}", " {:>9}" * len(Size._fields)
    print(what.format("target", "form", "call", "kernel") + needs.format(*Size._fields))
    for architecture, form, call, *sizes in compared():
        for name, found in zip(("generic", "by hand"), sizes, strict=True):
            print(what.format(f"sm_{architecture}", form, call, name) + needs.format(*found))


if __name__ == "__main__":
    main()
