"""Iterative parallel decoding of residual codes for ResGen (arXiv 2412.10208; ``resgen`` says what is the paper's)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from generative.autoregressive.masked.gaussian_mixture import GaussianMixture
from generative.autoregressive.masked.parallel_decoding import ConfidenceScheduler, keep_confident
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise

MAX_DISTANCES = 2**24
"""Distances that are held at once: 64 MiB of float32."""


def known_codes(num_known: Tensor, depth: int) -> Tensor:
    """Which codes of a position are known: the coarsest ``num_known`` of ``depth``; (...) int64 -> (..., depth) bool."""
    return torch.arange(depth, device=num_known.device) < num_known[..., None]


def code_vectors(ids: Tensor, codebooks: Tensor) -> Tensor:
    """Embeddings of residual codes.

    Args:
        ids: (..., depth) int64.
        codebooks: (depth, V, D).

    Returns:
        (..., depth, D).
    """
    return torch.stack([codebooks[index][ids[..., index]] for index in range(len(codebooks))], dim=-2)


def sum_known(ids: Tensor, num_known: Tensor, codebooks: Tensor) -> Tensor:
    """Sums (B, L, D) of the embeddings of the known codes of ids (B, L, depth)."""
    is_known = known_codes(num_known, len(codebooks))[..., None]  # (B, L, depth, 1)
    return (code_vectors(ids, codebooks) * is_known).sum(dim=-2)


def nearest_code(vectors: Tensor, codebook: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest codes of vectors, and how sure they are under Gaussian noise of the vectors.

    Args:
        vectors: (N, D) float32.
        codebook: (V, D) float32.
        scales: (N,) positive, standard deviation s of a value.

    Returns:
        ids (N,) int64, and log softmax_v(-|z - e_v|^2 / 2 s^2) at them, (N,): near 0 if no other code is close.
    """
    rows = max(MAX_DISTANCES // len(codebook), 1)
    norms = codebook.square().sum(1)  # (V,)
    ids, scores = [], []
    for part, scale in zip(vectors.split(rows), scales.split(rows), strict=True):
        # |z|^2 is the same for all codes: neither the nearest nor the softmax sees it.
        logits = torch.addmm(norms, part, codebook.T, alpha=-2) / (-2 * scale.square()[:, None])  # (n, V)
        best = logits.max(dim=1)
        ids.append(best.indices)
        scores.append(best.values - logits.logsumexp(dim=1))
    return torch.cat(ids), torch.cat(scores)


def quantize_remainder(
    remainder: Tensor, scales: Tensor, ids: Tensor, num_known: Tensor, codebooks: Tensor
) -> tuple[Tensor, Tensor]:
    """Quantise what is left of every position with the codebooks of its unknown depths, coarse to fine.

    Args:
        remainder: (B, L, D) float32.
        scales: (B, L) standard deviation of its values.
        ids: (B, L, depth) int64; the first ``num_known`` of a position stay.
        num_known: (B, L) int64.
        codebooks: (depth, V, D) float32.

    Returns:
        ids (B, L, depth), and log-probabilities (B, L, depth) float32 that a new code and the new ones before it are right, see
        ``nearest_code``: they fall with depth; 0 for known codes.
    """
    residual, flat_scales = remainder.flatten(0, 1), scales.flatten()  # (N, D), (N,)
    is_known = known_codes(num_known, len(codebooks)).flatten(0, 1)  # (N, depth)
    found, scores = [], []
    for index, codebook in enumerate(codebooks):
        is_new = ~is_known[:, index]  # (N,)
        nearest, score = nearest_code(residual, codebook, flat_scales)
        found.append(torch.where(is_new, nearest, ids.flatten(0, 1)[:, index]))
        scores.append(score * is_new)
        residual = residual - codebook[nearest] * is_new[:, None]
    return torch.stack(found, dim=-1).view_as(ids), torch.stack(scores, dim=-1).cumsum(dim=-1).view_as(ids)


class ResidualScheduler(ConfidenceScheduler):
    """Draws the remainder of every position, quantises it, and masks the least confident codes again; a ``SamplingScheduler``.

    The state's sample holds ids (B, L, depth), its memory ``num_known`` (B, L); unknown ids are 0 and not read.

    A code's confidence is the log-probability of the mixture component drawn for its position, plus that of the code and those
    before it (``quantize_remainder``), plus annealed Gumbel noise. The least confident codes of the image are masked; a position
    keeps as many codes as it has confident ones, the coarsest. With much noise that is the distribution of the masks in training.

    Args:
        codebooks: (depth, V, D) float32.
        num_positions: L.
        read_mixture: Mixture of a prediction (B, L, ...), of remainders divided by ``scale_of``.
        scale_of: (B, L) counts of known codes -> (B, L, 1).
        choice_temperature: See ``ConfidenceScheduler``.
        temperature: See ``GaussianMixture.draw``.
        top_k: Likewise.
        top_p: Likewise.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(
        self,
        codebooks: Tensor,
        num_positions: int,
        read_mixture: Callable[[Tensor], GaussianMixture],
        scale_of: Callable[[Tensor], Tensor],
        choice_temperature: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(num_positions * len(codebooks), choice_temperature, temperature, top_k, top_p)
        self.codebooks = codebooks
        self.num_positions = num_positions
        self.read_mixture = read_mixture
        self.scale_of = scale_of

    def step(self, prediction: Tensor, timestep: int, state: SampleState, noise: ImageNoise) -> SampleState:
        """Decide some more codes.

        Args:
            prediction: (B, P, L), the numbers of each position's mixture along the middle axis.
            timestep: Step, in [0, N).
            state: See the class.
            noise: Read for the components, the vectors and the choice.
        """
        depth, _, dim = self.codebooks.shape
        num_known = state.memory["num_known"]  # (B, L)
        mixture = self.read_mixture(prediction.transpose(1, 2))
        uniform, normal = noise.rand(self.num_positions), noise.randn(self.num_positions, dim)
        vectors, component = mixture.draw(uniform, normal, self.temperature, self.top_k, self.top_p)  # (B, L, D), (B, L)
        scale = self.scale_of(num_known)  # (B, L, 1)
        deviations = mixture.scales.gather(-1, component[..., None]) * scale  # (B, L, 1)
        ids, scores = quantize_remainder(vectors * scale, deviations[..., 0], state.sample, num_known, self.codebooks)
        scores = scores + mixture.logits.log_softmax(dim=-1).gather(-1, component[..., None])  # (B, L, depth)
        still = keep_confident(
            scores.flatten(1),
            ~known_codes(num_known, depth).flatten(1),
            self.counts[timestep],
            noise.rand(self.num_positions * depth),
            self.annealed(timestep),
        )  # (B, L depth)
        num_known = depth - still.unflatten(1, (-1, depth)).sum(dim=-1)  # (B, L)
        ids = ids * known_codes(num_known, depth)
        return SampleState(sample=ids, memory={**state.memory, "num_known": num_known})
