"""The GPU benchmark without a GPU: its order, its refusals and its table, by another clock."""

import csv

import pytest
import torch

from benchmarks import gpu
from benchmarks.cases import Case

pytest.importorskip("triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_an_error_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu"])
    assert gpu.main() == 1
    assert "expected a CUDA device" in capsys.readouterr().err


def test_the_bars_come_first_and_no_case_twice():
    found = list(gpu.cases())
    assert tuple(found[:2]) == gpu.FIRST
    assert len(set(found)) == len(found) == len(gpu.LOSSES) * len(gpu.BATCHES) * len(gpu.DIMS) * len(gpu.TYPES)


@pytest.fixture
def on_cpu(monkeypatch):
    """Eager torch in place of the kernels, and steps of 2 ms each."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "device", lambda: {"device": "none", "driver": "1", "cuda": "2", "triton": "3"})
    monkeypatch.setattr(gpu, "milliseconds", lambda step, budget_s: [2.0] * 3)
    monkeypatch.setattr(gpu, "copy_bytes_per_ms", lambda: 1e9)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    eager = gpu.PROVIDERS["eager"].step

    def wrong(case, x, labels):
        return gpu.loss_step(lambda x, labels: 2 * gpu.formula(case)(x, labels), x, labels)

    def failing(case, x, labels):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(gpu, "providers", lambda: {"triton a": eager, "wrong": wrong, "failing": failing, "compile": failing})


def test_table(on_cpu, tmp_path):
    records = gpu.GpuRecords(tmp_path / "gpu.csv")
    chosen = [Case("SupConLoss", 128, 16, kind) for kind in gpu.TYPES] + [Case("CircleLoss", 128, 16)]
    assert gpu.run(records, chosen, 100.0, 0.1) == []
    with (tmp_path / "gpu.csv").open(newline="") as file:
        rows = {(row["loss"], row["dtype"], row["provider"]): row for row in csv.DictReader(file)}
    for kind in gpu.TYPES:
        right = rows["SupConLoss", kind, "triton a"]
        assert (right["median_ms"], right["count"], right["device"]) == ("2", "3", "none")
        assert float(right["product_share"]) == 3.0  # three products of 2 ms
        assert float(right["tflops"]) == pytest.approx(6e-9 * 128**2 * 16 / 2, rel=1e-3)
        assert float(right["copy_share"]) == pytest.approx(20 * 128**2 / 1e9 / 2, rel=1e-3)
        assert "another loss" in rows["SupConLoss", kind, "wrong"]["note"]
        assert rows["SupConLoss", kind, "wrong"]["median_ms"] == ""
        assert rows["SupConLoss", kind, "failing"]["note"] == "RuntimeError: out of memory"
    assert rows["CircleLoss", "float32", "compile"]["note"] == "not compiled, to save time"
    assert gpu.run(records, chosen, 0.0, 0.1) == chosen
    gpu.pictures.gpu(records, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 1000
