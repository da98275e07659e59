"""Multi-scale residual quantisation of VAR (arXiv 2404.02905, algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.tokenizers.base import CodeUse
from generative.tokenizers.convolutional import straight_through
from generative.tokenizers.vector_quantizer import Quantized, make_codebook, nearest_codes

NEAR_TIES: MappingProxyType[tuple[int, int], tuple[int, ...]] = MappingProxyType({(4, 10): (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)})
"""Convolution of each scale by (convolutions, scales), where rounding decides: of the published 10 scales the third and the
eighth lie half-way between two of the 4 convolutions, and this is what the official float64 arithmetic makes of them."""
MIN_RATIO = 1e-6
"""Residual ratio below which the official code has no convolution."""


def phi_indices(num_phis: int, num_scales: int) -> tuple[int, ...]:
    """Which residual convolution each scale uses.

    Scale k stands at k / (K - 1), and takes the convolution nearest to it out of evenly spread ones.

    Args:
        num_phis: Convolutions.
        num_scales: K.

    Returns:
        An index for each scale.
    """
    if (num_phis, num_scales) in NEAR_TIES:
        return NEAR_TIES[num_phis, num_scales]
    # The official code spreads four otherwise than all other numbers, and compares in float64.
    margin = 1 / 3 / num_phis if num_phis == 4 else 1 / 2 / num_phis
    ticks = np.linspace(margin, 1 - margin, num_phis)
    return tuple(int(np.argmin(np.abs(ticks - scale / max(num_scales - 1, 1)))) for scale in range(num_scales))


class ResidualConv(nn.Conv2d):
    """phi(h) = (1 - ratio) h + ratio conv3x3(h), as one convolution.

    Args:
        num_channels: C.
        ratio: In [0, 1].
    """

    def __init__(self, num_channels: int, ratio: float) -> None:
        super().__init__(num_channels, num_channels, 3, padding=1)
        self.ratio = ratio

    def forward(self, sample: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape, in float32."""
        identity = torch.zeros_like(self.weight, dtype=torch.float32)
        identity[:, :, 1, 1].fill_diagonal_(1 - self.ratio)
        weight = torch.add(identity, self.weight.float(), alpha=self.ratio)
        bias = None if self.bias is None else self.bias.float() * self.ratio
        return F.conv2d(sample, weight, bias, padding=1)


def resize_matrix(source: int, target: int, mode: str) -> Tensor:
    """Matrix of a resize of square maps, made by torch's own: exact at any size, and its backward pass is deterministic.

    Args:
        source: Height and width before.
        target: Height and width after.
        mode: ``area``, or ``bicubic`` with half-pixel centres, as ``torch.nn.functional.interpolate`` names them.

    Returns:
        (target^2, source^2) float32: multiplies positions in raster order.
    """
    basis = torch.eye(source)[None, None]  # (1, 1, source, source): a unit impulse at each column
    one_axis = F.interpolate(basis, size=(source, target), mode=mode)[0, 0].T.contiguous()  # (target, source)
    return torch.kron(one_axis, one_axis)


class MultiScaleQuantizer(nn.Module):
    """Quantises a map as a sum of maps of growing resolution, each with codes of one shared codebook.

    At scale k what is left of the map is brought to n_k x n_k by area, each position takes its nearest code, and the codes,
    brought back by bicubic interpolation and sharpened by a convolution phi, are taken off. The last scale is the full size and
    is not resized. Computed in float32, also under autocast. Maps lie in channels-last memory.

    Args:
        num_codes: V.
        latent_channels: C, width of a code.
        patch_nums: n_k of each scale, the last one the size of the map.
        quant_resi: Ratio of the convolution in phi; its sign means nothing, and there is no phi at 0.
        share_quant_resi: 0 for a phi of each scale's own, else the number of phis that scales share.
        default_qresi_counts: Number of phis where they are not shared; 0 is the number of scales.
        using_znorm: Whether vectors and codes are normalised before they are compared; the codes put out are not.

    Raises:
        UserError: If an argument is impossible.
    """

    def __init__(
        self,
        num_codes: int,
        latent_channels: int,
        patch_nums: Sequence[int],
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
        using_znorm: bool = False,
    ) -> None:
        super().__init__()
        if not patch_nums or min(patch_nums) < 1:
            raise UserError(f"patch_nums must hold a positive size for each scale, got {list(patch_nums)}")
        if share_quant_resi < 0 or default_qresi_counts < 0:
            raise UserError(
                "share_quant_resi and default_qresi_counts count convolutions and must not be negative, "
                f"got {share_quant_resi} and {default_qresi_counts}"
            )
        self.patch_nums = tuple(patch_nums)
        self.using_znorm = using_znorm
        self.codebook = make_codebook(num_codes, latent_channels)
        num_phis = share_quant_resi or default_qresi_counts or len(self.patch_nums)
        ratio = abs(quant_resi)
        self.phis = nn.ModuleList(ResidualConv(latent_channels, ratio) for _ in range(num_phis if ratio > MIN_RATIO else 0))
        self.phi_of_scale = phi_indices(num_phis, len(self.patch_nums))
        size = self.patch_nums[-1]
        for scale, patches in enumerate(self.patch_nums[:-1]):
            self.register_buffer(f"down_{scale}", resize_matrix(size, patches, "area"), persistent=False)  # (n^2, HW)
            self.register_buffer(f"up_{scale}", resize_matrix(patches, size, "bicubic"), persistent=False)  # (HW, n^2)

    @property
    def size(self) -> int:
        """Height and width of the map."""
        return self.patch_nums[-1]

    def shrink(self, latents: Tensor, scale: int) -> Tensor:
        """Positions (B, n_k^2, C) of a map (B, C, h, w), brought to the size of a scale by area; float32."""
        positions = latents.float().permute(0, 2, 3, 1).flatten(1, 2)  # (B, hw, C)
        return positions if scale == len(self.patch_nums) - 1 else torch.matmul(getattr(self, f"down_{scale}").float(), positions)

    def expand(self, codes: Tensor, scale: int) -> Tensor:
        """What a scale adds to the map: codes (B, n_k^2, C) up to (B, C, h, w) float32, through its phi."""
        with torch.autocast(codes.device.type, enabled=False):
            codes = codes.float()
            if scale < len(self.patch_nums) - 1:
                codes = torch.matmul(getattr(self, f"up_{scale}").float(), codes)  # (B, hw, C)
            latents = codes.unflatten(1, (self.size, self.size)).permute(0, 3, 1, 2)  # (B, C, h, w)
            return self.phis[self.phi_of_scale[scale]](latents) if len(self.phis) else latents

    def embed(self, ids: Tensor) -> Tensor:
        """Codes (B, n, C) float32 of ids (B, n)."""
        return F.embedding(ids, self.codebook.float())

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Ids (B, n) of vectors (B, n, C) float32."""
        codebook = self.codebook.float()
        if self.using_znorm:
            vectors, codebook = F.normalize(vectors, dim=-1), F.normalize(codebook, dim=-1)
        return nearest_codes(vectors.flatten(0, 1), codebook).unflatten(0, vectors.shape[:2])

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Ids (B, L) of a map (B, C, h, w), scale after scale, in raster order within each."""
        with torch.autocast(latents.device.type, enabled=False):
            rest = latents.float()
            ids = []
            for scale in range(len(self.patch_nums)):
                ids.append(self.nearest(self.shrink(rest, scale)))  # (B, n_k^2)
                rest = rest - self.expand(self.embed(ids[-1]), scale)
            return torch.cat(ids, dim=1)

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Ids (B, n_k^2) of each scale, of all ids (B, L)."""
        return list(tokens.split([patches**2 for patches in self.patch_nums], dim=1))

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise, with straight-through gradients.

        Args:
            latents: (B, C, h, w).

        Returns:
            Quantised map; losses ``codebook`` and ``commitment``, means over the scales of the squared distance between the map
            and the sum so far; the codes used, scale after scale (then image by image), with what each quantised.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            target = latents.detach()
            total = torch.zeros_like(target)
            codebook_loss = commitment_loss = latents.new_zeros(())
            ids, vectors = [], []
            for scale in range(len(self.patch_nums)):
                vectors.append(self.shrink(target - total.detach(), scale))  # (B, n_k^2, C)
                ids.append(self.nearest(vectors[-1]))
                total = total + self.expand(self.embed(ids[-1]), scale)  # (B, C, h, w)
                codebook_loss = codebook_loss + F.mse_loss(total, target)
                commitment_loss = commitment_loss + F.mse_loss(latents, total.detach())
            losses = {"codebook": codebook_loss / len(ids), "commitment": commitment_loss / len(ids)}
            passed = straight_through(latents, total)
        flat_ids = torch.cat([part.flatten() for part in ids])  # (B * L,)
        flat_vectors = torch.cat([part.flatten(0, 1) for part in vectors])  # (B * L, C)
        return Quantized(passed, losses, CodeUse(flat_ids, len(self.codebook), flat_vectors))
