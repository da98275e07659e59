"""Away from something weaker: classifier-free guidance, autoguidance and self-improvement are one extrapolation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.guidance import GuidanceInterval, GuidanceSchedule, check_guidance, scale_at
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Branch, Condition, DenoiserOutput, Evaluate, Predict
from generative.diffusion.formulations.base import Formulation


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """u + s (c - u) of what the network predicts, c under the condition and u by a weaker branch.

    The weaker branch is the null condition (classifier-free guidance, arXiv 2207.12598, eq. 6), a worse network (autoguidance,
    2406.02507, eq. 3), or the network after training on its own samples (SIMS, 2408.16333, eq. 5: s = 1 + w). It is evaluated
    only where guidance acts; branches of one network share a forward pass.

    Attributes:
        scale: s; 1 is no guidance and costs one branch only.
        null_label: Label of the null condition; None leaves the weak branch its labels.
        weak: The weaker network, of the same formulation; None for the network itself.
        interval: Noise levels at which guidance acts (2404.07724); None for all.
        schedule: How the scale grows with 1 - noise level.
        channels: Guide only the first so many channels, the others keep the conditional prediction; None guides all. DiT's and
            SiT's published sampler guides 3 of 4. A learned variance always stays the conditional one.

    Raises:
        UserError: If an option is out of range, or nothing is weaker: neither another network nor the null condition.
    """

    scale: float
    null_label: int | None = None
    weak: nn.Module | None = None
    interval: GuidanceInterval | None = None
    schedule: GuidanceSchedule = "constant"
    channels: int | None = None

    def __post_init__(self) -> None:
        check_guidance(self.scale, self.schedule, self.interval)
        if self.null_label is None and self.weak is None and self.scale != 1:
            raise UserError(f"guidance_scale {self.scale} needs something weaker: a network with a null condition, or a guide")

    def bind(self, evaluate: Evaluate, condition: Condition, formulation: Formulation) -> Predict:
        """The guided prediction under a condition."""
        strong = Branch(condition)
        weak = Branch(condition if self.null_label is None else condition.null(self.null_label), self.weak)

        def predict(state: SampleState, time: Tensor) -> DenoiserOutput:
            scale = self.scale_at(time, formulation)
            if scale == 1.0:
                return evaluate(state, time, [strong])[0]
            conditional, weaker = evaluate(state, time, [strong, weak])
            guided = weaker.prediction + scale * (conditional.prediction - weaker.prediction)
            if self.channels is not None and self.channels < guided.shape[1]:
                guided = torch.cat([guided[:, : self.channels], conditional.prediction[:, self.channels :]], dim=1)
            return replace(conditional, prediction=guided)

        return predict

    def scale_at(self, time: Tensor, formulation: Formulation) -> float:
        """Scale at a time (one element, or one for each image, all alike)."""
        if self.scale == 1 or (self.interval is None and self.schedule == "constant"):
            return float(self.scale)
        level = float(formulation.noise_level(time.reshape(-1)[0].double()))
        return scale_at(self.scale, 1 - level, self.schedule, self.interval, level=level)
