"""Which steps of a chain are trained how often: by the size of their recent losses."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from generative.core.errors import UserError
from generative.core.processes import is_several


class LossSecondMoment:
    """Draws steps in proportion to the root of the second moment of their recent losses (arXiv 2102.09672, eq. 18).

    A step drawn with probability p weighs 1 / (T p), so that the expected gradient is that of uniform draws. Until every step
    has a full history, draws are uniform. The history is a buffer of the training: checkpoints keep it.

    Args:
        history_per_timestep: Losses of each step that are remembered.
        uniform_probability: Share of draws that are uniform all the same, so that no step is forgotten.

    Raises:
        UserError: If an argument is out of range.

    Attributes:
        history: (T, history) float32, the newest losses of each step, in no order.
        counts: (T,) int64, losses seen of each step.
    """

    history: Tensor
    counts: Tensor

    def __init__(self, history_per_timestep: int = 10, uniform_probability: float = 0.001) -> None:
        if history_per_timestep < 1:
            raise UserError(f"history_per_timestep must be at least 1, got {history_per_timestep}")
        if not 0 < uniform_probability <= 1:
            raise UserError(f"uniform_probability must be in (0, 1], got {uniform_probability}")
        self.history_per_timestep = history_per_timestep
        self.uniform_probability = uniform_probability
        # Of the step under way, one (2, b) a micro-batch: nothing that a checkpoint would hold.
        self._new: list[Tensor] = []

    def start(self, num_timesteps: int) -> dict[str, Tensor]:
        """Begin with an empty history of a chain of T steps.

        Returns:
            The buffers, by name.
        """
        self.history = torch.zeros(num_timesteps, self.history_per_timestep)
        self.counts = torch.zeros(num_timesteps, dtype=torch.int64)
        return {"timestep_losses": self.history, "timestep_counts": self.counts}

    def density(self) -> Tensor:
        """T times the probability of each step, (T,) float32 that sum to T."""
        moments = self.history.square().mean(1).sqrt()
        shares = moments * (len(moments) / moments.sum().clamp(min=torch.finfo(torch.float32).tiny))
        shares = (1 - self.uniform_probability) * shares + self.uniform_probability
        is_warm = (self.counts >= self.history_per_timestep).all()
        return torch.where(is_warm, shares, torch.ones_like(shares))

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw steps.

        Args:
            batch_size: B.
            generator: Source of the draws, on the device of the history.

        Returns:
            Steps (B,) int64, and the weights (B,) float32 of their losses.
        """
        density = self.density()
        timesteps = torch.multinomial(density, batch_size, replacement=True, generator=generator)
        return timesteps, 1 / density[timesteps]

    def record(self, timesteps: Tensor, losses: Tensor) -> None:
        """Take the losses (B,) of a micro-batch, before they are weighted, with their steps (B,)."""
        # Whole numbers below 2**24 are themselves in float32.
        self._new.append(torch.stack([timesteps.float(), losses.detach().float()]))

    def fold(self) -> None:
        """End a training step: add the losses of all micro-batches and processes, in the order of their slots."""
        timesteps, losses = gather_slots(torch.stack(self._new)).unbind()
        self._new = []
        self.add(timesteps.long(), losses)

    def add(self, timesteps: Tensor, losses: Tensor) -> None:
        """Write losses (N,) of steps (N,) over the oldest ones, as one after another would be, without waiting for the device."""
        same = timesteps[:, None] == timesteps[None, :]  # (N, N)
        before = same.tril(-1).sum(1)  # (N,) of the same step, earlier among these
        is_kept = same.sum(1) - before <= self.history_per_timestep
        places = (self.counts[timesteps] + before) % self.history_per_timestep + timesteps * self.history_per_timestep
        flat = torch.cat([self.history.flatten(), self.history.new_zeros(1)])
        # What later ones of the same step would overwrite at once goes to the place behind the last.
        flat[torch.where(is_kept, places, len(flat) - 1)] = losses
        self.history.copy_(flat[:-1].view_as(self.history))
        self.counts.index_add_(0, timesteps, torch.ones_like(timesteps))


def gather_slots(values: Tensor) -> Tensor:
    """Values of all micro-batches of all processes in the order of their slots, whatever process had which.

    Args:
        values: (M, D, b) of this process's micro-batches, as many and as large on every process.

    Returns:
        (D, N), the same on every process.
    """
    parts = [values]
    if is_several():
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
    # Slot of micro-batch m on process p is m P + p.
    return torch.stack(parts, dim=1).flatten(0, 1).transpose(0, 1).flatten(1)
