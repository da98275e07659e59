from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models._api import register_model

from metrics.extractors import build_extractor
from metrics.extractors.torchvision_classifier import VGG16, ResNet50, TorchvisionClassifier
from metrics.files.weights import WeightsFile
from metrics.resize import build_resizer


class MobileNet(TorchvisionClassifier):
    """Another torchvision classifier, as a user would add one."""

    name = "mobilenet-v3-small"
    embedding = "penultimate"
    architecture = "mobilenet_v3_small"
    last_layer = "classifier.3"
    weights_file = WeightsFile("mobilenet_v3_small-047dcff4.pth", "https://example.invalid/m.pth", "047dcff4", 10)


class VGG11WithNorm(TorchvisionClassifier):
    """Convolutions with a bias before their batch norms."""

    name = "vgg11-bn"
    embedding = "fc2"
    architecture = "tiny_vgg_bn"
    last_layer = "classifier.1"
    weights_file = WeightsFile("vgg.pth", "https://example.invalid/v.pth", "", 1)


@register_model(name="tiny_vgg_bn")
def _tiny_vgg_bn(weights: None = None) -> nn.Module:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
            self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(8, 5))

        def forward(self, images: Tensor) -> Tensor:
            return self.classifier(self.features(images).mean((2, 3)))

    return Network()


def _seeded(network: nn.Module) -> nn.Module:
    """Weights that keep activations near unit size, and batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2.0 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "weight")):
                tensor.copy_(0.3 + 0.4 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


def _pixels(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


def _assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_resnet50_equals_torchvision(images: Tensor, tmp_path: Path) -> None:
    theirs = _seeded(models.resnet50(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = ResNet50.from_file(tmp_path / "weights.pth", 64).freeze()
    pooled: list[Tensor] = []
    theirs.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(output.flatten(1)))
    with torch.inference_mode():
        features, logits = ours(images), theirs(_pixels(images))
    _assert_close(features["pooled"], pooled[0])
    _assert_close(features["logits"], logits)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    assert ours.feature_dims == {"pooled": 2048, "logits": 1000} and ours.class_logits == "logits"
    assert (ours.input_size, ours.default_resizer, len(ours.weights_sha256)) == (64, "clean", 64)


@pytest.mark.parametrize("cls", [MobileNet, VGG11WithNorm])
def test_another_classifier_is_a_few_lines(cls: type[TorchvisionClassifier], images: Tensor) -> None:
    theirs = _seeded(models.get_model(cls.architecture, weights=None))
    ours = cls(theirs.state_dict(), "", 64).freeze()
    before: list[Tensor] = []
    theirs.get_submodule(cls.last_layer).register_forward_hook(lambda module, inputs, output: before.append(inputs[0]))
    with torch.inference_mode():
        features, logits = ours(images), theirs(_pixels(images))
    _assert_close(features[ours.embedding], before[0])
    _assert_close(features["logits"], logits)
    # The tiny VGG's second batch norm follows a ReLU, so it can't be folded and stays.
    num_norms = sum(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    assert num_norms == (1 if cls is VGG11WithNorm else 0)


@pytest.mark.slow
def test_vgg16_equals_torch_fidelity(tmp_path: Path) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_vgg16")
    state = _seeded(models.vgg16(weights=None)).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    theirs = module.FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=tmp_path / "weights.pth")
    images = torch.randint(0, 256, (2, 3, 80, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    ours = VGG16.from_file(tmp_path / "weights.pth", None).freeze()
    with torch.inference_mode():
        features = ours(build_resizer("tensorflow")(images, 224))
        (expected,) = theirs(images)
    _assert_close(features["fc2"], expected)
    assert (expected == 0).any() and ours.feature_dims == {"fc2": 4096, "logits": 1000}


def test_vgg16_ends_in_fc2_and_its_relu() -> None:
    with torch.device("meta"):
        network = models.vgg16(weights=None)
    assert isinstance(network, nn.Module) and VGG16.last_layer == "classifier.6"
    fc2, relu, last = (network.get_submodule(f"classifier.{index}") for index in (3, 4, 6))
    assert isinstance(fc2, nn.Linear) and fc2.out_features == 4096
    assert isinstance(relu, nn.ReLU) and isinstance(last, nn.Linear)


@pytest.mark.parametrize(
    ("cls", "weights"), [(ResNet50, models.ResNet50_Weights.IMAGENET1K_V2), (VGG16, models.VGG16_Weights.IMAGENET1K_V1)]
)
def test_files_are_torchvisions(cls: type[TorchvisionClassifier], weights: models.WeightsEnum) -> None:
    assert cls.weights_file.url == weights.url
    assert weights.url.endswith(f"/{cls.weights_file.filename}")
    assert cls.weights_file.filename.endswith(f"-{cls.weights_file.sha256}.pth")


def test_refuses_other_weights() -> None:
    state = _seeded(models.get_model("tiny_vgg_bn", weights=None)).state_dict()
    without_counters = {key: value for key, value in state.items() if "num_batches" not in key}
    assert VGG11WithNorm(without_counters, "").feature_dims == {"fc2": 8, "logits": 5}
    with pytest.raises(ValueError, match=r"an unexpected entry fc\.weight: they are not those of vgg11-bn"):
        VGG11WithNorm({**state, "fc.weight": torch.zeros(1)}, "")
    with pytest.raises(ValueError, match=r"a misshapen entry classifier\.1\.bias: it gives \(4,\) where vgg11-bn needs \(5,\)"):
        VGG11WithNorm({**state, "classifier.1.bias": torch.zeros(4)}, "")
    del state["features.1.running_mean"]
    with pytest.raises(ValueError, match=r"no entry features\.1\.running_mean"):
        VGG11WithNorm(state, "")
    with pytest.raises(ValueError, match="input size of resnet50 must be at least 32 px, got 16"):
        ResNet50({}, "", 16)


@pytest.mark.network
def test_resnet50_recognises_a_real_photograph() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    network = build_extractor("resnet50")
    temple, flower = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None] for image in datasets.load_sample_images().images)
    with torch.inference_mode():
        top5 = [network(build_resizer("clean")(image, 224))["logits"].topk(5).indices[0].tolist() for image in (temple, flower)]
    assert {497, 538, 663, 698, 708, 832} & set(top5[0])  # church, dome, monastery, palace, pedestal, stupa
    assert {985, 723, 308, 309, 738, 955, 324, 325, 301, 716, 721, 883} & set(top5[1])  # daisy and what comes with flowers
