"""What every formulation of diffusion shares: how data are noised, what a network is told, and what its output means.

All of them noise by x_t = alpha(t) x_0 + sigma(t) noise (Kingma et al., arXiv 2107.00630, eq. 1). They differ in alpha and sigma,
in the unit and direction of time, in how training times are drawn, in what is predicted and in how errors are weighted.
"""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import Any, Literal

import torch
from diffusers import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from generative.diffusion.denoiser import DenoiserOutput

# Noise-to-signal ratio at which adaptive solvers stop where a prediction has no limit at the data: EDM's smallest noise level.
NEAREST_RATIO = 0.002

PredictionType = Literal["epsilon", "sample", "v_prediction", "velocity", "score"]


def over_image(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,), or one for all, on the device and in a shape that broadcast against ``like`` (B, ...).

    Samplers keep their times on the CPU, where they can be asked for without waiting for a GPU.
    """
    return values.to(like.device, non_blocking=like.is_cuda).reshape(-1, *[1] * (like.dim() - 1))


def mean_over_image(values: Tensor) -> Tensor:
    """Mean over all dimensions but the first: (B, ...) -> (B,)."""
    return values.flatten(1).mean(1)


class Formulation(SchedulerMixin, ConfigMixin, abc.ABC):
    """A noising process together with the meaning of a network's output; saved with the pipeline as a component of its own.

    Times are (B,) tensors, or one element for all, in the formulation's own unit. Constructor arguments are the configuration.

    Attributes:
        prediction_type: What ``DenoiserOutput.prediction`` is: ``epsilon`` the noise, ``sample`` x_0, ``v_prediction``
            alpha noise - sigma x_0 (arXiv 2202.00512), ``velocity`` dx_t/dt (per ``time_unit``), ``score`` the gradient of
            log p(x_t).
    """

    config_name = "formulation_config.json"
    prediction_type: PredictionType

    @property
    def time_unit(self) -> float:
        """Velocities are per so much of time: an interpolant's by the share of its path, whatever scale its times are told in."""
        return 1.0

    @property
    def ends_in_data(self) -> bool:
        """Whether what is predicted has a limit at the last of ``sampling_times``, so that a solver may ask for it there."""
        return False

    def identity(self) -> dict[str, Any]:
        """What a denoiser's training cannot do without: all options, but those that a subclass leaves out."""
        return {key: value for key, value in self.config.items() if not key.startswith("_")}

    def meaning(self, predicts: bool = True) -> dict[str, Any]:
        """What inputs and outputs of a network mean: networks that agree in it may be combined at one sample and time.

        Args:
            predicts: Whether the output is a prediction; else, as a classifier's, what is predicted is of no account.
        """
        return {name: value for name, value in self.identity().items() if predicts or name != "prediction_type"}

    def nearest_time(self) -> Tensor:
        """(1,) float64: the time next to the data that a solver of free steps may ask for; the rest is ``predict_start``."""
        if self.ends_in_data:
            return self.sampling_times(1)[1:]
        return self.time_of_ratio(torch.tensor([NEAREST_RATIO], dtype=torch.float64))

    @abc.abstractmethod
    def draw_times(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw training times (B,) on the generator's device."""

    @abc.abstractmethod
    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of data and of noise at times, each shaped as they are."""

    @abc.abstractmethod
    def noise_level(self, times: Tensor) -> Tensor:
        """Place of times between clean data (0) and pure noise (1): guidance intervals of every formulation are given in it."""

    @abc.abstractmethod
    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """Times at which sigma / alpha, the noise-to-signal ratio, has these values, for solvers in that variable (EDM, DPM)."""

    def continuous_time_of_ratio(self, ratio: Tensor) -> Tensor:
        """``time_of_ratio`` for solvers that may ask the network between the steps of a chain."""
        return self.time_of_ratio(ratio)

    @abc.abstractmethod
    def sampling_times(self, num_steps: int) -> Tensor:
        """Ends of ``num_steps`` even steps from pure noise to data, (num_steps + 1,) float64."""

    def whole_way(self) -> Tensor:
        """Times of pure noise and of clean data, (2,) float64, whether or not a network may be asked there."""
        return self.sampling_times(1)

    def network_time(self, times: Tensor) -> Tensor:
        """What the network is told of times: by default the times themselves."""
        return times

    def network_input(self, sample: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Sample and times as the network gets them."""
        return sample, self.network_time(times)

    def add_noise(self, x_start: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Noise data: x_t (B, ...) of x_0, standard normal noise and times (B,)."""
        alpha, sigma = self.alpha_sigma(times)
        return over_image(alpha, x_start) * x_start + over_image(sigma, x_start) * noise

    def draw_noised(self, x_start: Tensor, times: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise data by noise drawn on the generator's device; see ``add_noise``.

        Returns:
            The noise and x_t, each (B, ...) on the device of the data.
        """
        noise = torch.randn(x_start.shape, generator=generator, device=generator.device).to(x_start.device)
        return noise, self.add_noise(x_start, noise, times)

    def target(self, x_start: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should predict, (B, ...)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x_start
        alpha, sigma = (over_image(factor, x_start) for factor in self.alpha_sigma(times))
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * x_start
        if self.prediction_type == "score":
            return -noise / sigma
        alpha_rate, sigma_rate = (over_image(rate, x_start) for rate in self.rates(times))
        return alpha_rate * x_start + sigma_rate * noise

    def losses(self, output: DenoiserOutput, x_start: Tensor, noise: Tensor, sample: Tensor, times: Tensor) -> dict[str, Tensor]:
        """Parts of the loss of each image, (B,) by name; the loss is their sum.

        Args:
            output: Of the network.
            x_start: (B, C, h, w) clean data.
            noise: (B, C, h, w) standard normal.
            sample: (B, C, h, w) x_t.
            times: (B,).
        """
        return {"mse": mean_over_image((output.prediction - self.target(x_start, noise, times)).square())}

    # ------------------------------------------------------------------ what an output means

    def predict_start(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> Tensor:
        """x_0 (B, ...) that an output for x_t implies."""
        prediction = output.prediction
        if self.prediction_type == "sample":
            return prediction
        alpha, sigma = (over_image(factor, sample) for factor in self.alpha_sigma(times))
        if self.prediction_type == "v_prediction":
            return (alpha * sample - sigma * prediction) / (alpha**2 + sigma**2)
        if self.prediction_type == "epsilon":
            return (sample - sigma * prediction) / alpha
        if self.prediction_type == "score":
            return (sample + sigma**2 * prediction) / alpha
        alpha_rate, sigma_rate = (over_image(rate, sample) for rate in self.rates(times))
        # Two equations, x = alpha x_0 + sigma noise and v = alpha' x_0 + sigma' noise.
        return (sigma * prediction - sigma_rate * sample) / (alpha_rate * sigma - alpha * sigma_rate)

    def predict_noise(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> Tensor:
        """Noise (B, ...) that an output for x_t implies."""
        prediction = output.prediction
        if self.prediction_type == "epsilon":
            return prediction
        alpha, sigma = (over_image(factor, sample) for factor in self.alpha_sigma(times))
        if self.prediction_type == "score":
            return -sigma * prediction
        if self.prediction_type == "v_prediction":
            return (sigma * sample + alpha * prediction) / (alpha**2 + sigma**2)
        if self.prediction_type == "velocity":
            alpha_rate, sigma_rate = (over_image(rate, sample) for rate in self.rates(times))
            return (alpha * prediction - alpha_rate * sample) / (alpha * sigma_rate - alpha_rate * sigma)
        return (sample - alpha * self.predict_start(output, sample, times)) / sigma

    def velocity(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> Tensor:
        """dx/dt of the probability-flow ODE, per ``time_unit`` (arXiv 2303.08797, eq. 2.9), (B, ...)."""
        if self.prediction_type == "velocity":
            return output.prediction
        alpha_rate, sigma_rate = (over_image(rate, sample) for rate in self.rates(times))
        start = self.predict_start(output, sample, times)
        return alpha_rate * start + sigma_rate * self.predict_noise(output, sample, times)

    def score(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> Tensor:
        """Gradient of log p(x_t): -noise / sigma, (B, ...)."""
        if self.prediction_type == "score":
            return output.prediction
        _, sigma = self.alpha_sigma(times)
        return -self.predict_noise(output, sample, times) / over_image(sigma, sample)

    def output_of(self, x_start: Tensor, sample: Tensor, times: Tensor) -> DenoiserOutput:
        """The output that implies this x_0: the way back from ``predict_start``."""
        alpha, sigma = (over_image(factor, sample) for factor in self.alpha_sigma(times))
        return DenoiserOutput(self.target(x_start, (sample - alpha * x_start) / sigma, times))

    def shift_score(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> DenoiserOutput:
        """Output whose score is larger by the output's ``gradient``, if it has one (arXiv 2105.05233, algorithm 2).

        A score larger by g is, at the same x_t, an x_0 larger by sigma^2 / alpha g and a noise smaller by sigma g; what is
        predicted is linear in both. Pure noise (alpha 0) tells nothing of the class: there the gradient is taken as zero.
        """
        if output.gradient is None:
            return output
        alpha, sigma = (over_image(factor, sample) for factor in self.alpha_sigma(times))
        start_per_gradient = torch.where(alpha > 0, sigma**2 / alpha, 0.0)
        gradient = torch.where(alpha > 0, output.gradient, 0.0)
        shift = self.target(start_per_gradient * gradient, -sigma * gradient, times)
        return replace(output, prediction=output.prediction + shift, gradient=None)

    def diffusion(self, times: Tensor) -> Tensor:
        """Half the squared noise rate g^2 of the forward SDE with these marginals, per ``time_unit`` (arXiv 2107.00630, eq. 16).

        sigma sigma' - sigma^2 alpha' / alpha, with derivatives towards more noise.
        """
        alpha, sigma = self.alpha_sigma(times)
        alpha_rate, sigma_rate = self.rates(times)
        return (sigma * sigma_rate - sigma.square() * alpha_rate / alpha).abs()

    def rates(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of alpha and sigma by time, per ``time_unit``, each shaped as the times.

        By automatic differentiation in float64, so that a formulation need not write them out.
        """
        with torch.enable_grad():
            at = times.detach().double().requires_grad_()
            alpha, sigma = self.alpha_sigma(at)
            # Each factor depends on its own time alone, so the gradient of the sum is all derivatives at once.
            (alpha_rate,) = torch.autograd.grad(alpha.sum(), at, retain_graph=True)
            (sigma_rate,) = torch.autograd.grad(sigma.sum(), at)
        return alpha_rate.to(times.dtype), sigma_rate.to(times.dtype)
