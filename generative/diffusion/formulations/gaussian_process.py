"""Gaussian diffusion: noising, posterior and the losses of DDPM and Improved DDPM, as functions of a scheduler's betas.

Sampling is left to the schedulers of diffusers; what they lack is here: training targets, the variational bound with learned
variance (arXiv 2102.09672) and the discretised likelihood of the last step.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from generative.core.errors import UserError

Variance = Literal["learned", "small", "large"]
"""Of a step back: by the network, the posterior's, or beta."""
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
# Half the distance of two neighbouring 8-bit levels in [-1, 1].
HALF_LEVEL = 1 / 255
# Data beyond these edges belong to the outermost level, whose bin is open (Ho et al., arXiv 2006.11239, eq. 13).
OUTER_LEVEL = 0.999
# Floor of probabilities before their logarithm, as in the official implementations of ADM and DiT.
SMALLEST_PROBABILITY = 1e-12


def mean_over_image(values: Tensor) -> Tensor:
    """Mean over all dimensions but the first: (B, ...) -> (B,)."""
    return values.flatten(1).mean(1)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of diagonal Gaussians, KL(N1 || N2) element by element, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + (log_variance1 - log_variance2).exp()
        + (mean1 - mean2).square() * (-log_variance2).exp()
    )


def approximate_normal_cdf(x: Tensor) -> Tensor:
    """Standard normal distribution function by the tanh approximation that the GELU paper uses (arXiv 1606.08415)."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(images: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability that a Gaussian falls into the bin of an 8-bit level (arXiv 2006.11239, eq. 13).

    Args:
        images: Values of 8-bit images rescaled to [-1, 1].
        mean: Mean of the Gaussian, same shape.
        log_std: Log standard deviation, same shape.

    Returns:
        Log probabilities in nats, same shape; the lowest and highest levels take the tails.
    """
    centered, inverse_std = images - mean, (-log_std).exp()
    below_upper = approximate_normal_cdf(inverse_std * (centered + HALF_LEVEL))
    below_lower = approximate_normal_cdf(inverse_std * (centered - HALF_LEVEL))
    inner = torch.where(images > OUTER_LEVEL, 1 - below_lower, below_upper - below_lower)
    return torch.where(images < -OUTER_LEVEL, below_upper, inner).clamp(min=SMALLEST_PROBABILITY).log()


class GaussianProcess:
    """The variance-preserving noising process of a scheduler, x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise.

    Tables are kept in float64: in float32 1 - abar of the first steps has only four good digits.

    Args:
        betas: (T,) noise variances of the steps.
        prediction_type: What the network predicts: ``epsilon`` the noise, ``sample`` x_0, ``v_prediction``
            sqrt(abar) noise - sqrt(1 - abar) x_0 (arXiv 2202.00512).

    Raises:
        UserError: If the prediction type is unknown, or there are fewer than two steps.
    """

    def __init__(self, betas: Tensor, prediction_type: str = "epsilon") -> None:
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
        if len(betas) < 2:
            raise UserError(f"a Gaussian diffusion needs at least 2 steps, got {len(betas)}; raise num_train_timesteps")
        self.prediction_type = prediction_type
        self.betas = betas.double().cpu()
        alphas = 1 - self.betas
        self.alphas_cumprod = alphas.cumprod(0)
        previous = torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])
        self.posterior_variance = self.betas * (1 - previous) / (1 - self.alphas_cumprod)
        # Entry 0 is zero, its logarithm is not finite: the official implementations repeat entry 1.
        self.posterior_log_variance = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()
        # ADM's "fixed large" variance: beta, but at step 0, where it would blur the image.
        self.large_log_variance = torch.cat([self.posterior_variance[1:2], self.betas[1:]]).log()
        self.posterior_start_coefficient = self.betas * previous.sqrt() / (1 - self.alphas_cumprod)
        self.posterior_sample_coefficient = (1 - previous) * alphas.sqrt() / (1 - self.alphas_cumprod)

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> GaussianProcess:
        """Take betas and prediction type from a diffusers scheduler that has them (DDPM, DDIM, DPM-Solver, ...)."""
        return cls(scheduler.betas, scheduler.config.prediction_type)

    @property
    def num_train_timesteps(self) -> int:
        """Number T of steps."""
        return len(self.betas)

    def at(self, table: Tensor, timesteps: Tensor, like: Tensor) -> Tensor:
        """Entries of a (T,) table at timesteps (B,), as float32 that broadcasts against ``like`` (B, ...)."""
        values = table.to(timesteps.device)[timesteps].float()
        return values.to(like.device, non_blocking=like.is_cuda).reshape(-1, *[1] * (like.dim() - 1))

    def draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw timesteps (B,) int64, uniform in [0, T)."""
        return torch.randint(self.num_train_timesteps, (batch_size,), generator=generator, device=generator.device)

    def add_noise(self, x_start: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise samples: x_t (B, ...) of x_0, noise and timesteps (B,) (arXiv 2006.11239, eq. 4)."""
        signal = self.at(self.alphas_cumprod.sqrt(), timesteps, x_start)
        return signal * x_start + self.at((1 - self.alphas_cumprod).sqrt(), timesteps, x_start) * noise

    def target(self, x_start: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should predict, (B, ...)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x_start
        signal = self.at(self.alphas_cumprod.sqrt(), timesteps, x_start)
        return signal * noise - self.at((1 - self.alphas_cumprod).sqrt(), timesteps, x_start) * x_start

    def predict_start(self, prediction: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """x_0 that a prediction for x_t implies, (B, ...)."""
        if self.prediction_type == "sample":
            return prediction
        if self.prediction_type == "v_prediction":
            signal = self.at(self.alphas_cumprod.sqrt(), timesteps, sample)
            return signal * sample - self.at((1 - self.alphas_cumprod).sqrt(), timesteps, sample) * prediction
        inverse = self.at(self.alphas_cumprod.rsqrt(), timesteps, sample)
        return inverse * sample - self.at((1 / self.alphas_cumprod - 1).sqrt(), timesteps, sample) * prediction

    def posterior_mean(self, x_start: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (arXiv 2006.11239, eq. 7)."""
        start = self.at(self.posterior_start_coefficient, timesteps, sample)
        return start * x_start + self.at(self.posterior_sample_coefficient, timesteps, sample) * sample

    def learned_log_variance(self, values: Tensor, timesteps: Tensor) -> Tensor:
        """Log variance between its bounds (arXiv 2102.09672, eq. 15): -1 is the posterior variance, 1 is beta."""
        lower = self.at(self.posterior_log_variance, timesteps, values)
        upper = self.at(self.betas.log(), timesteps, values)
        fraction = (values + 1) / 2
        return fraction * upper + (1 - fraction) * lower

    def log_variance(self, variance: Variance, values: Tensor | None, timesteps: Tensor, like: Tensor) -> Tensor:
        """Log variance of p(x_{t-1} | x_t), broadcasting against ``like`` (B, ...).

        Args:
            variance: Which.
            values: What the network predicts of it, see ``learned_log_variance``; only of a learned one.
            timesteps: (B,) or (1,) int64.
            like: Of the result's shape.
        """
        if variance == "learned":
            assert values is not None
            return self.learned_log_variance(values, timesteps)
        return self.at(self.posterior_log_variance if variance == "small" else self.large_log_variance, timesteps, like)

    def variational_bound(self, mean: Tensor, log_variance: Tensor, x_start: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """One term of the variational bound, L_{t-1} or, at t = 0, L_0 (arXiv 2006.11239, eq. 5).

        Args:
            mean: (B, ...) mean of the model's p(x_{t-1} | x_t).
            log_variance: (B, ...) its log variance.
            x_start: (B, ...) clean images in [-1, 1].
            sample: (B, ...) x_t.
            timesteps: (B,) t.

        Returns:
            (B,) bits per dimension.
        """
        true_mean = self.posterior_mean(x_start, sample, timesteps)
        true_log_variance = self.at(self.posterior_log_variance, timesteps, sample)
        kl = mean_over_image(gaussian_kl(true_mean, true_log_variance, mean, log_variance))
        likelihood = mean_over_image(discretized_gaussian_log_likelihood(x_start, mean, 0.5 * log_variance))
        return torch.where(timesteps == 0, -likelihood, kl) / math.log(2)

    def variance_loss(self, output: Tensor, x_start: Tensor, sample: Tensor, timesteps: Tensor) -> Tensor:
        """Bound that trains a learned variance alone: the predicted mean is held constant (arXiv 2102.09672, section 3.1).

        Args:
            output: (B, 2C, ...) the network's prediction and variance values.
            x_start: (B, C, ...) clean images in [-1, 1].
            sample: (B, C, ...) x_t.
            timesteps: (B,) t.

        Returns:
            (B,) bits per dimension.
        """
        prediction, values = output.chunk(2, dim=1)
        predicted_start = self.predict_start(prediction.detach(), sample, timesteps)
        mean = self.posterior_mean(predicted_start, sample, timesteps)
        return self.variational_bound(mean, self.learned_log_variance(values, timesteps), x_start, sample, timesteps)

    def min_snr_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Loss weight that caps the signal-to-noise ratio at gamma (arXiv 2303.09556, section 3.4).

        Args:
            timesteps: (B,).
            gamma: The cap, 5 in the paper.

        Returns:
            (B,) weights of the squared error of whatever is predicted.
        """
        snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        capped = snr.clamp(max=gamma)
        weights = {"epsilon": (gamma / snr).clamp(max=1), "sample": capped, "v_prediction": capped / (snr + 1)}
        return weights[self.prediction_type].to(timesteps.device)[timesteps].float()
