"""Lookup-free quantisation (arXiv 2310.05737, section 3.1) as Open-MAGVIT2 has it: the code is the sign of each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.tokenizers.base import CodeUse
from generative.tokenizers.convolutional import straight_through
from generative.tokenizers.vector_quantizer import Quantized

LOG_EPS = 1e-5
"""Added to the mean probabilities before their logarithm: lookup_free_quantize.py of TencentARC/SEED-Voken."""
MAX_BITS = 24
"""The codebook entropy is a sum over all 2^bits codes; so many take 64 MiB."""


def check_factors(bits: Sequence[int], num_bits: int) -> None:
    """Refuse bits of sub-codebooks that are not those of the codebook.

    Args:
        bits: Bits of each sub-codebook.
        num_bits: Bits of the codebook.

    Raises:
        UserError: If they do not add up.
    """
    if not bits or min(bits) < 1 or sum(bits) != num_bits:
        raise UserError(f"factorized_bits must be positive and add up to the {num_bits} bits of a code, got {list(bits)}")


def split_ids(ids: Tensor, bits: Sequence[int]) -> list[Tensor]:
    """Ids of the sub-codebooks, the first of which has the lowest bits (arXiv 2409.04410, section 3.2.1).

    Args:
        ids: int64, any shape.
        bits: Bits of each sub-codebook.

    Returns:
        A tensor like ``ids`` for each, in [0, 2^bits).
    """
    parts = []
    for count in bits:
        parts.append(ids & (2**count - 1))
        ids = ids >> count
    return parts


def join_ids(parts: Sequence[Tensor], bits: Sequence[int]) -> Tensor:
    """Ids of the whole codebook: part 0 + 2^bits[0] * part 1 + ...; the inverse of ``split_ids``."""
    ids, shift = torch.zeros_like(parts[0]), 0
    for part, count in zip(parts, bits, strict=True):
        ids, shift = ids + (part << shift), shift + count
    return ids


def joint_probabilities(negative: Tensor, positive: Tensor) -> Tensor:
    """Probabilities of all combinations of independent bits.

    Args:
        negative: (N, D) probability that a bit is 0.
        positive: (N, D) probability that it is 1.

    Returns:
        (N, 2^D), bit k of the index being bit k.
    """
    table = positive.new_ones(len(positive), 1)
    for bit in range(positive.shape[1]):
        table = torch.cat([table * negative[:, bit, None], table * positive[:, bit, None]], dim=1)  # (N, 2^(bit + 1))
    return table


class LookupFreeQuantizer(nn.Module):
    """Bit k of a code is 1 iff channel k is positive, and stands for +1 or -1; bit 0 is the lowest of the id.

    Args:
        num_bits: D, bits of a code and channels of the latents.
        sample_entropy_weight: Weight of the mean entropy of a token's code, which is minimised.
        codebook_entropy_weight: Weight of the entropy of the mean probabilities of codes, which is maximised.
        temperature: Of the softmax over codes whose entropies these are.
    """

    def __init__(
        self,
        num_bits: int,
        sample_entropy_weight: float = 1.0,
        codebook_entropy_weight: float = 1.0,
        temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if not 1 <= num_bits <= MAX_BITS:
            raise UserError(f"num_bits must be 1 to {MAX_BITS}, got {num_bits}")
        if temperature <= 0:
            raise UserError(f"the temperature of the entropies must be positive, got {temperature}")
        self.num_bits = num_bits
        self.sample_entropy_weight = sample_entropy_weight
        self.codebook_entropy_weight = codebook_entropy_weight
        self.temperature = temperature

    def to_codes(self, vectors: Tensor) -> Tensor:
        """Codes -1 and +1 of vectors, of the same shape, float32; zero gives -1."""
        return torch.where(vectors > 0, 1.0, -1.0)

    def to_ids(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (...) int64 in [0, 2^D)."""
        return ((vectors > 0).long() << torch.arange(self.num_bits, device=vectors.device)).sum(-1)

    def ids_to_codes(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., D) float32 of -1 and +1."""
        bits = (ids[..., None] >> torch.arange(self.num_bits, device=ids.device)) & 1
        return bits.float() * 2 - 1

    def entropies(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Entropies of the softmax over all 2^D codes c of 2 x.c / temperature, in nats (arXiv 2310.05737, eq. 8).

        They are exactly those that the official code sums code by code for each token, without its (N, 2^D) table: the softmax
        is a product over bits, each 1 with probability sigmoid(4 x / temperature). So a token's entropy is the sum of those of
        its bits, and the mean over tokens of the probabilities is one matrix product of those of the upper and the lower bits.

        Args:
            vectors: (N, D) float32.

        Returns:
            Mean entropy of a token's code, and entropy of the mean probabilities.
        """
        logits = vectors * (4 / self.temperature)  # (N, D)
        positive, negative = logits.sigmoid(), (-logits).sigmoid()
        sample_entropy = (positive * F.softplus(-logits) + negative * F.softplus(logits)).sum(1).mean()
        half = self.num_bits // 2
        low = joint_probabilities(negative[:, :half], positive[:, :half])  # (N, 2^half)
        high = joint_probabilities(negative[:, half:], positive[:, half:])  # (N, 2^(D - half))
        mean = high.T @ low / len(vectors)  # (2^(D - half), 2^half)
        return sample_entropy, -(mean * (mean + LOG_EPS).log()).sum()

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise a grid.

        Args:
            latents: (B, D, h, w).

        Returns:
            Codes with losses ``entropy`` (weighted difference of the two) and ``commitment`` (mean square distance of latents and
            codes).
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            vectors = latents.movedim(1, -1).flatten(0, 2)  # (B h w, D)
            codes = self.to_codes(latents)
            sample_entropy, codebook_entropy = self.entropies(vectors)
            losses = {
                "entropy": self.sample_entropy_weight * sample_entropy - self.codebook_entropy_weight * codebook_entropy,
                "commitment": F.mse_loss(latents, codes),
            }
            use = CodeUse(self.to_ids(vectors.detach()), 2**self.num_bits)
            return Quantized(straight_through(latents, codes), losses, use)
