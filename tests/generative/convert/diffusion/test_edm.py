"""Official EDM and SiD options and checkpoints. Values are compared in tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.convert import get_source, load_official
from generative.convert.diffusion.edm import formulation
from generative.convert.diffusion.sid import NETWORK
from generative.convert.files.read import Checkpoint, NetworkPart
from generative.convert.files.recognise import recognise
from generative.core.errors import UserError
from generative.diffusion.networks.song_unet import SongUNet
from generative.diffusion.samplers.heun import HeunSampler
from generative.diffusion.samplers.one_step import OneStepSampler

SMALL: dict[str, Any] = {"img_resolution": 8, "img_channels": 3, "label_dim": 4, "model_type": "SongUNet", "model_channels": 8}
SMALL |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 9, "sigma_max": "inf"}
DDPMPP = {"model_type": "SongUNet", "img_channels": 3, "augment_dim": 9}
NCSNPP = DDPMPP | {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
# Options of the published files, and the tensors and parameters that the official code makes of them.
PUBLISHED = {
    "cifar10-32x32-cond-vp": (DDPMPP | {"img_resolution": 32, "label_dim": 10, "channel_mult": [2, 2, 2]}, 427, 55735299),
    "cifar10-32x32-uncond-vp": (DDPMPP | {"img_resolution": 32, "channel_mult": [2, 2, 2]}, 425, 55733891),
    "cifar10-32x32-cond-ve": (NCSNPP | {"img_resolution": 32, "label_dim": 10, "channel_mult": [2, 2, 2]}, 434, 56400643),
    "cifar10-32x32-uncond-ve": (NCSNPP | {"img_resolution": 32, "channel_mult": [2, 2, 2]}, 432, 56397827),
    "ffhq-64x64-uncond-vp": (DDPMPP | {"img_resolution": 64}, 553, 61805571),
    "ffhq-64x64-uncond-ve": (NCSNPP | {"img_resolution": 64}, 563, 62761091),
    "imagenet-64x64-cond-adm": ({"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "use_fp16": True}, 553, 295899267),
}


def official_state(config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of the official layout for ``config``: the keys of a parity file's kind, found by asking for each of ours."""
    network = get_source("edm").build(config)["model"]
    state: dict[str, Tensor] = {}
    sizes = network.sizes
    blocks = {"norm1": "norm0", "norm2": "norm1", "conv1": "conv0", "conv2": "conv1", "attention_norm": "norm2"}
    for key, value in network.state_dict().items():
        head, _, rest = key.partition(".")
        if head in ("encoder", "decoder"):
            level, group, number, inner = rest.split(".", 3)
            size = sizes[int(level)] if head == "encoder" else sizes[len(sizes) - 1 - int(level)]
            is_lowest = head == "decoder" and level == "0"
            part = (
                f"block{number}" if group == "blocks" else f"in{number}" if is_lowest else "down" if head == "encoder" else "up"
            )
            inner = inner.replace("skip_resampler.kernel", "skip.resample_filter").replace(
                "resampler.kernel", "conv0.resample_filter"
            )
            inner = inner.replace("attention.qkv", "qkv").replace("attention.out", "proj")
            first, dot, last = inner.partition(".")
            name = f"{head[:3]}.{size}x{size}_{part}.{blocks.get(first, first)}{dot}{last}"
            value = value[None, None] if name.endswith("filter") else value
            value = value[:, :, None, None] if "qkv.weight" in name or "proj.weight" in name else value
        else:
            names = {
                "label_embedding.weight": "map_label.weight",
                "label_bias": "map_label.bias",
                "frequencies": "map_noise.freqs",
            }
            names |= {"augment_embedding.weight": "map_augment.weight"}
            name = names.get(key, key).replace("linear_1", "map_layer0").replace("linear_2", "map_layer1")
            name = name.replace("input_conv", f"enc.{sizes[0]}x{sizes[0]}_conv")
            for kind in ("norm", "conv"):
                name = name.replace(f"out_{kind}s.0", f"dec.{sizes[0]}x{sizes[0]}_aux_{kind}")
            if head in ("side_convs", "side_resamplers"):
                size = sizes[int(rest[0]) + 1]
                name = f"enc.{size}x{size}_aux_residual.{rest[2:]}".replace("kernel", "resample_filter")
                value = value[None, None] if name.endswith("filter") else value
            value = value.t() if name == "map_label.weight" else value
        state[f"model.{name}"] = value
    return state


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_official_tensors(name: str) -> None:
    config, num_tensors, num_parameters = PUBLISHED[name]
    source = get_source("edm")
    with torch.device("meta"):
        network = source.build(config)["model"]
        state = official_state(config)
        converted = source.convert_state("model", state, network)
    assert len(state) == len(converted) == num_tensors
    assert sum(parameter.numel() for parameter in network.parameters()) == num_parameters
    assert {key: value.shape for key, value in converted.items()} == {k: v.shape for k, v in network.state_dict().items()}
    found = source.recognise(state)
    assert found is not None
    with torch.device("meta"):
        again = source.build(found)["model"]
    assert {key: value.shape for key, value in again.state_dict().items()} == {k: v.shape for k, v in converted.items()}


def test_options_are_read_off_a_checkpoint() -> None:
    source = get_source("edm")
    state = official_state(SMALL)
    found = source.recognise(state)
    assert found is not None and {key: found[key] for key in SMALL if key != "sigma_max"} == {
        key: value for key, value in SMALL.items() if key != "sigma_max"
    }
    assert source.recognise({key: value for key, value in state.items() if "map_layer0" not in key}) is None
    assert source.recognise({"weight": torch.zeros(2)}) is None
    networks = source.build(found)
    load_official(source, networks, state)
    with pytest.raises(
        UserError, match=r"no place for the official keys dec.8x8_block0.norm0.bias, model.dec.2x2_block0.norm0.bias"
    ):
        strays = ("dec.8x8_block0.norm0.bias", "model.dec.2x2_block0.norm0.bias")
        load_official(source, networks, state | {key: torch.zeros(8) for key in strays})


def test_every_value_of_attention_finds_its_place() -> None:
    source = get_source("edm")
    network = source.build(SMALL)["model"]
    state = official_state(SMALL)
    rows = torch.arange(48.0)  # of 16 channels, for each its query, key and value
    state["model.enc.4x4_block0.qkv.bias"] = rows
    converted = source.convert_state("model", state, network)
    bias = converted["encoder.1.blocks.0.attention.qkv.bias"]
    assert bias[:3].tolist() == [0, 3, 6] and bias[16:19].tolist() == [1, 4, 7] and bias[32:35].tolist() == [2, 5, 8]


def test_pipelines_sample_as_published() -> None:
    source = get_source("edm")
    networks = source.build(SMALL)
    pipeline = source.pipeline(networks, SMALL)
    assert isinstance(pipeline.scheduler, HeunSampler) and pipeline.scheduler.config.churn == 0
    assert pipeline.config.sampling_defaults["num_inference_steps"] == 18
    config = {
        "img_resolution": 8,
        "img_channels": 3,
        "label_dim": 1000,
        "model_channels": 8,
        "channel_mult": [1],
        "num_blocks": 1,
    }
    sampler = source.pipeline(source.build(config), config).scheduler
    assert (sampler.config.churn, sampler.config.churn_min, sampler.config.noise_scale) == (40, 0.05, 1.003)
    levels = formulation(SMALL | {"sigma_min": 0.01, "sigma_max": 50}).config
    assert (levels.sigma_min, levels.sigma_max) == (0.01, 50)


def test_baselines_under_other_preconditionings_are_refused() -> None:
    state = official_state(SMALL)
    for class_name in ("VPPrecond", "training.networks.VEPrecond", "iDDPMPrecond", "EDMPrecond"):
        options = {"dropout": 0.13, "channel_mult": [1, 2], "label_dropout": 0}
        part = NetworkPart(Path("network.pkl"), "ema", state, options, class_name)
        checkpoint = Checkpoint([part], {}, [])
        if class_name == "EDMPrecond":
            found = recognise(checkpoint, [part], None, None)
            assert found.source.name == "edm" and found.config["dropout"] == 0.13
        else:
            with pytest.raises(UserError, match=r"is of (VP|VE|iDDPM)Precond of NVlabs/edm, a baseline"):
                recognise(checkpoint, [part], None, None)


def test_a_distilled_generator_samples_in_one_step() -> None:
    source = get_source("sid")
    config = {NETWORK: SMALL, "loss": {"init_sigma": 2.5}}
    networks = source.build(config)
    assert sorted(networks) == ["fake_score", "generator", "teacher"]
    torch.manual_seed(0)
    for parameter in networks["generator"].parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    networks["generator"].eval()
    pipeline = source.pipeline(networks, config)
    images = pipeline([1], generator=[torch.Generator().manual_seed(3)], output_type="pt").images
    network, trained = pipeline.denoiser, pipeline.formulation
    noise = 2.5 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([2.5])
    with torch.no_grad():
        expected = trained.predict_start(network(*trained.network_input(noise, times), torch.tensor([1])), noise, times)
    torch.testing.assert_close(images.float(), (expected.clamp(-1, 1) + 1) / 2, rtol=0, atol=1 / 255)
    assert source.recognise(official_state(SMALL)) is None
    both = {f"{module}/{key}": value for module in ("generator", "teacher") for key, value in official_state(SMALL).items()}
    found = source.recognise(both)
    assert found is not None and found[NETWORK]["channel_mult"] == [1, 2] and found["modules"] == ["generator", "teacher"]


@pytest.mark.parametrize(
    ("file", "given", "source"),
    [
        ("network-snapshot-1.200000-403968.pkl", None, "sid"),
        ("network-snapshot-200000.pkl", None, "edm"),
        ("edm-cifar10-32x32-cond-vp.pkl", "sid", "sid"),
        ("network-snapshot-1.200000-403968.pkl", "edm", "edm"),
    ],
)
def test_a_lone_network_is_a_distilled_generator_where_its_file_or_the_user_says_so(
    file: str, given: str | None, source: str
) -> None:
    state = official_state(SMALL)
    options = {"dropout": 0.13, "model_type": "SongUNet_EncoderDecoder" if source == "sid" else "SongUNet"}
    part = NetworkPart(Path(file), "ema", state, options, "EDMPrecond")
    found = recognise(Checkpoint([part], {}, []), [part], given, None)
    assert found.source.name == source
    networks = found.build()
    pipeline = found.source.pipeline(networks, found.config)
    assert len(networks) == 1 and pipeline.denoiser.config.dropout == 0.13
    assert isinstance(pipeline.scheduler, OneStepSampler) == (source == "sid")
    if source == "sid":
        chosen = recognise(Checkpoint([part], {}, []), [part], given, {"loss": {"init_sigma": 1.5}})
        assert chosen.source.pipeline(networks, chosen.config).scheduler.config.sigma == 1.5


def test_modules_that_sid_does_not_have_are_refused() -> None:
    for modules in ([], ["discriminator"], "generator"):
        with pytest.raises(UserError, match="'modules' of mingyuanzhou/SiD must list some of generator, teacher, fake_score"):
            get_source("sid").build({NETWORK: SMALL, "modules": modules})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": 1}, "SongUNet option 'flux' of NVlabs/edm is unknown here"),
        (
            {"model_type": "ADM"},
            "option model_type='ADM' of NVlabs/edm is not supported here; supported: 'SongUNet', 'DhariwalUNet'",
        ),
        (
            {"model_type": "DhariwalUNet", "encoder_type": "skip"},
            "DhariwalUNet option 'encoder_type' of NVlabs/edm is unknown here",
        ),
        ({"model_type": "DhariwalUNet", "label_dim": -1}, "label_dim of NVlabs/edm must be a whole number of 0 or more, got -1"),
        ({"sigma_max": "much"}, "sigma_max of NVlabs/edm must be a number, got 'much'"),
        ({"attn_resolutions": 16}, "attn_resolutions of NVlabs/edm must be a list of sizes, got 16"),
        ({"img_resolution": None}, "img_resolution of NVlabs/edm must be a positive whole number, got None"),
    ],
)
def test_options_that_have_no_equal_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("edm").build(SMALL | change)


def test_options_of_training_are_checked_too() -> None:
    for config in ({NETWORK: SMALL, "loss": {"beta": 1}}, {NETWORK: SMALL, "network": {}}, {NETWORK: {}, "loss": {}}):
        with pytest.raises(UserError, match=r"beta|'network'|needs the option img_resolution"):
            get_source("sid").build(config)
    assert isinstance(get_source("sid").build({NETWORK: SMALL})["teacher"], SongUNet)
