"""Our Inception-v3 against the two that the field uses, on shared seeded weights and each tool's own resize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metrics.extractors import build_extractor
from metrics.extractors.inception import InceptionV3
from metrics.resize import build_resizer
from metrics.scores.frechet import frechet_distance_from_features

_COUNT = 3


@pytest.fixture(scope="module")
def ours(inception_state: dict[str, Tensor]) -> InceptionV3:
    # Counters of batch norm are optional: the published file has none.
    state = {key: value for key, value in inception_state.items() if not key.endswith("num_batches_tracked")}
    return InceptionV3(state, "0" * 64).freeze()


@pytest.fixture
def _no_initial_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the oracles the seconds that they would spend on weights about to be replaced."""
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, *args, **kwargs: tensor)


@pytest.fixture(scope="module")
def images(smooth_images: Any) -> Tensor:
    """Three real and three fake, of an odd size."""
    return torch.cat([smooth_images(_COUNT, 44, 60, seed=0), smooth_images(_COUNT, 44, 60, seed=1, contrast=90.0)])


def _extract(network: InceptionV3, images: Tensor, resizer: str) -> dict[str, Tensor]:
    with torch.inference_mode():
        return network(network.match_protocol(build_resizer(resizer)(images, network.input_size), resizer))


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _fid(features: Tensor) -> float:
    return frechet_distance_from_features(features[:_COUNT], features[_COUNT:])


@pytest.mark.usefixtures("_no_initial_weights")
def test_equals_pytorch_fid(ours, images, inception_state, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: inception_state)
    theirs: nn.Module = module.InceptionV3([0, 1, 2, 3]).eval()
    with torch.inference_mode():
        maps = theirs(images / 255)
    features = _extract(ours, images, "pytorch-fid")
    for name, expected in zip(("64", "192", "768", "pool3"), maps, strict=True):
        assert _relative_error(features[name], expected.mean((2, 3))) < 1e-4, name
    assert _fid(features["pool3"]) == pytest.approx(_fid(maps[3].flatten(1)), rel=1e-5)


@pytest.mark.usefixtures("_no_initial_weights")
def test_equals_torch_fidelity(ours, images, inception_state, tmp_path: Path) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.save(inception_state, tmp_path / "weights.pth")
    names = ["64", "192", "768", "2048", "logits_unbiased", "logits"]
    theirs = module.FeatureExtractorInceptionV3("oracle", names, feature_extractor_weights_path=str(tmp_path / "weights.pth"))
    with torch.inference_mode():
        expected = dict(zip(names, theirs(images), strict=True))
    features = _extract(ours, images, "tensorflow")
    features["2048"] = features["pool3"]
    for name in names:
        assert _relative_error(features[name], expected[name]) < 1e-4, name
    assert _fid(features["pool3"]) == pytest.approx(_fid(expected["2048"]), rel=1e-5)


def test_shapes_and_spatial_feature(ours, images) -> None:
    assert not ours.training and not any(parameter.requires_grad for parameter in ours.parameters())
    assert not ours.train().training, "a score must not depend on the batch through batch norm"
    pixels = build_resizer("clean")(images[:2], ours.input_size)
    recorded: dict[str, Tensor] = {}
    handle = ours.Mixed_6d.get_submodule("branch1x1").register_forward_hook(
        lambda module, args, output: recorded.update(out=output)
    )
    with torch.inference_mode():
        features = ours(pixels)
    handle.remove()
    assert {name: value.shape[1] for name, value in features.items()} == ours.feature_dims
    assert all(value.dtype == torch.float32 for value in features.values())
    # sFID: the first 7 channels of mixed_6/conv, positions first as TF lays them out.
    assert torch.equal(features["spatial"].view(2, 17, 17, 7), recorded["out"][:, :7].permute(0, 2, 3, 1))
    # pytorch-fid maps white to 1 and black to -1, TF does not reach 1.
    assert ours.match_protocol(torch.tensor(255.0), "pytorch-fid") == pytest.approx(256.0)
    assert ours.match_protocol(torch.tensor(255.0), "clean") == 255.0


def test_refuses_other_weights(inception_state) -> None:
    missing = {key: value for key, value in inception_state.items() if key != "Mixed_6a.branch3x3.conv.weight"}
    with pytest.raises(ValueError, match=r"no entry Mixed_6a\.branch3x3\.conv\.weight"):
        InceptionV3(missing, "")
    with pytest.raises(ValueError, match=r"unexpected entry AuxLogits\.fc\.weight"):
        InceptionV3({**inception_state, "AuxLogits.fc.weight": torch.zeros(1)}, "")
    with pytest.raises(ValueError, match="wrong shape at fc"):
        InceptionV3({**inception_state, "fc.weight": torch.zeros(1000, 2048)}, "")
    with pytest.raises(ValueError, match="wrong shape at Conv2d_1a_3x3"):
        InceptionV3({**inception_state, "Conv2d_1a_3x3.bn.bias": torch.zeros(31)}, "")


def test_has_one_input_size() -> None:
    with pytest.raises(ValueError, match="299 px only, got input size 96"):
        build_extractor("inception-v3", input_size=96)
