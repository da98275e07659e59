"""ImageNet classifiers of torchvision as feature extractors: ResNet-50 and VGG16; another is a class of a few lines.

Batch norms are folded into their convolutions when a file is loaded. Distances on these networks are not FID and are
labelled so. torchvision's files carry the start of their sha256 in their name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, fx, nn

from metrics.extractors.base import IMAGENET_MEAN, IMAGENET_STD, FeatureExtractor, PixelNormalization, fold_batch_norm
from metrics.extractors.weights import WeightReader
from metrics.files.weights import WeightsFile, load_tensors, resolve_weights

_MIN_INPUT_SIZE = 32  # Total stride of these networks: a smaller image leaves no position in the last map.
_BATCH_COUNTER = "num_batches_tracked"  # Of a batch norm in training; not in all files.


class TorchvisionClassifier(FeatureExtractor):
    """A classifier of ``torchvision.models``. Features: what enters its last linear layer, and ``logits``.

    A subclass states the attributes below and ``name``. Any input size of at least 32 px is accepted.

    Args:
        state: State dict in torchvision's layout.
        weights_sha256: sha256 of the file it came from.
        input_size: Side in pixels; None takes ``own_input_size``.

    Raises:
        ValueError: If the state is another network's or the input size is below 32 px.
    """

    #: Name in ``torchvision.models``.
    architecture: ClassVar[str]
    #: torchvision's file of its weights.
    weights_file: ClassVar[WeightsFile]
    #: Path of the last linear layer within the network.
    last_layer: ClassVar[str]
    #: Side in pixels that the weights were trained or tested at.
    own_input_size: ClassVar[int] = 224
    class_logits = "logits"

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str, input_size: int | None = None) -> None:
        super().__init__()
        from torchvision import models

        self.input_size = self.own_input_size if input_size is None else input_size
        if self.input_size < _MIN_INPUT_SIZE:
            raise ValueError(f"input size of {self.name} must be at least {_MIN_INPUT_SIZE} px, got {self.input_size}.")
        self.weights_sha256 = weights_sha256
        with torch.device("meta"):  # No time is spent on initial weights: the file's take their place.
            network = models.get_model(self.architecture, weights=None)
        self._load(network, state)
        classifier = network.get_submodule(self.last_layer)
        assert isinstance(classifier, nn.Linear), f"{self.last_layer} of {self.architecture} is no linear layer"
        network.set_submodule(self.last_layer, nn.Identity())
        self.classifier = classifier
        self.network = _fold_all(network.eval())
        self.normalize = PixelNormalization(IMAGENET_MEAN, IMAGENET_STD)
        self.feature_dims = {self.embedding: classifier.in_features, "logits": classifier.out_features}

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from torchvision's file, or from one in its layout."""
        path, digest = resolve_weights(cls.weights_file, weights)
        return cls(load_tensors(path), digest, input_size)

    def _load(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        reader = WeightReader({key: value for key, value in state.items() if not key.endswith(_BATCH_COUNTER)}, self.name)
        filled = {}
        for key, expected in network.state_dict().items():
            if key.endswith(_BATCH_COUNTER):
                filled[key] = torch.tensor(0)
            else:
                filled[key] = reader.check_shape(key, reader.take(key), expected.shape)
        reader.finish()
        network.load_state_dict(filled, assign=True)

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "ImageNet mean and std"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute both features of images, float32 (B, 3, h, w) in [0, 255]."""
        embedding = self.network(self.normalize(images).contiguous(memory_format=torch.channels_last))  # (B, D)
        return {self.embedding: embedding, "logits": self.classifier(embedding)}  # logits (B, classes)


class ResNet50(TorchvisionClassifier):
    """ResNet-50 (He et al., arXiv:1512.03385), weights IMAGENET1K_V2. Features: ``pooled`` (2048-d) and ``logits``."""

    name = "resnet50"
    embedding = "pooled"
    architecture = "resnet50"
    last_layer = "fc"
    weights_file = WeightsFile(
        filename="resnet50-11ad3fa6.pth",
        url="https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
        sha256="11ad3fa6",
        megabytes=98,
    )


class VGG16(TorchvisionClassifier):
    """VGG16 (Simonyan and Zisserman, arXiv:1409.1556), weights IMAGENET1K_V1. Features: ``fc2`` (4096-d, after its ReLU), the
    one precision and recall are published on, and ``logits``.

    torch-fidelity takes the same file for ``vgg16-fc2-relu`` but resizes by ``tensorflow``. The original precision and recall
    (Kynkaanniemi et al., arXiv:1904.06991) and NVIDIA's StyleGAN code take another VGG16, NVIDIA's own ``vgg16.pkl`` (before:
    ``vgg16_zhang_perceptual.pkl``), so their values differ from those on this one.
    """

    name = "vgg16"
    embedding = "fc2"
    architecture = "vgg16"
    last_layer = "classifier.6"
    weights_file = WeightsFile(
        filename="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af",
        megabytes=528,
    )


def _fold_all(network: nn.Module) -> nn.Module:
    """Fold each batch norm that alone follows a convolution into it; the traced graph says which do, whatever their names."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    traced = fx.symbolic_trace(network)
    for node in list(traced.graph.nodes):
        norm = traced.get_submodule(node.target) if node.op == "call_module" else None
        before = node.args[0] if isinstance(norm, nn.BatchNorm2d) else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv = traced.get_submodule(str(before.target))
        if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
            _fold(conv, norm)
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias.detach()
    weight, bias = fold_batch_norm(
        conv.weight.detach(), norm.weight.detach(), norm.bias.detach(), mean, norm.running_var, norm.eps
    )
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
