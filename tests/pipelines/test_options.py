"""Options of sampling: Python, the command line and scores start from the same saved defaults, in every family."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from rcg_parts import make_mage, make_rcg
from torch import Tensor

from generative.autoregressive.continuous.emigm import EMIGM
from generative.autoregressive.continuous.mar import MAR
from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.autoregressive.masked.resgen import ResGenTransformer
from generative.autoregressive.next_scale.var import VAR
from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.autoregressive.sub_token.magvit2 import MAGVIT2Transformer
from generative.cli.main import main
from generative.core.errors import UserError
from generative.core.seeding import sample_generators
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.adm import ADMUNet
from generative.diffusion.networks.dit import DiT
from generative.diffusion.samplers.ancestral import AncestralSampler
from generative.gan.sagan import SAGANGenerator
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer
from generative.tokenizers.pixel import PixelTokenizer
from generative.tokenizers.rvq import RVQTokenizer
from pipelines import (
    OPTIONS,
    AutoregressiveImagePipeline,
    CascadePipeline,
    DiffusionImagePipeline,
    EMIGMPipeline,
    GANImagePipeline,
    MAGVIT2Pipeline,
    MARPipeline,
    MaskGITPipeline,
    ResGenPipeline,
    UpsamplerPipeline,
    VARPipeline,
    load_pipeline,
)
from pipelines.image_source import PipelineSource

CONTINUOUS: dict[str, Any] = {
    "sample_size": 4, "patch_size": 2, "in_channels": 3, "num_classes": 3, "buffer_size": 2,
    "encoder_hidden_size": 16, "encoder_depth": 1, "encoder_num_heads": 2,
    "decoder_hidden_size": 16, "decoder_depth": 1, "decoder_num_heads": 2, "head_width": 8, "head_depth": 1,
}  # fmt: skip
LAYERS = {"hidden_size": 16, "depth": 1, "num_heads": 2}


def diffusion(defaults: dict[str, Any]) -> Any:
    denoiser = DiT(sample_size=4, patch_size=2, in_channels=3, num_classes=3, **LAYERS)
    return DiffusionImagePipeline(shake(denoiser), FlowMatchEulerDiscreteScheduler(), sampling_defaults=defaults)


def cascade(defaults: dict[str, Any]) -> Any:
    options: dict[str, Any] = {"patch_size": 2, "in_channels": 3, "num_classes": 3, "learn_sigma": True, **LAYERS}
    unet = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": (), "num_classes": 3}
    upsampler = ADMUNet(sample_size=8, low_resolution_size=4, num_head_channels=32, class_dropout_prob=0.1, **unet)
    formulation = GaussianDiffusion(learned_variance=True)
    stages = (
        kind(shake(network), AncestralSampler(clip_sample=True), formulation=formulation)
        for kind, network in ((DiffusionImagePipeline, DiT(sample_size=4, **options)), (UpsamplerPipeline, upsampler))
    )
    return CascadePipeline(*stages, sampling_defaults=defaults)


def gan(defaults: dict[str, Any]) -> Any:
    generator = SAGANGenerator(resolution=8, channels=4, z_dim=4, num_classes=3, attention_resolutions=())
    return GANImagePipeline(generator.eval(), defaults)


def next_token(defaults: dict[str, Any]) -> Any:
    tokenizer = PixelTokenizer(3, 5)
    transformer = ImageTransformer(tokenizer.num_codes, 3, tokenizer.grid_size, mlp_multiple_of=8, **LAYERS)
    return AutoregressiveImagePipeline(shake(transformer), tokenizer, defaults)


def sub_token(defaults: dict[str, Any]) -> Any:
    tokenizer = PixelTokenizer(3, 16)
    transformer = MAGVIT2Transformer(16, 3, (2, 2), tokenizer.grid_size, intra_depth=1, mlp_multiple_of=8, **LAYERS)
    return MAGVIT2Pipeline(shake(transformer), tokenizer, defaults)


def next_scale(defaults: dict[str, Any]) -> Any:
    sizes: dict[str, Any] = {"num_codes": 9, "latent_channels": 4, "patch_nums": (1, 2, 4)}
    tokenizer = MultiScaleVQTokenizer(image_size=8, ch=4, ch_mult=(1, 2), num_res_blocks=1, norm_groups=2, **sizes)
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    transformer = VAR(num_classes=3, head_init=1.0, adaln_gain_init=1.0, **sizes, **LAYERS)
    return VARPipeline(shake(transformer), tokenizer.eval(), defaults)


def maskgit(defaults: dict[str, Any]) -> Any:
    tokenizer = PixelTokenizer(3, 5)
    transformer = MaskGITTransformer(tokenizer.num_codes, 3, tokenizer.grid_size, hidden_size=32, depth=2, num_heads=4)
    for parameter in transformer.blocks.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(transformer.class_embedding.weight, std=1.0)
    torch.nn.init.normal_(transformer.token_embedding.weight, std=0.1)
    transformer.eval()
    return MaskGITPipeline(transformer, tokenizer, defaults)


def resgen(defaults: dict[str, Any]) -> Any:
    tokenizer = RVQTokenizer(
        image_size=4, depth=3, codebook_size=8, z_channels=4, ch=8, ch_mult=(1, 1), num_res_blocks=1, norm_groups=4
    )
    transformer = ResGenTransformer(3, 4, 3, (2, 2), num_mixtures=5, mixture_rank=2, **LAYERS)
    transformer.measure_remainder_scales(tokenizer.codebooks_tensor.transpose(0, 1)[None])
    return ResGenPipeline(shake(transformer), tokenizer.eval(), defaults)


def mar(defaults: dict[str, Any]) -> Any:
    return MARPipeline(shake(MAR(**CONTINUOUS)), sampling_defaults=defaults)


def emigm(defaults: dict[str, Any]) -> Any:
    return EMIGMPipeline(shake(EMIGM(**CONTINUOUS)), sampling_defaults=defaults)


def shake(network: Any) -> Any:
    """Weights under which the class matters: many start at zero."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def mage(defaults: dict[str, Any]) -> Any:
    pipeline = make_mage()
    pipeline.register_to_config(sampling_defaults=defaults)
    return pipeline


def rcg(defaults: dict[str, Any]) -> Any:
    pipeline = make_rcg()
    pipeline.register_to_config(sampling_defaults=defaults)
    return pipeline


# Of each family: how it is built, defaults that are not the family's own, and an option of a call with its flag.
CASES: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any], dict[str, Any], list[str]]] = {
    "DiffusionImagePipeline": (
        diffusion, {"guidance_scale": 3.0, "num_inference_steps": 4, "guidance_interval": [0.1, 0.9]},
        {"num_inference_steps": 3}, ["--num-inference-steps", "3"],
    ),
    "GANImagePipeline": (gan, {"truncation": 0.5}, {"truncation": None}, ["--truncation", "none"]),
    "AutoregressiveImagePipeline": (
        next_token, {"guidance_scale": 4.0, "temperature": 0.7, "output_size": 6}, {"top_k": 3}, ["--top-k", "3"]
    ),
    "MAGVIT2Pipeline": (
        sub_token, {"guidance_scale": [4.0, 2.0]}, {"temperature": (0.5, 1.5)}, ["--temperature", "0.5,1.5"]
    ),
    "VARPipeline": (
        next_scale, {"guidance_scale": 4.0, "top_k": 4, "more_smooth": True}, {"more_smooth": False}, ["--no-more-smooth"]
    ),
    "MaskGITPipeline": (
        maskgit, {"guidance_scale": 8.0, "num_inference_steps": 4},
        {"guidance_interval": (0.2, 0.8)}, ["--guidance-interval", "0.2,0.8"],
    ),
    "ResGenPipeline": (
        resgen, {"guidance_scale": 4.0, "num_inference_steps": 5}, {"choice_temperature": 9.0}, ["--choice-temperature", "9"]
    ),
    "MARPipeline": (
        mar, {"guidance_scale": 4.0, "num_inference_steps": 4, "num_diffusion_steps": [0, 300, 900]},
        {"guidance_schedule": "constant"}, ["--guidance-schedule", "constant"],
    ),
    "EMIGMPipeline": (
        emigm, {"guidance_scale": 4.0, "num_inference_steps": 4, "num_diffusion_steps": 5},
        {"solver": "ddpm"}, ["--solver", "ddpm"],
    ),
    "CascadePipeline": (
        cascade, {"guidance_scale": 4.0, "num_inference_steps": 3, "upsampler_num_inference_steps": 2},
        {"upsampler_guidance_scale": 3.0}, ["--upsampler-guidance-scale", "3"],
    ),
    "MAGEPipeline": (
        mage, {"guidance_scale": 4.0, "num_inference_steps": 4},
        {"representation_num_inference_steps": 5}, ["--representation-num-inference-steps", "5"],
    ),
    "RCGPipeline": (
        rcg, {"guidance_scale": 4.0, "num_inference_steps": 3},
        {"representation_guidance_scale": 6.0}, ["--representation-guidance-scale", "6"],
    ),
}  # fmt: skip
LABELS, INDICES = [0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]


def build(name: str, defaults: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    pipeline = CASES[name][0](defaults)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, **options: Any) -> Tensor:
    generators = sample_generators(0, LABELS, INDICES)
    images: Tensor = pipeline(LABELS, generator=generators, output_type="uint8", **options).images
    return images


def test_every_family_is_tested() -> None:
    assert set(CASES) == set(OPTIONS)


@pytest.mark.parametrize("name", CASES)
def test_python_the_command_line_and_scores_make_the_same_images(name: str, tmp_path: Path) -> None:
    _, defaults, option, flags = CASES[name]
    build(name, defaults).save_pretrained(tmp_path / "saved")
    pipeline = load_pipeline(tmp_path / "saved")
    pipeline.set_progress_bar_config(disable=True)
    own = draw(pipeline)
    assert torch.equal(own, draw(pipeline, **defaults)), "a call starts from the saved defaults"
    plain = {each: value for each, value in defaults.items() if each not in ("guidance_scale", "truncation")}
    assert not torch.equal(own, draw(build(name, {}), **plain)), "the defaults matter"
    changed = draw(pipeline, **option)
    assert not torch.equal(own, changed)

    common = ["sample", str(tmp_path / "saved"), "--num-images-per-class", "2", "--seed", "0", "--batch-size", "6"]
    assert main([*common, "--output", str(tmp_path / "own.npz")]) == 0
    assert np.array_equal(np.load(tmp_path / "own.npz")["arr_0"], own.permute(0, 2, 3, 1).numpy())
    assert main([*common, "--output", str(tmp_path / "changed.npz"), *flags]) == 0
    assert np.array_equal(np.load(tmp_path / "changed.npz")["arr_0"], changed.permute(0, 2, 3, 1).numpy())

    source = PipelineSource(tmp_path / "saved", num_samples=6, seed=0, device="cpu")
    images = torch.stack([image for batch in source.batches(6) for image in batch.images])
    assert torch.equal(images, own)
    assert all(f"{each} {value}" in source.kind for each, value in pipeline.merge_options().to_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_options_are_those_of_the_family_where_nothing_is_saved(name: str) -> None:
    pipeline = build(name, {})
    assert pipeline.merge_options() == pipeline.options_class()
    assert pipeline.options_class.from_dict(pipeline.options_class().to_dict()) == pipeline.options_class()
    assert json.loads(json.dumps(pipeline.merge_options().to_dict())) == pipeline.merge_options().to_dict()
    with pytest.raises(UserError, match=f"{name} has no option gidance_scale; it takes "):
        pipeline([0], gidance_scale=2.0)


def test_an_option_that_is_no_more_is_told_and_left_out() -> None:
    pipeline = build("GANImagePipeline", {"truncation": 0.5, "psi": 0.7})
    with pytest.warns(UserWarning, match="GANImagePipeline was saved with the sampling option psi"):
        images = draw(pipeline)
    assert torch.equal(images, draw(build("GANImagePipeline", {"truncation": 0.5})))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("GANImagePipeline", {"truncation": "0.5"}, "truncation must be a number or none, got '0.5'"),
        ("GANImagePipeline", {"truncation": True}, "truncation must be a number or none, got True"),
        ("DiffusionImagePipeline", {"num_inference_steps": 2.5}, "num_inference_steps must be an integer, got 2.5"),
        ("DiffusionImagePipeline", {"guidance_interval": 0.5}, "guidance_interval must be two numbers or none, got 0.5"),
        ("DiffusionImagePipeline", {"guidance_scale": (1.0, 2.0)}, r"guidance_scale must be a number, got \(1.0, 2.0\)"),
        ("MAGVIT2Pipeline", {"temperature": [1.0, None]}, "temperature must be a number or a list of numbers, got"),
        ("VARPipeline", {"more_smooth": 1}, "more_smooth must be true or false, got 1"),
        ("VARPipeline", {"guidance_schedule": "steep"}, "guidance_schedule must be one of constant, linear,"),
        ("EMIGMPipeline", {"mask_strategy": 3}, "mask_strategy must be a text or none, got 3"),
    ],
)
def test_values_of_a_wrong_type_are_told(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, {})([0], **options)


def test_numbers_of_numpy_are_numbers() -> None:
    pipeline = build("DiffusionImagePipeline", {})
    merged = pipeline.merge_options({"guidance_scale": np.float32(1.5), "num_inference_steps": np.int64(3)})
    assert merged == pipeline.options_class(guidance_scale=1.5, num_inference_steps=3)
    assert json.dumps(merged.to_dict())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--truncation", "half"], "argument --truncation: must be a number or none, got 'half'"),
        (["--guidance-interval", "0.5"], "argument --guidance-interval: must be two numbers or none, got '0.5'"),
        (["--top-k", "1.5"], "argument --top-k: must be an integer"),
        (["--guidance-scale", "2"], "GANImagePipeline has no use for --guidance-scale; it takes --truncation"),
        (["--truncation", "1,2"], "argument --truncation: must be a number or none, got '1,2'"),
    ],
)
def test_flags_that_cannot_be_are_told(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build("GANImagePipeline", {}).save_pretrained(tmp_path / "saved")
    assert main(["sample", str(tmp_path / "saved"), "--output", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
