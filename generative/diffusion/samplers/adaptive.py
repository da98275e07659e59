"""Probability-flow ODE with adaptive steps: Dormand and Prince's embedded pair of orders 5 and 4."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from generative.core.errors import UserError
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.diffusion.denoiser import Predict
from generative.diffusion.formulations.base import Formulation, over_image
from generative.diffusion.samplers.base import Progress, check_factors
from generative.diffusion.samplers.ode import ContinuousSampler, start_state, velocity

# Dormand and Prince 1980, table 2: nodes, stages, and the two sets of weights (order 5, and order 5 minus order 4).
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR_WEIGHTS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.4: safety and the bounds of a change of step.
SAFETY, SMALLEST_FACTOR, LARGEST_FACTOR = 0.9, 0.2, 10.0
FIRST_STEP = 0.01  # of the way; wrong by any factor costs a few rejected steps


class AdaptiveODESampler(ContinuousSampler):
    """The ODE to a tolerance, each image with steps of its own: what is beside it in the batch changes nothing.

    A batch costs as many evaluations as its hardest image. Afterwards ``state.memory["num_evaluations"]`` (B,) tells them.
    Whether an image is still on its way must be known before the next step, so the host waits for the device once every six
    evaluations; no other sampler makes it wait.

    Args:
        atol: Absolute tolerance of a step's error, per element (root mean square).
        rtol: Relative tolerance.
        max_steps: Steps, accepted or not, after which a tolerance counts as out of reach.

    Raises:
        UserError: If a tolerance is negative or not finite, both are 0, or there is no step.
    """

    @register_to_config
    def __init__(self, atol: float = 1e-6, rtol: float = 1e-3, max_steps: int = 1000) -> None:
        check_factors(atol=atol, rtol=rtol)
        if atol + rtol == 0:
            raise UserError("atol and rtol must not both be 0; raise one of them")
        if max_steps < 1:
            raise UserError(f"max_steps must be at least 1, got {max_steps}")

    def states(
        self,
        predict: Predict,
        state: SampleState,
        num_inference_steps: int,
        noise: ImageNoise,
        formulation: Formulation,
        progress: Progress = iter,
    ) -> Iterator[SampleState]:
        """Integrate to the tolerance; ``num_inference_steps`` has no use here. See ``Sampler.states``.

        Raises:
            UserError: If the tolerance is not reached within ``max_steps``.
        """
        first, last = torch.cat([formulation.sampling_times(1)[:1], formulation.nearest_time()]).to(state.sample.device)
        state = start_state(state, formulation, first[None])
        count = len(state.sample)
        length = (last - first) / formulation.time_unit

        def slope_at(x: Tensor, share: Tensor) -> Tensor:
            """d x / d share, share (B,) of the way from noise to data."""
            return length * velocity(predict, SampleState(x, state.memory), first + share * (last - first), formulation)

        x = state.sample
        done = torch.zeros(count, dtype=torch.float64, device=x.device)
        size = torch.full_like(done, FIRST_STEP)
        evaluations = torch.zeros(count, dtype=torch.int64, device=x.device)
        slope = slope_at(x, done)
        for _ in progress(range(self.config.max_steps)):
            is_going = done < 1
            if not bool(is_going.any()):
                break
            step = torch.minimum(size, 1 - done) * is_going
            end, error, last_slope = self._try(slope_at, x, slope, done, step)
            scale = self.config.atol + self.config.rtol * torch.maximum(x.abs(), end.abs())
            norm = (error / scale).square().flatten(1).mean(1).sqrt()  # (B,)
            is_taken = is_going & (norm <= 1)
            keep = over_image(is_taken, x)
            x, slope = torch.where(keep, end, x), torch.where(keep, last_slope, slope)
            # Not a sum: the last step must end at 1 exactly.
            done = torch.where(is_taken, torch.where(step >= 1 - done, torch.ones_like(done), done + step), done)
            factor = (SAFETY * norm.clamp(min=1e-10) ** -0.2).clamp(SMALLEST_FACTOR, LARGEST_FACTOR)
            size = torch.where(is_going, step * factor, size)
            evaluations += (len(NODES) - 1) * is_going
            yield SampleState(x, state.memory)
        if bool((done < 1).any()):
            raise UserError(
                f"the adaptive solver did not reach atol {self.config.atol}, rtol {self.config.rtol} in {self.config.max_steps} "
                "steps; loosen them or raise max_steps"
            )
        if not formulation.ends_in_data:
            output = formulation.shift_score(predict(SampleState(x, state.memory), last[None]), x, last[None])
            x = formulation.predict_start(output, x, last[None])
            evaluations += 1
        yield SampleState(x, {**state.memory, "num_evaluations": evaluations + 1})

    @staticmethod
    def _try(slope_at: object, x: Tensor, slope: Tensor, done: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the pair: end (B, ...), its error, and the slope there, which is the next step's first."""
        assert callable(slope_at)
        width = over_image(step, x)
        slopes = [slope]
        end = x
        for node, weights in zip(NODES[1:], STAGES[1:], strict=True):
            end = x + width * sum(weight * each for weight, each in zip(weights, slopes, strict=True))
            slopes.append(slope_at(end, done + node * step))
        error = width * sum(weight * each for weight, each in zip(ERROR_WEIGHTS, slopes, strict=True))
        return end, error, slopes[-1]
