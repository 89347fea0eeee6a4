"""Which backend runs, who may choose it, what it says when it cannot, and what an import costs."""

import contextvars
import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from cases import BACKENDS, LOSSES, backend_params, embeddings, reason_against, unbalanced_labels

import metric_kernels
from metric_kernels import backends, losses, use_backend
from metric_kernels.language import Op

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
USABLE = [name for name in backends.NAMES if reason_against(name) is None]
ON_CPU = [name for name in USABLE if name not in ("triton", "cuda")]


def op_of(name="ContrastiveLoss"):
    loss = getattr(losses, name)()
    return Op(loss.formula, loss.distance.metric, loss._params())


def chosen(**options):
    return backends.choose(op_of(), CPU, options.pop("dtype", torch.float32), **options).name


@pytest.fixture(autouse=True)
def _no_choice_in_the_environment(monkeypatch):
    monkeypatch.delenv("METRIC_KERNELS_BACKEND", raising=False)


@pytest.fixture
def fresh_choice():
    """Choices are remembered; a test that changes what is usable must not leave its own behind."""
    backends._choose.cache_clear()
    yield
    backends._choose.cache_clear()


def run(code, *arguments, check=True, **variables):
    """Runs code in a new interpreter."""
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else []), *arguments],
        env={**os.environ, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=check,
    )


# The instruction sets that the extension has for a processor that torch calls so.
INSTRUCTION_SETS = {"AVX2": {"avx2"}, "AVX512": {"avx2", "avx512"}}


def test_every_backend_is_there():
    """A build that failed must not pass as skips. METRIC_KERNELS_TEST_WITHOUT lists what a machine cannot have."""
    without = set(os.environ.get("METRIC_KERNELS_TEST_WITHOUT", "").split(","))
    expected = {"native", "numba", "triton"} - without
    found = {name for name in ("native", "numba") if reason_against(name) is None}
    if "native" in expected & found:
        expected |= INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability(), set()) - without
        found |= set(importlib.import_module("metric_kernels._native").isas())
    # Its interpreter is chosen when it is imported.
    interpreted = "from metric_kernels import backends; print(backends.load('triton').unusable())"
    if run(interpreted, TRITON_INTERPRET="1").stdout.strip() == "None":
        found.add("triton")
    assert not expected - found


def test_order_of_preference(fresh_choice, monkeypatch):
    assert backends.NAMES == ("native", "numba", "triton", "cuda", "reference")
    for expected in ON_CPU:
        assert chosen() == expected
        backends._choose.cache_clear()
        monkeypatch.setattr(backends.load(expected), "supports", lambda *_: "switched off by a test", raising=True)


def test_every_backend_refused(fresh_choice, monkeypatch):
    for name in backends.NAMES:
        monkeypatch.setattr(backends.load(name), "supports", lambda *_, name=name: f"{name} is off")
    with pytest.raises(RuntimeError, match="native is off.*numba is off.*triton is off.*cuda is off.*reference is off"):
        chosen()


@pytest.mark.filterwarnings("ignore:.*changed since the extension was built")
@pytest.mark.parametrize("part", [losses.ContrastiveLoss, losses.ContrastiveLoss().distance.metric], ids=["loss", "metric"])
@pytest.mark.parametrize("native", backend_params("native"))
def test_a_formula_edited_since_the_build_is_left_to_numba(native, part, fresh_choice, monkeypatch, tmp_path):
    module = sys.modules[part.__module__]
    source, op = Path(module.__file__).read_text(), op_of("ContrastiveLoss")

    def edited(name, text):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(module, "__file__", str(tmp_path / name))
        backends._choose.cache_clear()
        return backends.load(native).supports(op.formula, op.metric, "cpu", torch.float32)

    assert edited("commented.py", source + "\n# A remark.\n") is None and chosen() == native
    reason = edited("edited.py", source.replace("fn.step", "fn.sigmoid").replace("2.0", "2.5"))
    assert part.__module__ in reason and "changed since the extension was built" in reason
    assert chosen() == "numba"


@pytest.mark.parametrize("name", BACKENDS)
def test_an_explicit_choice_is_obeyed(name, monkeypatch):
    assert chosen(argument=name) == name
    with use_backend(name):
        assert chosen() == name
    monkeypatch.setenv("METRIC_KERNELS_BACKEND", name)
    assert chosen() == name


def test_the_innermost_choice_wins(monkeypatch):
    monkeypatch.setenv("METRIC_KERNELS_BACKEND", "native")
    with use_backend("numba"):
        assert backends.requested(None) == "numba"
        with use_backend("reference"):
            assert backends.requested(None) == "reference"
            assert backends.requested("native") == "native"
        assert backends.requested(None) == "numba"
    assert backends.requested(None) == "native"


def test_a_choice_ends_with_its_block_even_by_an_exception():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backends.requested(None) is None


def test_a_choice_that_cannot_run_raises_with_its_reason():
    loss = losses.ContrastiveLoss(backend="native")
    with pytest.raises(RuntimeError, match=r"backend 'native' cannot run .*ContrastiveLoss on meta in .*: native: .*cpu"):
        loss(torch.empty(4, 2, device="meta"), torch.empty(4, dtype=torch.int64, device="meta"))
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        with use_backend("triton"), pytest.raises(RuntimeError, match="backend 'triton' cannot run .*: triton: "):
            losses.ContrastiveLoss()(embeddings(4), torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize(
    "choose, argument",
    [
        (lambda: losses.ContrastiveLoss(backend="gpu"), "backend"),
        (lambda: use_backend("gpu").__enter__(), "use_backend"),
    ],
    ids=["argument", "block"],
)
def test_an_unknown_name_is_refused(choose, argument):
    with pytest.raises(ValueError, match=f"{argument}: expected one of native, numba, triton, cuda, reference, got 'gpu'"):
        choose()


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("METRIC_KERNELS_BACKEND", "gpu")
    with pytest.raises(ValueError, match="METRIC_KERNELS_BACKEND: expected one of native, .*, got 'gpu'"):
        losses.ContrastiveLoss()(embeddings(4), torch.tensor([0, 0, 1, 1]))


def test_a_choice_belongs_to_its_thread():
    seen, entered, leave = {}, threading.Event(), threading.Event()

    def other():
        seen["before"] = backends.requested(None)
        with use_backend("numba"):
            entered.set()
            leave.wait(30)
            seen["inside"] = backends.requested(None)

    with use_backend("reference"):
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(30)
        assert backends.requested(None) == "reference"
        leave.set()
        thread.join()
        # What runs in a copy of this context inherits its choice.
        assert contextvars.copy_context().run(backends.requested, None) == "reference"
    assert seen == {"before": None, "inside": "numba"}


@pytest.mark.parametrize("name", BACKENDS[:2])
def test_losses_in_many_threads(name):
    x, labels = embeddings(80, 16, dtype=torch.float32), unbalanced_labels(80)
    builders = [getattr(losses, kind) for kind in LOSSES]
    expected = [build(backend=name)(x, labels) for build in builders]
    wrong = []

    def work():
        for _ in range(5):
            for build, value in zip(builders, expected, strict=True):
                leaf = x.clone().requires_grad_()
                result = build(backend=name)(leaf, labels)
                result.backward()
                if abs(result.item() - value.item()) > 1e-5 * abs(value.item()) or not leaf.grad.isfinite().all():
                    wrong.append(build)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_report(monkeypatch):
    monkeypatch.setenv("METRIC_KERNELS_BACKEND", "reference")
    monkeypatch.setenv("METRIC_KERNELS_WORKSPACE", "1048576")
    lines = metric_kernels.report().splitlines()
    by_name = {line.split()[0]: line for line in lines if line.strip()}
    assert torch.__version__ in by_name["torch"]
    assert {"python", "processor", "cuda", "numba", "triton", "workspace"} <= set(by_name)
    assert by_name["backend"].split()[1:] == ["reference", "(explicit)"]
    for name in backends.NAMES:
        reason = backends.status()[name]
        assert ("usable" if reason is None else reason) in by_name[name]
    assert lines[-2:] == ["METRIC_KERNELS_BACKEND=reference", "METRIC_KERNELS_WORKSPACE=1048576"]


def test_report_from_the_command_line():
    out = run(None, "-m", "metric_kernels", METRIC_KERNELS_BACKEND="numba", METRIC_KERNELS_WORKSPACE="3145728").stdout
    lines = [line.split() for line in out.splitlines()]
    assert ["reference", "usable"] in lines and ["workspace", "3", "MiB"] in lines
    assert ["backend", "numba", "(explicit)"] in lines


def test_a_wrong_workspace_in_the_environment_is_refused():
    failed = run("import metric_kernels", check=False, METRIC_KERNELS_WORKSPACE="plenty")
    assert "METRIC_KERNELS_WORKSPACE: expected a number of bytes >= 0, got 'plenty'" in failed.stderr


HEAVY = ("numba", "triton", "matplotlib", "sklearn", "pytorch_metric_learning")
IMPORT = f"""
import json, sys, time, torch
before = time.process_time()
import metric_kernels
took = time.process_time() - before
print(json.dumps([took, [module for module in {HEAVY} if module in sys.modules]]))
"""


def test_import_is_light():
    took, heavy = zip(*(json.loads(run(IMPORT).stdout) for _ in range(3)))
    assert heavy == ([], [], [])
    assert min(took) < 0.2  # of a processor, whatever else runs


WITHOUT_EXTENSION = """
import sys, torch
sys.modules["metric_kernels._native"] = None
import metric_kernels
from metric_kernels import backends, losses
x = torch.randn(12, 4).requires_grad_()
labels = torch.arange(12) // 3
loss = losses.NPairsLoss()
loss(x, labels).backward()
assert x.grad.isfinite().all()
op = backends.Op(loss.formula, loss.distance.metric, loss._params())
print(backends.choose(op, x.device, x.dtype).name)
print(metric_kernels.report())
try:
    losses.NPairsLoss(backend="native")(x, labels)
except RuntimeError as error:
    print(error)
"""


def test_an_installation_without_the_extension():
    first, *others = run(WITHOUT_EXTENSION).stdout.splitlines()
    assert first == next(name for name in ("numba", "reference") if name in USABLE)
    reason = "the compiled extension is missing"
    assert any(line.split()[0] == "native" and reason in line for line in others)
    assert others[-1].startswith("backend 'native' cannot run") and reason in others[-1]
