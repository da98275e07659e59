"""Pipelines of MAR and eMIGM: an image does not depend on its batch, options, saving, autoencoders, wrong input."""

from __future__ import annotations

from typing import Any

import contract
import pytest
import torch
from contract import GenerationContract, quiet
from diffusers import AutoencoderKL
from torch import Tensor

from generative.autoregressive.continuous.emigm import EMIGM
from generative.autoregressive.continuous.mar import MAR
from generative.autoregressive.continuous.schedulers import MaskedScheduler
from generative.core.errors import UserError
from pipelines.continuous import ContinuousTokenPipeline
from pipelines.emigm import EMIGMPipeline
from pipelines.mar import MARPipeline

SMALL: dict[str, Any] = {
    "sample_size": 6, "patch_size": 2, "in_channels": 3, "num_classes": 3, "buffer_size": 2,
    "encoder_hidden_size": 16, "encoder_depth": 1, "encoder_num_heads": 2,
    "decoder_hidden_size": 16, "decoder_depth": 1, "decoder_num_heads": 2, "head_width": 8, "head_depth": 1,
}  # fmt: skip
MAR_OPTIONS: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 2.5},
    {"guidance_scale": 2.5, "guidance_schedule": "constant", "temperature": 0.8},
    {"num_diffusion_steps": [0, 400, 900]},
]
EMIGM_OPTIONS: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 2.5, "guidance_interval": (0.1, 0.6)},
    {"guidance_scale": 2.5, "guidance_schedule": "linear", "solver": "ddpm", "temperature": 0.8, "mask_strategy": "cosine"},
]
QUICK: dict[str, Any] = {"num_inference_steps": 4, "num_diffusion_steps": 5, "guidance_scale": 1.0}


def make_bare(pipeline_class: type[ContinuousTokenPipeline], **options: Any) -> ContinuousTokenPipeline:
    torch.manual_seed(0)
    network = (MAR if pipeline_class is MARPipeline else EMIGM)(**(SMALL | options))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.25)  # modulations and the output start at zero
    return pipeline_class(network.eval(), sampling_defaults={"guidance_scale": 1.5})


def prepare(pipeline: Any) -> ContinuousTokenPipeline:
    """Without a bar, and with images that are not cut to black and white: random networks make large numbers."""
    decode = pipeline.decode
    pipeline.decode = lambda state: decode(state).asinh() / 15  # type: ignore[method-assign]
    return quiet(pipeline)


def draw(pipeline: ContinuousTokenPipeline, order: list[int], **options: Any) -> Tensor:
    return contract.draw(pipeline, order, **(QUICK | options))


def make_pipeline(pipeline_class: type[ContinuousTokenPipeline], **options: Any) -> ContinuousTokenPipeline:
    return prepare(make_bare(pipeline_class, **options))


class ContinuousTokenContract(GenerationContract):
    always = QUICK
    tolerance = 2e-4

    def make(self) -> ContinuousTokenPipeline:
        return make_bare(self.pipeline_class)

    def prepare(self, pipeline: Any) -> ContinuousTokenPipeline:
        return prepare(pipeline)


class TestMARPipeline(ContinuousTokenContract):
    pipeline_class = MARPipeline
    options = MAR_OPTIONS
    refused = (
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"num_diffusion_steps": 1}, r"num_diffusion_steps must be in 2..1000, got 1"),
        ({"guidance_schedule": "fast"}, "guidance_schedule must be one of"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
    )


class TestEMIGMPipeline(ContinuousTokenContract):
    pipeline_class = EMIGMPipeline
    options = EMIGM_OPTIONS
    refused = (
        ({"solver": "euler"}, "solver must be .*dpm-solver.* ddpm, got 'euler'"),
        ({"temperature": 0.9}, "dpm-solver adds none; use 1, or ddpm"),
        ({"num_diffusion_steps": [1, 2]}, "num_diffusion_steps of dpm-solver must be a number"),
        ({"mask_strategy": "sine"}, "mask_strategy must be"),
        ({"guidance_interval": (0.9, 0.2)}, "guidance_interval must be two numbers"),
    )


@pytest.mark.parametrize("pipeline_class", [MARPipeline, EMIGMPipeline])
def test_guidance_and_steps_change_images_and_one_is_none(
    pipeline_class: type[ContinuousTokenPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(pipeline_class)
    passes: list[int] = []
    predict = pipeline.predict
    monkeypatch.setattr(pipeline, "predict", lambda state, k, labels: (passes.append(len(labels)), predict(state, k, labels))[1])
    plain = draw(pipeline, [0, 1])
    assert passes == [1] * 4
    passes.clear()
    assert not torch.allclose(draw(pipeline, [0, 1], guidance_scale=3.0), plain)
    assert passes == [2] * 4
    assert not torch.allclose(draw(pipeline, [0, 1], num_inference_steps=9), plain)
    assert not torch.allclose(draw(pipeline, [0, 1], num_diffusion_steps=4), plain)


@pytest.mark.parametrize("pipeline_class", [MARPipeline, EMIGMPipeline])
def test_timesteps_are_set_once(pipeline_class: type[ContinuousTokenPipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    set_timesteps = MaskedScheduler.set_timesteps
    monkeypatch.setattr(MaskedScheduler, "set_timesteps", lambda *given: (calls.append(given[1]), set_timesteps(*given))[1])
    draw(make_pipeline(pipeline_class), [0])
    assert len(calls) == 1


def test_null_passes_are_skipped_outside_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline(EMIGMPipeline)
    passes: list[int] = []
    predict = pipeline.predict
    monkeypatch.setattr(pipeline, "predict", lambda state, k, labels: (passes.append(len(labels)), predict(state, k, labels))[1])
    draw(pipeline, [0], guidance_scale=3.0, guidance_interval=(0.2, 0.6))
    assert passes == [1, 2, 2, 1]  # iterations end at 0.75, 0.5, 0.25, 0


def test_an_autoencoder_decodes_and_is_checked() -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**blocks, block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4)
    with pytest.raises(UserError, match="in_channels=3 but the autoencoder's latents have 4"):
        MARPipeline(MAR(**SMALL), vae)
    pipeline = make_pipeline(MARPipeline, in_channels=4)
    with pytest.raises(UserError, match="makes latents of 4 channels .* and the pipeline has no autoencoder"):
        draw(pipeline, [0])
    pipeline = prepare(MARPipeline(pipeline.network, vae))
    assert pipeline.image_size == 12 and draw(pipeline, [0]).shape == (1, 3, 12, 12)
