"""Representation encoder, its cached data set, and what is trained on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from generative.autoregressive.masked.mage import MAGETransformer
from generative.autoregressive.masked.mage_objective import MAGEObjective
from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.start_checks import check_fit, check_sampling, check_scoring_network
from generative.core.types import StepContext
from generative.data.digits import DigitsDataset
from generative.data.finish import finish_batch
from generative.data.random_crop import RandomCropDataset
from generative.data.representations import RepresentationDataset
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.simple_mlp import SimpleMLP
from generative.diffusion.objectives.rcg import RCGObjective
from generative.diffusion.objectives.representation import RepresentationObjective
from generative.diffusion.objectives.representation_evaluation import RepresentationEvaluator
from generative.diffusion.options import DiffusionOptions, RCGOptions
from generative.tokenizers.pixel import PixelTokenizer
from generative.tokenizers.representation import RepresentationEncoder, standardize
from metrics.extractors.resnet9 import ResNet9Network, save_resnet9
from pipelines.representation import RepresentationPipeline

DIM = 16
FORMULATION = {"num_train_timesteps": 20, "beta_end": 0.4, "prediction_type": "sample"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a tiny extractor."""
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(0)
    save_resnet9(path, ResNet9Network(10, width=2).eval(), {"input_size": 8})
    return path


@pytest.fixture(scope="module")
def encoder(weights: Path) -> RepresentationEncoder:
    return RepresentationEncoder("resnet9", weights)


@pytest.fixture(scope="module")
def digits() -> DigitsDataset:
    return DigitsDataset("test")


def make_mlp(dim: int = DIM, **options: Any) -> SimpleMLP:
    torch.manual_seed(0)
    return SimpleMLP(dim, 16, 16, 1, 8, 8, **options)


def make_diffusion(encoder: RepresentationEncoder, **options: Any) -> RepresentationObjective:
    arguments = {"image_size": 8, "sampling": DiffusionOptions(num_inference_steps=4)} | options
    network = arguments.pop("denoiser", None) or make_mlp()
    return RepresentationObjective(network, GaussianDiffusion(**FORMULATION), torch.optim.AdamW, encoder, **arguments)


def batch_of(data: Any, count: int = 6) -> Any:
    return finish_batch(data.examples(torch.arange(count), np.arange(count, dtype=np.uint64) << np.uint64(61), False))


@pytest.fixture
def run(encoder: RepresentationEncoder, tmp_path: Path) -> Path:
    """A saved representation diffusion."""
    objective = make_diffusion(encoder)
    objective.pipeline(objective.networks).save_pretrained(tmp_path / "rdm")
    return tmp_path / "rdm"


def test_vectors_are_standardised_each_on_its_own(encoder: RepresentationEncoder, weights: Path) -> None:
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vectors = encoder(images)
    assert vectors.shape == (5, DIM) and encoder.dim == DIM and not vectors.requires_grad
    torch.testing.assert_close(vectors.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors.std(1), torch.ones(5))
    raw = RepresentationEncoder("resnet9", weights, standardized=False)
    torch.testing.assert_close(standardize(raw(images)), vectors)
    assert encoder.config["extractor"] == "resnet9" and len(encoder.config["weights_sha256"]) == 64
    assert raw.fingerprint != encoder.fingerprint == RepresentationEncoder("resnet9", weights).fingerprint
    assert RepresentationEncoder("resnet9", weights, feature="logits").dim == 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"extractor": "moco"}, "extractor 'moco' is not known"),
        ({"extractor": "resnet9"}, "resnet9 has no weights of its own"),
        ({"extractor": "resnet9", "weights": Path("missing.safetensors")}, "missing.safetensors does not exist"),
    ],
)
def test_encoders_that_are_not_there_are_refused(arguments: Any, sentence: str, weights: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        RepresentationEncoder(**arguments)
    with pytest.raises(UserError, match="resnet9 has no feature 'cls'; it has pooled, logits"):
        RepresentationEncoder("resnet9", weights, feature="cls")


def test_a_cache_gives_what_the_encoder_gives(encoder: RepresentationEncoder, digits: DigitsDataset, tmp_path: Path) -> None:
    file = tmp_path / "caches" / "digits.safetensors"
    data = RepresentationDataset(digits, encoder, file, flip=True, batch_size=200)
    draws = np.array([0, 2**63, 5, 2**63 + 1], dtype=np.uint64)
    batch = finish_batch(data.examples(torch.arange(4), draws, True))
    torch.testing.assert_close(batch["representations"], encoder(batch["images"]), atol=1e-5, rtol=1e-5)
    again = RepresentationDataset(digits, encoder, file, flip=True)
    assert torch.equal(again.representations, data.representations) and again.fingerprint == data.fingerprint
    with pytest.raises(UserError, match="holds representations of other images or by another encoder"):
        RepresentationDataset(DigitsDataset("train"), encoder, file, flip=True)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        RepresentationDataset(digits, encoder, file, flip=True)
    with pytest.raises(UserError, match="only images as they are were encoded"):
        RepresentationDataset(digits, encoder).examples(torch.arange(4), draws, True)
    with pytest.raises(UserError, match="another crop at every visit"):
        RepresentationDataset(RandomCropDataset(digits), encoder)


def test_a_cache_of_another_encoder_is_refused(encoder: RepresentationEncoder, weights: Path, digits: DigitsDataset) -> None:
    other = RepresentationDataset(digits, RepresentationEncoder("resnet9", weights, standardized=False))
    with pytest.raises(UserError, match="the representations of the data were made with the encoder"):
        check_fit(make_diffusion(encoder), other)
    check_fit(make_diffusion(encoder), RepresentationDataset(digits, encoder))
    check_fit(make_diffusion(encoder), digits)


def test_live_and_cached_training_are_the_same(encoder: RepresentationEncoder, digits: DigitsDataset) -> None:
    objective = make_diffusion(encoder)
    losses = []
    for data in (digits, RepresentationDataset(digits, encoder)):
        context = StepContext(0, 0, torch.Generator().manual_seed(0))
        losses.append(objective.loss(objective.networks, batch_of(data), context)["loss"])
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0].item() == pytest.approx(1, abs=0.2), "an output of zeros for data of unit variance"
    with pytest.raises(UserError, match="put the data into a RepresentationDataset"):
        objective.loss(objective.networks, {"tokens": torch.zeros(1, 2), "class_labels": torch.zeros(1)}, context)


def test_the_representation_diffusion_learns_and_is_scored(
    encoder: RepresentationEncoder, weights: Path, digits: DigitsDataset
) -> None:
    objective, data = make_diffusion(encoder), RepresentationDataset(digits, encoder)
    evaluator = RepresentationEvaluator(digits, encoder, num_samples=60)
    accelerator = Accelerator(cpu=True)
    evaluator.prepare_or_skip(accelerator, digits)
    check_sampling(objective, evaluator)

    def distance() -> float:
        return evaluator.evaluate(objective.pipeline(objective.networks), accelerator, {}).scores["representation_distance"]

    before = distance()
    optimizer = torch.optim.AdamW(objective.networks["denoiser"].parameters(), lr=1e-2)
    for step in range(60):
        batch = batch_of(data, 200)
        objective.loss(objective.networks, batch, StepContext(step, 0, torch.Generator().manual_seed(step)))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    real = evaluator.score_real(DigitsDataset("train"), accelerator).scores["representation_distance"]
    assert real < distance() < 0.5 * before
    requests = [SampleRequest(0, index) for index in range(4)]
    nearest = objective.example_images(objective.pipeline(objective.networks), requests, digits.images(range(4)), 0, 2)
    assert nearest.shape == (4, 3, 8, 8) and nearest.dtype == torch.uint8
    other = RepresentationEvaluator(digits, RepresentationEncoder("resnet9", weights, standardized=False))
    with pytest.raises(UserError, match="evaluation: the pipeline learnt"):
        other.check_pipeline(objective.pipeline(objective.networks))


def make_generator(kind: str, encoder: Any, run: Any, dim: int = DIM) -> Any:
    torch.manual_seed(0)
    if kind == "mage":
        network = MAGETransformer(
            num_codes=17, representation_dim=dim, grid_size=(8, 8), hidden_size=16, depth=1, num_heads=2, decoder_hidden_size=16,
            decoder_depth=1, decoder_num_heads=2,
        )  # fmt: skip
        return MAGEObjective(network, PixelTokenizer(8, 17, 1), torch.optim.AdamW, encoder, run)
    denoiser = DiT(8, 2, 3, 16, 1, 2, num_classes=1, representation_dim=dim)
    return RCGObjective(
        denoiser,
        GaussianDiffusion(num_train_timesteps=20),
        torch.optim.AdamW,
        encoder,
        run,
        sampling=RCGOptions(num_inference_steps=4),
    )


@pytest.mark.parametrize("kind", ["mage", "dit"])
def test_a_generator_trains_and_samples(kind: str, encoder: Any, digits: DigitsDataset, run: Path) -> None:
    objective = make_generator(kind, encoder, run)
    check_fit(objective, digits)
    check_sampling(objective)
    assert not objective.uses_labels and objective.identity()["representation_encoder"] == encoder.config
    (network,) = objective.networks.values()
    parts = objective.loss(objective.networks, batch_of(digits), StepContext(0, 0, torch.Generator().manual_seed(0)))
    parts["loss"].backward()
    assert isinstance(objective.condition.representation(network), RepresentationPipeline)
    assert network.vector_embedding.linear.weight.grad is not None
    pipeline = objective.pipeline(objective.networks)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([0, 0], num_inference_steps=4, output_type="uint8").images.shape == (2, 3, 8, 8)
    # The grid asks for the data's classes, of which the pipeline has none.
    pipeline.register_to_config(sampling_defaults={"num_inference_steps": 4})
    requests = [SampleRequest(label, 0) for label in (0, 1, 2, 3)]
    grid = objective.example_images(pipeline, requests, digits.images(range(4)), 0, 2)
    assert grid.shape == (4, 3, 8, 8) and not torch.equal(grid[0], grid[1])
    judge: Any = type("Judge", (), {"networks": staticmethod(lambda: ["resnet9"])})
    with pytest.raises(UserError, match="evaluation extractor 'resnet9' is the network that"):
        check_scoring_network(objective, judge)


@pytest.mark.parametrize("kind", ["mage", "dit"])
def test_parts_that_do_not_fit_are_refused_in_one_sentence(kind: str, encoder: Any, weights: Path, run: Path) -> None:
    raw = RepresentationEncoder("resnet9", weights, standardized=False)
    for arguments, sentence in (
        (
            (encoder, run, 12),
            r"takes representations of 12 numbers \(representation_dim\) and the encoder gives pooled of resnet9",
        ),
        ((RepresentationEncoder("resnet9", weights, feature="logits"), run, 10), "makes representations of 16 numbers and the"),
        ((raw, run), "learnt pooled of resnet9 .* and representation_encoder gives pooled"),
        ((None, run), "is conditioned on representations; give representation_encoder"),
        ((encoder, Path("nowhere")), "'nowhere' does not exist"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            make_generator(kind, *arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="the denoiser takes representations of 7 numbers"):
        make_diffusion(encoder, denoiser=make_mlp(7))
