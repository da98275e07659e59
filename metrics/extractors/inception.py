"""Inception-v3 as in TensorFlow's graph of 2015-12-05, the network that FID, sFID, KID and the Inception
Score are defined on.

Szegedy et al., arXiv:1512.00567. It differs from torchvision's in three ways, which the published weights
expect: average pools leave the padding out of the mean, the last block pools by maximum, and there are 1008
classes. Weight files have the key layout of torchvision's ``inception_v3``, as pytorch-fid and torch-fidelity
distribute them; each batch norm is folded into its convolution when a file is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metrics.extractors.base import FeatureExtractor, fold_batch_norm
from metrics.extractors.conv_relu import ConvReLU
from metrics.files.weights import WeightsFile, load_tensors, resolve_weights

WEIGHTS = WeightsFile(
    filename="pt_inception-2015-12-05-6726825d.pth",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
    megabytes=91,
)
_INPUT_SIZE = 299
_NUM_CLASSES = 1008
_BATCH_NORM_EPS = 1e-3  # torchvision's BasicConv2d and the TF graph.
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_SPATIAL_CHANNELS = 7  # sFID (Nash et al., arXiv:2103.03841) takes the first 7 channels of mixed_6/conv.
_TF_CENTER = 128.0  # The TF graph: (x - 128) / 128.
_PYTORCH_FID_SCALE = 256.0 / 255.0

Pool = Literal["average", "max", "stride"]
Size = tuple[int, int]


@dataclass(frozen=True)
class Conv:
    """A convolution of a block: name, width, kernel; it keeps the size unless its stride is 2 (then no padding)."""

    name: str
    channels: int
    kernel: Size = (1, 1)
    stride: int = 1


#: A branch is convolutions in a row; a tuple among them forks into parallel ones, concatenated.
Branch = Sequence[Conv | tuple[Conv, Conv]]


def _build_conv(in_channels: int, conv: Conv) -> ConvReLU:
    padding = (0, 0) if conv.stride == 2 else (conv.kernel[0] // 2, conv.kernel[1] // 2)
    return ConvReLU(in_channels, conv.channels, conv.kernel, stride=conv.stride, padding=padding)


class MixedBlock(nn.Module):
    """Parallel branches and a pool, concatenated over channels.

    Args:
        in_channels: Width of the input.
        branches: Convolutions by branch, in the order of concatenation.
        pool: "average" (3x3, padding left out), "max" (3x3), or "stride" (3x3 maximum with stride 2).
        pool_channels: Width of the 1x1 convolution after the pool; None for none.
    """

    def __init__(self, in_channels: int, branches: Sequence[Branch], pool: Pool, pool_channels: int | None = None) -> None:
        super().__init__()
        self.branches = branches
        self.pool: Pool = pool
        for branch in branches:
            width = in_channels
            for step in branch:
                for conv in step if isinstance(step, tuple) else (step,):
                    self.add_module(conv.name, _build_conv(width, conv))
                width = sum(conv.channels for conv in step) if isinstance(step, tuple) else step.channels
        if pool_channels is not None:
            self.branch_pool = _build_conv(in_channels, Conv("branch_pool", pool_channels))

    def forward(self, images: Tensor) -> Tensor:
        outputs = []
        for branch in self.branches:
            x = images
            for step in branch:
                if isinstance(step, tuple):
                    x = torch.cat([self.get_submodule(conv.name)(x) for conv in step], 1)
                else:
                    x = self.get_submodule(step.name)(x)
            outputs.append(x)
        outputs.append(self._pooled(images))
        return torch.cat(outputs, 1)

    def _pooled(self, images: Tensor) -> Tensor:
        if self.pool == "stride":
            return F.max_pool2d(images, 3, stride=2)
        if self.pool == "max":
            return self.branch_pool(F.max_pool2d(images, 3, stride=1, padding=1))
        # The published order is mean, then 1x1 convolution. Both are linear and the mean leaves padding out, so the
        # convolution may go first: the mean then runs over 32 to 192 channels instead of 192 to 1280.
        return F.avg_pool2d(self.branch_pool.project(images), 3, stride=1, padding=1, count_include_pad=False).relu_()


def _block_a(in_channels: int, pool_channels: int) -> MixedBlock:
    branches: list[Branch] = [
        [Conv("branch1x1", 64)],
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))],
    ]
    return MixedBlock(in_channels, branches, "average", pool_channels)


def _block_b(in_channels: int) -> MixedBlock:
    branches: list[Branch] = [
        [Conv("branch3x3", 384, (3, 3), 2)],
        [
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2),
        ],
    ]
    return MixedBlock(in_channels, branches, "stride")


def _block_c(width: int) -> MixedBlock:
    branches: list[Branch] = [
        [Conv("branch1x1", 192)],
        [Conv("branch7x7_1", width), Conv("branch7x7_2", width, (1, 7)), Conv("branch7x7_3", 192, (7, 1))],
        [
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ],
    ]
    return MixedBlock(768, branches, "average", 192)


def _block_d(in_channels: int) -> MixedBlock:
    branches: list[Branch] = [
        [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)],
        [
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ],
    ]
    return MixedBlock(in_channels, branches, "stride")


def _block_e(in_channels: int, pool: Pool) -> MixedBlock:
    branches: list[Branch] = [
        [Conv("branch1x1", 320)],
        [Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))],
        [
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ],
    ]
    return MixedBlock(in_channels, branches, pool, 192)


class InceptionV3(FeatureExtractor):
    """Inception-v3 of 2015-12-05.

    Features (at 299 px): ``64``, ``192``, ``768`` (means of earlier maps, pytorch-fid's ``--dims``), ``pool3`` (2048-d,
    FID), ``spatial`` (7 channels of 17x17, sFID), ``logits_unbiased`` (1008-d, without the last bias, Inception
    Score), ``logits``.

    Args:
        state: State dict in torchvision's layout.
        weights_sha256: sha256 of the file it came from.
    """

    name = "inception-v3"
    embedding = "pool3"
    class_logits = "logits_unbiased"
    frechet_names: ClassVar[dict[str, str]] = {"pool3": "fid", "spatial": "sfid"}
    #: Its maps are large and its convolutions choose oneDNN themselves (8 instead of 50: 1.45 times as fast).
    microbatch: ClassVar[int] = 8

    def __init__(self, state: Mapping[str, Tensor], weights_sha256: str) -> None:
        super().__init__()
        self.input_size = _INPUT_SIZE
        self.weights_sha256 = weights_sha256
        self.feature_dims = {
            "64": 64,
            "192": 192,
            "768": 768,
            "pool3": 2048,
            "spatial": _SPATIAL_CHANNELS * 17 * 17,
            "logits_unbiased": _NUM_CLASSES,
            "logits": _NUM_CLASSES,
        }
        with torch.device("meta"):  # No time is spent on initial weights: the file's take their place.
            self._build()
        self._load_folded(state)

    def _build(self) -> None:
        # Names are the weight file's.
        self.Conv2d_1a_3x3 = ConvReLU(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvReLU(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvReLU(80, 192, 3)
        self.Mixed_5b = _block_a(192, pool_channels=32)
        self.Mixed_5c = _block_a(256, pool_channels=64)
        self.Mixed_5d = _block_a(288, pool_channels=64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, pool="average")
        self.Mixed_7c = _block_e(2048, pool="max")
        self.fc = nn.Linear(2048, _NUM_CLASSES)

    @classmethod
    def from_file(cls, weights: Path | None, input_size: int | None) -> Self:
        """Build the network from the published file, or from one in its layout."""
        if input_size not in (None, _INPUT_SIZE):
            raise ValueError(f"inception-v3 takes images of {_INPUT_SIZE} px only, got input size {input_size}.")
        path, digest = resolve_weights(WEIGHTS, weights)
        return cls(load_tensors(path), digest)

    def _load_folded(self, state: Mapping[str, Tensor]) -> None:
        """Fold every batch norm and fill every weight; a key too few, too many or of another shape is an error."""
        unused = {key for key in state if not key.endswith("num_batches_tracked")}
        folded: dict[str, Tensor] = {}

        def take(key: str) -> Tensor:
            if key not in state:
                raise ValueError(f"weights have no entry {key}: they are not those of the FID Inception-v3.")
            unused.discard(key)
            return state[key]

        for name, module in self.named_modules():
            if isinstance(module, ConvReLU):
                conv = take(f"{name}.conv.weight")
                gamma, beta, mean, var = (take(f"{name}.bn.{part}") for part in _NORM_PARTS)
                if conv.shape != module.weight.shape or any(part.shape != conv.shape[:1] for part in (gamma, beta, mean, var)):
                    raise ValueError(f"weights have the wrong shape at {name}: they are not those of the FID Inception-v3.")
                folded[f"{name}.weight"], folded[f"{name}.bias"] = fold_batch_norm(conv, gamma, beta, mean, var, _BATCH_NORM_EPS)
        folded["fc.weight"], folded["fc.bias"] = take("fc.weight").float(), take("fc.bias").float()
        if folded["fc.weight"].shape != self.fc.weight.shape or folded["fc.bias"].shape != self.fc.bias.shape:
            raise ValueError("weights have the wrong shape at fc: they are not those of the FID Inception-v3 (1008 classes).")
        if unused:
            raise ValueError(f"weights have the unexpected entry {min(unused)}: they are not those of the FID Inception-v3.")
        self.load_state_dict(folded, assign=True)

    def match_protocol(self, images: Tensor, resizer: str) -> Tensor:
        """Scale for pytorch-fid, which maps [0, 255] onto [-1, 1]; ``forward`` follows TF's (x - 128) / 128."""
        return images * _PYTORCH_FID_SCALE if resizer == "pytorch-fid" else images

    def normalization(self, resizer: str) -> str:
        """Describe how pixel values enter the network."""
        return "x / 127.5 - 1" if resizer == "pytorch-fid" else "(x - 128) / 128"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute all features of images, float32 (B, 3, 299, 299) in [0, 255]."""
        return self.compute(images, self.feature_dims)

    def compute(self, images: Tensor, features: Iterable[str]) -> dict[str, Tensor]:
        """Compute the features named of images, float32 (B, 3, 299, 299) in [0, 255]."""
        wanted = set(features)
        found: dict[str, Tensor] = {}
        x = ((images - _TF_CENTER) / _TF_CENTER).contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 64, 73, 73)
        if "64" in wanted:
            found["64"] = x.mean((2, 3))  # (B, 64)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        if "192" in wanted:
            found["192"] = x.mean((2, 3))  # (B, 192)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6a(x)  # (B, 768, 17, 17)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))  # (B, 768, 17, 17)
        if "spatial" in wanted:
            # Mixed_6d is TF's mixed_6, and its first channels are those of its 1x1 branch, TF's mixed_6/conv.
            found["spatial"] = x[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, 2023), TF's order
        x = self.Mixed_6e(x)  # (B, 768, 17, 17)
        if "768" in wanted:
            found["768"] = x.mean((2, 3))  # (B, 768)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        found["pool3"] = x.mean((2, 3))  # (B, 2048)
        if wanted & {"logits", "logits_unbiased"}:
            found["logits_unbiased"] = found["pool3"] @ self.fc.weight.T  # (B, 1008)
            found["logits"] = found["logits_unbiased"] + self.fc.bias  # (B, 1008)
        return found
