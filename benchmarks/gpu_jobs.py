"""What the GPU benchmark measures, in which order and by whom, and what it does not run and why."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.cases import PROVIDERS, Case, Provider, Step, formula, largest, loss_step, our_refusal, our_step, ours
from benchmarks.dense_terms import TERMS
from benchmarks.paired import BIAS, PAIRED, SCALE, TEMPERATURE
from metric_kernels.backends.triton_tiles import FORMS, use_form

DEVICE = "cuda"
LOSSES = ("SupConLoss", "MultiSimilarityLoss", "NTXentLoss", "ContrastiveLoss", "CircleLoss", "LiftedStructureLoss")
TERM_LOSSES = ("TripletMarginLoss", "QuadrupletMarginLoss", "HistogramLoss", "SemiHardTripletLoss")
# The shapes where every loss is measured before any is at others, and the larger one.
TELLING = ((8192, 128), (65536, 768))
LARGE = 65536
# What is asked first comes first.
BATCHES, DIMS, KINDS = (8192, LARGE, 1024, 16384, 4096), (128, 768, 512), ("bfloat16", "tf32", "float32")
TERM_BATCHES, TERM_DIM, TERM_KINDS = (8192, 1024, 16384, 4096), 128, ("float32", "tf32")

Job = tuple[Case, str]


def sized(loss: str, batch: int, dim: int, kind: str) -> Case:
    return Case(loss, batch, dim, kind, per_class=1 if loss in PAIRED else Case.per_class)


# Those of the bars, and of what the largest one is taken from.
FIRST = (
    sized("SupConLoss", LARGE, 768, "bfloat16"),
    sized("SupConLoss", 8192, 128, "bfloat16"),
    *(sized(loss, 8192, TERM_DIM, "float32") for loss in ("TripletMarginLoss", "QuadrupletMarginLoss", "HistogramLoss")),
    *(sized(loss, LARGE, 768, "bfloat16") for loss in PAIRED),
)


def cases() -> Iterator[Case]:
    """The bars, then shape by shape, at each one loss after another."""
    found = [sized(loss, *shape) for shape in product(BATCHES, DIMS, KINDS) for loss in (*LOSSES, *PAIRED)]
    found += [sized(loss, batch, TERM_DIM, kind) for batch, kind in product(TERM_BATCHES, TERM_KINDS) for loss in TERM_LOSSES]
    yield from FIRST
    yield from sorted((case for case in found if case not in FIRST and not _unstable(case)), key=_rank)


def _unstable(case: Case) -> bool:
    """In TF32 so many anchors have another nearest negative that a third of the gradient is another."""
    return case.loss == "SemiHardTripletLoss" and case.dtype == "tf32"


def _rank(case: Case) -> tuple:
    kind, batch, dim = KINDS.index(case.dtype), BATCHES.index(case.batch), DIMS.index(case.dim)
    slow = case.batch == LARGE and case.dtype == "float32"
    if (case.batch, case.dim) in TELLING or case.loss in TERM_LOSSES:
        return slow, 0, kind, batch, dim
    return slow, 1 if case.loss == LOSSES[0] else 2, batch, dim, kind


def of_form(form: str) -> Provider:
    def step(case: Case, *inputs: Tensor) -> Step:
        inner = our_step(ours(case, backend="triton"), case, *inputs)

        def run():
            with use_form(form):
                return inner()

        return run

    return Provider(step, lambda case: our_refusal(case, "triton", DEVICE))


def of_backend(name: str) -> Provider:
    return Provider(
        lambda case, *inputs: our_step(ours(case, backend=name), case, *inputs), lambda case: our_refusal(case, name, DEVICE)
    )


def memory() -> int:
    """Bytes on the device."""
    return torch.cuda.mem_get_info()[1]


# Matrices of float32, or as much of other types, that a dense formula and its gradient need at the same time.
_TEMPORARIES = 6


def too_large(case: Case) -> str | None:
    shape, needed = largest(case), 4 * _TEMPORARIES * math.prod(largest(case))
    if needed > 0.8 * memory():
        return f"{_TEMPORARIES} temporaries of {' x '.join(map(str, shape))} numbers, {1e-9 * needed:.0f} GB"
    return None


def _eager_step(case: Case, *inputs: Tensor) -> Step:
    return loss_step(formula(case, DEVICE), *inputs)


def _compile_step(case: Case, *inputs: Tensor) -> Step:
    return loss_step(torch.compile(formula(case, DEVICE), fullgraph=True, dynamic=False), *inputs)


def _compile_refuse(case: Case) -> str | None:
    if (case.batch, case.dim) != TELLING[0] or case.dtype != ("float32" if case.loss in TERMS else "bfloat16"):
        return "compiled at 8192 x 128 only, to save time"
    return too_large(case)


def _missing(package: str, module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{package} is not installed"


def _siglip_step(case: Case, *inputs: Tensor) -> Step:
    from siglip_kernel import fused_siglip_loss

    scale, bias = (torch.tensor(number, device=DEVICE) for number in (math.log(SCALE), BIAS))
    # What it chooses by itself for half precision; for float32 it would tune another one for minutes.
    return loss_step(partial(fused_siglip_loss, log_temperature=scale, bias=bias, backend="chunked_bf16"), *inputs)


def _inf_cl_step(case: Case, *inputs: Tensor) -> Step:
    from inf_cl import cal_inf_loss

    # It computes in float32, where the scale belongs, and by heads that divide the coordinates.
    return loss_step(lambda x, y: cal_inf_loss(x.float() / TEMPERATURE, y, head_dim=math.gcd(case.dim, 256)), *inputs)


def _inf_cl_refuse(case: Case) -> str | None:
    return _missing("inf-cl", "inf_cl") or ("multiplies in TF32" if case.dtype == "float32" else None)


TRITON = {f"triton {form}": of_form(form) for form in FORMS}
DENSE = {
    "eager": Provider(_eager_step, too_large),
    "compile": Provider(_compile_step, _compile_refuse),
}
PEERS = {
    "SigmoidLoss": {"siglip-kernel": Provider(_siglip_step, lambda case: _missing("siglip-kernel", "siglip_kernel"))},
    "InfoNCELoss": {"inf-cl": Provider(_inf_cl_step, _inf_cl_refuse)},
}
OURS = (*TRITON, "cuda")


def providers(loss: str) -> dict[str, Provider]:
    """Both forms of the Triton kernels where there are any, the CUDA kernels, and others."""
    mine = {} if loss in TERMS else TRITON
    return mine | {"cuda": of_backend("cuda")} | DENSE | PEERS.get(loss, {"pml": PROVIDERS["pml"]})


def jobs(chosen: Iterable[Case]) -> list[Job]:
    return [(case, provider) for case in chosen for provider in providers(case.loss)]


def kernels(todo: Iterable[Job], batch: int = 256) -> list[Job]:
    """Small jobs that compile the Triton kernels of others: a kernel knows the coordinates, but not the number of points.

    Those of form (b) come first, since they take longer.
    """
    small = dict.fromkeys((replace(case, batch=batch), provider) for case, provider in todo if provider in TRITON)
    return sorted(small, key=lambda job: job[1], reverse=True)


def inputs(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Those of a case, on the device, in a type."""
    family = next((family for family in (PAIRED, TERMS) if case.loss in family), LOSSES)
    found = _drawn(replace(case, loss=next(iter(family)), dtype="float32"))
    return [t.detach().to(DEVICE, dtype if t.requires_grad else t.dtype).requires_grad_(t.requires_grad) for t in found]


@lru_cache(maxsize=1)
def _drawn(case: Case) -> tuple[Tensor, ...]:
    """Random numbers for the largest batches take seconds, and several losses have the same."""
    return case.inputs()
