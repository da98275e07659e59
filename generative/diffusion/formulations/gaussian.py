"""Discrete Gaussian diffusion (DDPM, arXiv 2006.11239; Improved DDPM, 2102.09672), as ADM, DiT and U-ViT train it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.formulations.base import Formulation, mean_over_image
from generative.diffusion.formulations.gaussian_process import GaussianProcess, Variance

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Interpolation = Literal["log_ratio", "log_alpha"]
# Squared noise-to-signal ratio that stands for pure noise: a table of zero terminal signal has no logarithm there.
MAX_SQUARED_RATIO = 1e14


class GaussianDiffusion(Formulation):
    """A chain of T noising steps. Times are int64 steps in [0, T); data are in [-1, 1] where the variance is learned.

    Args:
        num_train_timesteps: T.
        beta_schedule: ``linear``, ``scaled_linear`` (linear in the root, Stable Diffusion's) or ``squaredcos_cap_v2`` (cosine).
        beta_start: First beta of the linear schedules.
        beta_end: Last beta of the linear schedules.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
        learned_variance: The network predicts a variance too, trained by the variational bound. Never guessed from channels.
        min_snr_gamma: Cap of the signal-to-noise ratio in the loss weight (arXiv 2303.09556); None weights all steps alike.
        time_scale: The network is told ``time_scale * step + time_offset``: 1 and 0 in ADM and DiT, 1 and 1 in U-ViT, which
            counts steps from 1.
        time_offset: See ``time_scale``.
        rescale_betas_zero_snr: Scale the betas so that nothing of the data is left at the end (arXiv 2305.08891, algorithm 1).
        trained_betas: A table of (T,) betas instead of a schedule.
        loss: ``mse`` of what is predicted, along with the bound that trains a learned variance alone; or ``variational_bound``,
            the whole bound (ADM's ``use_kl``), T times the term of the step.
        variance_weight: Factor on the bound beside ``mse``; T / 1000 in ADM's ``rescale_learned_sigmas``.
        fixed_variance: Variance in the whole bound where none is learned: ``small`` (the posterior's) or ``large`` (beta).
        interpolation: What is linear between steps, for solvers that ask there: the logarithm of the noise-to-signal ratio
            (``log_ratio``, solvers of diffusers) or of alpha (``log_alpha``, the official DPM-Solver, which U-ViT samples with).

    Raises:
        UserError: If a number is out of range.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: BetaSchedule = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon",
        learned_variance: bool = False,
        min_snr_gamma: float | None = None,
        time_scale: float = 1.0,
        time_offset: float = 0.0,
        rescale_betas_zero_snr: bool = False,
        trained_betas: Sequence[float] | None = None,
        loss: Literal["mse", "variational_bound"] = "mse",
        variance_weight: float = 1.0,
        fixed_variance: Literal["small", "large"] = "small",
        interpolation: Interpolation = "log_ratio",
    ) -> None:
        if not 0 < beta_start <= beta_end < 1:
            raise UserError(f"betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise UserError(f"min_snr_gamma must be positive, got {min_snr_gamma}")
        if loss not in ("mse", "variational_bound"):
            raise UserError(f"loss must be mse or variational_bound, got {loss!r}")
        if loss != "mse" and min_snr_gamma is not None:
            raise UserError("min_snr_gamma weights the mse, and loss is variational_bound; leave it out")
        if not variance_weight >= 0:
            raise UserError(f"variance_weight must be 0 or more, got {variance_weight}")
        if fixed_variance not in ("small", "large"):
            raise UserError(f"fixed_variance must be small or large, got {fixed_variance!r}")
        if interpolation not in ("log_ratio", "log_alpha"):
            raise UserError(f"interpolation must be log_ratio or log_alpha, got {interpolation!r}")
        # The same table as the schedulers that sample, to the bit.
        try:
            with torch.device("cpu"):  # a table is one wherever networks are built
                scheduler = DDPMScheduler(
                    num_train_timesteps,
                    beta_start,
                    beta_end,
                    beta_schedule,
                    trained_betas=None if trained_betas is None else list(trained_betas),
                    rescale_betas_zero_snr=rescale_betas_zero_snr,
                )
        except NotImplementedError as error:
            raise UserError(f"beta_schedule must be linear, scaled_linear or squaredcos_cap_v2, got {beta_schedule!r}") from error
        table = scheduler.betas
        if prediction_type == "epsilon" and bool((table >= 1).any()):
            raise UserError(
                "betas of zero terminal signal (rescale_betas_zero_snr) and prediction_type epsilon contradict one another: from "
                "pure noise nothing of the data follows; use v_prediction or sample"
            )
        self.process = GaussianProcess(table, prediction_type)
        self.prediction_type = prediction_type

    def identity(self) -> dict[str, Any]:
        """All options but those of how times are drawn and errors weighted, which may change in mid-run."""
        free = ("min_snr_gamma", "loss", "variance_weight", "fixed_variance", "interpolation")
        return {key: value for key, value in super().identity().items() if key not in free}

    def meaning(self, predicts: bool = True) -> dict[str, Any]:
        """As of every formulation; a learned variance comes beside the prediction."""
        return {name: value for name, value in super().meaning(predicts).items() if name != "learned_variance"}

    def draw_times(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Uniform steps (B,) int64."""
        return self.process.draw_timesteps(batch_size, generator)

    def alpha_sigma(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Square roots of abar and 1 - abar, float32; between steps see ``interpolation``."""
        if times.is_floating_point():
            table = self._steps().to(times.device)
            below = times.floor().long().clamp(0, len(table) - 1)
            above = (below + 1).clamp(max=len(table) - 1)
            between = table[below] + (times - below) * (table[above] - table[below])
            if self.config.interpolation == "log_alpha":
                return (-between).exp().float(), (-(-2 * between).expm1()).sqrt().float()
            ratio = between.exp()
            return (1 + ratio**2).rsqrt().float(), (ratio * (1 + ratio**2).rsqrt()).float()
        kept = self.process.alphas_cumprod.to(times.device)[times]
        return kept.sqrt().float(), (1 - kept).sqrt().float()

    def network_time(self, times: Tensor) -> Tensor:
        """The step itself, or a linear function of it."""
        if (self.config.time_scale, self.config.time_offset) == (1.0, 0.0):
            return times
        return times * self.config.time_scale + self.config.time_offset

    def noise_level(self, times: Tensor) -> Tensor:
        """Share of the chain: step / T."""
        return times / self.process.num_train_timesteps

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """Steps whose ratio is nearest, int64: the chain has no times between its steps."""
        ratios = (1 / self.process.alphas_cumprod - 1).sqrt().to(ratio.device)  # (T,) ascending
        right = torch.searchsorted(ratios, ratio.double()).clamp(1, len(ratios) - 1)
        is_left = ratio.double().log() - ratios[right - 1].log() < ratios[right].log() - ratio.double().log()
        return right - is_left.long()

    def continuous_time_of_ratio(self, ratio: Tensor) -> Tensor:
        """Times in [0, T - 1] float64, see ``interpolation``."""
        table, wanted = self._steps().to(ratio.device), ratio.double().log()
        if self.config.interpolation == "log_alpha":
            wanted = 0.5 * ratio.double().square().log1p()
        above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        share = (wanted - table[above - 1]) / (table[above] - table[above - 1])
        return above - 1 + share.clamp(0, 1)

    def _steps(self) -> Tensor:
        """What is linear between steps, at the steps: (T,) float64, ascending."""
        if self.config.interpolation == "log_alpha":
            return -0.5 * self.process.alphas_cumprod.clamp(min=1 / (1 + MAX_SQUARED_RATIO)).log()
        return 0.5 * (1 / self.process.alphas_cumprod - 1).clamp(max=MAX_SQUARED_RATIO).log()

    def sampling_times(self, num_steps: int) -> Tensor:
        """Not those of an ODE: a chain is sampled on its own steps.

        Raises:
            UserError: Always; ``Ancestral``, ``DDIM``, ``Heun`` and diffusers' schedulers sample a chain.
        """
        raise UserError(
            "a Gaussian diffusion has no continuous time; sample it with ancestral, ddim, heun or a diffusers scheduler"
        )

    def rates(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Refused, as ``sampling_times``."""
        self.sampling_times(1)
        raise AssertionError

    def add_noise(self, x_start: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t (arXiv 2006.11239, eq. 4)."""
        return self.process.add_noise(x_start, noise, times)

    def target(self, x_start: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the network should predict, (B, ...)."""
        if times.is_floating_point():
            return super().target(x_start, noise, times)
        return self.process.target(x_start, noise, times)

    def predict_start(self, output: DenoiserOutput, sample: Tensor, times: Tensor) -> Tensor:
        """x_0 that an output implies, (B, ...)."""
        if times.is_floating_point():
            return super().predict_start(output, sample, times)
        return self.process.predict_start(output.prediction, sample, times)

    def losses(self, output: DenoiserOutput, x_start: Tensor, noise: Tensor, sample: Tensor, times: Tensor) -> dict[str, Tensor]:
        """``mse``, and ``variational_bound`` in bits per dimension where the variance is learned; see ``Formulation.losses``.

        With ``loss`` ``variational_bound`` that alone: T times the step's term, which estimates the bound of the whole chain.

        Raises:
            UserError: If the network predicts a variance and the formulation learns none, or the other way round.
        """
        if (output.variance is not None) != self.config.learned_variance:
            has = "a" if output.variance is not None else "no"
            raise UserError(
                f"the denoiser predicts {has} variance but the formulation has learned_variance={self.config.learned_variance}; "
                "make them agree (learn_sigma of the denoiser)"
            )
        if self.config.loss == "variational_bound":
            return {"variational_bound": self.whole_bound(output, x_start, sample, times)}
        losses = {"mse": mean_over_image((output.prediction - self.target(x_start, noise, times)).square())}
        if self.config.min_snr_gamma is not None:
            losses["mse"] = losses["mse"] * self.process.min_snr_weight(times, self.config.min_snr_gamma)
        if output.variance is not None:
            both = torch.cat([output.prediction, output.variance], dim=1)
            bound = self.process.variance_loss(both, x_start, sample, times)
            losses["variational_bound"] = bound if self.config.variance_weight == 1 else bound * self.config.variance_weight
        return losses

    def whole_bound(self, output: DenoiserOutput, x_start: Tensor, sample: Tensor, times: Tensor) -> Tensor:
        """Variational bound of the chain estimated from one of its steps, (B,) bits per dimension; see ``losses``."""
        process = self.process
        mean = process.posterior_mean(process.predict_start(output.prediction, sample, times), sample, times)
        kind: Variance = "learned" if output.variance is not None else self.config.fixed_variance
        log_variance = process.log_variance(kind, output.variance, times, sample)
        return process.num_train_timesteps * process.variational_bound(mean, log_variance, x_start, sample, times)
