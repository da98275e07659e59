"""What checkpoints are good for beside going on: sampling any of them; and whom they refuse to go on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from generative.cli.main import main
from generative.core.weights import load_network
from pipelines import load_pipeline

SHORT = [
    "--evaluation",
    "null",
    "--trainer.batch_size",
    "8",
    "--trainer.grid_images_per_class",
    "1",
    "--trainer.lr_schedule",
    "null",
    "--trainer.progress",
    "false",
    "--trainer.sample_interval_steps",
    "null",
    "--trainer.evaluate_interval_steps",
    "null",
    "--trainer.checkpoint_interval_steps",
    "1",
    "--trainer.keep_last_checkpoints",
    "null",
]


def train(name: str, output: str, steps: int, *overrides: str) -> int:
    length = ["--trainer.output_dir", output, "--trainer.total_images", str(8 * steps)]
    return main(["train", name, *SHORT, *length, *overrides])


def samples(folder: str) -> Tensor:
    images: Tensor = load_pipeline(folder)(
        class_labels=[0, 1, 2], generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    return images


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def test_a_checkpoint_samples_as_the_pipeline_of_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit, standing statistics included: against a run that ended there."""
    standing = ["--objective.init_args.standing_statistics_batches", "2"]
    assert train("digits/sagan", "long", 2, *standing) == 0
    assert train("digits/sagan", "short", 1, *standing) == 0
    assert torch.equal(samples("long/checkpoint-00000001"), samples("short"))
    assert torch.equal(samples("long/checkpoint-00000002"), samples("long"))
    assert not torch.equal(samples("long"), samples("short"))
    assert main(["sample", "long/checkpoint-00000001", "--num-images-per-class", "1", "--output", "from-checkpoint"]) == 0
    assert main(["sample", "short", "--num-images-per-class", "1", "--output", "from-run"]) == 0
    ours = {path.name: path.read_bytes() for path in Path("from-checkpoint").rglob("*.png")}
    assert ours == {path.name: path.read_bytes() for path in Path("from-run").rglob("*.png")} and len(ours) == 10


def test_another_tokenizer_is_refused_and_kept_once(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("0", "1"):
        assert train("digits/multi_scale_vq", f"tokenizer-{seed}", 1, "--seed", seed) == 0
    tokenizer = "--objective.init_args.tokenizer.init_args.folder"
    assert train("digits/var", "run", 2, tokenizer, "tokenizer-0") == 0
    name = "pipeline/tokenizer/diffusion_pytorch_model.safetensors"
    files = [Path("run/checkpoint-00000001", name), Path("run", name)]
    assert files[0].samefile(files[1]) and files[0].stat().st_nlink == 3
    before = Path("run/config.yaml").read_bytes()
    capsys.readouterr()
    assert main(["train", "run", "--resume", "latest", tokenizer, "tokenizer-1", "--trainer.total_images", "24"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "was trained with frozen part tokenizer" in error
    assert Path("run/config.yaml").read_bytes() == before
    # The same one at another place is the same one.
    Path("tokenizer-0").rename("elsewhere")
    assert main(["train", "run", "--resume", "latest", tokenizer, "elsewhere", "--trainer.total_images", "24"]) == 0
    assert "changed: objective.init_args.tokenizer.init_args.folder: tokenizer-0 -> elsewhere" in capsys.readouterr().out


def test_a_run_starts_from_the_weights_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("digits/sagan", "source", 1) == 0
    capsys.readouterr()
    # A rate of zero: what comes out is what went in.
    still = [f"--objective.init_args.{name}_optimizer.init_args.lr" for name in ("generator", "discriminator")]
    still = [argument for name in still for argument in (name, "0")]
    assert train("digits/sagan", "run", 1, *still, "--init-from", "source") == 0
    assert "note: weights are those of 'source/checkpoint-00000001'" in capsys.readouterr().err
    entry = json.loads(Path("run/history.jsonl").read_text())
    assert entry["step"] == 0 and entry["init_from"] == "source"
    name = "networks/discriminator/diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(Path(run, "checkpoint-00000001", name)) for run in ("run", "source"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items() if key.endswith(("weight", "bias")))
    assert train("digits/sagan", "run", 1, "--init-from", "source", "--resume", "latest") == 2
    assert "choose one of them (--resume auto" in capsys.readouterr().err
    assert train("digits/sagan", "other", 1, "--init-from", "nowhere") == 2
    assert "--init-from 'nowhere' does not exist" in capsys.readouterr().err and not Path("other").exists()


def test_a_checkpoint_without_a_pipeline_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run/checkpoint-00000005").mkdir(parents=True)
    Path("run/checkpoint-00000005/state.json").write_text("{}")
    assert main(["sample", "run/checkpoint-00000005"]) == 2
    assert "is a checkpoint of an older version, which kept no pipeline in it" in capsys.readouterr().err


def test_several_averages_of_one_network(capsys: pytest.CaptureFixture[str]) -> None:
    """The first samples; another is found by its name, and a run goes on with all of them and with no others."""
    power = [{"class_path": "generative.core.ema.PowerEMA", "init_args": {"std": std}} for std in (0.05, 0.1)]
    both = ["--objective.init_args.ema", json.dumps(power)]
    assert train("digits/dit", "one", 3, "--objective.init_args.ema", json.dumps(power[0])) == 0
    assert train("digits/dit", "two", 2, *both) == 0
    assert main(["train", "two", "--resume", "latest", "--trainer.total_images", "24"]) == 0
    first, second = (Path("two/checkpoint-00000003/ema") / name for name in ("denoiser", "denoiser-std-0.1"))
    assert sorted(path.name for path in first.parent.iterdir()) == ["denoiser", "denoiser-std-0.1"]
    assert torch.equal(samples("one"), samples("two"))

    with_second = load_pipeline("two", average="denoiser-std-0.1")
    stored = load_file(second / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(stored[key], value) for key, value in with_second.denoiser.state_dict().items())
    assert load_network("two")[1] == load_network(first)[1] != load_network("two", "denoiser-std-0.1")[1]
    assert load_network("two", "denoiser-std-0.1")[1] == load_network(second)[1]
    assert main(["sample", "two", "--average", "denoiser-std-0.1", "--class-labels", "0", "--output", "samples"]) == 0

    capsys.readouterr()
    for command, message in [
        (
            ["sample", "two", "--average", "denoiser-std-0.2"],
            "holds no average 'denoiser-std-0.2'; it has denoiser, denoiser-std-0.1",
        ),
        (
            ["sample", "two/pipeline", "--average", "denoiser"],
            "holds no average 'denoiser'; it has none; give a run or a checkpoint",
        ),
        (["train", "one", "--resume", "latest", *both], "holds no average 'denoiser-std-0.1' (it has denoiser)"),
    ]:
        assert main(command) == 2
        assert message in capsys.readouterr().err
