"""MSN: official files, features beside transformers' implementation, wrong files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metrics.extractors import build_extractor
from metrics.extractors.msn import MSN, MSNViTB4, MSNViTB16, MSNViTL7, MSNViTL16, MSNViTS16
from metrics.extractors.vit import VisionTransformer, ViTSize

# Names that transformers 5 has and those that 4 had: of blocks, of their parts by ours, of what is outside them.
BLOCKS = ("layers", "encoder.layer")
PARTS = {
    "norm1": ("layernorm_before", "layernorm_before"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
}
QUERY_KEY_VALUE = (("q_proj", "k_proj", "v_proj"), ("attention.query", "attention.key", "attention.value"))
OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


class Tiny(MSN):
    name = "msn-tiny"
    size = ViTSize(width=16, layers=2, heads=2, patch_size=56)
    file = "nowhere"


def random_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = VisionTransformer(Tiny.size)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.state_dict()


def save_official(state: dict[str, Tensor], path: Path) -> Path:
    """As the authors' training saves: with the heads, the other encoder and the optimizer."""
    heads = {"module.fc.fc1.weight": torch.ones(3, 16), "module.pred.0.bias": torch.ones(2)}
    target = {f"module.{key}": value for key, value in state.items()} | heads
    other = {key: torch.zeros_like(value) for key, value in target.items()}
    content = {"encoder": other, "opt": {"state": {0: {"step": 3}}, "param_groups": []}, "prototypes": torch.ones(4, 2)}
    torch.save({**content, "target_encoder": target, "epoch": 800, "loss": 1.5}, path)
    return path


def of_transformers(state: dict[str, Tensor], version: int) -> dict[str, Tensor]:
    """A state dict by the names of transformers."""
    renamed = {OUTSIDE[key]: value for key, value in state.items() if key in OUTSIDE}
    for key, value in state.items():
        if (match := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key)) is None:
            continue
        index, part, kind = match.groups()
        block = f"{BLOCKS[version]}.{index}"
        if part == "attn.qkv":
            rows = zip(QUERY_KEY_VALUE[version], value.chunk(3), strict=True)
            renamed |= {f"{block}.attention.{name}.{kind}": tensor for name, tensor in rows}
        else:
            renamed[f"{block}.{PARTS[part][version]}.{kind}"] = value
    return renamed


def test_features_of_an_official_file(tmp_path: Path) -> None:
    from transformers import ViTMSNConfig, ViTMSNModel

    state = random_state()
    extractor = Tiny.from_file(save_official(state, tmp_path / "vits16.pth.tar"), None).freeze()
    config = ViTMSNConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=56)
    model = ViTMSNModel(config).eval()
    model.load_state_dict(of_transformers(state, 0 if "layers.0.layernorm_before.weight" in model.state_dict() else 1))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        expected = model(pixel_values=extractor.normalize(images)).last_hidden_state[:, 0]
        found = extractor(images)
    assert list(found) == list(extractor.feature_dims) == ["last_block", "cls"]
    torch.testing.assert_close(found["cls"], expected, atol=1e-5, rtol=1e-5)
    normed = nn.functional.layer_norm(found["last_block"], (16,), state["norm.weight"], state["norm.bias"], 1e-6)
    torch.testing.assert_close(normed, expected, atol=1e-5, rtol=1e-5)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    state = random_state()
    for changed, message in (
        ({key: value for key, value in state.items() if key != "norm.weight"}, "no entry norm.weight"),
        (state | {"extra": torch.zeros(1)}, "unexpected entry extra"),
        (state | {"pos_embed": torch.zeros(1, 197, 16)}, r"misshapen entry pos_embed: it gives \(1, 197, 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Tiny(changed, "0" * 64)
    address = "https://dl.fbaipublicfiles.com/msn/vitl7_200ep.pth.tar"
    with pytest.raises(FileNotFoundError, match=f"msn-vit-l-7 takes its weights by file: get them from {address}"):
        build_extractor("msn-vit-l-7")
    with pytest.raises(ValueError, match="msn-vit-s-16 takes images of 224 px only, got input size 96"):
        build_extractor("msn-vit-s-16", input_size=96)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_extractor("msn-vit-b-16", weights=tmp_path / "missing.pth.tar")


@pytest.mark.parametrize(
    ("cls", "millions", "patches"),
    [
        (MSNViTS16, 21.7, 14),
        (MSNViTB16, 85.8, 14),
        (MSNViTL16, 303.3, 14),
        (MSNViTB4, 87.6, 56),
        (MSNViTL7, 303.7, 32),
    ],
)
def test_sizes(cls: type[MSN], millions: float, patches: int) -> None:
    with torch.device("meta"):
        network = VisionTransformer(cls.size)
    assert network.pos_embed.shape[1] == 1 + patches**2
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
