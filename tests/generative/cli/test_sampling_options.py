"""Options of sampling are checked against what is trained or saved before the first step, image or file."""

from __future__ import annotations

from pathlib import Path

import pytest

from generative.cli.main import main
from metrics.cli import main as fid_score


@pytest.mark.parametrize(
    ("config", "option", "value", "reason"),
    [
        ("digits/dit", "sampling.num_inference_steps", "0", "num_inference_steps must be at least 1, got 0"),
        ("digits/dit", "sampling.guidance_interval", "[0.8,0.2]", "guidance_interval must be two numbers"),
        ("digits/dit", "sampling.guidance_interval", "[0.2,1.2]", "guidance_interval must be two numbers"),
        ("digits/dit", "label_dropout", "0", "label_dropout 0 never trains"),
        ("digits/dit", "sampler", "diffusers.DDIMScheduler", "DDIMScheduler does not fit this denoiser"),
        ("digits/dit", "sampler", "diffusers.EDMEulerScheduler", "EDMEulerScheduler does not fit this denoiser"),
        ("digits/maskgit", "sampling.num_inference_steps", "0", "num_inference_steps must be in 1..64"),
        ("digits/maskgit", "sampling.num_inference_steps", "2000", "2000"),
        ("digits/maskgit", "sampling.temperature", "0", "temperature must be a positive number"),
        ("digits/maskgit", "sampling.guidance_interval", "[0.5,0.1]", "guidance_interval must be two numbers"),
        ("digits/transformer", "sampling.top_p", "1.5", "top_p must be in (0, 1]"),
        ("digits/transformer", "sampling.top_k", "0", "top_k must be at least 1"),
        ("digits/transformer", "label_dropout", "0", "label_dropout 0 never trains"),
        ("digits/transformer", "sampling.output_size", "0", "output_size must be at least 1"),
        ("digits/mar", "sampling.num_inference_steps", "0", "num_inference_steps must be at least 1, got 0"),
        ("digits/mar", "sampling.num_diffusion_steps", "2000", "num_diffusion_steps must be in 2..1000, got 2000"),
        ("digits/mar", "sampling.temperature", "-1", "temperature must be 0 or more"),
        ("digits/mar", "label_dropout", "0", "label_dropout 0 never trains"),
    ],
)
def test_training_with_options_that_cannot_sample_stops_at_the_start(
    config: str, option: str, value: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--objective.init_args.{option}", value, "--trainer.output_dir", "run"]
    assert main(["train", config, *given]) == 2
    err = capsys.readouterr().err.strip()
    assert reason in err and err.startswith("error: ") and "\n" not in err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["sampling.num_inference_steps", "2000"], "DDPMScheduler cannot sample in 2000 steps"),
        (["sampler.init_args.variance_type", "learned_range"], "but the network predicts no variance"),
        (["formulation.init_args.rescale_betas_zero_snr", "true"], "use v_prediction or sample"),
    ],
)
def test_options_that_contradict_the_formulation(options: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    gaussian = "generative.diffusion.formulations.gaussian.GaussianDiffusion"
    given = ["--objective.init_args.formulation", gaussian, "--objective.init_args.sampler", "diffusers.DDPMScheduler"]
    given += [f"--objective.init_args.{options[0]}", options[1], "--trainer.output_dir", "run"]
    assert main(["train", "digits/dit", *given]) == 2
    assert reason in capsys.readouterr().err and not Path("run").exists()


@pytest.fixture
def saved() -> Path:
    """A pipeline whose sampling defaults it cannot fulfil, as one of before might have."""
    from diffusers import DDPMScheduler

    from generative.diffusion.networks.dit import DiT
    from pipelines import DiffusionImagePipeline

    network = DiT(sample_size=8, patch_size=4, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=3).eval()
    scheduler = DDPMScheduler(num_train_timesteps=20)
    folder = Path("saved")
    DiffusionImagePipeline(network, scheduler, sampling_defaults={"num_inference_steps": 25}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options", [[], ["--num-inference-steps", "21"], ["--num-inference-steps", "5", "--guidance-interval", "0.5,2"]]
)
def test_samples_that_cannot_be_leave_no_folder(saved: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(saved), "--output", "out", "--num-images-per-class", "1", *options]) == 2
    err = capsys.readouterr().err.strip().splitlines()  # a progress bar of loading comes first
    assert err[-1].startswith("error: ") and not Path("out").exists()
    assert main(["sample", str(saved), "--output", "out", "--num-images-per-class", "1", "--num-inference-steps", "2"]) == 0


def test_scores_of_samples_that_cannot_be_are_refused_at_the_start(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--extractor", "efficientnet-lite0", "--input-size", "64", "--num-samples", "10", "--quiet"]
    assert fid_score([str(saved), str(saved), *given]) == 2
    assert "DDPMScheduler cannot sample in 25 steps" in capsys.readouterr().err
