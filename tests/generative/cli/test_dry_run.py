"""`generative train CONFIG --dry-run`: every shipped configuration without data or weights, and every mistake one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from generative.cli.config import parse_train_config
from generative.cli.data_shape import DataShape
from generative.cli.dry_run import Plan, advise, micro_batch_size
from generative.cli.dry_run import run as dry_run
from generative.cli.main import main
from generative.cli.stand_ins import shipped_runs, stand_in_autoencoder, stand_in_tokenizer
from generative.core import devices
from generative.core.devices import DEVICES, measured_device, named_device
from generative.core.errors import UserError
from generative.core.footprint import Activations
from generative.core.trainer_config import TrainerConfig
from generative.tokenizers.kl import KLAutoencoder

QUICK = (
    "runs/digits-dit",
    "runs/digits-sagan",
    "runs/digits-transformer",
    "runs/digits-sid",
    "runs/digits-rcg",
    "runs/digits-rcg_representation",
    "runs/digits-var",
)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["train", *arguments, "--dry-run"]) == 0
    return capsys.readouterr().out


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1].replace(",", ""))


def test_it_tells_what_a_training_takes_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["digits/dit", "--device-name", "a100", "--num-processes", "4", "--mfu", "0.5"]
    text = told(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []
    flops = number(r"forward, ([\d.,]+) MFLOP a training step", text) * 1e6
    speed = number(r"speed: ([\d,]+) images/s on 4 x NVIDIA A100", text)
    assert speed == pytest.approx(4 * 0.5 * DEVICES["a100"].float_flops / flops, rel=0.01)
    parts = [float(line.split()[-2]) for line in text.splitlines() if line.startswith("  ") and line.endswith(" GB")]
    assert number(r"total +([\d.]+) GB", text) == pytest.approx(sum(parts), abs=0.05) and "it fits" in text
    # Half the images, the same work on each.
    again = told(capsys, *arguments, "--trainer.batch_size", "64")
    assert number(r"activations +([\d.]+) GB", again) < number(r"activations +([\d.]+) GB", text)
    assert number(r"forward, ([\d.,]+) MFLOP a training step", again) * 1e6 == flops


def test_what_does_not_fit_is_told_with_what_would(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = devices.Device("a small one", 1e12, 1e12, 1.6e9, "a test")
    monkeypatch.setitem(DEVICES, "small", small)
    text = told(capsys, "digits/dit", "--device-name", "small", "--num-processes", "1", "--trainer.batch_size", "4096")
    assert "it does NOT fit" in text
    advice = re.search(r"to make it fit: --trainer.gradient_accumulation_steps (\d+)", text)
    assert advice is not None
    text = told(
        capsys, "digits/dit", "--device-name", "small", "--num-processes", "1", "--trainer.batch_size", "4096",
        "--trainer.gradient_accumulation_steps", advice[1],
    )  # fmt: skip
    assert "it fits" in text


def test_cutting_networks_is_advised_where_smaller_batches_do_not_help() -> None:
    trainer = TrainerConfig(output_dir=Path("run"), total_images=1, batch_size=32)
    activations = Activations(per_image=1e9, fixed=0)
    assert advise(2.5e9, 6e9, activations, None, trainer, 8).startswith("--trainer.gradient_accumulation_steps 2 ")
    assert advise(-1e9, 6e9, activations, None, trainer, 8) == "--trainer.shard full"
    assert advise(-1e9, 3e9, activations, None, trainer, 8).startswith("--trainer.shard full, with smaller micro-batches")
    assert advise(-1e9, 0, activations, None, trainer, 8).startswith("a device with more memory")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--num-processes", "5"], "does not divide into 1 micro-batches on 5 processes (--num-processes)"),
        (["--dry-run", "--num-processes", "0"], "--num-processes must be at least 1, got 0"),
        (["--dry-run", "--mfu", "1.5"], "--mfu must be in (0, 1], got 1.5"),
        (["--dry-run", "--device-name", "h1000"], "there are no figures of a device 'h1000'; there are"),
        (["--device-name", "h100"], "--device-name is of --dry-run; give both"),
        (["--num-processes", "2"], "--num-processes is of --dry-run; give both"),
        (["--dry-run", "--objective.init_args.denoiser.init_args.num_heads", "7"], "num_heads"),
        (["--dry-run", "--trainer.shard", "full", "--trainer.mixed_precision", "fp16"], "trainer.shard full works with"),
        (["--dry-run", "--trainer.shard", "hybrid", "--trainer.shard_group_size", "3"], "3 does not divide 8 processes"),
        (["--dry-run", "--trainer.shard", "full", "--objective.optimizer", "Rprop"], "Rprop, may look at whole ones"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["train", "digits/dit", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and message in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_is_nowhere_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits/sid", "--dry-run", "--num-processes", "1", "--objective.teacher.folder", "runs/none"]) == 2
    assert "teacher 'runs/none' is not there and no shipped configuration trains it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "folder",
    [folder if folder in QUICK else pytest.param(folder, marks=pytest.mark.slow) for folder in sorted(shipped_runs())],
)
def test_every_shipped_configuration_is_told(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser, config = parse_train_config(shipped_runs()[folder])
    processes = 8 if config.trainer.batch_size % (8 * config.trainer.gradient_accumulation_steps) == 0 else 1
    assert dry_run(parser, config, Plan(num_processes=processes)) == 0
    text = capsys.readouterr().out
    assert number(r"forward, ([\d.,]+) \w?FLOP a training step", text) > 0 and number(r"total +([\d.]+) GB", text) > 0
    assert number(r"speed: ([\d,]+) images/s", text) > 0 and list(tmp_path.iterdir()) == []


def test_data_are_described_without_being_read() -> None:
    for name, classes, size in (("digits/dit", 10, 8), ("cifar10/dit", 10, 32), ("imagenet/dit_256", 1000, 256)):
        from generative.cli.config_files import find_config

        _, config = parse_train_config(find_config(name))
        shape = DataShape(config.data)
        assert (shape.num_classes, shape.image_size) == (classes, size), name
        assert bool(shape.notes) == name.startswith("imagenet/")


def test_classes_of_a_folder_that_is_there_are_counted(tmp_path: Path) -> None:
    from generative.cli.config_files import find_config

    for name in "abc":
        (tmp_path / "pets" / name).mkdir(parents=True)
    _, config = parse_train_config(find_config("folder/dit"), ["--data.init_args.root", str(tmp_path / "pets")])
    shape = DataShape(config.data)
    assert shape.num_classes == 3 and not shape.notes


def test_devices_have_figures_and_sources() -> None:
    for device in DEVICES.values():
        assert device.half_flops > device.float_flops > 1e12 and 1e10 < device.memory < 1e12 and device.source
        assert device.peak("bf16") == device.half_flops and device.peak("no") == device.float_flops
    assert named_device("H100") is DEVICES["h100"]
    here = measured_device()
    assert here.float_flops > 1e8 and here.memory > 1e8


def test_a_micro_batch_is_what_one_process_sees_at_once() -> None:
    config = TrainerConfig(output_dir=Path("runs/x"), total_images=1, batch_size=96, gradient_accumulation_steps=3)
    assert micro_batch_size(config, 4) == 8
    with pytest.raises(UserError, match="choose a multiple of 15"):
        micro_batch_size(config, 5)


def test_the_tokenizer_that_stands_in_is_one_of_images_as_large() -> None:
    network = {"patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "num_codes": 4096}
    found = stand_in_tokenizer({"folder": "nowhere/var-vq"}, network, 256)
    assert found is not None
    assert found[0]["init_args"]["image_size"] == 256 and "imagenet/multi_scale_vq_256" in found[1]


def test_the_autoencoder_that_stands_in_has_the_levels_of_the_latents() -> None:
    found = stand_in_autoencoder({"folder": "nowhere/sd-vae"}, {"sample_size": 32, "in_channels": 4}, 256)
    assert found is not None
    assert found[0]["class_path"] == f"{KLAutoencoder.__module__}.{KLAutoencoder.__qualname__}"
    with torch.device("meta"):
        assert len(KLAutoencoder(**found[0]["init_args"]).config.block_out_channels) == 4
