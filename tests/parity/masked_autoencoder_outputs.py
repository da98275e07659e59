"""What the adapters of mar and emigm share: networks without a pipeline's checks, noise read from the file, recorded choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from outputs import Tensors
from torch import Tensor
from torch.nn import Module

from generative.autoregressive.continuous.diffusion_head import HeadSampler, draw_tokens
from generative.autoregressive.continuous.schedulers import DrawTokens, MaskedScheduler
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise


class FileNoise(ImageNoise):
    """Hands out tensors one after another."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__([])
        self.tensors = iter(tensors)

    def randn(self, *shape: int) -> Tensor:
        return next(self.tensors)


def numbered(inputs: Tensors, prefix: str) -> list[Tensor]:
    """Inputs ``<prefix>0``, ``<prefix>1``, ..."""
    found = []
    while f"{prefix}{len(found)}" in inputs:
        found.append(inputs[f"{prefix}{len(found)}"])
    return found


def file_drawing(head: Module, sampler: HeadSampler, noises: Iterator[Tensor]) -> DrawTokens:
    """Drawing of tokens whose noise (draws, N, C) comes from the file, one tensor for each iteration."""

    def draw(features: Tensor, guidance_scale: Tensor | None, counts: list[int], noise: ImageNoise) -> Tensor:
        return draw_tokens(head, features, guidance_scale, sampler, FileNoise(next(noises)))

    return draw


class Recorder:
    """Remembers what a scheduler was asked and chose.

    Args:
        scheduler: Its ``choose`` and ``scales`` are wrapped.
    """

    def __init__(self, scheduler: MaskedScheduler) -> None:
        self.masks: list[Tensor] = []
        self.chosen: list[Tensor] = []
        self.scales: list[float] = []
        choose, scales = scheduler.choose, scheduler.scales

        def recorded_choose(timestep: int, state: SampleState) -> Tensor:
            chosen = choose(timestep, state)
            if timestep == len(self.chosen):  # a scheduler asks itself more than once
                self.masks.append(state.memory["masked"])
                self.chosen.append(chosen)
                self.scales.append(1.0)  # until guidance says otherwise
            return chosen

        def recorded_scales(masked: Tensor) -> Tensor:
            result = scales(masked)
            self.scales[-1] = float(result[0])
            return result

        scheduler.choose = recorded_choose  # type: ignore[method-assign]
        scheduler.scales = recorded_scales  # type: ignore[method-assign]


def features(network: Module, inputs: Tensors, null: bool) -> Tensor:
    """Vectors of all positions for the file's mask, conditional or not."""
    labels = torch.full_like(inputs["labels"], network.num_classes) if null else inputs["labels"]
    return network(network.patchify(inputs["latents"]), inputs["mask"] == 1, labels)


def masked_rows(inputs: Tensors, copies: int) -> Tensor:
    """Which of the file's rows (copies B L,), copy by copy, are of masked tokens."""
    return (inputs["mask"] == 1).flatten().repeat(copies)
