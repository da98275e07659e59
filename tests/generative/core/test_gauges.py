"""How well a run uses its machine: share of the peak, waiting for data, memory; gauges never change or stop a run."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from generative.core import gauges as gauges_module
from generative.core.devices import DEVICES, known_device
from generative.core.gauges import Gauges, memory_peak
from generative.core.logging import read_metrics

CPU = torch.device("cpu")


def test_shares() -> None:
    gauges = Gauges(CPU, num_processes=4, peak=1e12, step_flops=1e9)
    with gauges.waiting():
        time.sleep(0.05)
    values = gauges.read(images_per_second=1000.0, seconds=0.5)
    assert values["system/mfu"] == pytest.approx(1000 * 1e9 / 4e12)
    assert 0.1 <= values["system/data_wait"] <= 1
    assert gauges.read(1000.0, 0.5)["system/data_wait"] == 0, "each entry tells of its own time"
    assert "system/mfu" not in Gauges(CPU, peak=1e12).read(1.0, 1.0)
    assert "system/mfu" not in Gauges(CPU, step_flops=1e9).read(1.0, 1.0)


def test_memory_at_most_never_falls() -> None:
    before = memory_peak(CPU)
    block = torch.ones(20_000_000)
    after = memory_peak(CPU)
    del block
    assert 1e7 < before <= after == memory_peak(CPU)


def test_devices_are_known_by_their_drivers_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_device(CPU) is None
    for driver, name in (
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("Tesla T4", "t4"),
        ("NVIDIA H200", "h200"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, driver=driver: driver)
        assert known_device(torch.device("cuda")) is DEVICES[name]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "something new")
    assert known_device(torch.device("cuda")) is None


@pytest.mark.parametrize("kind", ["gan", "denoiser"])
def test_a_run_logs_them_and_learns_the_same(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    plain = toy.build_trainer(getattr(toy, kind)(), tmp_path / "plain", log_interval_steps=2)
    plain.fit()
    entries = read_metrics(tmp_path / "plain")
    assert all(0 <= entry["system/data_wait"] <= 1 and entry["system/memory_peak_gb"] > 0 for entry in entries)
    assert not any("system/mfu" in entry for entry in entries)
    monkeypatch.setattr(gauges_module, "known_device", lambda device: DEVICES["t4"])
    monkeypatch.setattr(gauges_module, "COUNTING_SECONDS", 60.0)
    counted = toy.build_trainer(getattr(toy, kind)(), tmp_path / "counted", log_interval_steps=2)
    assert counted.observer.gauges.step_flops
    counted.fit()
    assert all(entry["system/mfu"] > 0 for entry in read_metrics(tmp_path / "counted"))
    before, after = toy.snapshot(plain), toy.snapshot(counted)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "MFU" not in capsys.readouterr().err


def test_what_takes_too_long_to_count_is_left_out_and_said(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gauges_module, "known_device", lambda device: DEVICES["t4"])
    monkeypatch.setattr(gauges_module, "COUNTING_SECONDS", 0.0)
    trainer = toy.build_trainer(toy.denoiser(), tmp_path)
    assert trainer.observer.gauges.step_flops is None
    assert "MFU is not logged" in capsys.readouterr().err
    trainer.fit()
    assert not any("system/mfu" in entry for entry in read_metrics(tmp_path))
