"""MoCo v3: official files, features beside another implementation of the transformer, wrong files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metrics.extractors import build_extractor
from metrics.extractors.mocov3 import MoCoV3, MoCoV3Network, MoCoV3Size, MoCoV3ViTB, MoCoV3ViTL, MoCoV3ViTS


class Tiny(MoCoV3):
    name = "mocov3-tiny"
    size = MoCoV3Size(width=16, layers=15, heads=2, projection=6, head_width=8)
    address = "nowhere"


def random_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = MoCoV3Network(Tiny.size)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network.head[7].running_mean.normal_()
    return network.state_dict()


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the official files name it, among what else they hold, and misnamed as the ViT-L's is."""
    names = {
        key: key.replace("blocks.13.norm1.", "blocks.13.norm13.").replace("blocks.13.mlp.fc1.", "blocks.13.mlp.fc13.")
        for key in state
    }
    names = {
        key: name.replace("blocks.14.norm2.", "blocks.14.norm14.").replace("blocks.14.mlp.fc2.", "blocks.14.mlp.fc14.")
        for key, name in names.items()
    }
    return {f"module.base_encoder.{names[key]}": value for key, value in state.items()} | {
        "module.momentum_encoder.cls_token": torch.zeros(1),
        "module.predictor.0.weight": torch.zeros(1),
    }


def test_features_of_an_official_file(tmp_path: Path) -> None:
    state = random_state()
    torch.save({"epoch": 300, "state_dict": official(state)}, tmp_path / "vit.pth.tar")
    extractor = Tiny.from_file(tmp_path / "vit.pth.tar", None).freeze()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 255
    found = extractor(images)
    assert {name: value.shape for name, value in found.items()} == {"cls": (2, 16), "projection": (2, 6)}
    # The same transformer by torch's own layers.
    tokens = torch.conv2d(
        extractor.normalize(images), state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16
    )
    tokens = torch.cat([state["cls_token"].expand(2, -1, -1), tokens.flatten(2).transpose(1, 2)], 1) + state["pos_embed"]
    for index in range(15):
        block = {
            key.removeprefix(f"blocks.{index}."): value for key, value in state.items() if key.startswith(f"blocks.{index}.")
        }
        layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, nn.functional.gelu, 1e-6, batch_first=True, norm_first=True).eval()
        names = {"attn.qkv.weight": "self_attn.in_proj_weight", "attn.qkv.bias": "self_attn.in_proj_bias"}
        parts = {
            "attn.proj": "self_attn.out_proj",
            "mlp.fc1": "linear1",
            "mlp.fc2": "linear2",
            "norm1": "norm1",
            "norm2": "norm2",
        }
        for ours, theirs in parts.items():
            names |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
        layer.load_state_dict({names[key]: value for key, value in block.items()})
        tokens = layer(tokens)
    expected = nn.functional.layer_norm(tokens[:, 0], (16,), state["norm.weight"], state["norm.bias"], 1e-6)
    torch.testing.assert_close(found["cls"], expected, atol=1e-4, rtol=1e-4)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    state = random_state()
    for key, message in (("norm.weight", "no entry norm.weight"), ("extra", "unexpected entry extra")):
        changed = {**state, "extra": torch.zeros(1)} if key == "extra" else {k: v for k, v in state.items() if k != key}
        with pytest.raises(ValueError, match=message):
            Tiny(changed, "0" * 64)
    with pytest.raises(
        FileNotFoundError, match="takes its weights by file: get them from https://dl.fbaipublicfiles.com/moco-v3"
    ):
        build_extractor("mocov3-vit-b")
    with pytest.raises(ValueError, match="takes images of 224 px only, got input size 96"):
        build_extractor("mocov3-vit-b", input_size=96)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_extractor("mocov3-vit-b", weights=tmp_path / "missing.pth.tar")


@pytest.mark.parametrize(("cls", "millions"), [(MoCoV3ViTS, 41.0), (MoCoV3ViTB, 107.0), (MoCoV3ViTL, 326.0)])
def test_sizes(cls: type[MoCoV3], millions: float) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in MoCoV3Network(cls.size).parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.02)
