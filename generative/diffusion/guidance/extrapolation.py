"""Away from something weaker: classifier-free guidance, autoguidance and self-improvement are one extrapolation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.guidance import GuidanceInterval, GuidanceSchedule, check_guidance, scale_at
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Branch, Condition, DenoiserOutput, Evaluate, Predict
from generative.diffusion.formulations.base import Formulation, over_image
from generative.diffusion.guidance.rule import GuidanceRule, Moment


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
        exponent: See ``generative.core.guidance.growth``.
        channels: Guide only the first so many channels, the others keep the conditional prediction; None guides all. DiT's and
            SiT's published sampler guides 3 of 4. A learned variance always stays the conditional one.
        rule: What takes the place of u + s (c - u), such as ``ProjectedGuidance``; None for the formula itself.
        prefix: What the names of its options begin with, for messages.

    Raises:
        UserError: If an option is out of range, or nothing is weaker: neither another network nor the null condition.
    """

    scale: float
    null_label: int | None = None
    weak: nn.Module | None = None
    interval: GuidanceInterval | None = None
    schedule: GuidanceSchedule = "constant"
    exponent: float = 1.0
    channels: int | None = None
    rule: GuidanceRule | None = None
    prefix: str = "guidance"

    def __post_init__(self) -> None:
        check_guidance(self.scale, self.schedule, self.interval, self.exponent, self.prefix)
        if self.null_label is None and self.weak is None and self.scale != 1:
            raise UserError(
                f"{self.prefix}_scale {self.scale} needs something weaker: a network with a null condition, or a guide"
            )

    def bind(self, evaluate: Evaluate, condition: Condition, formulation: Formulation) -> Predict:
        """The guided prediction under a condition."""
        return extrapolated([self], evaluate, condition, formulation)

    def weaker(self, condition: Condition) -> Branch:
        """The weaker branch."""
        return Branch(condition if self.null_label is None else condition.null(self.null_label), self.weak)

    def guided(self, conditional: Tensor, weaker: Tensor, scale: float | Tensor, moment: Moment) -> Tensor:
        """What is predicted with guidance, (B, C, h, w), at a scale from ``scale_at``."""
        if self.rule is None:
            guided = weaker + scale * (conditional - weaker)
        else:
            guided = self.rule.combine(conditional, weaker, scale, moment)
        if self.channels is not None and self.channels < guided.shape[1]:
            guided = torch.cat([guided[:, : self.channels], conditional[:, self.channels :]], dim=1)
        return guided

    def scale_at(self, time: Tensor, formulation: Formulation, like: Tensor) -> float | Tensor:
        """Scale at a time: a number, or (B, 1, 1, 1) where images are at times of their own and their scales differ.

        Args:
            time: One element, or (B,), see ``Predict``.
            formulation: Whose times they are.
            like: (B, C, h, w) prediction or sample, for the device.
        """
        if self.scale == 1 or (self.interval is None and self.schedule == "constant"):
            return float(self.scale)
        levels = formulation.noise_level(time.reshape(-1).double()).tolist()
        scales = [scale_at(self.scale, 1 - level, self.schedule, self.interval, self.exponent, level) for level in levels]
        if len(set(scales)) == 1:
            return scales[0]
        return over_image(torch.tensor(scales), like)


def extrapolated(parts: Sequence[Extrapolation], evaluate: Evaluate, condition: Condition, formulation: Formulation) -> Predict:
    """The prediction under a condition with several extrapolations at once, each away from its own weaker branch.

    The sum c + sum_k (s_k - 1) (c - u_k): none sees the others, so that their order is of no account, and with one of them alone
    it is that one's own formula.

    Args:
        parts: The extrapolations; those whose scale is 1 at a time cost nothing there.
        evaluate: Of the branches.
        condition: Of the conditional branch c.
        formulation: What is predicted.
    """
    strong = Branch(condition)

    def predict(state: SampleState, time: Tensor) -> DenoiserOutput:
        scales = [part.scale_at(time, formulation, state.sample) for part in parts]
        acting = [place for place, scale in enumerate(scales) if isinstance(scale, Tensor) or scale != 1.0]
        conditional, *weaker = evaluate(state, time, [strong, *(parts[place].weaker(condition) for place in acting)])
        c, total = conditional.prediction, None
        for place, weak in zip(acting, weaker, strict=True):
            moment = Moment(state, time, formulation, place)
            guided = parts[place].guided(c, weak.prediction, scales[place], moment)
            total = guided if total is None else total + (guided - c)
        return conditional if total is None else replace(conditional, prediction=total)

    return predict
