"""Residual vector quantisation: each depth quantises what the depths before it have left (arXiv 2107.03312, 2203.01941)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.tokenizers.base import CodeUse
from generative.tokenizers.convolutional import straight_through
from generative.tokenizers.vector_quantizer import make_codebook, nearest_codes


@dataclass
class ResidualCodes:
    """What residual quantisation finds for N vectors.

    Attributes:
        ids: (N, depth) int64.
        residuals: (depth, N, D) float32, what each depth quantised; the first is the vectors.
        codes: (depth, N, D) float32, the code chosen at each depth; differentiable by the codebooks.
    """

    ids: Tensor
    residuals: Tensor
    codes: Tensor

    @property
    def cumulative(self) -> Tensor:
        """(depth, N, D) sums of the codes up to each depth."""
        return self.codes.cumsum(0)


@dataclass
class ResidualQuantized:
    """What the quantiser returns in training.

    Attributes:
        latents: (B, D, h, w) float32 with straight-through gradients.
        losses: ``codebook`` and ``commitment``.
        codes: Use of each codebook, as in ``Reconstruction``.
    """

    latents: Tensor
    losses: dict[str, Tensor]
    codes: dict[str, CodeUse]


class ResidualQuantizer(ModelMixin, ConfigMixin):
    """Nearest codes of a vector, of what is left of it, and so on; the vector is about the sum of its codes.

    All of it is computed in float32, also under autocast; each depth's search is one matrix product.

    Args:
        depth: Codes per vector.
        codebook_size: V, codes of each codebook.
        dim: D, width of a code.
        shared_codebook: One codebook for all depths (RQ-VAE), not one for each.
        quantizer_dropout: Probability that an image is quantised to fewer depths in training, their number drawn from 1 to
            ``depth`` (arXiv 2107.03312, section III-C), so that every prefix of the codes decodes well.
    """

    @register_to_config
    def __init__(
        self,
        depth: int = 4,
        codebook_size: int = 1024,
        dim: int = 256,
        shared_codebook: bool = False,
        quantizer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise UserError(f"depth must be at least 1, got {depth}")
        if not 0 <= quantizer_dropout <= 1:
            raise UserError(f"quantizer_dropout must be in [0, 1], got {quantizer_dropout}")
        self.tables = nn.ParameterList(make_codebook(codebook_size, dim) for _ in range(1 if shared_codebook else depth))

    @property
    def depth(self) -> int:
        """Codes per vector."""
        return self.config.depth

    @property
    def codebooks(self) -> dict[str, nn.Parameter]:
        """Codebooks (V, D) by name: ``codebook``, or ``codebook_0`` and so on."""
        if self.config.shared_codebook:
            return {"codebook": self.tables[0]}
        return {f"codebook_{index}": table for index, table in enumerate(self.tables)}

    @property
    def codebooks_tensor(self) -> Tensor:
        """(depth, V, D) float32; a shared codebook is repeated."""
        return torch.stack([self.table(index) for index in range(len(self.tables))]).expand(self.depth, -1, -1)

    def table(self, index: int) -> Tensor:
        """Codebook (V, D) float32 of a depth, counted from 0."""
        return self.tables[index % len(self.tables)].float()

    def quantize(self, vectors: Tensor) -> ResidualCodes:
        """Find the codes of vectors.

        Args:
            vectors: (N, D).
        """
        ids, residuals, codes = [], [], []
        with torch.autocast(vectors.device.type, enabled=False):
            residual = vectors.detach().float()
            for index in range(self.depth):
                table = self.table(index)
                chosen = nearest_codes(residual, table.detach())  # (N,)
                code = F.embedding(chosen, table)  # (N, D)
                ids.append(chosen)
                residuals.append(residual)
                codes.append(code)
                residual = residual - code.detach()
        return ResidualCodes(torch.stack(ids, dim=1), torch.stack(residuals), torch.stack(codes))

    def embed(self, ids: Tensor) -> Tensor:
        """Sums of codes.

        Args:
            ids: (..., depths) int64; depths may be fewer than ``depth``: the first ones.

        Returns:
            (..., D) float32.

        Raises:
            UserError: If there are more depths than codebooks.
        """
        if not 1 <= ids.shape[-1] <= self.depth:
            raise UserError(f"residual ids have 1 to {self.depth} depths along their last axis, got {tuple(ids.shape)}")
        # Looked up one by one: stacked codebooks are hundreds of megabytes at full size.
        total = F.embedding(ids[..., 0], self.table(0))  # (..., D)
        for index in range(1, ids.shape[-1]):
            total = total + F.embedding(ids[..., index], self.table(index))
        return total

    def kept_depths(self, batch_size: int, device: torch.device, generator: torch.Generator | None) -> Tensor | None:
        """(B,) int64 depths that each image keeps in this training step; None for all of them."""
        if not self.training or self.config.quantizer_dropout == 0:
            return None
        at = generator.device if generator is not None else device
        draws = torch.rand(2, batch_size, generator=generator, device=at).to(device)
        fewer = 1 + (draws[1] * self.depth).long().clamp(max=self.depth - 1)  # (B,)
        return torch.where(draws[0] < self.config.quantizer_dropout, fewer, self.depth)

    def forward(self, latents: Tensor, generator: torch.Generator | None = None) -> ResidualQuantized:
        """Quantise a grid for training.

        ``codebook`` is the mean square distance of each depth's code to the residual that it quantises, which moves the codes;
        ``commitment`` is that of the latents to the sum of the codes up to each depth (arXiv 2203.01941, eq. 8), which moves the
        latents; both are means over the depths that are kept.

        Args:
            latents: (B, D, h, w).
            generator: Source of randomness of the dropout; None draws from torch's own.
        """
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            vectors = latents.float().movedim(1, -1).flatten(0, 2)  # (N, D)
            found = self.quantize(vectors)
            weights = torch.full((self.depth, len(vectors)), 1 / self.depth, device=vectors.device)  # of each depth's loss
            kept = self.kept_depths(batch, vectors.device, generator)
            codes = found.codes
            if kept is not None:
                counts = kept.repeat_interleave(height * width)  # (N,)
                is_kept = torch.arange(self.depth, device=vectors.device)[:, None] < counts  # (depth, N)
                weights = is_kept / counts
                codes = codes * is_kept[..., None]
            cumulative = found.cumulative.detach()  # (depth, N, D)
            losses = {
                "codebook": (weights * (found.codes - found.residuals).square().mean(-1)).sum(0).mean(),
                "commitment": (weights * (vectors - cumulative).square().mean(-1)).sum(0).mean(),
            }
            passed = straight_through(vectors, codes.sum(0))  # (N, D)
            grid = passed.unflatten(0, (batch, height, width)).movedim(-1, 1)  # (B, D, h, w)
        return ResidualQuantized(grid, losses, self.code_use(found))

    def code_use(self, found: ResidualCodes) -> dict[str, CodeUse]:
        """Use of the codebooks, with the residuals that they quantised."""
        size = self.config.codebook_size
        if self.config.shared_codebook:
            return {"codebook": CodeUse(found.ids.T.flatten(), size, found.residuals.flatten(0, 1))}
        return {name: CodeUse(found.ids[:, i], size, found.residuals[i]) for i, name in enumerate(self.codebooks)}
