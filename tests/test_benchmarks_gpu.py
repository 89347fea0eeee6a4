"""The GPU benchmark without a GPU: its order, its formulas, its book-keeping and its pictures, by another clock."""

import csv
import functools
import importlib.machinery
import multiprocessing
import os
import sys
import threading
import time
import types
from argparse import Namespace

import pytest
import torch
from cases import value_and_grads

from benchmarks import exact, gate, gpu, gpu_bars, gpu_jobs, gpu_work, pictures
from benchmarks.blocks import BLOCKS
from benchmarks.cases import PROVIDERS, Case, Provider, formula, loss_step, our_step, ours
from benchmarks.dense_terms import TERMS
from benchmarks.exact import EXACT
from benchmarks.paired import BIAS, PAIRED, SCALE, TEMPERATURE

with pytest.MonkeyPatch.context() as patch:  # as test_triton.py does
    if not torch.cuda.is_available():
        patch.setenv("TRITON_INTERPRET", "1")
    triton = pytest.importorskip("triton")
    from metric_kernels.backends.triton_products import INTERPRETED
    from metric_kernels.backends.triton_tiles import chosen

CASE = Case("SupConLoss", 32, 16)


# ---- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_an_error_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 1
    assert "expected a CUDA device" in capsys.readouterr().err


def test_the_bars_come_first_and_no_case_twice():
    found = list(gpu_jobs.cases())
    assert tuple(found[: len(gpu_jobs.FIRST)]) == gpu_jobs.FIRST and len(set(found)) == len(found)
    of_pairs = [case for case in found if case.loss not in TERMS]
    assert len(of_pairs) == (6 + 2) * 5 * 3 * 3 and {case.loss for case in of_pairs} == {*gpu_jobs.LOSSES, *PAIRED}
    terms = {(case.loss, case.batch, case.dtype) for case in found if case.loss in TERMS}
    assert len(terms) == 4 * 4 * 2 - 4 and ("SemiHardTripletLoss", 8192, "tf32") not in terms
    # Every loss has a number before the first takes its turn at the rest, and what takes long comes last.
    assert {case.loss for case in found[:60]} == {*gpu_jobs.LOSSES, *PAIRED, *gpu_jobs.TERM_LOSSES}
    assert all((case.batch, case.dtype) == (65536, "float32") for case in found[-24:])


def test_inputs_are_those_of_the_case(monkeypatch):
    monkeypatch.setattr(gpu_jobs, "DEVICE", "cpu")
    for loss in ("CircleLoss", "InfoNCELoss", "HistogramLoss"):
        for dtype in (torch.float32, torch.bfloat16):
            case = gpu_jobs.sized(loss, 24, 8, str(dtype).removeprefix("torch."))
            for found, expected in zip(gpu_jobs.inputs(case, dtype), case.inputs(), strict=True):
                assert torch.equal(found, expected) and found.requires_grad == expected.requires_grad and found.is_leaf


def test_jobs():
    todo = gpu_jobs.jobs(gpu_jobs.FIRST)
    names = {loss: [name for case, name in todo if case.loss == loss] for loss in (*gpu_jobs.LOSSES[:1], *PAIRED, *TERMS)}
    assert names["SupConLoss"][:6] == ["triton a", "triton b", "cuda", "eager", "compile", "pml"]
    assert names["TripletMarginLoss"] == ["cuda", "eager", "compile", "pml"]
    assert names["SigmoidLoss"][-1] == "siglip-kernel" and names["InfoNCELoss"][-1] == "inf-cl"
    small = gpu_jobs.kernels(todo)
    assert len(set(small)) == len(small) == 2 * 4 and {case.batch for case, _ in small} == {256}
    assert {name for _, name in small} == {"triton a", "triton b"}


def test_what_is_not_run(monkeypatch):
    monkeypatch.setattr(gpu_jobs, "memory", lambda: 80 * 10**9)
    case, large = gpu_jobs.FIRST[1], gpu_jobs.FIRST[0]
    assert gpu_jobs.DENSE["eager"].refuse(case) is None and gpu_jobs.DENSE["compile"].refuse(case) is None
    assert "6 temporaries of 65536 x 65536 numbers, 103 GB" in gpu_jobs.DENSE["eager"].refuse(large)
    assert "8192 x 128 only" in gpu_jobs.DENSE["compile"].refuse(large)
    assert "12288 x 33538048 numbers" in gpu_jobs.DENSE["compile"].refuse(gpu_jobs.FIRST[3])
    for loss in gpu_jobs.LOSSES:
        assert gpu_jobs.DENSE["eager"].refuse(Case(loss, 16384, 768)) is None
    assert "16384^2 indices" in PROVIDERS["pml"].refuse(Case("SupConLoss", 16384, 128, "tf32"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_ours_say_why_they_cannot_run():
    for name in gpu_jobs.OURS:
        reason = gpu_jobs.providers("SupConLoss")[name].refuse(gpu_jobs.sized("SupConLoss", 64, 16, "tf32"))
        assert "cannot run metric_kernels.losses.supcon.SupConLoss on cuda in torch.float32" in reason
    assert "ordered terms" in gpu_jobs.of_form("a").refuse(Case("TripletMarginLoss", 64, 16))


# ---- formulas --------------------------------------------------------------------------------------------------------


def pair_by_pair(loss, x, y):
    """In plain loops, from the papers."""
    total = 0.0
    for i in range(len(x)):
        s = [x[i].dot(y[j]) for j in range(len(y))]
        if loss == "SigmoidLoss":
            total = total - sum(torch.sigmoid((1 if i == j else -1) * (SCALE * s[j] + BIAS)).log() for j in range(len(y)))
        else:
            total = total - (s[i] / TEMPERATURE - sum((v / TEMPERATURE).exp() for v in s).log())
    return total / len(x)


@pytest.mark.parametrize("loss", PAIRED)
def test_losses_between_two_sets(loss, monkeypatch):
    monkeypatch.setattr(exact, "_BLOCK", 30)  # a few rows
    case = gpu_jobs.sized(loss, 12, 8, "float64")
    expected, grads = value_and_grads(lambda x, y: pair_by_pair(loss, x, y), *case.inputs())
    assert all(grad.abs().max() > 1e-3 for grad in grads)

    def check(step, inputs):
        torch.testing.assert_close(step(), expected, rtol=1e-10, atol=0.0)
        for leaf, grad in zip(inputs, grads, strict=True):
            torch.testing.assert_close(leaf.grad, grad, rtol=1e-10, atol=1e-12)

    for written in (formula(case), BLOCKS[loss]):
        inputs = case.inputs()
        check(loss_step(written, *inputs), inputs)
    for backend in ("reference", "numba"):
        inputs = case.inputs()
        check(our_step(ours(case, backend=backend), case, *inputs), inputs)


def test_the_truth_in_blocks(monkeypatch):
    monkeypatch.setattr(exact, "_BLOCK", 100)
    case = Case("SupConLoss", 24, 8, "float64", 3)
    x, labels = case.inputs()
    labels[labels == 0] = torch.arange(100, 103)  # points without positives
    found, expected = (value_and_grads(functools.partial(f, labels=labels), x) for f in (BLOCKS[case.loss], formula(case)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


WRITTEN = [(loss, what) for loss in (*gpu_jobs.LOSSES, *PAIRED, *gpu_jobs.TERM_LOSSES) for what in ("dense", "truth")]


@pytest.mark.parametrize("loss, what", [pair for pair in WRITTEN if pair[0] != "QuadrupletMarginLoss"])
def test_formulas_stay_on_their_device(loss, what, monkeypatch):
    """Tensors of the device "meta" cannot be mixed with others, as those of a GPU cannot."""
    monkeypatch.setattr(gpu_jobs, "DEVICE", "meta")
    case = gpu_jobs.sized(loss, 64, 16, "float32")
    inputs = gpu_jobs.inputs(case, torch.float32)
    assert {t.device.type for t in inputs} == {"meta"}
    if what == "dense":
        gpu_jobs.DENSE["eager"].step(case, *inputs)()
        assert gpu_work.gradient(inputs).device.type == "meta"
    else:
        with pytest.raises((RuntimeError, NotImplementedError), match="item.* meta"):
            gpu_work.truth(case, inputs)  # gets as far as its value


def test_tensors_of_two_devices_would_show():
    case = gpu_jobs.sized("TripletMarginLoss", 64, 16, "float32")
    x, labels = (t.detach().to("meta") for t in case.inputs())
    with pytest.raises(RuntimeError, match="expected device|same device"):
        formula(case)(x, labels)


def test_triplets_that_jump_in_tf32():
    """Where float32 allows more than TF32, TF32 is allowed as much."""
    found = gate.Errors(0.0, 0.04)
    assert gate.verdict(Case("TripletMarginLoss", 16, 8, "tf32"), found) is None
    assert gate.verdict(Case("TripletMarginLoss", 16, 8), found) is not None


def module(name, **contents):
    made = types.ModuleType(name)
    made.__dict__.update(contents, __spec__=importlib.machinery.ModuleSpec(name, None))
    return made


def fused_siglip_loss(img_features, txt_features, log_temperature, bias, use_fp8=False, backend="auto"):
    """The signature is that of siglip-kernel 0.1.2."""
    assert backend == "chunked_bf16" and not use_fp8 and log_temperature.shape == bias.shape == ()
    z = log_temperature.exp() * img_features @ txt_features.T + bias
    return -torch.nn.functional.logsigmoid((2 * torch.eye(len(z)) - 1) * z).sum() / len(z)


def cal_inf_loss(q, k, labels=None, scale=None, head_dim=256):
    """The signature is that of Inf-CL 1.2.1."""
    assert labels is None and scale is None
    q, k = (t.view(len(t), -1, head_dim).float() for t in (q, k))
    s = torch.einsum("mhd,nhd->mn", q, k)
    return (s.logsumexp(1) - s.diagonal()).mean()


@pytest.mark.parametrize("dim", [128, 768])
@pytest.mark.parametrize("loss, peer", [(loss, peer) for loss in PAIRED for peer in gpu_jobs.PEERS[loss]])
def test_peers_are_asked_for_the_same(loss, peer, dim, monkeypatch):
    provider = gpu_jobs.providers(loss)[peer]
    case = gpu_jobs.sized(loss, 64, dim, "tf32")
    monkeypatch.setattr(gpu_jobs, "DEVICE", "cpu")
    monkeypatch.setitem(sys.modules, "siglip_kernel", module("siglip_kernel", fused_siglip_loss=fused_siglip_loss))
    monkeypatch.setitem(sys.modules, "inf_cl", module("inf_cl", cal_inf_loss=cal_inf_loss))
    assert provider.refuse(case) is None
    if peer == "inf-cl":
        assert "TF32" in provider.refuse(gpu_jobs.sized(loss, 16, dim, "float32"))
    inputs = gpu_jobs.inputs(case, torch.float32)
    value, true = provider.step(case, *inputs)(), gpu_work.truth(case, inputs)
    assert max(gate.errors(true, value, gpu_work.gradient(inputs))) < 1e-3


def test_peers_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(gpu_jobs.importlib.util, "find_spec", lambda name: None)
    for loss in PAIRED:
        ((name, provider),) = gpu_jobs.PEERS[loss].items()
        assert provider.refuse(gpu_jobs.sized(loss, 16, 8, "bfloat16")) == f"{name} is not installed"


# ---- one process that measures ---------------------------------------------------------------------------------------


@pytest.fixture
def on_cpu(monkeypatch):
    """By the clock steps take 2 ms each, whatever they do, and 3 MB."""

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            pass

        synchronize = record

        def elapsed_time(self, end):
            return 2.0

    monkeypatch.setattr(gpu_jobs, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_jobs, "memory", lambda: 1 << 34)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(gpu_work, "copy_bytes_per_ms", functools.partial(gpu_work.copy_bytes_per_ms, size=1000))
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 4_000_000)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def worked(todo):
    """What is sent, by job."""
    sent = []
    gpu_work.work(sent.append, todo, 0.0)
    assert sent[0]["device"] == "none"
    return dict(zip(todo, sent[1:]))


def failing(error):
    def step(case, *inputs):
        raise error

    return Provider(step, lambda case: None)


EAGER = gpu_jobs.DENSE["eager"]


def fakes(loss):
    def wrong(case, *inputs):
        return loss_step(lambda *inputs: 2 * formula(case)(*inputs), *inputs)

    return {
        "triton a": EAGER,
        "wrong": Provider(wrong, lambda case: None),
        "failing": failing(RuntimeError("out of memory\nand more")),
        "strange": failing(AssertionError()),
        "refused": Provider(EAGER.step, lambda case: "not here"),
    }


@pytest.mark.parametrize("kind", gpu_jobs.KINDS)
def test_rows(on_cpu, monkeypatch, kind):
    monkeypatch.setattr(gpu_jobs, "providers", fakes)
    before = torch.get_float32_matmul_precision()
    case = Case("SupConLoss", 128, 16, kind)
    found = {name: row for (_, name), row in worked(gpu_jobs.jobs([case])).items()}
    right = found["triton a"]
    assert (right["median_ms"], right["count"], right["peak_mb"]) == ("2", "3", "3")
    assert float(right["product_share"]) == 3.0  # three products of 2 ms
    assert float(right["tflops"]) == pytest.approx(6e-9 * 128**2 * 16 / 2, rel=1e-3)
    assert float(right["copy_share"]) == pytest.approx((16 if kind == "bfloat16" else 20) * 128**2 / 1000 / 2, rel=1e-3)
    assert float(right["loss_error"]) < 0.01 and not right.get("note")
    assert "another loss" in found["wrong"]["note"] and "median_ms" not in found["wrong"]
    assert found["failing"] == {"note": "RuntimeError: out of memory"} and found["refused"] == {"note": "not here"}
    assert found["strange"] == {"note": "AssertionError: "}
    assert torch.get_float32_matmul_precision() == before


def test_no_truth(on_cpu, monkeypatch):
    monkeypatch.setattr(gpu_jobs, "providers", lambda loss: {"eager": EAGER})
    monkeypatch.setattr(gpu_work, "CHECKED_UP_TO", 16)
    circle, todo = Case("CircleLoss", 32, 16), [(CASE, "eager")]
    assert worked([(circle, "eager")])[circle, "eager"]["note"] == "not compared with float64"
    assert "note" not in worked(todo)[todo[0]]  # by blocks of rows
    monkeypatch.setitem(gpu_work.BLOCKS, "SupConLoss", lambda x, labels: 1 / 0)
    row = worked(todo)[todo[0]]
    assert row["note"] == "not compared with float64: ZeroDivisionError: division by zero" and row["median_ms"] == "2"


def test_the_driver(monkeypatch):
    monkeypatch.setattr(gpu_work.shutil, "which", lambda name: None)
    assert gpu_work.driver() == ""
    monkeypatch.setattr(gpu_work.shutil, "which", lambda name: name)
    for out, expected in (("580.1\n580.1\n", "580.1"), ("", "")):
        result = types.SimpleNamespace(stdout=out)
        monkeypatch.setattr(gpu_work.subprocess, "run", lambda *args, result=result, **options: result)
        assert gpu_work.driver() == expected


def test_no_room_for_a_case(on_cpu, monkeypatch):
    monkeypatch.setattr(gpu_jobs, "providers", fakes)

    def inputs(case, dtype, whole=gpu_jobs.inputs):
        if case.batch > 100:
            raise torch.OutOfMemoryError("no room\nat all")
        return whole(case, dtype)

    monkeypatch.setattr(gpu_jobs, "inputs", inputs)
    todo = [(Case("SupConLoss", 128, 16), "triton a"), (CASE, "triton a")]
    rows = worked(todo)
    assert rows[todo[0]] == {"note": "OutOfMemoryError: no room"} and rows[todo[1]]["median_ms"]


def test_what_fails_leaves_no_tensors(on_cpu, monkeypatch):
    kept = []

    def step(case, x, labels):
        large = torch.zeros(1234, 3)
        kept.append(torch._C._WeakTensorRef(large))
        error = RuntimeError(f"no room beside {len(large)}")
        raise error

    monkeypatch.setattr(gpu_jobs, "providers", lambda loss: {"eager": Provider(step, lambda case: None)})
    assert worked([(CASE, "eager")])[CASE, "eager"]["note"] == "RuntimeError: no room beside 1234"
    assert kept[0].expired()


def test_a_lost_device_asks_for_another_process(on_cpu, monkeypatch):
    def lost():
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(gpu_jobs, "providers", fakes)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    todo = gpu_jobs.jobs([CASE])
    assert [*worked(todo).values()] == [{"note": "RuntimeError: an illegal memory access was encountered"}, None]


@pytest.mark.parametrize("loss", [*gpu_jobs.LOSSES, *PAIRED, *gpu_jobs.TERM_LOSSES])
def test_the_providers_themselves(on_cpu, loss):
    """The Triton kernels in their interpreter; those for CUDA say that they are not here."""
    if loss not in TERMS and not INTERPRETED:
        pytest.skip("Triton was imported before without its interpreter")
    case = gpu_jobs.sized(loss, 32, 16, "float32")
    todo = [(case, name) for name in gpu_jobs.providers(loss) if name not in ("siglip-kernel", "inf-cl")]
    notes = {name: row.get("note", "") for (_, name), row in worked(todo).items()}
    assert {name for name, note in notes.items() if not note} >= {*gpu_jobs.providers(loss)} & {"triton a", "triton b", "eager"}
    assert notes["cuda"].startswith("backend 'cuda' cannot run") and "to save time" in notes["compile"]


@pytest.mark.parametrize("loss", [*PAIRED, "TripletMarginLoss", "HistogramLoss"])
def test_formulas_are_one_graph(on_cpu, monkeypatch, loss):
    monkeypatch.setattr(gpu_jobs, "TELLING", ((16, 8),))
    kind = "float32" if loss in TERMS else "bfloat16"
    job = gpu_jobs.sized(loss, 16, 8, kind), "compile"
    row = worked([job])[job]
    assert row["median_ms"] == "2" and not row.get("note")


def test_the_choice_of_a_form_covers_the_step(monkeypatch):
    seen = []
    monkeypatch.setattr(gpu_jobs, "our_step", lambda *_: lambda: seen.append(chosen(64, 64, 16, torch.bfloat16)))
    for form in gpu_jobs.FORMS:
        gpu_jobs.of_form(form).step(CASE)()
    assert seen == [form == "b" for form in gpu_jobs.FORMS]


# ---- processes -------------------------------------------------------------------------------------------------------


ROW = {"median_ms": "1"}


def worker(connection, todo, each_s):
    """A process that does what the names of its jobs say."""
    connection.send({"device": "none", "driver": "", "cuda": "", "triton": ""})
    for _, name in todo:
        if name == "hangs":
            time.sleep(600)
        elif name == "dies":
            os._exit(3)
        elif name == "loses the device":
            connection.send({"note": "an illegal memory access"})
            connection.send(None)
            return
        connection.send(ROW)


def supervised(tmp_path, names, seconds=300.0, limit_s=60.0, target=worker):
    records = gpu.GpuRecords(tmp_path / "gpu.csv")
    todo = [(CASE, name) for name in names]
    start = functools.partial(gpu.started, each_s=0.0, target=target)
    done = gpu.supervise(records, todo, time.monotonic() + seconds, start, limit_s)
    return done, {name: (records.get(CASE.by(name)) or {}).get("note") for name in names}


def test_a_process_that_dies_or_loses_the_device(tmp_path):
    names = ["first", "dies", "second", "loses the device", "third"]
    done, notes = supervised(tmp_path, names)
    assert done == 5 and notes["dies"] == "its process ended with exit code 3"
    assert notes["loses the device"] == "an illegal memory access"
    assert [notes[name] for name in ("first", "second", "third")] == [""] * 3
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = {row["provider"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(names) and rows["third"]["median_ms"] == "1" and rows["third"]["device"] == "none"
    assert not multiprocessing.active_children()


def test_a_process_that_hangs(tmp_path):
    began = time.monotonic()
    # Long enough for a process to start, which counts for its first job.
    done, notes = supervised(tmp_path, ["first", "hangs", "second"], limit_s=3.0)
    assert done == 3 and notes == {"first": "", "hangs": "did not end within 3 s", "second": ""}
    assert time.monotonic() - began < 120


def test_the_time_is_up(tmp_path):
    began = time.monotonic()
    done, notes = supervised(tmp_path, ["hangs", "second"], seconds=4.0)
    assert done == 0 and notes == {"hangs": None, "second": None} and time.monotonic() - began < 15
    assert supervised(tmp_path, ["second"], seconds=0.0)[0] == 0


def broken(connection, todo, each_s):
    os._exit(5)


def test_a_process_that_does_not_start(tmp_path, capsys):
    assert supervised(tmp_path, ["first"], target=broken) == (0, {"first": None})
    assert "no process could be started: its process ended with exit code 5" in capsys.readouterr().err


def leaves_files(todo):
    for path, seconds in todo:
        time.sleep(seconds)
        path.touch()


def test_compiling_ahead(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "MOST_PROCESSES", 2)
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(gpu_work, "compile_kernels", leaves_files)
    gpu.compile_ahead([(tmp_path / name, 0.0) for name in "abc"], 120.0)
    assert {path.name for path in tmp_path.iterdir()} == {*"abc"}
    gpu.compile_ahead([(tmp_path / "d", 600.0)], 1.0)
    first, second = capsys.readouterr().out.splitlines()
    assert "compiled 3 steps ahead, 2 at a time" in first and "; 0 of them were stopped" in first
    assert "; 0 of them were stopped" not in second and not multiprocessing.active_children()


def test_a_step_that_compiles_kernels(on_cpu, monkeypatch):
    ran = []

    def step(case, *inputs):
        ran.append((case, inputs[0].dtype, torch.get_float32_matmul_precision()))
        return lambda: 1 / 0

    monkeypatch.setattr(gpu_jobs, "providers", lambda loss: {"triton b": Provider(step, lambda case: None)})
    todo = [(Case("SupConLoss", 65536, 16, kind), name) for kind in ("bfloat16", "tf32") for name in gpu_jobs.TRITON]
    small = gpu_jobs.kernels(todo)
    assert [name for _, name in small] == ["triton b"] * 2 + ["triton a"] * 2
    gpu_work.compile_kernels(small[:2])
    assert [(case.batch, *rest) for case, *rest in ran] == [(256, torch.bfloat16, "highest"), (256, torch.float32, "high")]


class Thread:
    """Stands for a process."""

    exitcode = 0

    def __init__(self, function, *arguments):
        self.thread = threading.Thread(target=function, args=arguments)
        self.thread.start()

    def kill(self):
        pass

    def join(self, timeout=None):
        self.thread.join(timeout)


def test_from_the_command_line(on_cpu, monkeypatch, tmp_path, capsys):
    """All of it, with a thread for the process that measures."""

    def started(todo, each_s):
        receiver, sender = multiprocessing.Pipe(duplex=False)
        return Thread(gpu_work.serve, sender, todo, each_s), receiver

    chosen = [CASE, Case("TripletMarginLoss", 32, 16), gpu_jobs.sized("SigmoidLoss", 32, 16, "bfloat16")]
    monkeypatch.setattr(gpu_jobs, "cases", lambda: iter(chosen))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "started", started)
    ahead = []
    monkeypatch.setattr(gpu, "compile_ahead", lambda todo, seconds: ahead.append((len(todo), seconds)))
    monkeypatch.setattr("sys.argv", ["gpu", "--results", str(tmp_path), "--start", "1"])
    assert gpu.main() == 1 and "no bar was measured" in capsys.readouterr().out
    assert ahead == [(2, pytest.approx(108.0))]
    records = gpu.GpuRecords(tmp_path / "gpu.csv")
    assert {case.loss for case in records.cases()} == {"TripletMarginLoss", "SigmoidLoss"}
    assert len(records.cases()) == 4 + 6 and records.number(chosen[1].by("eager"), "median_ms") == 2.0
    assert (tmp_path / "gpu_terms.png").exists() and not (tmp_path / "gpu.png").exists()
    monkeypatch.setattr("sys.argv", ["gpu", "--results", str(tmp_path), "--seconds", "0"])
    gpu.main()
    assert "16 jobs are left, from SupConLoss 32x16-float32-4 on; --start 0 goes on" in capsys.readouterr().out


# ---- what is made of the rows ----------------------------------------------------------------------------------------


@pytest.fixture
def passing(tmp_path):
    """Made-up rows that pass every bar."""
    records = gpu.GpuRecords(tmp_path / "gpu.csv")
    for case in gpu_jobs.cases():
        for name in gpu_jobs.providers(case.loss):
            ms = {"triton b": 40.0, "cuda": 50.0}.get(name, 100.0)
            tflops = 6e-9 * case.batch**2 * case.dim / ms
            row = {"median_ms": ms, "tflops": tflops, "product_share": 20 / ms, "peak_mb": 1000.0}
            records.update(case.by(name), {key: f"{value:.4g}" for key, value in row.items()})
    return records


def test_bars_that_are_passed(passing, capsys):
    passing.save()
    assert gpu_bars.main(passing.path) == 0
    printed = capsys.readouterr().out
    assert "8 of 8 bars pass" in printed
    assert "SupConLoss 65536x768-bfloat16-4 by triton b, 6 B^2 D over time: 495 TFLOP/s (at least 405 TFLOP/s)" in printed
    assert "HistogramLoss 8192x128-float32-4, cuda over the products: 2.5x (at most 3x)" in printed


@pytest.mark.parametrize(
    "number, change, printed",
    [
        (0, {"tflops": "404"}, "MISSED  SupConLoss 65536x768"),
        (0, {"peak_mb": "1401"}, "MISSED  SupConLoss 65536x768"),
        (5, {"tflops": "404"}, "MISSED  SigmoidLoss 65536x768"),
        (1, {"median_ms": "51"}, "MISSED  SupConLoss 8192x128"),
        (2, {"product_share": "0.33"}, "MISSED  TripletMarginLoss"),
        (3, {"product_share": "", "median_ms": "", "note": "another loss"}, "cuda over the products: not measured"),
        (4, {"product_share": "0.33"}, "MISSED  HistogramLoss"),
    ],
)
def test_a_missed_bar_is_the_exit_status(passing, capsys, number, change, printed):
    case = gpu_jobs.FIRST[number]
    for provider in gpu_jobs.OURS:
        if provider in gpu_jobs.providers(case.loss):
            passing.update(case.by(provider), change)
    passing.save()
    assert gpu_bars.main(passing.path) == 1
    assert printed in capsys.readouterr().out


def test_only_what_was_measured_has_a_bar(passing, tmp_path, capsys):
    for case in passing.cases():
        if case.loss != "HistogramLoss":
            passing.rows.pop(tuple(map(str, (case.loss, case.batch, case.dim, case.dtype, case.per_class, case.provider))))
    passing.save()
    assert gpu_bars.main(passing.path) == 0 and "1 of 1 bars pass" in capsys.readouterr().out
    assert gpu_bars.main(tmp_path / "missing.csv") == 1 and "no bar was measured" in capsys.readouterr().out


def test_pictures(passing, tmp_path, capsys):
    passing.save()
    options = Namespace(results=tmp_path, start=3)
    assert gpu.report(passing, list(gpu_jobs.FIRST), gpu_jobs.jobs(gpu_jobs.FIRST[2:]), options) == 0
    for name in ("gpu.png", "gpu_terms.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert "from TripletMarginLoss 8192x128-float32-4 on; --start 5" in capsys.readouterr().out
    for draw in (pictures.gpu, pictures.gpu_terms):
        draw(gpu.GpuRecords(tmp_path / "missing.csv"), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_every_truth_has_a_loss():
    assert set(BLOCKS) <= {*gpu_jobs.LOSSES, *PAIRED} and {*gpu_jobs.TERM_LOSSES} <= set(EXACT)
