"""The demonstration: its sampler, its recall, and one short run from the command line."""

import ast
import dataclasses
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_metric_learning")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("sklearn")

from metric_kernels import backends, cli, demo, losses
from metric_kernels.demo import contenders, data, measure, peak, pictures, pipeline
from metric_kernels.demo.batch import clustered
from metric_kernels.demo.network import network
from metric_kernels.demo.retrieval import auc, pairs, recall
from metric_kernels.demo.threads import one_thread
from metric_kernels.demo.timing import interleaved
from metric_kernels.demo.train import difference, train

WITH_PML = [name for name in contenders.names() if contenders.of(name).peer == contenders.PML]
# PML keeps the graph of the first step and fails at the second.
PML_FAILS = "DynamicSoftMarginLoss"


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def digits():
    return data.digits(seed=0)


@pytest.fixture(scope="module")
def few(digits):
    """Twenty images of each class."""
    chosen = torch.cat([torch.nonzero(digits.labels == c)[:20, 0] for c in range(6)])
    return dataclasses.replace(digits, images=digits.images[chosen], labels=digits.labels[chosen])


def test_split_keeps_classes_apart(digits):
    assert digits.labels.unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert digits.held_out_labels.unique().tolist() == [6, 7, 8, 9]
    assert len(digits.labels) + len(digits.held_out_labels) == 1797
    assert digits.images.shape[1:] == (1, 8, 8) and digits.held_out_views.shape[1:] == (1, 16, 16)
    assert torch.bincount(digits.labels).min() == data.SMALLEST_CLASS


def test_batches_are_balanced_and_without_repetition(digits):
    batches = list(data.ClassBalancedBatches(digits.labels, per_class=20, seed=3))
    assert len(batches) == 177 // 20
    for batch in batches:
        assert torch.bincount(digits.labels[batch]).tolist() == [20] * 6
    drawn = sum(batches, [])
    assert len(drawn) == len(set(drawn))


def test_batches_are_deterministic_by_seed(digits):
    def two_epochs(seed):
        sampler = data.ClassBalancedBatches(digits.labels, per_class=10, seed=seed)
        return list(sampler), list(sampler)

    first, second = two_epochs(5)
    torch.rand(7)  # the global generator has no say
    assert two_epochs(5) == (first, second)
    assert first != second
    assert two_epochs(6)[0] != first


def test_batches_work_as_batch_sampler(digits):
    sampler = data.ClassBalancedBatches(digits.labels, per_class=2, seed=0)
    loader = torch.utils.data.DataLoader(list(range(len(digits.labels))), batch_sampler=sampler)
    assert len(loader) == 88
    assert digits.labels[next(iter(loader))].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("per_class", [0, 1, 178])
def test_batches_reject_sizes_they_cannot_fill(digits, per_class):
    with pytest.raises(ValueError, match=r"per_class: expected 2 to 177.*got"):
        data.ClassBalancedBatches(digits.labels, per_class, seed=0)


def test_views_show_the_whole_digit_somewhere(digits):
    images = digits.images[:200]
    seen = data.views(images, torch.Generator().manual_seed(0))
    assert torch.equal(seen, data.views(images, torch.Generator().manual_seed(0)))
    # Bilinear sampling at the same scale keeps the sum of the pixels, up to what rotation takes off the canvas, and noise.
    ratio = seen.sum((1, 2, 3)) / images.sum((1, 2, 3))
    assert ratio.min() > 0.75 and ratio.max() < 1.15
    columns = torch.arange(16.0)
    centre = (seen.clamp(min=0.2) - 0.2).sum((1, 2)) @ columns / (seen.clamp(min=0.2) - 0.2).sum((1, 2, 3))
    assert centre.min() < 5 and centre.max() > 10


def brute_force_recall(x, labels, k):
    hits = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        if all(labels[j] != labels[i] for j in others):
            continue
        others.sort(key=lambda j: -torch.cosine_similarity(x[i], x[j], dim=0).item())
        hits.append(any(labels[j] == labels[i] for j in others[:k]))
    return sum(hits) / len(hits)


def test_recall_against_brute_force():
    torch.manual_seed(0)
    x = torch.randn(40, 5, dtype=torch.float64) * torch.rand(40, 1, dtype=torch.float64)  # the length must not matter
    labels = torch.randint(0, 9, (40,))
    labels[7] = 100  # nobody else has it: not a query, but still in the gallery of the others
    found = recall(x, labels)
    assert list(found) == [1, 2, 4, 8]
    assert found == pytest.approx({k: brute_force_recall(x, labels, k) for k in found}, abs=1e-12)
    assert 0 < found[1] < found[8] < 1


def test_recall_edge_cases():
    assert recall(torch.randn(3, 2), torch.tensor([0, 1, 2])) == {1: 0.0, 2: 0.0, 4: 0.0, 8: 0.0}
    assert recall(torch.ones(2, 2), torch.tensor([4, 4]))[8] == 1.0  # fewer others than K


def test_pairs_and_auc_against_loops():
    torch.manual_seed(1)
    x, labels = torch.randn(12, 3), torch.arange(12) % 3
    positive, negative = pairs(x, labels)
    cosine = torch.cosine_similarity(x[:, None], x[None], dim=2)
    upper = [(i, j) for i in range(12) for j in range(i + 1, 12)]
    torch.testing.assert_close(positive, torch.stack([cosine[i, j] for i, j in upper if labels[i] == labels[j]]))
    torch.testing.assert_close(negative, torch.stack([cosine[i, j] for i, j in upper if labels[i] != labels[j]]))
    better = [(p > n).item() + 0.5 * (p == n).item() for p in positive for n in negative]
    assert auc(positive, negative) == pytest.approx(sum(better) / len(better))
    assert auc(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])) == 0.75


def test_every_loss_has_a_peer():
    assert contenders.names() == sorted(losses.REGISTRY)
    everyone = (contenders.OURS, contenders.PLAIN, contenders.PML)
    assert contenders.of("CircleLoss") == contenders.Contenders(everyone, {})
    without = {
        "BatchHardTripletLoss",
        "QuadrupletLogSumExpLoss",
        "QuadrupletLoss",
        "QuadrupletMarginLoss",
        "SemiHardTripletLoss",
    }
    assert set(contenders.names()) - set(WITH_PML) == without
    for name in without:
        found = contenders.of(name)
        assert found.names == everyone[:2] and found.peer == contenders.PLAIN
        assert found.left_out == {contenders.PML: f"it has no {name}"}


@pytest.mark.parametrize("loss", [name for name in WITH_PML if name != PML_FAILS])
def test_same_training_as_pml_in_float64(few, loss):
    ours, pml = (
        train(contenders.build(c, loss, "reference"), few, epochs=2, batch_size=30, seed=1, dtype=torch.float64).curve
        for c in (contenders.OURS, contenders.PML)
    )
    assert len(ours) == len(pml) == 8
    limit = {"float64": 1e-12, "float32": 1e-4}[contenders.precision(contenders.PML, loss, "float64")]
    assert difference(ours, pml) < limit
    assert ours[-1] != ours[0] != 0


@pytest.mark.parametrize("loss", ["HistogramLoss", "QuadrupletMarginLoss"])
def test_training_separates_digits_never_seen(digits, loss):
    def quality(net):
        with torch.no_grad():
            x = net(digits.held_out_views)
        return recall(x, digits.held_out_labels)[1], auc(*pairs(x, digits.held_out_labels))

    trained = train(contenders.build(contenders.OURS, loss), digits, epochs=3, batch_size=30, seed=0)
    (hits, score), (hits_before, score_before) = quality(trained.net), quality(network(0))
    assert hits > hits_before + 0.1 and score > score_before + 0.05


def test_pml_that_fails_is_left_out_with_its_reason(few):
    ours, theirs, taking_part = pipeline._train_both(few, PML_FAILS, None, epochs=1, batch_size=30, seed=0)
    assert taking_part.names == (contenders.OURS, contenders.PLAIN)
    (reason,) = taking_part.left_out.values()
    assert reason == "training fails with RuntimeError: Trying to backward through the graph a second time"
    assert all(len(theirs[dtype].curve) == 4 for dtype in contenders.DTYPES)
    assert difference(ours["float64"].curve, theirs["float64"].curve) < 1e-11


def test_a_failure_of_this_package_is_not_left_out(few, monkeypatch):
    def build(contender, *_):
        return {contenders.OURS: losses.QuadrupletMarginLoss(), contenders.PLAIN: lambda x, labels: 1 / 0}[contender]

    monkeypatch.setattr(contenders, "build", build)
    with pytest.raises(ZeroDivisionError):
        pipeline._train_both(few, "QuadrupletMarginLoss", None, epochs=1, batch_size=30, seed=0)


@pytest.mark.parametrize(
    "loss, peer, backend, float64, steps, verdict",
    [
        ("CircleLoss", contenders.PML, "native", 1e-15, 9, "the same loss, up to rounding, which training amplifies"),
        ("CircleLoss", contenders.PML, "native", 1e-15, 8, r"the same loss, .* \(PML was stopped after 5 s\)"),
        ("CircleLoss", contenders.PML, "native", 1e-5, 9, "NOT the same loss"),
        ("HistogramLoss", contenders.PML, "native", 1e-5, 9, r"the same loss, .* \(PML computes it in float32\)"),
        ("HistogramLoss", contenders.PLAIN, "native", 1e-5, 9, "NOT the same loss"),
        ("QuadrupletLoss", contenders.PLAIN, "native", 1e-15, 9, "the same loss, .*"),
        ("QuadrupletLoss", contenders.PLAIN, "reference", 0.0, 9, "the same code: another backend .*"),
    ],
)
def test_verdict_on_two_curves(loss, peer, backend, float64, steps, verdict):
    apart = {"float32": {"first_epoch": 1e-6, "steps": 9}, "float64": {"first_epoch": float64, "steps": steps}}
    curves = {d: {contenders.OURS: [1.0] * 9} for d in contenders.DTYPES}
    curves |= {"peer": peer, "largest_relative_difference": apart}
    found = pipeline._verdict({"loss": loss, "backend": dict.fromkeys(contenders.DTYPES, backend), "curves": curves})
    assert re.fullmatch(verdict, found)


def test_training_is_reproducible_and_leaves_global_state_alone(digits):
    before = torch.get_rng_state()
    module = contenders.build(contenders.OURS, "ContrastiveLoss", "reference")
    a, b = (train(module, digits, epochs=1, batch_size=120, seed=2) for _ in range(2))
    assert a.curve == b.curve and len(a.curve) == a.epoch == 8
    assert torch.equal(torch.get_rng_state(), before)
    assert train(module, digits, epochs=1, batch_size=120, seed=3).curve != a.curve
    double = network(2, torch.float64)
    for p, q in zip(network(2).parameters(), double.parameters()):
        assert torch.equal(p.double(), q)


def test_difference_sees_one_wrong_step():
    assert difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0
    assert difference([1.0, 2.0, 3.0], [1.0, 2.2, 3.0]) == pytest.approx(0.2 / 2.2)


def test_one_thread_ends_with_the_block():
    torch.set_num_threads(2)
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_the_measured_batch_is_clustered_and_shuffled():
    x, labels = clustered(512, 128, 4)
    assert x.shape == (512, 128) and torch.bincount(labels).tolist() == [4] * 128
    assert not torch.equal(labels, labels.sort().values)
    positive, negative = pairs(x, labels)
    assert positive.mean().item() == pytest.approx(0.7, abs=0.05)
    assert negative.mean().item() == pytest.approx(0.4, abs=0.05)
    again, same = clustered(512, 128, 4)
    assert torch.equal(again, x) and torch.equal(same, labels)


@pytest.mark.parametrize("loss", contenders.names())
def test_no_loss_is_at_zero_where_it_is_measured(loss):
    x, labels = measure.batch_of(128)
    value = contenders.build(contenders.OURS, loss, "reference")(x, labels)
    value.backward()
    assert value != 0 and x.grad.abs().sum() > 0


def test_what_is_slow_is_not_repeated_for_long():
    found = interleaved({"slow": lambda: time.sleep(0.05)}, budget_s=0.0, min_turns=2)
    assert found["slow"].count == 2 and found["slow"].median >= 50


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_is_that_of_the_action():
    """In a process of its own: this one may have freed memory that hides the action's."""
    code = """
import torch
from metric_kernels.demo.peak import growth
torch.ones(2**27, dtype=torch.uint8)  # an earlier peak
print(growth(lambda: torch.ones(2**25, dtype=torch.uint8)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) == pytest.approx(2**25, rel=0.05)


def test_a_measuring_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"(?s)demo.measure PML NoLoss  64: exit status 1: .*no attribute 'NoLoss'"):
        peak.in_processes("metric_kernels.demo.measure", [("PML", "NoLoss", "", 64)])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measure, "BATCHES", (64, 1024))
    monkeypatch.setattr(pictures, "TSNE", functools.partial(pictures.TSNE, max_iter=300))
    monkeypatch.setattr(measure, "SECONDS_PER_BATCH", 0.1)


def test_demo_writes_pictures_and_true_numbers(tmp_path, capsys, quick):
    out = tmp_path / "deep" / "out"
    options = ["--loss", "contrastive", "--epochs", "1", "--backend", "reference", "--out", str(out)]
    assert cli.main(["demo", *options]) == 0
    results = json.loads((out / "results.json").read_text())
    printed = capsys.readouterr().out

    assert results["loss"] == "ContrastiveLoss" and results["epochs"] == 1
    assert results["contenders"] == [contenders.OURS, contenders.PLAIN, contenders.PML] and results["left_out"] == {}
    assert results["backend"] == {"requested": "reference", "float32": "reference", "float64": "reference"}
    assert "backend reference (as requested)" in printed and "metric_kernels (reference) " in printed
    assert set(results["recall"]) == {"raw pixels", "before training", "after training"}
    for at in results["recall"].values():
        assert 0.25 < at["1"] <= at["2"] <= at["4"] <= at["8"] <= 1
        assert " ".join(f"{at[k]:.3f}" for k in "1248") in " ".join(printed.split())
    assert all(f"{score:.3f}\n" in printed for score in results["pair_auc"].values())

    held_out = data.digits(seed=0)
    with torch.no_grad():
        x = network(0)(held_out.held_out_views)
    assert results["recall"]["before training"]["1"] == pytest.approx(recall(x, held_out.held_out_labels)[1])

    apart = results["curves"]["largest_relative_difference"]
    for dtype, limit in (("float32", 1e-5), ("float64", 1e-13)):
        ours, pml = (results["curves"][dtype][name] for name in (contenders.OURS, contenders.PML))
        assert len(ours) == len(pml) == 8
        assert difference(ours, pml) == apart[dtype]["first_epoch"] == apart[dtype]["all_steps"] < limit
    assert "the same loss" in printed and "NOT" not in printed

    assert set(results["step"]["milliseconds"]) == {"64", "1024"}
    for row in results["step"]["milliseconds"].values():
        assert list(row) == results["contenders"] and all(0 < ms < 5000 for ms in row.values())
    memory = results["step"]["peak_memory_bytes"]
    matrix = 4 * results["step"]["peak_memory_batch"] ** 2
    assert list(memory) == results["contenders"] and matrix == 2**22
    assert all(matrix < used < 30 * matrix for used in memory.values())

    assert len(results["pictures"]) == 4
    for name in results["pictures"]:
        picture = (out / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
        assert name in printed


def test_demo_of_a_loss_that_pml_has_not(tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setattr(measure, "BATCHES", (64, 128))
    monkeypatch.setattr(pictures, "embedding_map", lambda *_: None)  # it takes long, and the test above looks at it
    assert cli.main(["demo", "--loss", "quadrupletmargin", "--epochs", "1", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    printed = capsys.readouterr().out
    both = [contenders.OURS, contenders.PLAIN]
    assert results["loss"] == "QuadrupletMarginLoss" and results["contenders"] == both
    assert results["left_out"] == {contenders.PML: "it has no QuadrupletMarginLoss"}
    assert results["curves"]["peer"] == contenders.PLAIN
    for dtype in contenders.DTYPES:
        assert list(results["curves"][dtype]) == both
    assert all(list(row) == both for row in (*results["step"]["milliseconds"].values(), results["step"]["peak_memory_bytes"]))
    assert "Training loss against that of plain PyTorch (reference backend)" in printed and "the same loss" in printed
    assert [line for line in printed.splitlines() if "PML" in line] == ["  PML is left out: it has no QuadrupletMarginLoss"]


def test_pictures_of_the_readme_are_there_and_small():
    root = Path(__file__).parents[1]
    shown = re.findall(r'src="(docs/\S+\.png)"', (root / "README.md").read_text(encoding="utf-8"))
    assert len(shown) == 4
    assert all((root / name).read_bytes().startswith(b"\x89PNG") and (root / name).stat().st_size < 60_000 for name in shown)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--loss", "Nonsense"], "--loss: expected one of .*CircleLoss.*SupConLoss.*, got Nonsense"),
        (["--backend", "abacus"], f"--backend: expected one of {', '.join(backends.NAMES)}, got abacus"),
        (["--epochs", "0"], "--epochs: expected 1 or more, got 0"),
        (["--batch-size", "100"], "--batch-size: expected a multiple of 6 from 12 to 1062, got 100"),
        (["--seed", "-1"], "--seed: expected 0 to .*, got -1"),
    ],
    ids=lambda value: value[0].lstrip("-") if isinstance(value, list) else "",
)
def test_bad_options_exit_2_with_one_line(options, message, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "out"), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert re.search(message, captured.err)
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_exits_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_the_backend_that_ran_is_named(monkeypatch):
    monkeypatch.delenv("METRIC_KERNELS_BACKEND", raising=False)
    automatic = contenders.ran("CircleLoss", None)
    assert set(automatic) == {"float32", "float64"} and set(automatic.values()) <= set(backends.NAMES)
    monkeypatch.setenv("METRIC_KERNELS_BACKEND", "reference")
    assert set(contenders.ran("CircleLoss", None).values()) == {"reference"}


@pytest.mark.parametrize("how", ["option", "variable"])
def test_unusable_backend_exits_2_with_its_reason(how, tmp_path, capsys, monkeypatch):
    """The demonstration trains in float64 too, which Triton cannot, wherever it runs."""
    monkeypatch.setenv("METRIC_KERNELS_BACKEND", "triton" if how == "variable" else "reference")
    options = ["--backend", "triton"] if how == "option" else []
    assert cli.main(["demo", *options, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    name = {"option": "--backend", "variable": "METRIC_KERNELS_BACKEND"}[how]
    assert captured.err.startswith(f"metric-kernels demo: {name}: backend 'triton' cannot run")
    assert not (tmp_path / "out").exists()


def test_unknown_backend_in_the_environment_exits_2(capsys, monkeypatch):
    monkeypatch.setenv("METRIC_KERNELS_BACKEND", "gpu")
    assert cli.main(["demo"]) == 2
    expected = f"METRIC_KERNELS_BACKEND: expected one of {', '.join(backends.NAMES)}, got 'gpu'"
    assert capsys.readouterr().err == f"metric-kernels demo: {expected}\n"


@pytest.mark.parametrize("package", demo.NEEDS)
def test_missing_package_exits_2_and_says_how_to_install(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["demo"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.endswith(f"run: pip install {shlex.quote(demo.NEEDS[package])}\n")


def test_the_packages_are_those_of_the_extra():
    project = Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8")
    (extra,) = re.findall(r"^demo = (\[.*\])$", project, re.M)
    assert sorted(ast.literal_eval(extra)) == sorted(demo.NEEDS.values())


def test_help_lists_the_losses(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["demo", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*losses.REGISTRY, *backends.NAMES))
    assert "(default: 15)" in printed and "None" not in printed


def test_report(monkeypatch, capsys):
    monkeypatch.setattr("metric_kernels.report", lambda: "backends: all well", raising=False)
    assert cli.main(["report"]) == 0
    assert capsys.readouterr().out == "backends: all well\n"


def test_the_report_tells_a_wrong_variable_and_all_the_rest():
    environment = {**os.environ, "METRIC_KERNELS_BACKEND": "gpu"}
    command = [sys.executable, "-m", "metric_kernels"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    expected = f"METRIC_KERNELS_BACKEND: expected one of {', '.join(backends.NAMES)}, got 'gpu'"
    assert f"{'backend':15s}{expected}" in run.stdout.splitlines()
    assert re.search(r"^  reference +usable$", run.stdout, re.M) and "METRIC_KERNELS_BACKEND=gpu" in run.stdout


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "metric_kernels"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 0


def test_library_and_command_do_not_import_the_extra():
    code = """
import sys, torch
before = set(sys.modules)
import metric_kernels, metric_kernels.losses, metric_kernels.cli
print(sorted({"matplotlib", "sklearn", "tqdm", "pytorch_metric_learning"} & (set(sys.modules) - before)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
