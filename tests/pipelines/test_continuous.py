"""Pipelines of MAR and eMIGM: an image does not depend on its batch, options, saving, autoencoders, wrong input."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from generative.autoregressive.continuous.emigm import EMIGM
from generative.autoregressive.continuous.mar import MAR
from generative.core.errors import UserError
from generative.core.seeding import sample_generators
from pipelines import load_pipeline
from pipelines.continuous import ContinuousTokenPipeline
from pipelines.emigm import EMIGMPipeline
from pipelines.mar import MARPipeline

SMALL: dict[str, Any] = {
    "sample_size": 6, "patch_size": 2, "in_channels": 3, "num_classes": 3, "buffer_size": 2,
    "encoder_hidden_size": 16, "encoder_depth": 1, "encoder_num_heads": 2,
    "decoder_hidden_size": 16, "decoder_depth": 1, "decoder_num_heads": 2, "head_width": 8, "head_depth": 1,
}  # fmt: skip
LABELS = [0, 2, 2, 1]
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
CASES = [*((MARPipeline, options) for options in MAR_OPTIONS), *((EMIGMPipeline, options) for options in EMIGM_OPTIONS)]


def make_pipeline(pipeline_class: type[ContinuousTokenPipeline], **options: Any) -> ContinuousTokenPipeline:
    torch.manual_seed(0)
    network = (MAR if pipeline_class is MARPipeline else EMIGM)(**(SMALL | options))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.25)  # modulations and the output start at zero
    return prepare(pipeline_class(network.eval(), sampling_defaults={"guidance_scale": 1.5}))


def prepare(pipeline: ContinuousTokenPipeline) -> ContinuousTokenPipeline:
    """Without a bar, and with images that are not cut to black and white: random networks make large numbers."""
    decode = pipeline.decode
    pipeline.decode = lambda state: decode(state).asinh() / 15  # type: ignore[method-assign]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: ContinuousTokenPipeline, order: list[int], **options: Any) -> Tensor:
    generators = sample_generators(0, LABELS, [0, 0, 1, 0])
    options = {"num_inference_steps": 4, "num_diffusion_steps": 5} | options
    picked = [generators[index] for index in order]
    images: Tensor = pipeline([LABELS[index] for index in order], generator=picked, output_type="pt", **options).images
    return images


@pytest.mark.parametrize(("pipeline_class", "options"), CASES)
def test_batch_equals_singles_in_any_order(pipeline_class: type[ContinuousTokenPipeline], options: dict[str, Any]) -> None:
    pipeline = make_pipeline(pipeline_class)
    images = draw(pipeline, [0, 1, 2, 3], **options)
    assert images.shape == (4, 3, 6, 6) and len({float(image.sum()) for image in images}) == 4
    assert ((images > 0) & (images < 1)).all() and images.std() > 0.01
    torch.testing.assert_close(draw(pipeline, [3, 0], **options), images[[3, 0]], atol=2e-4, rtol=0)
    torch.testing.assert_close(draw(pipeline, [2], **options), images[2:3], atol=2e-4, rtol=0)


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


def test_null_passes_are_skipped_outside_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline(EMIGMPipeline)
    passes: list[int] = []
    predict = pipeline.predict
    monkeypatch.setattr(pipeline, "predict", lambda state, k, labels: (passes.append(len(labels)), predict(state, k, labels))[1])
    draw(pipeline, [0], guidance_scale=3.0, guidance_interval=(0.2, 0.6))
    assert passes == [1, 2, 2, 1]  # iterations end at 0.75, 0.5, 0.25, 0


@pytest.mark.parametrize("pipeline_class", [MARPipeline, EMIGMPipeline])
def test_saving_and_loading(pipeline_class: type[ContinuousTokenPipeline], tmp_path: Path) -> None:
    pipeline = make_pipeline(pipeline_class)
    pipeline.save_pretrained(tmp_path)
    loaded = prepare(cast(ContinuousTokenPipeline, load_pipeline(tmp_path)))
    assert type(loaded) is pipeline_class and loaded.sampling_defaults == {"guidance_scale": 1.5}
    assert loaded.num_classes == 3 and loaded.image_size == 6
    assert torch.equal(draw(loaded, [0, 1]), draw(pipeline, [0, 1]))


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


@pytest.mark.parametrize(
    ("pipeline_class", "options", "sentence"),
    [
        (MARPipeline, {"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        (MARPipeline, {"num_diffusion_steps": 1}, r"num_diffusion_steps must be in 2..1000, got 1"),
        (MARPipeline, {"guidance_schedule": "fast"}, "guidance_schedule must be one of"),
        (MARPipeline, {"temperature": -1.0}, "temperature must be 0 or more"),
        (EMIGMPipeline, {"solver": "euler"}, "solver must be dpm-solver or ddpm, got 'euler'"),
        (EMIGMPipeline, {"temperature": 0.9}, "dpm-solver adds none; use 1, or ddpm"),
        (EMIGMPipeline, {"num_diffusion_steps": [1, 2]}, "num_diffusion_steps of dpm-solver must be a number"),
        (EMIGMPipeline, {"mask_strategy": "sine"}, "mask_strategy must be"),
        (EMIGMPipeline, {"guidance_interval": (0.9, 0.2)}, "guidance_interval must be two numbers"),
    ],
)
def test_wrong_options_are_refused(pipeline_class: type[ContinuousTokenPipeline], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        draw(make_pipeline(pipeline_class), [0], **options)
