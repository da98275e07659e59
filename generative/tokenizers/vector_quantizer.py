"""Vector quantisation: the nearest code of a learned codebook (arXiv 1711.00937)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from generative.core.errors import UserError
from generative.tokenizers.base import CodeUse
from generative.tokenizers.convolutional import straight_through

MAX_DISTANCES = 2**22
"""Distances that are held at once: 16 MiB of float32, which stays in a server's last-level cache."""
MAX_AFFINITIES = 2**24
"""Distances of one block of the entropy loss, several copies of which its backward pass holds: 64 MiB of float32 each."""
ENTROPY_TEMPERATURE, ENTROPY_EPS = 0.01, 1e-5
"""Of the entropy loss, as in the official code of arXiv 2310.05737 and 2406.06525."""


@dataclass
class Quantized:
    """What a quantiser returns.

    Attributes:
        latents: Quantised latents in the shape of the input, float32, with straight-through gradients.
        losses: Its losses by name, see ``Reconstruction``.
        use: Use of its codebook, the ids in the order in which the tokenizer numbers them.
    """

    latents: Tensor
    losses: dict[str, Tensor]
    use: CodeUse


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor, max_distances: int = MAX_DISTANCES) -> Tensor:
    """Find the code of the smallest Euclidean distance, the first of equals.

    |z|^2 is the same for all codes and left out: one matrix product makes |e|^2 - 2 z.e, for as many vectors at once as
    ``max_distances`` allows.

    Args:
        vectors: (N, D) float32.
        codebook: (V, D) float32.
        max_distances: Distances that may be held at once; at least one vector's are.

    Returns:
        (N,) int64 in [0, V).
    """
    norms, transposed = codebook.square().sum(1), codebook.T  # (V,), (D, V)
    rows = max(max_distances // len(codebook), 1)
    ids = [torch.addmm(norms, part, transposed, alpha=-2).argmin(1) for part in vectors.split(rows)]
    return torch.cat(ids) if len(ids) > 1 else ids[0]


def block_entropies(vectors: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums over a block of vectors: probabilities of the codes (V,), and entropies of the vectors' distributions ()."""
    # softmax does not see |z|^2, which is the same for all codes.
    logits = torch.addmm(codebook.square().sum(1), vectors, codebook.T, alpha=-2) / -temperature  # (n, V)
    log_probabilities = F.log_softmax(logits, dim=-1)
    probabilities = log_probabilities.exp()
    return probabilities.sum(0), -(probabilities * log_probabilities).sum()


def entropy_loss(vectors: Tensor, codebook: Tensor, temperature: float = ENTROPY_TEMPERATURE) -> Tensor:
    """Mean entropy of softmax(-|z - e|^2 / temperature) over the codes, less the entropy of its mean over the vectors.

    It is small where each vector is sure of its code and all codes are used alike (arXiv 2310.05737, section 3.1). Blocks of
    vectors are computed again in the backward pass, so that memory is bounded.

    Args:
        vectors: (N, D) float32.
        codebook: (V, D) float32.
        temperature: Of the softmax.

    Returns:
        () float32, differentiable by both.
    """
    blocks = vectors.split(max(MAX_AFFINITIES // len(codebook), 1))
    if len(blocks) == 1:
        parts = [block_entropies(vectors, codebook, temperature)]
    else:
        parts = [checkpoint(block_entropies, block, codebook, temperature, use_reentrant=False) for block in blocks]
    mean_probabilities = torch.stack([part[0] for part in parts]).sum(0) / len(vectors)  # (V,)
    mean_entropy = torch.stack([part[1] for part in parts]).sum() / len(vectors)
    entropy_of_mean = -(mean_probabilities * (mean_probabilities + ENTROPY_EPS).log()).sum()
    return mean_entropy - entropy_of_mean


def make_codebook(num_codes: int, code_dim: int) -> nn.Parameter:
    """Codebook (V, D), uniform in [-1/V, 1/V] as in the VQ-VAE line.

    Raises:
        UserError: If either number is impossible.
    """
    if num_codes < 2:
        raise UserError(f"num_codes must be at least 2, got {num_codes}")
    if code_dim < 1:
        raise UserError(f"the codes' width must be at least 1, got {code_dim}")
    return nn.Parameter(torch.empty(num_codes, code_dim).uniform_(-1 / num_codes, 1 / num_codes))


class VectorQuantizer(nn.Module):
    """Nearest-code quantiser with straight-through gradients (arXiv 1711.00937, eq. 2-3).

    All of it is computed in float32, also under autocast.

    Args:
        num_codes: V.
        code_dim: D.
        l2_norm: Quantise on the unit sphere: vectors and codes are normalised first, and so is the output (arXiv 2110.04627,
            section 3.2); the stored codebook need not be.
        entropy: Whether to compute the entropy loss.
    """

    def __init__(self, num_codes: int, code_dim: int, l2_norm: bool = False, entropy: bool = False) -> None:
        super().__init__()
        self.codebook = make_codebook(num_codes, code_dim)
        self.l2_norm = l2_norm
        self.entropy = entropy
        if l2_norm:
            with torch.no_grad():
                self.codebook.copy_(F.normalize(self.codebook, dim=-1))

    @property
    def codes(self) -> Tensor:
        """(V, D) float32 codes as they come out, normalised where ``l2_norm`` says so; differentiable."""
        codebook = self.codebook.float()
        return F.normalize(codebook, dim=-1) if self.l2_norm else codebook

    def flatten(self, latents: Tensor) -> Tensor:
        """Vectors (B * h * w, D) float32 of latents (B, D, h, w), normalised where ``l2_norm`` says so."""
        vectors = latents.float().permute(0, 2, 3, 1).flatten(0, 2)
        return F.normalize(vectors, dim=-1) if self.l2_norm else vectors

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        """Ids (B, h * w) int64 of latents (B, D, h, w)."""
        with torch.autocast(latents.device.type, enabled=False):
            return nearest_codes(self.flatten(latents), self.codes).unflatten(0, (len(latents), -1))

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise.

        Args:
            latents: (B, D, h, w).

        Returns:
            Quantised latents, losses ``codebook``, ``commitment`` and perhaps ``entropy``, and the codes used in raster order.
        """
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            vectors, codes = self.flatten(latents), self.codes  # (N, D), (V, D)
            ids = nearest_codes(vectors.detach(), codes.detach())  # (N,)
            chosen = F.embedding(ids, codes)  # (N, D)
            losses = {
                "codebook": F.mse_loss(chosen, vectors.detach()),
                "commitment": F.mse_loss(vectors, chosen.detach()),
            }
            if self.entropy:
                losses["entropy"] = entropy_loss(vectors, codes)
            passed = straight_through(vectors, chosen)  # (N, D)
            quantized = passed.reshape(batch, height, width, -1).permute(0, 3, 1, 2)  # (B, D, h, w)
        return Quantized(quantized, losses, CodeUse(ids, len(codes), vectors.detach()))
