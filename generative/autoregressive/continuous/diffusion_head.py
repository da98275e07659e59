"""Diffusion head: a small network that draws one continuous token given a vector (MAR, arXiv 2406.11838, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generative.core.sampling import SampleState, SamplingScheduler, sample_loop
from generative.core.seeding import ImageNoise
from generative.diffusion.formulations.gaussian_process import GaussianProcess, mean_over_image
from generative.layers.embeddings import TimestepEmbedder

NUM_TRAIN_TIMESTEPS = 1000  # MAR, section 4
# Cosine schedule of Improved DDPM (arXiv 2102.09672, eq. 17) with its largest beta.
COSINE_OFFSET, MAX_BETA = 0.008, 0.999
FREQUENCY_EMBEDDING_SIZE = 256
LAYER_NORM_EPS = 1e-6
TIMESTEP_INIT_STD = 0.02  # of the timestep MLP; this and the above: official implementation


def cosine_betas(num_steps: int = NUM_TRAIN_TIMESTEPS) -> Tensor:
    """Betas (T,) float64 of the cosine schedule, at most 0.999."""
    times = torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps  # whatever the default device
    alphas_cumprod = ((times + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2).cos().square()  # (T + 1,)
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)


def head_process() -> GaussianProcess:
    """The process that the head is trained on: 1,000 steps, cosine schedule, noise predicted."""
    return GaussianProcess(cosine_betas())


class HeadBlock(nn.Module):
    """Residual two-layer MLP between a modulated layer norm and a gate.

    Args:
        width: Width W.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.linear_1 = nn.Linear(width, width)
        self.linear_2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """Transform x under an activated condition; both (..., W), broadcast against one another."""
        shift, scale, gate = self.modulation(activated).chunk(3, dim=-1)
        hidden = torch.addcmul(shift, self.norm(x), 1 + scale)
        return torch.addcmul(x, gate, self.linear_2(F.silu(self.linear_1(hidden))))


class DiffusionHead(nn.Module):
    """MLP that predicts the noise in a token, and the variance of the step back, from a timestep and a vector.

    Args:
        token_size: Numbers C of a token.
        condition_size: Width D of the vector.
        width: Width W of the MLP.
        depth: Residual blocks.
    """

    _gradient_checkpointing_func: Callable[..., Tensor]  # set by diffusers, with gradient_checkpointing

    def __init__(self, token_size: int, condition_size: int, width: int, depth: int) -> None:
        super().__init__()
        self.token_size = token_size
        self.gradient_checkpointing = False
        self.timestep_embedder = TimestepEmbedder(width, FREQUENCY_EMBEDDING_SIZE)
        self.condition_projection = nn.Linear(condition_size, width)
        self.input_projection = nn.Linear(token_size, width)
        self.blocks = nn.ModuleList([HeadBlock(width) for _ in range(depth)])
        self.final_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, 2 * token_size)
        self._initialize()

    def _initialize(self) -> None:
        """Initialise as the official implementation: Xavier-uniform maps, zero modulations and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (self.timestep_embedder.linear_1.weight, self.timestep_embedder.linear_2.weight):
            nn.init.normal_(weight, std=TIMESTEP_INIT_STD)
        modulations = [module.modulation for module in self.modules() if isinstance(module, HeadBlock)]
        for module in (*modulations, self.final_modulation, self.output):
            nn.init.zeros_(module.weight)

    def embed_timesteps(self, timesteps: Tensor) -> Tensor:
        """(...) int64 or float -> (..., W)."""
        if timesteps.is_floating_point() or timesteps.numel() <= NUM_TRAIN_TIMESTEPS:
            return self.timestep_embedder(timesteps.flatten()).unflatten(0, timesteps.shape)
        # More rows than there are timesteps: embed each timestep once.
        table = self.timestep_embedder(torch.arange(NUM_TRAIN_TIMESTEPS, device=timesteps.device))  # (T, W)
        return F.embedding(timesteps, table)

    def forward(self, x: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Predict noise and variance.

        Args:
            x: (..., C) noised tokens.
            timesteps: (...) or (1,), in [0, 1000), int64 or fractional; broadcast against the others.
            condition: (..., D) vectors of the transformer; broadcast likewise, so that vectors that several noised tokens share,
                and tokens that several vectors share (guidance), are projected once.

        Returns:
            (..., 2 C): the noise, then where the log variance lies between its bounds.
        """
        return self.denoise(x, timesteps, self.condition_projection(condition))

    def denoise(self, x: Tensor, timesteps: Tensor, projected: Tensor) -> Tensor:
        """``forward`` with a condition (..., W) that is projected already, since sampling does not change it."""
        activated = F.silu(self.embed_timesteps(timesteps) + projected)  # (..., W)
        x = self.input_projection(x)  # (..., W)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, activated)
            else:
                x = block(x, activated)
        shift, scale = self.final_modulation(activated).chunk(2, dim=-1)
        return self.output(torch.addcmul(shift, self.final_norm(x), 1 + scale))  # (..., 2 C)


def head_losses(
    process: GaussianProcess, output: Tensor, target: Tensor, noise: Tensor, noised: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of each noised token: squared error of the noise, and the bound that trains the variance (arXiv 2102.09672).

    Args:
        process: ``head_process()``.
        output: (N, 2 C) of the head.
        target: (N, C) clean tokens.
        noise: (N, C) standard normal.
        noised: (N, C) from ``process.add_noise``.
        timesteps: (N,) int64.

    Returns:
        (N,) mean squared error and (N,) variational bound in bits per number; the loss is their sum.
    """
    error = (output[:, : noise.shape[1]] - process.target(target, noise, timesteps)).square()
    return mean_over_image(error), process.variance_loss(output, target, noised, timesteps)


class TokenNoise(ImageNoise):
    """Noise of the tokens that are drawn together, those of each image from the image's own stream.

    Args:
        noise: One stream per image.
        counts: Tokens of each image, N in all.
        num_draws: How often ``randn`` will be called; drawn at once, because a call per step and image would take longer than the
            head itself.
        token_size: Numbers C of a token.
    """

    def __init__(self, noise: ImageNoise, counts: Sequence[int], num_draws: int, token_size: int) -> None:
        super().__init__(noise.generators, noise.device)
        rows = [
            torch.randn(num_draws, count, token_size, generator=generator)
            for generator, count in zip(noise.generators, counts, strict=True)
        ]
        self.draws = iter(torch.cat(rows, dim=1).to(noise.device))  # num_draws times (N, C)

    def randn(self, *shape: int) -> Tensor:
        """Next (N, C); ``shape`` is (C,)."""
        return next(self.draws)


class HeadSampler(SamplingScheduler, Protocol):
    """A scheduler whose timesteps are numbers of network evaluations, 0 first."""

    num_evaluations: int
    """Network evaluations of a run."""
    num_draws: int
    """Draws of noise that a run takes, the first being what it starts from."""

    def model_time(self, timestep: int) -> float:
        """Time, in [0, 1000), that the head is told at an evaluation."""


def guide(output: Tensor, guidance_scale: Tensor | float | None, token_size: int) -> Tensor:
    """Guidance of the predicted noise, u + s (c - u); the variance stays that of the condition.

    Args:
        output: (K, N, 2 C) of the head, the null condition's second.
        guidance_scale: s, a number or (N, 1); None takes the first as it is.
        token_size: C.

    Returns:
        (N, 2 C).
    """
    if guidance_scale is None:
        return output[0]
    conditional, unconditional = output[0, :, :token_size], output[1, :, :token_size]
    guided = unconditional + guidance_scale * (conditional - unconditional)
    return torch.cat([guided, output[0, :, token_size:]], dim=1)


@torch.no_grad()
def draw_tokens(
    head: DiffusionHead, condition: Tensor, guidance_scale: Tensor | float | None, sampler: HeadSampler, noise: ImageNoise
) -> Tensor:
    """Draw tokens given vectors, guided at every step of the head.

    Args:
        head: The head.
        condition: (K, N, D) vectors, K = 1, or 2 with those of the null condition second.
        guidance_scale: See ``guide``.
        sampler: Solver of the head.
        noise: Its ``randn(C)`` gives (N, C): ``TokenNoise``.

    Returns:
        (N, C) float32.
    """
    projected = head.condition_projection(condition)  # (K, N, W)

    def predict(state: SampleState, timestep: int) -> Tensor:
        time = torch.tensor([sampler.model_time(timestep)], device=projected.device)
        output = head.denoise(state.sample.to(projected.dtype), time, projected).float()  # (K, N, 2 C)
        return guide(output, guidance_scale, head.token_size)

    state = SampleState(noise.randn(head.token_size))
    return sample_loop(predict, sampler, state, sampler.num_evaluations, noise).sample
