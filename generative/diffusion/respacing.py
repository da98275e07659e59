"""Shortened chains of a Gaussian diffusion (Improved DDPM, arXiv 2102.09672, section 4), in ADM's ways of saying how."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian_process import GaussianProcess

Respacing = int | str | Sequence[int]
"""250 evenly spread steps; ``ddim25``, a whole stride from 0; ``10,15,20`` steps of equal sections; or the steps themselves."""


def respaced_timesteps(num_train_timesteps: int, respacing: Respacing) -> list[int]:
    """Steps of the full chain that a shortened one keeps, ascending.

    Args:
        num_train_timesteps: Steps T of the full chain.
        respacing: See ``Respacing``.

    Raises:
        UserError: If there are no such steps.
    """
    if isinstance(respacing, int):
        return _spread(num_train_timesteps, respacing)
    if isinstance(respacing, str):
        if respacing.startswith("ddim"):
            return _whole_stride(num_train_timesteps, respacing)
        try:
            counts = [int(part) for part in respacing.split(",")]
        except ValueError as error:
            raise UserError(f"a respacing is a number, ddimN or numbers with commas between them, got {respacing!r}") from error
        return _sections(num_train_timesteps, counts)
    steps = list(respacing)
    if not steps or steps != sorted(set(steps)) or not 0 <= steps[0] <= steps[-1] < num_train_timesteps:
        raise UserError(f"the steps of a chain must ascend and lie in 0..{num_train_timesteps - 1}, got {steps}")
    return steps


def _spread(length: int, count: int) -> list[int]:
    """``count`` steps from the first to the last, the stride added up in floating point before it is rounded (official code)."""
    if not 1 <= count <= length:
        raise UserError(f"num_inference_steps must be in 1..{length}, got {count}")
    stride = 1.0 if count == 1 else (length - 1) / (count - 1)
    position, steps = 0.0, []
    for _ in range(count):
        steps.append(round(position))
        position += stride
    return steps


def _whole_stride(length: int, respacing: str) -> list[int]:
    """The smallest whole stride from 0 that takes as many steps as ``ddimN`` says."""
    digits = respacing.removeprefix("ddim")
    for stride in range(1, length + 1):
        if digits.isdigit() and len(range(0, length, stride)) == int(digits):
            return list(range(0, length, stride))
    raise UserError(f"no whole stride through {length} steps takes {digits or 'a number of'} steps ({respacing!r})")


def _sections(length: int, counts: Sequence[int]) -> list[int]:
    """Each of several sections of equal length (the first ones take the remainder) spread over its own number of steps."""
    size, extra = divmod(length, len(counts))
    steps, start = [], 0
    for index, count in enumerate(counts):
        section = size + (index < extra)
        if not 1 <= count <= section:
            raise UserError(f"a section of {section} steps cannot keep {count}; the respacing is {','.join(map(str, counts))}")
        steps += [start + step for step in _spread(section, count)]
        start += section
    return steps


class ShortenedChain:
    """The chain of some steps of a Gaussian diffusion, with betas of its own.

    Args:
        process: The full chain.
        respacing: See ``Respacing``.

    Attributes:
        timesteps: Steps of the full chain that are kept, ascending: what the network is told.
        process: The shortened chain; its own steps are 0 to ``len(timesteps)`` - 1.
    """

    def __init__(self, process: GaussianProcess, respacing: Respacing) -> None:
        self.timesteps = respaced_timesteps(process.num_train_timesteps, respacing)
        kept = process.alphas_cumprod[self.timesteps]
        betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
        self.process = GaussianProcess(betas, process.prediction_type)

    def __len__(self) -> int:
        return len(self.timesteps)
