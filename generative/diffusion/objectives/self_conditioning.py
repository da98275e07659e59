"""Self-conditioning in training: a network that remembers is first asked without memory, then with what it gave back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import Condition, DenoiserOutput, has_memory


@dataclass(frozen=True, kw_only=True)
class SelfConditioning:
    """Latent self-conditioning (RIN, arXiv 2212.11972, section 2.3), which no gradient passes.

    Attributes:
        rate: Share of the examples that get a memory, 0.9 in RIN's published models; the others get zeros, as at the first step
            of sampling.
        by_masking: Ask for all of a batch and let chance say which get theirs; else the first ``rate`` of the batch do and
            only they are asked for, which costs less.

    Raises:
        UserError: If the rate is not in (0, 1].
    """

    rate: float = 0.9
    by_masking: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"self_conditioning.rate must be in (0, 1], got {self.rate}")

    def remember(
        self, network: nn.Module, network_input: tuple[Tensor, Tensor], condition: Condition, generator: torch.Generator
    ) -> Condition:
        """The condition with a memory.

        Args:
            network: The denoiser, in the mode that it is trained in.
            network_input: (B, C, h, w) sample and (B,) time, as the network is told them.
            condition: Of the batch.
            generator: Draws who is left without.
        """
        sample, time = network_input
        if self.by_masking:
            memory = asked(network, sample, time, condition)
            kept = torch.rand(len(sample), generator=generator, device=generator.device) > 1 - self.rate
            return replace(condition, memory=tuple(masked(part, kept.to(part.device)) for part in memory))
        count = int(len(sample) * self.rate)
        if not count:
            return condition
        memory = asked(network, sample[:count], time[:count], first_rows(condition, count))
        rest = len(sample) - count
        return replace(condition, memory=tuple(torch.cat([part, part.new_zeros(rest, *part.shape[1:])]) for part in memory))


@torch.no_grad()
def asked(network: nn.Module, sample: Tensor, time: Tensor, condition: Condition) -> tuple[Tensor, ...]:
    """What the network gives back when it remembers nothing."""
    output: DenoiserOutput = network(sample, time, condition.class_labels, **condition.arguments())
    return output.memory


def first_rows(condition: Condition, count: int) -> Condition:
    """The condition of the first images of a batch."""
    return replace(condition, class_labels=condition.class_labels[:count], **{
        name: value[:count] for name, value in condition.arguments().items()
    })  # fmt: skip


def masked(values: Tensor, kept: Tensor) -> Tensor:
    """Values (B, ...) where ``kept`` (B,) says so, zeros elsewhere."""
    return values * kept.to(values.dtype).reshape(-1, *[1] * (values.dim() - 1))


def check_self_conditioning(denoiser: nn.Module, self_conditioning: SelfConditioning | None) -> None:
    """Refuse a memory that would not be trained, or training of one that is not there.

    Raises:
        UserError: If only one of them is given.
    """
    if self_conditioning is None and has_memory(denoiser):
        raise UserError(
            f"this {type(denoiser).__name__} reads back what it gave at the step before and must be trained to: give "
            "self_conditioning, such as {rate: 0.9}, or a denoiser with self_cond none"
        )
    if self_conditioning is not None and not has_memory(denoiser):
        raise UserError(
            f"self_conditioning needs a denoiser with a memory, and this {type(denoiser).__name__} has none; leave it out"
        )
