"""``generative sample --guide`` and ``--classifier``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from tiny_pipelines import save_tiny_dit

from generative.cli.main import main
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.adm_classifier import ADMClassifier
from pipelines.classifier import NoisedClassifierPipeline
from pipelines.diffusion import DiffusionImagePipeline

COMMON = ["--num-images-per-class", "2", "--num-inference-steps", "3"]


def tiny_autoencoder(seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    blocks: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    return AutoencoderKL(**blocks, block_out_channels=(4,), latent_channels=3, norm_num_groups=2).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_dit(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def weaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_dit(tmp_path_factory.mktemp("weaker"), seed=1)


def sample(folder: Path, *arguments: str) -> np.ndarray:
    assert main(["sample", str(folder), *COMMON, *arguments, "--output", "out.npz"]) == 0
    with np.load("out.npz", allow_pickle=False) as content:
        return content["arr_0"].copy()


def failure(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["sample", str(folder), *COMMON, *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line
    assert not Path("samples").exists(), "nothing is made before it is refused"
    return line


def test_a_guide_from_a_folder_is_that_of_python_and_is_saved(base: Path, weaker: Path, tmp_path: Path) -> None:
    plain, guided = sample(base), sample(base, "--guide", str(weaker), "--guide-scale", "2")
    assert not np.array_equal(plain, guided)
    assert np.array_equal(guided, sample(base, "--guide", str(weaker / "denoiser"), "--guide-scale", "2"))
    pipeline = DiffusionImagePipeline.from_pretrained(base)
    pipeline.guide = DiffusionImagePipeline.from_pretrained(weaker).denoiser
    pipeline.register_to_config(sampling_defaults={"guide_scale": 2.0})
    pipeline.save_pretrained(tmp_path / "guided")
    assert np.array_equal(guided, sample(tmp_path / "guided"))
    assert np.array_equal(plain, sample(tmp_path / "guided", "--guide-scale", "1"))


def test_a_folder_of_samples_remembers_its_guide(base: Path, weaker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sample", str(base), *COMMON, "--guide-scale", "2", "--output", "out", "--guide"]
    assert main([*arguments, str(weaker)]) == 0
    assert len(json.loads(Path("out/manifest.json").read_text())["settings"]["guide"]) == 64
    assert main([*arguments, str(weaker)]) == 0
    capsys.readouterr()
    assert main([*arguments, str(base)]) == 2
    assert "holds samples of other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "formulation", "message"),
    [
        ({"in_channels": 4, "autoencoder": None}, None, "the guide takes 4 channels of 4x4, the denoiser 3 of 4x4"),
        ({"sample_size": 8}, None, "the guide takes 3 channels of 8x8"),
        ({"num_classes": 4}, None, "the guide knows 4 classes and the denoiser 3"),
        ({"autoencoder": 0}, None, "has latents of an autoencoder and the denoiser no autoencoder"),
        ({}, Interpolant("gvp", time_scale=1000.0), "was trained with path gvp and the denoiser with linear"),
        ({}, Interpolant(), "was trained with time_scale 1.0 and the denoiser with 1000.0"),
    ],
)
def test_a_guide_that_does_not_fit_is_refused(
    options: dict[str, Any], formulation: Any, message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if options.get("autoencoder") is not None:
        options = options | {"autoencoder": tiny_autoencoder(options["autoencoder"])}
    other = save_tiny_dit(tmp_path / "other", 1, formulation, **options)
    assert message in failure(capsys, base, "--guide", str(other), "--guide-scale", "2")


def test_a_guide_of_another_shift_fits(base: Path, tmp_path: Path) -> None:
    other = save_tiny_dit(tmp_path / "other", 1, Interpolant(time_scale=1000.0, shift=3.0))
    assert len(sample(base, "--guide", str(other), "--guide-scale", "2")) == 6


def test_a_guide_of_another_autoencoders_latents_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, same, other = (save_tiny_dit(tmp_path / str(i), i, autoencoder=tiny_autoencoder(i // 2)) for i in range(3))
    assert "of another autoencoder's latents" in failure(capsys, ours, "--guide", str(other), "--guide-scale", "2")
    assert len(sample(ours, "--guide", str(same), "--guide-scale", "2")) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guide", "{weaker}"], "--guide does nothing at guide_scale 1; give --guide-scale"),
        (["--classifier", "{weaker}"], "--classifier does nothing at classifier_scale 0; give --classifier-scale"),
        (["--classifier", "{weaker}", "--classifier-scale", "1"], "holds no average 'classifier'"),
        (["--guide-step", "3"], "--guide-step says which network of a run is the guide; add --guide RUN"),
        (["--guide", "{weaker}", "--guide-scale", "2", "--guide-step", "3"], "holds no checkpoint of step 3"),
        (["--guide", "{weaker}", "--guide-scale", "2", "--guide-average", "long"], "holds no average 'long'"),
        (["--guide", "nowhere", "--guide-scale", "2"], "'nowhere' does not exist"),
        (["--guide", "{weaker}", "--guide-scale", "2", "--guide-interval", "0.5,1.5"], "guide_interval must be two numbers"),
        (["--guide-scale", "2"], "guide_scale 2.0 needs a guide, and the pipeline has none; give --guide"),
        (["--classifier-scale", "1"], "needs a noised classifier, and the pipeline has none; give --classifier"),
        (["--guide", "{weaker}", "--interpolate", "latent"], "have no use for --interpolate"),
    ],
)
def test_flags_that_cannot_be_are_refused(
    arguments: list[str], message: str, base: Path, weaker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure(capsys, base, *(argument.format(weaker=weaker) for argument in arguments))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines of noised classifiers of a flow, of a chain, and of larger images."""
    place = tmp_path_factory.mktemp("classifiers")
    flow = Interpolant(time_scale=1000.0)
    for name, size, formulation in (("flow", 4, flow), ("chain", 4, GaussianDiffusion()), ("large", 8, flow)):
        torch.manual_seed(0)
        network = ADMClassifier(
            sample_size=size,
            num_classes=3,
            model_channels=32,
            channel_mult=(1,),
            num_res_blocks=1,
            attention_resolutions=(),
            num_head_channels=32,
            pool="adaptive",
        ).eval()
        torch.nn.init.normal_(network.head.weight, std=1.0)
        NoisedClassifierPipeline(network, formulation).save_pretrained(place / name)
    return place


def test_a_classifier_leads_to_its_class_and_its_interval_holds(base: Path, classifiers: Path) -> None:
    flags = ["--classifier", str(classifiers / "flow"), "--classifier-scale", "100"]
    guided, plain = sample(base, *flags), sample(base)
    network = ADMClassifier.from_pretrained(classifiers / "flow/classifier").eval()

    def surety(images: np.ndarray) -> float:
        """Mean log probability of the images' own classes, as if without noise."""
        samples = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            found = network(samples, torch.zeros(6)).log_softmax(1)
        return float(found[torch.arange(6), torch.tensor([0, 0, 1, 1, 2, 2])].mean())

    assert surety(guided) > surety(plain) + 0.05
    assert np.array_equal(sample(base, *flags, "--classifier-interval", "0,0.001"), plain), "no step is that near the data"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chain", "was trained as GaussianDiffusion and the denoiser as Interpolant; give a classifier of the same formulation"),
        ("large", "the classifier takes 3 channels of 8x8, the denoiser 3 of 4x4"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(
    name: str, message: str, base: Path, classifiers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in failure(capsys, base, "--classifier", str(classifiers / name), "--classifier-scale", "1")


def test_a_guide_is_any_step_and_average_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = {"hidden_size": 8, "depth": 1, "num_heads": 1, "patch_size": 4}
    short: dict[str, Any] = {"batch_size": 8, "total_images": 32, "checkpoint_interval_steps": 2, "output_dir": "run"}
    short |= dict.fromkeys(("lr_schedule", "sample_interval_steps", "evaluate_interval_steps"), "null") | {"progress": "false"}
    flags = [f"--objective.init_args.denoiser.init_args.{name}={value}" for name, value in tiny.items()]
    flags += [f"--trainer.{name}={value}" for name, value in short.items()]
    averages = [{"class_path": "generative.core.ema.PowerEMA", "init_args": {"std": std}} for std in (0.05, 0.1)]
    flags += ["--objective.init_args.ema", json.dumps(averages), "--objective.init_args.optimizer.init_args.lr=0.1"]
    assert main(["train", "digits/dit", "--evaluation=null", *flags]) == 0
    run = Path("run")
    guided = ["--guide", "run", "--guide-scale", "2", "--class-labels", "0,1,2"]
    newest, earlier, longer = (
        sample(run, *guided, *which) for which in ([], ["--guide-step", "2"], ["--guide-average", "denoiser-std-0.1"])
    )
    assert np.array_equal(newest, sample(run, "--class-labels", "0,1,2")), "away from itself is nowhere"
    assert not np.array_equal(newest, earlier) and not np.array_equal(newest, longer)
    checkpoint = next(Path("run").glob("checkpoint-*2"))
    assert np.array_equal(earlier, sample(run, *["--guide", str(checkpoint), *guided[2:]]))
    assert "holds no checkpoint of step 3; it has 2, 4" in failure(capsys, run, *guided, "--guide-step", "3")


def test_another_family_takes_no_guide(saved: Path, weaker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["sample", str(saved), "--guide", str(weaker)]) == 2
    assert "GANImagePipeline has no use for --guide, which guides a diffusion" in capsys.readouterr().err
