"""Official options and checkpoints of guided-diffusion. Values are compared in tests/parity."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from generative.cli.main import main
from generative.convert import get_source, load_official
from generative.convert.diffusion.adm import ADMSource
from generative.convert.diffusion.adm_diffusion import ADMDiffusionSource
from generative.convert.files.read import read_checkpoints
from generative.convert.files.recognise import recognise
from generative.core.errors import UserError
from generative.core.weights import load_network
from generative.diffusion.networks.adm_classifier import ADMClassifier
from generative.layers.unet_blocks import AttentionBlock
from pipelines import load_pipeline
from pipelines.guides import add_classifier

sys.path.append(str(Path(__file__).parent))
from official_adm import layout, official_state  # noqa: E402

IMAGENET = {"in_channels": 3, "out_channels": 6, "num_classes": 1000, "use_scale_shift_norm": True, "resblock_updown": True}
WIDE = IMAGENET | {"model_channels": 256, "num_res_blocks": 2}
UPSAMPLER = IMAGENET | {"model_channels": 192, "num_res_blocks": 2, "channel_mult": (1, 1, 2, 2, 4, 4)}
CLASSIFIER = {"in_channels": 3, "out_channels": 1000, "model_channels": 128, "num_head_channels": 64, "pool": "attention"}
CLASSIFIER |= {"use_scale_shift_norm": True, "resblock_updown": True}
# Official options of the published files (README of the repository), the layout that the official code gives them on the meta
# device (tensors, values, sha256 of names and shapes), and heads of attention by width.
PUBLISHED: dict[str, tuple[str, dict[str, Any], tuple[int, int, str], dict[int, int]]] = {
    "64x64_diffusion": (
        "adm",
        IMAGENET
        | {"image_size": 64, "model_channels": 192, "num_res_blocks": 3, "channel_mult": (1, 2, 3, 4)}
        | {"attention_resolutions": (2, 4, 8), "num_head_channels": 64, "use_new_attention_order": True, "dropout": 0.1}
        | {"noise_schedule": "cosine"},
        (541, 295_904_454, "40271b72ad5de28c5535dae1d187f2f685d54cbc82286fa767a055f6221660f1"),
        {384: 6, 576: 9, 768: 12},
    ),
    "128x128_diffusion": (
        "adm",
        WIDE | {"image_size": 128, "channel_mult": (1, 1, 2, 3, 4), "attention_resolutions": (4, 8, 16), "num_heads": 4},
        (493, 421_529_606, "acf0fda1a78ff280a0af90bd966229ba309ad26ff2434a220fc11d604a8f751b"),
        {512: 4, 768: 4, 1024: 4},
    ),
    "256x256_diffusion": (
        "adm",
        WIDE
        | {"image_size": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (8, 16, 32), "num_head_channels": 64},
        (567, 553_838_086, "d861e8fba157265224387f7873c8e1a1a11d93e0334de75603f96814ce1e0074"),
        {512: 8, 1024: 16},
    ),
    "256x256_diffusion_uncond": (
        "adm",
        WIDE
        | {"image_size": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (8, 16, 32), "num_head_channels": 64}
        | {"num_classes": None},
        (566, 552_814_086, "fe93167087f7317b01c4b4261dc38d6303b8de63cf64d7994d1f946790cc6384"),
        {512: 8, 1024: 16},
    ),
    "512x512_diffusion": (
        "adm",
        WIDE
        | {"image_size": 512, "channel_mult": (0.5, 1, 1, 2, 2, 4, 4), "attention_resolutions": (16, 32, 64)}
        | {"num_head_channels": 64},
        (645, 558_997_638, "1e27698a1c14eeff4e189c5416445dec3fa7c638ccd929333df4b355c9046934"),
        {512: 8, 1024: 16},
    ),
    "64_256_upsampler": (
        "adm_upsampler",
        UPSAMPLER | {"image_size": 256, "small_size": 64, "attention_resolutions": (8, 16, 32), "num_heads": 4},
        (567, 311_795_910, "49f2f641e45d36d2797b76dd25d5b80b418ed79edab80e26e88f6d349fd17a84"),
        {384: 4, 768: 4},
    ),
    "128_512_upsampler": (
        "adm_upsampler",
        UPSAMPLER | {"image_size": 512, "small_size": 128, "attention_resolutions": (16, 32), "num_head_channels": 64},
        (537, 308_835_270, "24589324a586c00457649709800cfdff34d4d1e9a9b6e1a350f0182df32c8188"),
        {768: 12},
    ),
    "64x64_classifier": (
        "adm_classifier",
        CLASSIFIER
        | {"image_size": 64, "num_res_blocks": 4, "channel_mult": (1, 2, 3, 4), "attention_resolutions": (2, 4, 8)}
        | {"noise_schedule": "cosine"},
        (307, 65_438_568, "396fdbdd8fe8469fa6606d8b40018b34a8464b47172f0df5876f7cc21e014825"),
        {256: 4, 384: 6, 512: 8},
    ),
    "128x128_classifier": (
        "adm_classifier",
        CLASSIFIER
        | {"image_size": 128, "num_res_blocks": 2, "channel_mult": (1, 1, 2, 3, 4), "attention_resolutions": (4, 8, 16)},
        (221, 42_568_040, "17a295211f77efb8a0b454ea29688687965c21b22562000d39a882dbcd21f7bf"),
        {256: 4, 384: 6, 512: 8},
    ),
    "256x256_classifier": (
        "adm_classifier",
        CLASSIFIER
        | {"image_size": 256, "num_res_blocks": 2, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (8, 16, 32)},
        (249, 54_096_360, "45ff8351dfa42a32eb599faab91d1e7bc9d3ce6a6e8003b2ebafce9bc51c95f8"),
        {256: 4, 512: 8},
    ),
    "512x512_classifier": (
        "adm_classifier",
        CLASSIFIER
        | {"image_size": 512, "num_res_blocks": 2, "channel_mult": (0.5, 1, 1, 2, 2, 4, 4)}
        | {"attention_resolutions": (16, 32, 64)},
        (281, 54_448_360, "c63bec1296488c9d4de007d84a502fdd67acbc0835feaf9b0c1f6bd2f26c2108"),
        {256: 4, 512: 8},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_file_is_recognised_by_its_names_and_shapes(name: str) -> None:
    source_name, options, official, heads = PUBLISHED[name]
    source = get_source(source_name)
    with torch.device("meta"):
        wanted = source.build(options)["model"]
        state = official_state(wanted)
        assert layout(state) == official
        found = [other for other in ("adm", "adm_upsampler", "adm_classifier") if get_source(other).recognise(state) is not None]
        assert found == [source_name]
        config = source.recognise(state)
        assert config is not None
        networks = source.build(config)
        load_official(source, networks, state)
    assert dict(networks["model"].config) == dict(wanted.config)
    blocks = [module for module in networks["model"].modules() if isinstance(module, AttentionBlock)]
    assert {block.norm.num_channels: block.num_heads for block in blocks} == heads
    trained = source.formulation(config)  # type: ignore[attr-defined]
    schedule = "squaredcos_cap_v2" if options.get("noise_schedule") == "cosine" else "linear"
    assert (trained.config.beta_schedule, trained.config.num_train_timesteps) == (schedule, 1000)


TINY: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 2,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_classes": 5,
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"use_scale_shift_norm": False, "out_channels": 3, "num_classes": None},
        {"resblock_updown": False},
        {"resblock_updown": False, "conv_resample": False},
        {"channel_mult": [1, 1, 2], "attention_resolutions": [1, 4], "num_res_blocks": 1},
        {"channel_mult": [1], "attention_resolutions": []},
    ],
)
@pytest.mark.parametrize("name", ["adm", "adm_upsampler", "adm_classifier"])
def test_what_shapes_tell_is_read_off_them(name: str, change: dict[str, Any]) -> None:
    source, config = get_source(name), TINY | change
    pool = "attention"
    if name == "adm_classifier":
        pool = "spatial" if change.get("resblock_updown") is False else "adaptive"
        config = {key: value for key, value in config.items() if key != "num_classes"} | {"pool": pool}
    state = official_state(source.build(config)["model"], pool)
    found = source.recognise(state)
    assert found is not None
    assert found["image_size"] is None
    with pytest.raises(UserError, match=r'does not tell image_size of .*; give \{"image_size": N\} in --config'):
        source.build(found)
    rebuilt = source.build(found | {"image_size": 16, "num_head_channels": 16})
    load_official(source, rebuilt, state)
    assert official_state(rebuilt["model"], pool).keys() == state.keys()


def write_official(path: Path, name: str, config: dict[str, Any]) -> Any:
    """A file of the official layout, as the official scripts save it: the bare state; returns the network."""
    torch.manual_seed(0)
    network = get_source(name).build(config)["model"]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(official_state(network), path)
    return network.eval()


def test_command_line_converts_a_file_to_a_pipeline(tmp_path: Path) -> None:
    config = TINY | {"noise_schedule": "cosine", "ancestral_respacing": "4"}
    network = write_official(tmp_path / "model.pt", "adm", config)
    options = {key: config[key] for key in ("image_size", "num_head_channels", "noise_schedule", "ancestral_respacing")}
    (tmp_path / "options.json").write_text(json.dumps(options))
    command = ["convert", str(tmp_path / "model.pt"), "--config", str(tmp_path / "options.json"), "--output"]
    assert main([*command, str(tmp_path / "out")]) == 0
    pipeline = load_pipeline(tmp_path / "out")
    assert pipeline.sampling_defaults == {"num_inference_steps": 4} and pipeline.num_classes == 5
    assert pipeline.scheduler.config.variance == "learned" and pipeline.scheduler.config.clip_sample
    assert pipeline.formulation.config.beta_schedule == "squaredcos_cap_v2" and pipeline.formulation.config.learned_variance
    sample, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 4])
    made = pipeline.denoiser(sample, torch.tensor([3]), labels)
    assert torch.equal(made.prediction, network(sample, torch.tensor([3]), labels).prediction)
    image = pipeline([2], generator=[torch.Generator().manual_seed(0)], output_type="pt").images
    assert image.shape == (1, 3, 16, 16)


def test_converted_classifier_guides_a_converted_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {key: value for key, value in TINY.items() if key != "num_classes"} | {"out_channels": 5, "pool": "attention"}
    network = write_official(tmp_path / "classifier.pt", "adm_classifier", config)
    (tmp_path / "options.json").write_text(json.dumps({"num_head_channels": 16}))
    command = ["convert", str(tmp_path / "classifier.pt"), "--config", str(tmp_path / "options.json")]
    assert main([*command, "--output", str(tmp_path / "classifier")]) == 0
    assert "NoisedClassifierPipeline of 5 classes, 16 x 16 pixels" in capsys.readouterr().out
    loaded, _ = load_network(tmp_path / "classifier", "classifier")
    sample = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(sample, torch.tensor([3])), network(sample, torch.tensor([3])))
    pipeline = ADMSource().pipeline(get_source("adm").build(TINY), TINY)
    add_classifier(pipeline, tmp_path / "classifier")
    options = {"num_inference_steps": 2, "classifier_scale": 2.0, "output_type": "pt"}
    assert pipeline([2], generator=[torch.Generator().manual_seed(0)], **options).images.shape == (1, 3, 16, 16)


def test_converted_upsampler_follows_a_converted_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, source, change in (("base", "adm", {}), ("upsampler", "adm_upsampler", {"image_size": 32, "small_size": 16})):
        config = TINY | change
        write_official(tmp_path / f"{name}.pt", source, config)
        told = {key: config[key] for key in ("image_size", "num_head_channels", "small_size") if key in config}
        (tmp_path / "options.json").write_text(json.dumps(told | {"ancestral_respacing": "2"}))
        command = ["convert", str(tmp_path / f"{name}.pt"), "--config", str(tmp_path / "options.json")]
        assert main([*command, "--output", str(tmp_path / name)]) == 0
    assert "UpsamplerPipeline of 5 classes, 32 x 32 pixels" in capsys.readouterr().out
    command = ["sample", str(tmp_path / "base"), "--upsampler", str(tmp_path / "upsampler"), "--class-labels", "3"]
    assert main([*command, "--num-images-per-class", "1", "--output", str(tmp_path / "samples")]) == 0
    (image,) = (tmp_path / "samples").rglob("*.png")
    assert Image.open(image).size == (32, 32)


def test_command_line_says_what_a_file_does_not_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_official(tmp_path / "model.pt", "adm", TINY)
    assert main(["convert", str(tmp_path / "model.pt"), "--output", str(tmp_path / "out")]) == 2
    assert "does not tell image_size" in capsys.readouterr().err


def test_sampling_options_become_the_sampler() -> None:
    source = ADMSource()
    for options, variance, respacing, steps in (
        ({}, "learned", None, 250),
        ({"diffusion_steps": 100}, "learned", None, 100),
        ({"out_channels": 3}, "large", None, 250),
        ({"out_channels": 3, "sigma_small": True, "ancestral_respacing": "10,15"}, "small", "10,15", 25),
    ):
        config = TINY | options
        pipeline = source.pipeline(source.build(config), config)
        assert (pipeline.scheduler.config.variance, pipeline.scheduler.config.respacing) == (variance, respacing)
        assert pipeline.sampling_defaults["num_inference_steps"] == steps


def test_options_of_the_process_become_the_formulation() -> None:
    build = ADMDiffusionSource().formulation
    assert build({}).config.prediction_type == "epsilon" and build({"predict_xstart": True}).config.prediction_type == "sample"
    short = build({"steps": 250, "rescale_timesteps": True, "rescale_learned_sigmas": True, "learn_sigma": True})
    assert (short.config.time_scale, short.config.variance_weight) == (4.0, 0.25)
    assert short.process.betas[-1].item() == pytest.approx(0.08)
    assert build({"use_kl": True, "sigma_small": True}).config.fixed_variance == "small"
    assert get_source("adm_diffusion").build({"steps": 10, "noise_schedule": "cosine"}) == {}
    with pytest.raises(UserError, match="a diffusion process alone makes no images"):
        ADMDiffusionSource().pipeline({}, {})


def test_unconditional_network_takes_labels_of_a_classifier() -> None:
    config = TINY | {"num_classes": None}
    network = get_source("adm").build(config)["model"]
    assert network.config.num_classes == 1 and not network.config.class_conditional and network.null_label is None
    pipeline = get_source("adm").pipeline({"model": network}, config)
    assert pipeline.num_classes == 1
    pipeline.classifier = ADMClassifier(16, 3, 10, 32, (1, 2), 1, (8,), num_head_channels=32)
    assert pipeline.num_classes == 10
    images = pipeline([9], num_inference_steps=2, classifier_scale=1.0, output_type="pt").images
    assert images.shape == (1, 3, 16, 16)
    with pytest.raises(UserError, match=r"class label 10 is outside 0\.\.9"):
        pipeline([10], num_inference_steps=2)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("adm", {"dims": 3}, "dims=3 of openai/guided-diffusion is not supported here: images have two dimensions"),
        ("adm", {"out_channels": 5}, "out_channels=5 .* with in_channels=3; supported: 3 or 6"),
        ("adm", {"out_channels": 3, "learn_sigma": True}, "out_channels=3 .* and learn_sigma=True; supported: 6"),
        ("adm", {"noise_schedule": "sigmoid"}, "noise_schedule='sigmoid' .* supported: 'linear', 'cosine'"),
        ("adm", {"num_head_channels": 0}, "num_head_channels .* must be a positive whole number or -1, got 0"),
        ("adm", {"ddim_respacing": 25}, "ddim_respacing .* must be a respacing such as 250, ddim25 or 10,15,20, got 25"),
        ("adm", {"small_size": 4}, "UNetModel option 'small_size' of openai/guided-diffusion is unknown here"),
        ("adm_upsampler", {"small_size": 32}, r"low_resolution_size must be in 1\.\.16, got 32"),
        ("adm_diffusion", {}, "GaussianDiffusion option 'image_size'"),
    ],
)
def test_options_without_an_equal_are_refused(source: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source(source).build(TINY | change)


def test_a_key_of_another_layout_is_refused(tmp_path: Path) -> None:
    source = get_source("adm")
    networks = source.build(TINY)
    state = official_state(networks["model"])
    with pytest.raises(UserError, match=r"no place for the official keys input_blocks\.1\.0\.gate\.weight"):
        load_official(source, networks, state | {"input_blocks.1.0.gate.weight": torch.zeros(1)})
    torch.save(state, tmp_path / "model.pt")
    checkpoint = read_checkpoints([tmp_path / "model.pt"])
    assert recognise(checkpoint, checkpoint.parts, None, None).source.name == "adm"
