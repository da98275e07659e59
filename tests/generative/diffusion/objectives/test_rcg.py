"""Every denoiser under representations (RCG): a training step by its own objective, and images by the one pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.diffusion.formulations.continuous import ContinuousDiffusion
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.adm import ADMUNet
from generative.diffusion.networks.compact_unet import CompactUNet
from generative.diffusion.networks.dhariwal_unet import DhariwalUNet
from generative.diffusion.networks.dimr import DiMR
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.edm2 import EDM2UNet
from generative.diffusion.networks.fit import FiT
from generative.diffusion.networks.rin import RIN
from generative.diffusion.networks.simple_mlp import SimpleMLP
from generative.diffusion.networks.song_unet import SongUNet
from generative.diffusion.networks.u_vit import UViT
from generative.diffusion.objectives.any_size import AnySizeObjective
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.objectives.edm_augment import EDMAugment
from generative.diffusion.objectives.pyramid import PyramidObjective
from generative.diffusion.objectives.rcg import RCGObjective
from generative.diffusion.objectives.representation import RepresentationObjective
from generative.diffusion.objectives.self_conditioning import SelfConditioning
from generative.diffusion.objectives.timestep_sampling import LossSecondMoment
from generative.diffusion.objectives.upsampling import UpsamplingObjective
from generative.diffusion.options import DiffusionOptions
from generative.layers.packing import pack_rows, to_images, to_patches
from generative.tokenizers.representation import RepresentationEncoder
from metrics.extractors.resnet9 import ResNet9Network, save_resnet9
from pipelines import load_pipeline
from pipelines.diffusion import DiffusionImagePipeline
from pipelines.rcg import RCGPipeline

DIM = 16
OPTIMIZER = partial(torch.optim.AdamW, lr=1e-3)
SHARED = {"sample_size": 8, "in_channels": 3, "num_classes": 1, "class_dropout_prob": 0.1, "representation_dim": DIM}
EDM_SIZES: dict[str, Any] = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
RIN_SIZES = {"latent_slots": 6, "latent_dim": 16, "latent_num_heads": 2, "tape_dim": 12, "rw_num_heads": 2}
CHAIN = partial(GaussianDiffusion, num_train_timesteps=20)
GAMMA = partial(ContinuousDiffusion, "simple_linear", network_time="gamma", time_scale=1000.0)

# Of each kind: the network, its sizes, the formulation, the objective that is its own, and what that takes besides.
KINDS: dict[str, tuple[Any, dict[str, Any], Callable[[], Any], Any, dict[str, Any]]] = {
    "dit": (DiT, {"hidden_size": 16, "depth": 1, "num_heads": 2}, CHAIN, RCGObjective, {"timestep_sampling": LossSecondMoment()}),
    "adm": (
        ADMUNet,
        {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": (), "num_head_channels": 32},
        partial(CHAIN, learned_variance=True),
        RCGObjective,
        {},
    ),
    "u-vit": (UViT, {"hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 2}, CHAIN, RCGObjective, {}),
    "dimr": (
        DiMR,
        {"hidden_sizes": (8, 6), "mlp_sizes": (8, 6), "num_blocks": (2, 1), "num_heads": (2, 1)},
        CHAIN,
        PyramidObjective,
        {},
    ),
    "fit": (FiT, {"hidden_size": 16, "depth": 1, "num_heads": 2}, Interpolant, AnySizeObjective, {}),
    "fit of one size": (FiT, {"hidden_size": 16, "depth": 1, "num_heads": 2}, Interpolant, RCGObjective, {}),
    "rin": (
        RIN,
        {"patch_size": 2, "num_layers": (1,), **RIN_SIZES},
        GAMMA,
        RCGObjective,
        {"self_conditioning": SelfConditioning()},
    ),
    "compact": (
        CompactUNet,
        {"widths": (32,), "num_res_blocks": 1, "transformer_depth": (1,), "self_attention": (True,), "num_head_channels": 16},
        Interpolant,
        RCGObjective,
        {},
    ),
    "song": (SongUNet, {**EDM_SIZES, "augment_dim": 9}, EDM, RCGObjective, {"augment": EDMAugment()}),
    "dhariwal": (DhariwalUNet, {**EDM_SIZES, "channels_per_head": 8}, EDM, RCGObjective, {}),
    "edm2": (EDM2UNet, {**EDM_SIZES, "channels_per_head": 8}, EDM, RCGObjective, {}),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> RepresentationEncoder:
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    torch.manual_seed(0)
    save_resnet9(path, ResNet9Network(10, width=2).eval(), {"input_size": 8})
    return RepresentationEncoder("resnet9", path)


def save_representation(encoder: RepresentationEncoder, folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    objective = RepresentationObjective(
        SimpleMLP(DIM, 16, 16, 1, 8, 8, **options),
        GaussianDiffusion(20, prediction_type="sample"),
        OPTIMIZER,
        encoder,
        image_size=8,
        sampling=DiffusionOptions(num_inference_steps=3),
    )
    for parameter in objective.networks["denoiser"].parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    objective.pipeline(objective.networks).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(encoder: RepresentationEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved representation diffusion without classes."""
    return save_representation(encoder, tmp_path_factory.mktemp("runs") / "rdm")


@pytest.fixture(scope="module")
def of_classes(encoder: RepresentationEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of three classes."""
    folder = tmp_path_factory.mktemp("runs") / "rdm"
    return save_representation(encoder, folder, num_classes=3, class_conditional=True, class_dropout_prob=0.1)


def make(kind: str, encoder: Any, run: Any, **options: Any) -> DiffusionObjective:
    network, sizes, formulation, objective, more = KINDS[kind]
    torch.manual_seed(0)
    denoiser = network(**SHARED, **sizes)
    for parameter in denoiser.parameters():
        if parameter.ndim != 1:  # also gains: many start at zero, and hide what the network is told
            torch.nn.init.normal_(parameter, std=0.15)
    given = {"representation_encoder": encoder, "representation_diffusion": run} | more | options
    return objective(denoiser, formulation(), OPTIMIZER, **given)


def make_batch(objective: DiffusionObjective, count: int = 6) -> Any:
    """Images of ten classes, of which the denoiser knows none; of several sizes where that is what is trained."""
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batch: dict[str, Tensor] = {"images": images, "class_labels": torch.arange(count) + 3}
    if not isinstance(objective, AnySizeObjective):
        return batch
    sizes = torch.tensor([[4, 4], [2, 3], [1, 5], [3, 2], [2, 3], [4, 4]])
    return batch | {"images": to_patches(images, 2), "sizes": sizes, "packing": pack_rows(sizes, 16, 16)}


def context() -> StepContext:
    return StepContext(0, 0, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_denoiser_trains_and_samples(kind: str, encoder: Any, run: Path, tmp_path: Path) -> None:
    objective = make(kind, encoder, run)
    network: Any = objective.networks["denoiser"]
    assert not objective.uses_labels and objective.num_classes == 1 and objective.loss_extractors == {"resnet9"}
    assert objective.identity()["representation_encoder"] == encoder.config
    assert objective.representation_fingerprint() == encoder.fingerprint
    batch = make_batch(objective)
    (phase,) = objective.phases()
    losses = phase.loss_fn(objective.networks, batch, context())
    assert kind != "dimr" or {"mse", "mse_4"} <= losses.keys()
    losses["loss"].backward()
    own = {name: value.grad for name, value in network.named_parameters() if "vector_embedding" in name and "null" not in name}
    assert own and all(grad is not None and bool(grad.any()) for grad in own.values()), list(own)
    optimizer = OPTIMIZER(objective.parameter_groups("denoiser"))
    optimizer.step()
    assert torch.isfinite(objective.loss(objective.networks, batch, context())["loss"])
    pipeline = objective.pipeline(objective.networks)
    assert type(pipeline) is RCGPipeline
    network.eval()
    pipeline.save_pretrained(tmp_path)
    made = []
    for each in (pipeline, load_pipeline(tmp_path)):
        each.set_progress_bar_config(disable=True)
        streams = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
        made.append(each([0, 0], generator=streams, **options).images)
    assert made[0].shape == (2, 3, 8, 8) and torch.isfinite(made[0]).all()
    assert torch.equal(*made) and not torch.equal(made[0][0], made[0][1])


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_step_sees_each_images_own_representation(kind: str, encoder: Any, run: Path) -> None:
    objective = make(kind, encoder, run, label_dropout=0.5)
    told: list[tuple[Tensor, Tensor]] = []
    objective.networks["denoiser"].register_forward_pre_hook(
        lambda module, given, named: told.append((given[2], named["vector"])), with_kwargs=True
    )
    batch = make_batch(objective)
    objective.loss(objective.networks, batch, context())
    images = [batch["images"][row : row + 1] for row in range(6)]
    if "sizes" in batch:
        images = [to_images(each, *size, 2) for each, size in zip(images, batch["sizes"].tolist(), strict=True)]
    expected = torch.cat([encoder(image) for image in images])
    for labels, vector in told:  # RIN is asked twice
        torch.testing.assert_close(vector, expected[: len(vector)], rtol=1e-4, atol=1e-4)
        assert set(labels.tolist()) == {0, 1}  # of the null representation or not, whatever the data's classes
    cached = torch.randn(6, DIM)
    objective.loss(objective.networks, batch | {"representations": cached}, context())
    assert torch.equal(told[-1][1], cached)


def test_classes_are_those_of_the_representation_diffusion(encoder: Any, of_classes: Path) -> None:
    for kind in ("dimr", "rin", "fit"):
        objective = make(kind, encoder, of_classes)
        assert objective.num_classes == 3 and objective.uses_labels
        pipeline = objective.pipeline(objective.networks)
        pipeline.set_progress_bar_config(disable=True)
        streams = [torch.Generator().manual_seed(5) for _ in range(3)]
        options = {"num_inference_steps": 2, "representation_guidance_scale": 10.0, "output_type": "pt"}
        images = pipeline([0, 0, 2], generator=streams, **options).images
        torch.testing.assert_close(images[0], images[1], atol=1e-5, rtol=0)
        assert (images[0] - images[2]).abs().max() > 1e-4, kind


def test_images_of_another_size_under_representations(encoder: Any, run: Path) -> None:
    objective = make("fit", encoder, run)
    pipeline = objective.pipeline(objective.networks)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([0], num_inference_steps=2, size="12x4", output_type="pt").images.shape == (1, 3, 4, 12)


@pytest.mark.parametrize("kind", ["dimr", "fit", "u-vit"])
def test_parts_that_do_not_fit_are_refused_in_one_sentence(kind: str, encoder: Any, run: Path) -> None:
    network, sizes, formulation, objective, _ = KINDS[kind]
    given = {"representation_encoder": encoder, "representation_diffusion": run}
    plain = DiffusionObjective if objective is RCGObjective else objective

    def build(parts: dict[str, Any], **options: Any) -> DiffusionObjective:
        return plain(network(**(SHARED | sizes | options)), formulation(), OPTIMIZER, **parts)

    for parts, options, sentence in (
        ({}, {}, f"the {network.__name__} is conditioned on representations; give representation_encoder"),
        ({"representation_encoder": encoder}, {}, "is conditioned on representations; give representation_diffusion"),
        (given, {"representation_dim": 5}, r"takes representations of 5 numbers \(representation_dim\) and the encoder gives"),
        (given, {"representation_dim": None}, "takes no representation, and representation_encoder is given; leave it out"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            build(parts, **options)
        assert "\n" not in str(caught.value)
    of_classes = build({}, representation_dim=None, num_classes=20)
    assert type(of_classes.pipeline(of_classes.networks)) is DiffusionImagePipeline
    loss = of_classes.loss(of_classes.networks, make_batch(of_classes), context())["loss"]
    assert torch.isfinite(loss) and of_classes.uses_labels and of_classes.representation_fingerprint() is None


def test_an_upsampler_of_representations_is_refused(encoder: Any, run: Path) -> None:
    sizes: dict[str, Any] = KINDS["adm"][1] | SHARED | {"low_resolution_size": 4}
    objective = UpsamplingObjective(
        ADMUNet(**sizes), CHAIN(), OPTIMIZER, representation_encoder=encoder, representation_diffusion=run
    )
    with pytest.raises(UserError, match="an upsampler is handed images of lower resolution and makes no representations"):
        objective.phases()
