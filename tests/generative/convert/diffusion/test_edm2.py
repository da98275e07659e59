"""Snapshots of EDM2. The numbers of their networks are compared in tests/parity."""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from generative.cli.main import main
from generative.convert import get_source, load_official
from generative.convert.diffusion.edm2 import as_official, block_names, our_name
from generative.core.errors import UserError
from generative.diffusion.networks.edm2 import EDM2_SIZES, EDM2UNet
from generative.tokenizers.latents import image_range, latent_scaling
from pipelines import load_pipeline

TINY: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 4,
    "label_dim": 3,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "channels_per_head": 8,
    "logvar_channels": 8,
}


def network(**options: Any) -> EDM2UNet:
    torch.manual_seed(0)
    built = get_source("edm2").build(TINY | options)["net"]
    assert isinstance(built, EDM2UNet)
    for parameter in built.parameters():
        nn.init.normal_(parameter)
    return built


def official_state(net: EDM2UNet) -> dict[str, Tensor]:
    """The official state dict of a network of ours."""
    size = net.config.sample_size
    inner = ["attn_qkv", "attn_proj", "conv_res0", "conv_res1", "conv_skip", "emb_linear"]
    keys = [f"{block}{part}.weight" for block in block_names(net) for part in inner]
    keys += [f"{block}emb_gain" for block in block_names(net)]
    keys += [f"unet.{name}" for name in (f"enc.{size}x{size}_conv.weight", "out_conv.weight", "emb_noise.weight", "out_gain")]
    keys += ["unet.emb_label.weight", "unet.emb_fourier.freqs", "unet.emb_fourier.phases", "logvar_linear.weight"]
    keys += ["logvar_fourier.freqs", "logvar_fourier.phases"]
    ours, names = net.state_dict(), {key: our_name(block_names(net), key) for key in keys}
    return {key: as_official(name, ours[name], net) for key, name in names.items() if name in ours}


class Persistent:
    """Pickled as ``torch_utils.persistence`` pickles: by the name of a class, with the source of its module."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit",
            "class_name": self.class_name,
            "state": self.state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


def record(state: dict[str, Tensor], class_name: str, options: dict[str, Any]) -> Persistent:
    """A module of persistent modules, whose state dict is this."""
    own = {key: nn.Parameter(value) for key, value in state.items() if "." not in key}
    below: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if "." in key:
            below.setdefault(key.partition(".")[0], {})[key.partition(".")[2]] = value
    modules = {name: record(inner, "Part", {}) for name, inner in below.items()}
    return Persistent(class_name, _parameters=own, _buffers={}, _modules=modules, _init_kwargs=options, training=False)


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot in half precision, as the official training loop pickles it, and the state it holds."""
    function = types.FunctionType((lambda meta: None).__code__, {}, "_reconstruct_persistent_obj")
    function.__module__, function.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["torch_utils.persistence"], "_reconstruct_persistent_obj", function, raising=False)
    state = {key: value.half() for key, value in official_state(network(dropout=0.1)).items()}
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    encoder = Persistent(
        "StabilityVAEEncoder", scale=scale, bias=-np.float32([5.81, 3.25, 0.12, -2.15]) * scale, _init_kwargs={}, _vae=None
    )
    content = {
        "encoder": encoder,
        "dataset_kwargs": {"class_name": "training.dataset.ImageFolderDataset", "path": "x.zip"},
        "loss_fn": Persistent("EDM2Loss", P_mean=-0.8, P_std=1.6, sigma_data=0.5),
        "ema": record(state, "Precond", TINY | {"dropout": 0.1, "clip_act": None, "resample_filter": [1, 3, 3, 1]}),
    }
    path = tmp_path / "network-snapshot-0001000-0.050.pkl"
    path.write_bytes(pickle.dumps(content))
    return path


def test_a_snapshot_becomes_a_pipeline_that_scales_its_latents(snapshot: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**blocks, block_out_channels=(4, 4), norm_num_groups=2, scaling_factor=0.18215).save_pretrained(
        tmp_path / "vae"
    )
    output = tmp_path / "out"
    assert main(["convert", str(snapshot), "--autoencoder", str(tmp_path / "vae"), "--output", str(output)]) == 0
    pipeline = load_pipeline(output)
    expected = network().state_dict()
    state = pipeline.denoiser.state_dict()
    assert all(torch.equal(value, expected[key].half().float()) for key, value in state.items())
    config = pipeline.denoiser.config
    assert config.dropout == 0.1 and config.clip_act is None and tuple(config.resample_filter) == (1, 3, 3, 1)
    assert config.channels_per_head == 8 and pipeline.denoiser.null_label is None
    assert (pipeline.formulation.config.log_sigma_mean, pipeline.formulation.config.log_sigma_std) == (-0.8, 1.6)
    offset, factor = latent_scaling(pipeline.autoencoder)
    assert torch.allclose(torch.as_tensor(offset).flatten(), torch.tensor([5.81, 3.25, 0.12, -2.15]))
    assert torch.allclose(torch.as_tensor(factor).flatten(), 0.5 / torch.tensor([4.17, 4.62, 3.71, 3.28]))
    assert image_range(pipeline.autoencoder) == (0.0, 1.0)
    images = pipeline([0, 2], num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    assert json.loads((output / "conversion.json").read_text())["options"]["encoder"]["raw_std"] == [4.17, 4.62, 3.71, 3.28]


def test_a_network_without_classes_samples_as_one_class() -> None:
    source = get_source("edm2")
    config = TINY | {"label_dim": 0, "img_channels": 3}
    pipeline = source.pipeline(source.build(config), config)
    assert pipeline.num_classes == 1 and pipeline(0, num_inference_steps=2, output_type="pt").images.shape == (1, 3, 8, 8)


def test_options_are_recognised_by_names_and_shapes() -> None:
    for changes in (
        {},
        {"channel_mult": [2, 1], "num_blocks": 2, "attn_resolutions": [8, 4], "label_dim": 0},
        {"channel_mult_noise": 3, "channel_mult_emb": 5, "channel_mult": [1, 1, 2], "attn_resolutions": []},
    ):
        net = network(**changes)
        state = official_state(net)
        found = get_source("edm2").recognise(state)
        assert found is not None
        again = get_source("edm2").build(found | {"channels_per_head": 8})
        load_official(get_source("edm2"), again, state)
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in again["net"].state_dict().items())
    assert get_source("edm2").recognise({"unet.out_gain": torch.zeros(())}) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gnet_config": {**TINY, "no_such": 1}}, "gnet_config option 'no_such'"),
        ({"sampler": {"no_such": 1}}, "sampler option 'no_such'"),
        ({"loss": {"sigma_data": 1.0}}, "one number for loss and network, got 1.0 and 0.5"),
        ({"encoder": {"raw_std": [1.0]}}, "raw_mean and raw_std of EDM2 must be as many"),
        ({"num_blocks": "3"}, "num_blocks of NVlabs/edm2 must be a positive whole number"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        get_source("edm2").build(TINY | {"sigma_data": 0.5} | options)


@pytest.mark.parametrize("num_classes", [0, 1000])
@pytest.mark.parametrize(
    ("size", "channels", "count"),
    [
        ("XXS", 4, 31_309_029),
        ("XS", 4, 124_713_253),
        ("S", 4, 280_212_837),
        ("M", 4, 497_807_781),
        ("L", 4, 777_498_085),
        ("XL", 4, 1_119_283_749),
        ("XXL", 4, 1_523_164_773),
        ("XS", 3, 124_710_949),
        ("S", 3, 280_209_381),
        ("M", 3, 497_803_173),
        ("L", 3, 777_492_325),
        ("XL", 3, 1_119_276_837),
    ],
)
def test_published_sizes(size: str, channels: int, count: int, num_classes: int) -> None:
    """Parameters of the official networks, whose every tensor then has its place at this size."""
    with torch.device("meta"):
        classes = {"num_classes": max(num_classes, 1), "class_conditional": num_classes > 0}
        net = EDM2UNet(sample_size=64, in_channels=channels, model_channels=EDM2_SIZES[size], **classes)
        state = official_state(net)
        found = get_source("edm2").recognise(state)
        assert found is not None
        again = get_source("edm2").build(found)["net"]
        converted = get_source("edm2").convert_state("net", state, again)
    embedding_width = 4 * EDM2_SIZES[size]
    assert sum(parameter.numel() for parameter in net.parameters()) == count - (1000 - num_classes) * embedding_width
    assert {key: value.shape for key, value in converted.items()} == {key: v.shape for key, v in again.state_dict().items()}
    assert len(state) == 203 - (num_classes == 0) and found["attn_resolutions"] == [16, 8] and found["num_blocks"] == 3
