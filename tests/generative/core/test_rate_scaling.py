"""Learning rates that follow the batch size."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from generative.cli.main import main
from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.core.logging import read_metrics
from generative.core.rate_scaling import rate_factor
from generative.core.schedules import Cosine
from generative.core.trainer_config import TrainerConfig


@pytest.mark.parametrize(
    ("rule", "batch_size", "base", "factor"),
    [
        ("none", 1024, None, 1.0),
        ("linear", 1024, None, 4.0),
        ("linear", 32, None, 0.125),
        ("sqrt", 1024, None, 2.0),
        ("sqrt", 256, None, 1.0),
        ("linear", 8192, 256, 32.0),  # Goyal et al.: 0.1 x 32 for minibatches of 8k
        ("sqrt", 50, 200, 0.5),
    ],
)
def test_factors(rule: Any, batch_size: int, base: int | None, factor: float) -> None:
    assert rate_factor(rule, batch_size, base) == factor


def test_every_optimizer_and_group_is_scaled_under_the_schedule(toy: ModuleType, tmp_path: Path) -> None:
    schedule = Cosine()
    settings = {"lr_schedule": schedule, "scale_lr": "linear", "base_batch_size": 32}
    trainer = toy.build_trainer(toy.gan(toy.adam), tmp_path, **settings)
    assert trainer.notices == [
        "learning rates are for batches of 32 and scaled to 8 (trainer.scale_lr linear): 'generator' 0.01 -> 0.0025, "
        "'discriminator' 0.01 -> 0.0025"
    ]
    trainer.fit()
    rates = [entry["lr/generator"] for entry in read_metrics(tmp_path)]
    assert rates == pytest.approx([0.0025 * schedule.factor(8 * step, 8, 48) for step in range(6)])


def test_unscaled_rates_are_the_given_ones_and_nothing_is_said(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(toy.denoiser(), tmp_path)
    assert trainer.learning_rates() == {"net": 0.01} and trainer.notices == []


def test_a_base_alone_scales_nothing_and_is_refused() -> None:
    with pytest.raises(UserError, match="trainer.base_batch_size is 512 but learning rates are not scaled; set trainer.scale_lr"):
        TrainerConfig(output_dir=Path("run"), total_images=1, base_batch_size=512)
    with pytest.raises(UserError, match="trainer.base_batch_size must be at least 1, got 0"):
        TrainerConfig(output_dir=Path("run"), total_images=1, scale_lr="sqrt", base_batch_size=0)


@pytest.fixture
def config(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    content = {
        "objective": {"class_path": "toy.ToyDenoiser", "init_args": {"optimizer": adam}},
        "data": {"class_path": "toy.ToyImages"},
        "trainer": {"output_dir": "run", "total_images": 16, "batch_size": 8, "log_interval_steps": 1, "progress": False},
    }
    Path("toy.yaml").write_text(yaml.safe_dump(content))
    return Path("toy.yaml")


def test_a_run_tells_records_and_keeps_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In config.yaml and data.json; a run that goes on keeps its rates, or says that they change."""
    assert main(["train", str(config), "--trust-code", "--trainer.scale_lr", "sqrt", "--trainer.base_batch_size", "32"]) == 0
    line = "note: learning rates are for batches of 32 and scaled to 8 (trainer.scale_lr sqrt): 'net' 0.01 -> 0.005\n"
    assert line in capsys.readouterr().err
    trainer = yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]
    assert (trainer["scale_lr"], trainer["base_batch_size"]) == ("sqrt", 32)
    assert line[6:-1] in json.loads(Path("run/data.json").read_text())["notes"]
    assert main(["train", "run", "--trust-code", "--resume", "latest", "--trainer.total_images", "32"]) == 0
    out, err = capsys.readouterr()
    assert line in err and "learning rate of" not in err and "scale_lr" not in out
    assert [entry["lr/net"] for entry in read_metrics(Path("run"))] == pytest.approx([0.005] * 4)
    more = ["--trainer.total_images", "40", "--trainer.scale_lr", "linear"]
    assert main(["train", "run", "--trust-code", "--resume", "latest", *more]) == 0
    out, err = capsys.readouterr()
    assert "changed: trainer.scale_lr: sqrt -> linear" in out
    assert "learning rate of 'net' at step 4: 0.005 -> 0.0025" in err
    assert ckpt.read_state(ckpt.list_checkpoints(Path("run"))[-1])["learning_rates"] == {"net": 0.0025}
