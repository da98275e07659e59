from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metrics.extractors import build_extractor
from metrics.extractors.clip import CLIPImageEncoder, CLIPViTB32, CLIPViTL14At336, VisionTower
from metrics.files.weights import WeightsFile

_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


class TinyCLIP(CLIPImageEncoder):
    name = "clip-tiny"
    tower = VisionTower(image_size=28, patch_size=7, width=64, layers=2, heads=4, embed_dim=24)
    weights_file = WeightsFile("tiny.pt", "https://example.invalid/tiny.pt", "0" * 64, 1)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 255 * torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def open_clip_model() -> Any:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 28, "layers": 2, "width": 64, "patch_size": 7, "head_width": 16},
        text_cfg={"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
        quick_gelu=True,
    ).eval()


@pytest.fixture(scope="module")
def expected(open_clip_model: Any, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return open_clip_model.encode_image((images / 255 - _MEAN) / _STD)


def _embed(network: CLIPImageEncoder, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network.freeze()(images)["embedding"]


def test_equals_open_clip(open_clip_model: Any, expected: Tensor, images: Tensor) -> None:
    ours = TinyCLIP(open_clip_model.state_dict(), "0" * 64)
    torch.testing.assert_close(_embed(ours, images), expected, rtol=1e-4, atol=1e-5)
    assert ours.feature_dims == {"embedding": 24} and ours.embedding == "embedding"


def test_reads_open_clips_safetensors(open_clip_model: Any, expected: Tensor, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in open_clip_model.state_dict().items()}, path)
    ours = TinyCLIP.from_file(path, None)
    torch.testing.assert_close(_embed(ours, images), expected, rtol=1e-4, atol=1e-5)
    assert ours.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


class _Visual(nn.Module):
    """Parameters of a vision tower under their dotted names, as OpenAI's archive holds them."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for key, value in state.items():
            *path, leaf = key.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.proj


class _Archive(nn.Module):
    def __init__(self, visual: _Visual) -> None:
        super().__init__()
        self.visual = visual
        self.token_embedding = nn.Embedding(8, 8)
        self.register_buffer("input_resolution", torch.tensor(28))
        self.register_buffer("context_length", torch.tensor(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x)


@pytest.fixture
def archive(open_clip_model: Any, tmp_path: Path) -> Path:
    """A TorchScript archive laid out like OpenAI's: half precision, a text tower, sizes as buffers."""
    path = tmp_path / "tiny.pt"
    visual = _Visual({key: value.clone() for key, value in open_clip_model.visual.state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have another format; OpenAI's is this one.
        torch.jit.save(torch.jit.trace(_Archive(visual).half(), torch.zeros(1, 64).half()), path)
    return path


def test_reads_a_torchscript_archive_of_known_hash(
    archive: Path, expected: Tensor, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(TinyCLIP, "weights_file", WeightsFile("cached.pt", archive.as_uri(), digest, 1))
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    for weights in (None, archive):  # Downloaded and verified; named by the user.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = TinyCLIP.from_file(weights, 28)
        assert ours.weights_sha256 == digest
        assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
        difference = (_embed(ours, images) - expected).abs().max() / expected.abs().max()
        assert difference < 5e-3  # The archive's weights are half precision.


def test_refuses_a_torchscript_archive_of_another_hash(archive: Path) -> None:
    with pytest.raises(ValueError, match=r"is a TorchScript archive but not OpenAI's tiny\.pt .*as safetensors"):
        TinyCLIP.from_file(archive, None)
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02")] ^= 0xFF  # An entry of the archive's table of contents.
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="can't be read: it is corrupt"):
        TinyCLIP.from_file(archive, None)


def _hugging_face_model() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    vision = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # Their initial weights are too small to tell one from another.
            parameter.copy_(torch.randn(parameter.shape) * (0.15 if parameter.ndim > 1 else 1.0))
    return model


def test_equals_transformers_in_hugging_faces_layout(images: Tensor, tmp_path: Path) -> None:
    model = _hugging_face_model()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]  # A constant that old files carry.
    assert "vision_model.pre_layrnorm.weight" in state and any(key.startswith("text_model.") for key in state)
    save_file(state, tmp_path / "model.safetensors")
    ours = TinyCLIP.from_file(tmp_path / "model.safetensors", None)
    with torch.inference_mode():
        pixels = (images / 255 - _MEAN) / _STD
        theirs = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(_embed(ours, images), theirs, rtol=1e-4, atol=1e-5)


def test_refuses_other_weights(open_clip_model: Any) -> None:
    state = open_clip_model.state_dict()
    with pytest.raises(ValueError, match=r"an unexpected entry visual\.extra: they are not those of clip-tiny"):
        TinyCLIP({**state, "visual.extra": torch.zeros(1)}, "")
    with pytest.raises(ValueError, match=r"a misshapen entry visual\.conv1\.weight: it gives \(3, 3\)"):
        TinyCLIP({**state, "visual.conv1.weight": torch.zeros(3, 3)}, "")
    del state["visual.proj"]
    with pytest.raises(ValueError, match=r"no entry visual\.proj"):
        TinyCLIP(state, "")
    hugging_face = dict(_hugging_face_model().state_dict())
    with pytest.raises(ValueError, match=r"an unexpected entry vision_model\.extra"):
        TinyCLIP({**hugging_face, "vision_model.extra": torch.zeros(1)}, "")
    del hugging_face["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"no entry vision_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias"):
        TinyCLIP(hugging_face, "")


@pytest.mark.parametrize(
    ("cls", "config_name"), [(CLIPViTL14At336, "ViT-L-14-336-quickgelu"), (CLIPViTB32, "ViT-B-32-quickgelu")]
)
def test_sizes_and_addresses_are_open_clips(cls: type[CLIPImageEncoder], config_name: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config(config_name)
    vision, tower = config["vision_cfg"], cls.tower
    assert (tower.image_size, tower.patch_size) == (vision["image_size"], vision["patch_size"])
    assert (tower.width, tower.layers, tower.embed_dim) == (vision["width"], vision["layers"], config["embed_dim"])
    assert tower.width // tower.heads == vision.get("head_width", 64)
    assert cls.weights_file.url == open_clip.get_pretrained_url(config_name.removesuffix("-quickgelu"), "openai")
    assert cls.weights_file.sha256 in cls.weights_file.url and len(cls.weights_file.sha256) == 64


def test_has_one_input_size() -> None:
    with pytest.raises(ValueError, match="clip-vit-b-32 takes images of 224 px only, got input size 299"):
        build_extractor("clip-vit-b-32", input_size=299)
    assert CLIPViTB32.frechet_names == {"embedding": "clip_fid"} and CLIPViTL14At336.frechet_names == {}
    assert (CLIPViTB32.default_resizer, CLIPViTL14At336.default_resizer) == ("clip-fid", "cmmd")


@pytest.mark.network
def test_published_weights_load() -> None:
    network = build_extractor("clip-vit-b-32")
    assert network(torch.full((1, 3, 224, 224), 127.0))["embedding"].isfinite().all()
