from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from metrics import registry
from metrics.extractors import build_extractor
from metrics.extractors.dinov2 import DINOv2, DINOv2Size, DINOv2ViTG14, DINOv2ViTL14, _source
from metrics.files.weights import WeightsFile

pytest.importorskip("transformers")

_FILE = WeightsFile("tiny.pth", "https://example.invalid/tiny.pth", "", 1)
_WIDTH, _LAYERS, _HEADS, _GRID = 24, 2, 3, 37
_SWIGLU_WIDTH = 64  # Two thirds of four times the width, rounded up to a multiple of 8.


class Tiny(DINOv2):
    name = "dinov2-tiny"
    size = DINOv2Size(width=_WIDTH, layers=_LAYERS, heads=_HEADS)
    weights_file = _FILE


class TinySwiGLU(DINOv2):
    name = "dinov2-tiny-swiglu"
    size = DINOv2Size(width=_WIDTH, layers=_LAYERS, heads=_HEADS, swiglu=True)
    weights_file = _FILE


class TinyAtTrainedSize(DINOv2):
    name = "dinov2-tiny-518"
    size = DINOv2Size(width=_WIDTH, layers=_LAYERS, heads=_HEADS, image_size=518)
    weights_file = _FILE


def _official_state(swiglu: bool) -> dict[str, Tensor]:
    """Seeded weights under the names of ``dinov2_vit*14_pretrain.pth``."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, _WIDTH),
        "pos_embed": (1, 1 + _GRID**2, _WIDTH),
        "mask_token": (1, _WIDTH),
        "patch_embed.proj.weight": (_WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": (_WIDTH,),
        "norm.weight": (_WIDTH,),
        "norm.bias": (_WIDTH,),
    }
    linears = {"attn.qkv": (3 * _WIDTH, _WIDTH), "attn.proj": (_WIDTH, _WIDTH)}
    if swiglu:
        linears |= {"mlp.w12": (2 * _SWIGLU_WIDTH, _WIDTH), "mlp.w3": (_WIDTH, _SWIGLU_WIDTH)}
    else:
        linears |= {"mlp.fc1": (4 * _WIDTH, _WIDTH), "mlp.fc2": (_WIDTH, 4 * _WIDTH)}
    for block in range(_LAYERS):
        for name, shape in linears.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{name}"] = (_WIDTH,)
    return {key: torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 1.0) for key, shape in shapes.items()}


def _official_forward(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The published network written out again from its definition: normalised pixels (B, 3, h, w) -> class tokens (B, width)."""
    patches = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    new_grid = patches.shape[-1]
    positions = state["pos_embed"]
    if new_grid != _GRID:
        table = positions[0, 1:].T.view(1, _WIDTH, _GRID, _GRID)
        # The kludge: the coordinate scale is that of 16.1 positions, though 16 come out.
        factor = (new_grid + 0.1) / _GRID
        table = F.interpolate(table, scale_factor=(factor, factor), mode="bicubic", antialias=False)
        positions = torch.cat([positions[:, :1], table.view(1, _WIDTH, -1).mT], 1)
    x = torch.cat([state["cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], 1) + positions
    for index in range(_LAYERS):
        block = {key.removeprefix(f"blocks.{index}."): value for key, value in state.items() if f"blocks.{index}." in key}

        def linear(y: Tensor, name: str, block: dict[str, Tensor] = block) -> Tensor:
            return y @ block[f"{name}.weight"].T + block[f"{name}.bias"]

        def norm(y: Tensor, name: str, block: dict[str, Tensor] = block) -> Tensor:
            return F.layer_norm(y, (_WIDTH,), block[f"{name}.weight"], block[f"{name}.bias"], eps=1e-6)

        qkv = linear(norm(x, "norm1"), "attn.qkv").unflatten(2, (3, _HEADS, _WIDTH // _HEADS)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv  # each (B, heads, tokens, width / heads)
        attention = ((query / (_WIDTH // _HEADS) ** 0.5) @ key.mT).softmax(-1)
        x = x + block["ls1.gamma"] * linear((attention @ value).transpose(1, 2).flatten(2), "attn.proj")
        y = norm(x, "norm2")
        if "mlp.w12.weight" in block:
            gate, up = linear(y, "mlp.w12").chunk(2, -1)
            y = linear(F.silu(gate) * up, "mlp.w3")
        else:
            y = linear(F.gelu(linear(y, "mlp.fc1")), "mlp.fc2")
        x = x + block["ls2.gamma"] * y
    return F.layer_norm(x[:, 0], (_WIDTH,), state["norm.weight"], state["norm.bias"], eps=1e-6)


def _hugging_face_state(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of ``facebook/dinov2-*``."""
    top = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "mask_token": "embeddings.mask_token",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    parts = {
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "mlp.w12": "mlp.weights_in",
        "mlp.w3": "mlp.weights_out",
    }
    state = {}
    for name, tensor in official.items():
        if not name.startswith("blocks."):
            stem = next(key for key in top if name.startswith(key))
            state[top[stem] + name.removeprefix(stem)] = tensor
            continue
        _, index, rest = name.split(".", 2)
        prefix = f"encoder.layer.{index}."
        if rest.startswith("attn.qkv"):
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[f"{prefix}attention.attention.{part}{rest.removeprefix('attn.qkv')}"] = value.contiguous()
            continue
        for old, new in parts.items():
            rest = rest.replace(old, new)
        state[prefix + rest] = tensor
    return state


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 255 * torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def _pixels(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


def _features(network: DINOv2, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.freeze()(images)["cls"]


@pytest.mark.parametrize("cls", [Tiny, TinySwiGLU])
def test_equals_the_official_forward(cls: type[DINOv2], images: Tensor) -> None:
    state = _official_state(cls.size.swiglu)
    network = cls(state, "0" * 64)
    torch.testing.assert_close(_features(network, images), _official_forward(state, _pixels(images)), rtol=1e-4, atol=2e-5)
    assert network.feature_dims == {"cls": _WIDTH} and network.embedding == "cls" and network.input_size == 224


def test_positions_are_not_resampled_as_transformers_does(images: Tensor) -> None:
    state = _official_state(swiglu=False)
    ours = _features(Tiny(state, ""), images)
    # A network that holds all 37 x 37 positions and is given 224 px lets transformers resample them.
    with torch.inference_mode():
        theirs = TinyAtTrainedSize(state, "").network(pixel_values=_pixels(images)).last_hidden_state[:, 0]
    assert (ours - theirs).abs().max() > 50 * (ours - _official_forward(state, _pixels(images))).abs().max()


def test_takes_all_positions_at_the_trained_size() -> None:
    state = _official_state(swiglu=False)
    images = 255 * torch.rand(1, 3, 518, 518, generator=torch.Generator().manual_seed(2))
    expected = _official_forward(state, _pixels(images))
    torch.testing.assert_close(_features(TinyAtTrainedSize(state, ""), images), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("cls", [Tiny, TinySwiGLU])
def test_both_layouts_of_files_are_one_network(cls: type[DINOv2], images: Tensor, tmp_path: Path) -> None:
    official = _official_state(cls.size.swiglu)
    torch.save(official, tmp_path / "dinov2_tiny_pretrain.pth")
    save_file(_hugging_face_state(official), tmp_path / "model.safetensors")
    first = cls.from_file(tmp_path / "dinov2_tiny_pretrain.pth", None)
    second = cls.from_file(tmp_path / "model.safetensors", 224)
    assert torch.equal(_features(first, images), _features(second, images))
    assert first.weights_sha256 != second.weights_sha256


def test_hugging_faces_layout_is_what_transformers_reads(images: Tensor) -> None:
    from transformers import Dinov2Model

    state = _official_state(swiglu=True)
    ours = TinySwiGLU(state, "").freeze()
    published = _hugging_face_state(state)
    del published["embeddings.mask_token"]
    published["embeddings.position_embeddings"] = ours.network.state_dict()["embeddings.position_embeddings"]
    theirs, report = Dinov2Model.from_pretrained(None, config=ours.network.config, state_dict=published, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.inference_mode():
        expected = theirs.eval()(pixel_values=_pixels(images)).pooler_output
    torch.testing.assert_close(_features(ours, images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "official", "hugging_face"),
    [
        # transformers' names before and after its renaming lead to the same entries of files.
        ("attention.attention.key", ("blocks.3.attn.qkv.weight", 1, 3), ("encoder.layer.3.attention.attention.key.weight", 0, 1)),
        ("attention.k_proj", ("blocks.3.attn.qkv.weight", 1, 3), ("encoder.layer.3.attention.attention.key.weight", 0, 1)),
        ("mlp.weights_in", ("blocks.3.mlp.w12.weight", 0, 1), ("encoder.layer.3.mlp.weights_in.weight", 0, 1)),
        ("mlp.up_proj", ("blocks.3.mlp.w12.weight", 1, 2), ("encoder.layer.3.mlp.weights_in.weight", 1, 2)),
        ("norm1", ("blocks.3.norm1.weight", 0, 1), ("encoder.layer.3.norm1.weight", 0, 1)),
    ],
)
def test_names_of_any_transformers(key: str, official: tuple, hugging_face: tuple) -> None:
    for layout, expected in ((True, official), (False, hugging_face)):
        source = _source(f"encoder.layer.3.{key}.weight", layout)
        assert (source.name, source.index, source.count) == expected


def test_refuses_other_weights() -> None:
    state = _official_state(swiglu=False)
    with pytest.raises(ValueError, match=r"an unexpected entry register_tokens: they are not those of dinov2-tiny\."):
        Tiny({**state, "register_tokens": torch.zeros(1, 4, _WIDTH)}, "")
    with pytest.raises(
        ValueError, match=r"a misshapen entry pos_embed: it gives \(1, 257, 24\) where dinov2-tiny needs \(1, 1370,"
    ):
        Tiny({**state, "pos_embed": torch.zeros(1, 257, _WIDTH)}, "")
    with pytest.raises(ValueError, match=r"a misshapen entry blocks\.0\.attn\.qkv\.bias"):
        Tiny({**state, "blocks.0.attn.qkv.bias": torch.zeros(71)}, "")
    with pytest.raises(ValueError, match=r"no entry blocks\.0\.mlp\.w12\.weight"):
        TinySwiGLU(state, "")
    with pytest.raises(ValueError, match="no entry cls_token: they are not those of dinov2-tiny"):
        Tiny({"model.weight": torch.zeros(1)}, "")
    hugging_face = _hugging_face_state(state)
    del hugging_face["encoder.layer.1.attention.attention.value.bias"]
    with pytest.raises(ValueError, match=r"no entry encoder\.layer\.1\.attention\.attention\.value\.bias"):
        Tiny(hugging_face, "")


def test_has_one_input_size() -> None:
    with pytest.raises(ValueError, match="dinov2-vit-l-14 takes images of 224 px only, got input size 299"):
        build_extractor("dinov2-vit-l-14", input_size=299)


def test_only_the_large_one_gives_fd_dinov2() -> None:
    named = {name: registry.load(target).frechet_names for name, target in registry.EXTRACTORS.items() if "dinov2" in name}
    assert named.pop("dinov2-vit-l-14") == {"cls": "fd_dinov2"}
    assert len(named) == 3 and not any(named.values())


@pytest.mark.parametrize(("cls", "num_millions"), [(DINOv2ViTL14, 304.4), (DINOv2ViTG14, 1136.5)])
def test_sizes_are_the_published_ones(cls: type[DINOv2], num_millions: float) -> None:
    # Parameters at 518 px by the official model card, less the mask token.
    from transformers import Dinov2Config, Dinov2Model

    size = cls.size
    config = Dinov2Config(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        image_size=518,
        use_swiglu_ffn=size.swiglu,
    )
    with torch.device("meta"):
        network = Dinov2Model(config)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(num_millions, abs=0.1)
    assert size.width // size.heads == 64


@pytest.mark.network
def test_published_weights_load() -> None:
    network = build_extractor("dinov2-vit-s-14")
    assert network(torch.full((1, 3, 224, 224), 127.0))["cls"].shape == (1, 384)
