"""``generative selfimprove``: a pipeline guided away from a copy of itself, stopped and gone on with; a sentence a mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from generative.cli import self_samples
from generative.cli.main import main
from generative.core.weights import load_network
from generative.data import generated
from generative.data.cache_files import shard_name
from generative.data.generated import GeneratedDataset
from pipelines import load_pipeline

PROJECT = Path(__file__).parents[3]
TINY = {"hidden_size": 8, "depth": 1, "num_heads": 2}
QUIET = ["--trainer.progress", "false", "--trainer.sample_interval_steps", "null"]
SHORT = ["--samples", "25", "--batch-size", "7", "--images", "32", "--checkpoints", "2", "--num-inference-steps", "2", *QUIET]
BUDGET = ["--trainer.batch_size", "8", "--learning-rate", "0.01", "--objective.init_args.ema.init_args.rate", "0.5"]


def train(output: Path, *overrides: str) -> Path:
    """A run of a tiny DiT on digits, two steps."""
    network = [part for key, value in TINY.items() for part in (f"--objective.init_args.denoiser.init_args.{key}", str(value))]
    length = ["--trainer.total_images", "16", "--trainer.batch_size", "8", "--trainer.evaluate_interval_steps", "null"]
    place = ["--evaluation", "null", "--trainer.output_dir", str(output)]
    assert main(["train", "digits/dit", *network, *length, *place, *QUIET, *overrides]) == 0
    return output


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "SHARD_SAMPLES", 10)


def improve(run: Path, output: str, *arguments: str) -> int:
    return main(["selfimprove", str(run), "--output", output, *SHORT, *BUDGET, *arguments])


def tree(folder: Path) -> dict[str, bytes]:
    """Content of the files that hold weights, samples and settings of a pipeline."""
    kinds = ("*.safetensors", "model_index.json")
    return {str(path.relative_to(folder)): path.read_bytes() for kind in kinds for path in sorted(folder.rglob(kind))}


def images(folder: str | Path, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return load_pipeline(folder)([0, 1], generator=generator, output_type="pt", num_inference_steps=2, **options).images


def test_a_run_becomes_a_guided_pipeline(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert improve(base, "better", "--scale", "1.5") == 0
    out = capsys.readouterr().out
    assert "25 images of 10 classes in 'better/samples'" in out and "w 1.5 (guide_scale 2.5)" in out
    data = GeneratedDataset("better/samples")
    assert len(data) == 25 and data.labels.bincount().tolist() == [3] * 5 + [2] * 5
    unguided = load_pipeline(base)
    generators = [self_samples.sample_generators(0, [0], [index])[0] for index in range(3)]
    alone = unguided([0, 0, 0], generator=generators, output_type="uint8", guidance_scale=1.0, num_inference_steps=2).images
    assert torch.equal(data.images([0, 1, 2]), alone)
    pipeline = load_pipeline("better")
    assert pipeline.sampling_defaults["guide_scale"] == 2.5 and pipeline.sampling_defaults["guidance_scale"] == 1.0
    assert [path.name for path in sorted(Path("better/training").glob("checkpoint-*"))] == [
        "checkpoint-00000002",
        "checkpoint-00000004",
    ]
    original, _ = load_network(base)
    trained, _ = load_network(Path("better/training"))
    for name, value in pipeline.denoiser.state_dict().items():
        assert torch.equal(value, original.state_dict()[name])
    for name, value in pipeline.guide.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    assert torch.equal(images("better", guide_scale=1.0), images(base, guidance_scale=1.0))
    assert not torch.equal(images("better"), images("better", guide_scale=1.0))
    guide = ["--guide", "better/training", "--guide-scale", "2.5", "--guidance-scale", "1", "--num-inference-steps", "2"]
    flags = ["--num-images-per-class", "1", "--class-labels", "0,1", "--output"]
    assert main(["sample", str(base), *guide, *flags, "a.npz"]) == 0
    assert main(["sample", "better", "--num-inference-steps", "2", *flags, "b.npz"]) == 0
    with np.load("a.npz") as one, np.load("b.npz") as other:
        assert np.array_equal(one["arr_0"], other["arr_0"])
    record = json.loads(Path("better/selfimprove.json").read_text())
    assert record["scale"] == 1.5 and record["num_images"] == 32 and record["num_samples"] == 25


def test_the_copy_starts_from_the_average_at_a_constant_rate(base: Path) -> None:
    assert improve(base, "better") == 0
    log = [json.loads(line) for line in Path("better/training/metrics.jsonl").read_text().splitlines()]
    assert all(entry["lr/denoiser"] == 0.01 for entry in log if "lr/denoiser" in entry) and log
    assert improve(base, "still", "--learning-rate", "1e-30") == 0
    average, _ = load_network(base)
    network, _ = load_network(Path("still/training"), average=False)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, average.state_dict()[name])


def test_a_stopped_command_goes_on_and_ends_as_one_never_stopped(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert improve(base, "whole") == 0
    real = self_samples.sample_batch

    def killed(*arguments: Any) -> Any:
        if len(list(Path("stopped/samples").glob("shard-*"))) == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(self_samples, "sample_batch", killed)
        assert improve(base, "stopped") == 130
    assert [path.name for path in Path("stopped/samples").glob("shard-*")] == [shard_name(0)]
    before = Path(f"stopped/samples/{shard_name(0)}").stat().st_mtime_ns
    assert improve(base, "stopped") == 0
    assert Path(f"stopped/samples/{shard_name(0)}").stat().st_mtime_ns == before
    assert tree(Path("stopped/samples")) == tree(Path("whole/samples"))
    assert tree(Path("stopped/pipeline")) == tree(Path("whole/pipeline"))
    # What a kill in training leaves: a checkpoint on the way.
    shutil.rmtree("stopped/training/checkpoint-00000004")
    shutil.rmtree("stopped/pipeline")
    assert improve(base, "stopped") == 0
    assert tree(Path("stopped/pipeline")) == tree(Path("whole/pipeline"))


def test_other_budgets_and_scales_of_the_same_samples(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert improve(base, "more") == 0 and improve(base, "more", "--images", "48", "--scale", "3") == 0
    assert "from before" in capsys.readouterr().out
    assert load_pipeline("more").sampling_defaults["guide_scale"] == 4.0
    assert improve(base, "long", "--images", "48") == 0
    assert tree(Path("more/pipeline/guide")) == tree(Path("long/pipeline/guide"))
    assert improve(base, "more", "--images", "16") == 0  # of a checkpoint that is there: only its pipeline is written
    early, _ = load_network(Path("more/training"), step=2)
    for name, value in load_pipeline("more").guide.state_dict().items():
        assert torch.equal(value, early.state_dict()[name])
    assert improve(base, "more", "--images", "24") == 2
    assert "gone on beyond --images 24; it kept checkpoints at 16, 32" in capsys.readouterr().err


def test_a_model_of_latents_trains_on_its_latents(tmp_path: Path) -> None:
    blocks: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    AutoencoderKL(**blocks, block_out_channels=(4,), latent_channels=3, norm_num_groups=2).save_pretrained(tmp_path / "vae")
    loader = {"class_path": "generative.tokenizers.pretrained.load_autoencoder", "init_args": {"folder": str(tmp_path / "vae")}}
    run = train(tmp_path / "latent", "--objective.init_args.autoencoder", json.dumps(loader))
    assert improve(run, "better") == 0
    data = GeneratedDataset("better/samples")
    batch = data.examples(torch.tensor([3, 11]), np.zeros(2, np.uint64), flip=False)
    assert batch["latents"].shape == (2, 3, 8, 8) and batch["latents"].dtype == torch.float32
    pipeline = load_pipeline("better/base")
    generators = self_samples.sample_generators(0, [1], [0])
    expected = pipeline.sample(torch.tensor([1]), pipeline.merge_options({}), pipeline.image_noise(generators, 1)).sample
    torch.testing.assert_close(batch["latents"][:1], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(data.image(3), pipeline([1], generator=generators_of(1), output_type="uint8").images[0])
    assert load_pipeline("better").autoencoder is not None


def generators_of(label: int) -> list[torch.Generator]:
    return self_samples.sample_generators(0, [label], [0])


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["selfimprove", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "9"], "--samples 9 leaves some of the 10 classes without a sample"),
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (["--sample-seed", "-1"], "seed"),
        (["--images", "7"], "--images 7 is less than one step of trainer.batch_size 8"),
        (["--scale", "0"], "--scale must be above 0, got 0.0"),
        (["--learning-rate", "-1"], "--learning-rate must be above 0, got -1.0"),
        (["--num-inference-steps", "0"], "num_inference_steps must be at least 1"),
        (["--guide-scale", "2"], "guide_scale 2.0 needs a guide"),
        (["--average", "other"], "holds no average 'other'"),
        (["--trainer.no_such", "1"], "no_such"),
        (["--output", "file"], "output 'file' is a file"),
        (["--output", "taken"], "is not empty and holds no self-improvement"),
    ],
)
def test_mistakes(base: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    Path("taken").mkdir()
    Path("taken/notes.txt").touch()
    assert message in sentence(capsys, str(base), "--output", "out", *SHORT, *BUDGET, *arguments)
    assert not Path("out").exists()


def test_runs_that_cannot_be_improved(base: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in sentence(capsys, "nowhere")
    assert "samples by a GANImagePipeline; self-improvement guides a diffusion" in sentence(capsys, str(saved))
    Path("empty").mkdir()
    assert "holds no pipeline" in sentence(capsys, "empty")
    alone = Path("alone")
    shutil.copytree(base / "pipeline", alone)
    assert "'alone' holds no config.yaml, so how to train its copy is unknown; give --config" in sentence(capsys, "alone")
    assert improve(alone, "out", "--config", str(base / "config.yaml")) == 0
    assert "was begun with seed 0, this command has 1" in sentence(
        capsys, "alone", "--output", "out", *SHORT, *BUDGET, "--sample-seed", "1", "--config", str(base / "config.yaml")
    )
    shutil.rmtree("out/samples/")
    Path("out/samples").mkdir()
    with pytest.raises(Exception, match="holds no samples"):
        GeneratedDataset("out/samples")


def test_half_a_folder_of_samples_is_refused(base: Path, toy: ModuleType) -> None:
    assert improve(base, "better") == 0
    Path(f"better/samples/{shard_name(1)}").unlink()
    with pytest.raises(Exception, match="lacks 1 of its 3 shards"):
        GeneratedDataset("better/samples")


@pytest.mark.slow
def test_two_processes_make_the_samples_of_one(base: Path) -> None:
    """And train on them together."""
    assert improve(base, "one") == 0
    Path("improve.py").write_text(
        "import sys\nfrom generative.cli.main import main\nfrom generative.data import generated\n"
        "generated.SHARD_SAMPLES = 10\nsys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "improve.py"]
    command = [*launcher, "selfimprove", str(base), "--output", "two", *SHORT, *BUDGET]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.count("25 images of 10 classes in") == 1  # the main process speaks
    assert tree(Path("two/samples")) == tree(Path("one/samples"))
    assert load_pipeline("two").sampling_defaults == load_pipeline("one").sampling_defaults  # its noise is shared out otherwise
