"""One loop samples from every family: predict, then let the scheduler take a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.seeding import ImageNoise


@dataclass
class SampleState:
    """What a sampling loop carries from step to step.

    Attributes:
        sample: (B, ...) the current sample: images, latents, noise vectors or token ids.
        memory: Whatever else the family carries: KV caches, an accumulated token map, self-conditioning latents.
    """

    sample: Tensor
    memory: dict[str, Any] = field(default_factory=dict)


Prediction = Any
"""What a network predicts for a step: images (GAN), noise or velocity (diffusion), logits (autoregressive)."""

BranchPredict = Callable[[SampleState, Any, Tensor], Tensor]
"""``(state, timestep, class_labels (K, B)) -> (K, B, ...)``: a prediction for each of K guidance branches of a batch of B images.
The null condition is the label ``num_classes``. The family decides how the K branches share a forward pass."""

Predict = Callable[[SampleState, Any], Tensor]
"""``(state, timestep) -> (B, ...)``: a prediction, guided or not, with its class labels bound."""


class SamplingScheduler(Protocol):
    """What the loop needs from a scheduler; each family has its own, or an adapter of another library's."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> Iterable[Any]:
        """Choose and return the timesteps of the run, first one first."""

    def model_input(self, state: SampleState, timestep: Any) -> SampleState:
        """Scale the sample as the network expects it at this timestep (identity for most)."""

    def step(self, prediction: Tensor, timestep: Any, state: SampleState, noise: ImageNoise) -> SampleState:
        """Move the state one step on, drawing whatever it needs from the images' own noise."""


def sample_loop(
    predict: Predict,
    scheduler: SamplingScheduler,
    state: SampleState,
    num_inference_steps: int,
    noise: ImageNoise,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> SampleState:
    """Run a scheduler from its first timestep to its last.

    Args:
        predict: Prediction of the network, guidance included (see ``classifier_free_guidance``).
        scheduler: The sampler; a GAN has a single step, a token sampler one step for each position or scale.
        state: Where to start: ``prepare_state`` of the pipeline.
        num_inference_steps: Number of steps asked of the scheduler.
        noise: One random stream per image, read by stochastic steps.
        progress: Wraps the timesteps, for a progress bar.

    Returns:
        The final state; its ``sample`` is what the pipeline decodes.
    """
    timesteps = list(scheduler.set_timesteps(num_inference_steps, state.sample.device))
    for timestep in progress(timesteps):
        prediction = predict(scheduler.model_input(state, timestep), timestep)
        state = scheduler.step(prediction, timestep, state, noise)
    return state


class OneStepScheduler:
    """Sampling in one step: the prediction is the sample."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> Iterable[Any]:
        """One timestep, 0.

        Raises:
            UserError: If more than one step is asked for.
        """
        if num_inference_steps != 1:
            raise UserError(f"this model samples in 1 step, got num_inference_steps={num_inference_steps}")
        return [0]

    def model_input(self, state: SampleState, timestep: Any) -> SampleState:
        """The noise as it is."""
        return state

    def step(self, prediction: Tensor, timestep: Any, state: SampleState, noise: ImageNoise) -> SampleState:
        """Take what is predicted."""
        return SampleState(prediction, state.memory)


def unguided(predict: BranchPredict, class_labels: Tensor) -> Predict:
    """Bind class labels (B,) to a prediction without guidance."""
    return lambda state, timestep: predict(state, timestep, class_labels[None])[0]


def classifier_free_guidance(
    predict: BranchPredict,
    class_labels: Tensor,
    null_label: int,
    guidance_scale: float | Callable[[Any], float],
    channels: int | None = None,
) -> Predict:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6, written as u + s (c - u)).

    Args:
        predict: Prediction of the K = 2 branches, conditional and null.
        class_labels: (B,) int64 labels to bind.
        null_label: Label of the null condition (``num_classes`` in this project's networks).
        guidance_scale: s; 1 is no guidance and costs one branch only. A function of the timestep gives a schedule or an interval.
        channels: Guide only the first so many channels (dimension 1), the others keep the conditional one. None guides all.
            DiT's and SiT's published sampler guides 3 of 4 latent channels.

    Returns:
        The guided prediction.
    """
    scale_at = guidance_scale if callable(guidance_scale) else lambda timestep: guidance_scale
    null = torch.full_like(class_labels, null_label)

    def guided(state: SampleState, timestep: Any) -> Tensor:
        scale = scale_at(timestep)
        if scale == 1.0:
            return predict(state, timestep, class_labels[None])[0]
        conditional, unconditional = predict(state, timestep, torch.stack([class_labels, null]))
        result = unconditional + scale * (conditional - unconditional)
        if channels is not None:
            result = torch.cat([result[:, :channels], conditional[:, channels:]], dim=1)
        return result

    return guided
