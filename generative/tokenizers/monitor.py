"""What a tokenizer's training must remember from step to step: use of codes, recent encoder vectors, moving averages.

All of it lives in tensors that the objective lists among its buffers, which checkpoints keep: a resumed run goes on bit-equal.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from generative.core.processes import total
from generative.core.seeding import keyed_generator
from generative.core.tensor_parts import overwrite, whole
from generative.tokenizers.base import CodeUse

PICKS_PER_MICRO_BATCH = 256
"""Encoder vectors of a micro-batch that enter the reservoir."""
LECAM_DECAY = 0.999
"""Of the averages of logits (Open-MAGVIT2's code; 0.99 in arXiv 2104.03310)."""
NEVER = 2**62
"""Steps since the use of a code that was not used yet; counting on does not overflow."""


def num_processes() -> int:
    """Processes of the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(parts: list[Tensor], size: int) -> Tensor:
    """Rows of all micro-batches of all processes, in the order of their slots, whatever process had which.

    Args:
        parts: For each micro-batch of this process at most ``size`` rows (n, D); as many micro-batches on every process.
        size: Most rows of a micro-batch.

    Returns:
        (N, D), the same on every process.
    """
    if num_processes() == 1:
        return torch.cat(parts)
    padded = torch.stack([torch.cat([part, part.new_zeros(size - len(part), part.shape[1])]) for part in parts])  # (M, size, D)
    lengths = torch.tensor([len(part) for part in parts], device=padded.device)  # (M,)
    rows = [torch.empty_like(padded) for _ in range(num_processes())]
    counts = [torch.empty_like(lengths) for _ in range(num_processes())]
    dist.all_gather(rows, padded)
    dist.all_gather(counts, lengths)
    # Slot of micro-batch m on process p is m P + p.
    in_slots = torch.stack(rows, dim=1).flatten(0, 1)  # (M P, size, D)
    return torch.cat(
        [part[:length] for part, length in zip(in_slots, torch.stack(counts, dim=1).flatten().tolist(), strict=True)]
    )


class CodebookMonitor(nn.Module):
    """Use of one codebook, and recent vectors to revive its dead codes from.

    Args:
        num_codes: V.
        code_dim: D of a learned codebook; 0 for one without rows that could be revived.
        reservoir_size: Recent vectors kept.
        window_steps: Steps that "recently" means.

    Attributes:
        idle: (V,) int64, steps since each code was used; ``NEVER`` or more where it was not.
        counts: (V,) float32, moving average of its uses in a step.
        revived_step: (V,) int64, step of its last revival.
        revived: () int64, revivals so far.
        reservoir: (R, D) float32, newest first; only the first ``filled`` rows hold vectors.
        filled: () int64.
    """

    idle: Tensor
    counts: Tensor
    revived_step: Tensor
    revived: Tensor
    reservoir: Tensor
    filled: Tensor

    def __init__(self, num_codes: int, code_dim: int, reservoir_size: int, window_steps: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.window_steps = window_steps
        self.is_learned = code_dim > 0
        self.register_buffer("idle", torch.full((num_codes,), NEVER))
        self.register_buffer("counts", torch.zeros(num_codes))
        if self.is_learned:
            self.register_buffer("revived_step", torch.zeros(num_codes, dtype=torch.int64))
            self.register_buffer("revived", torch.zeros((), dtype=torch.int64))
            self.register_buffer("reservoir", torch.zeros(min(reservoir_size, num_codes), code_dim))
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        # Of the step under way, between its first micro-batch and ``fold``: nothing that a checkpoint would hold.
        self._new_counts: Tensor | None = None
        self._new_vectors: list[Tensor] = []

    def record(self, use: CodeUse | None, generator: torch.Generator) -> None:
        """Take the codes of a micro-batch; None where it used the codebook not at all."""
        if self._new_counts is None:
            self._new_counts = torch.zeros_like(self.idle)
        vectors = self.reservoir[:0] if self.is_learned else None
        if use is not None:
            self._new_counts.index_add_(0, use.ids, torch.ones_like(use.ids))
            if vectors is not None and use.vectors is not None:
                picks = torch.randperm(len(use.vectors), generator=generator, device=generator.device)[:PICKS_PER_MICRO_BATCH]
                vectors = use.vectors[picks.to(use.vectors.device)].to(self.reservoir.dtype)
        if vectors is not None:
            self._new_vectors.append(vectors)

    def fold(self) -> None:
        """End a step: sum over micro-batches and processes, and remember."""
        if self._new_counts is None:
            return
        counts = total(self._new_counts)
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + 1))
        self.counts.lerp_(counts.to(self.counts.dtype), 1 / self.window_steps)
        if self.is_learned:
            vectors = gather_rows(self._new_vectors, PICKS_PER_MICRO_BATCH)
            size = len(self.reservoir)
            self.reservoir.copy_(torch.cat([vectors, self.reservoir])[:size])
            self.filled.add_(len(vectors)).clamp_(max=size)
        self._new_counts, self._new_vectors = None, []

    def revive(self, codebook: nn.Parameter, name: str, step: int, threshold: int) -> None:
        """Overwrite dead rows of a codebook, and no other, by recent vectors; the same choice on every process.

        Args:
            codebook: (V, D).
            name: Of the codebook.
            step: Steps done.
            threshold: A row is dead that was neither used nor revived in so many steps.
        """
        age = torch.minimum(self.idle, step - self.revived_step)
        dead = (age >= threshold).nonzero().flatten()
        filled = int(self.filled)
        count = min(len(dead), filled)
        if count == 0:
            return
        generator = keyed_generator("revival", name, step)
        rows = dead[torch.randperm(len(dead), generator=generator)[:count].to(dead.device)]
        sources = torch.randperm(filled, generator=generator)[:count].to(dead.device)
        codes = whole(codebook.data).clone()
        codes[rows] = self.reservoir[sources].to(codebook.dtype)
        overwrite(codebook.data, codes)
        self.revived_step[rows] = step
        self.revived.add_(count)

    def usage(self) -> Tensor:
        """Share of the codes that were used at all in the last ``window_steps`` steps, a scalar in [0, 1]."""
        return (self.idle < self.window_steps).float().mean()

    def perplexity(self) -> Tensor:
        """exp of the entropy (nats) of the codes' recent frequencies, a scalar in [1, V]: how many are used alike."""
        shares = self.counts / self.counts.sum().clamp(min=torch.finfo(torch.float32).tiny)
        return torch.special.entr(shares).sum().exp()


class TokenizerMonitor(nn.Module):
    """Memory of a tokenizer's training: a module for the names of its buffers, without parameters.

    Args:
        codebooks: V and D by codebook name; D is 0 for a codebook that is not learned.
        reservoir_size: Recent encoder vectors kept for each learned codebook.
        window_steps: Steps that usage, perplexity and latents' moments look back.

    Attributes:
        logit_averages: (2,) moving averages of real and reconstructed images' mean logits, for LeCAM.
        latent_moments: (3,) moving averages of 1, of continuous latents' mean and of their mean square.
    """

    logit_averages: Tensor
    latent_moments: Tensor

    def __init__(self, codebooks: dict[str, tuple[int, int]], reservoir_size: int = 4096, window_steps: int = 100) -> None:
        super().__init__()
        self.window_steps = window_steps
        self.uses = nn.ModuleDict(
            {name: CodebookMonitor(num_codes, dim, reservoir_size, window_steps) for name, (num_codes, dim) in codebooks.items()}
        )
        self.register_buffer("logit_averages", torch.zeros(2))
        self.register_buffer("latent_moments", torch.zeros(3))
        self._new_logits: list[Tensor] = []
        self._new_moments: list[Tensor] = []

    def record_codes(self, codes: Mapping[str, CodeUse], generator: torch.Generator) -> None:
        """Take the codes of a micro-batch.

        Raises:
            ValueError: If the tokenizer names a codebook that it did not announce.
        """
        unknown = set(codes) - set(self.uses)
        if unknown:
            raise ValueError(f"the tokenizer used codes of '{min(unknown)}', it announced {', '.join(self.uses) or 'none'}")
        for name, use in self.uses.items():
            assert isinstance(use, CodebookMonitor)
            use.record(codes.get(name), generator)

    def record_latents(self, latents: Tensor) -> None:
        """Take continuous latents of a micro-batch, any shape."""
        values = latents.detach().float()
        self._new_moments.append(torch.stack([torch.ones_like(values.mean()), values.mean(), values.square().mean()]))

    def record_logits(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Take the logits of a micro-batch.

        Returns:
            (2,) the averages moved by this micro-batch, which is what LeCAM compares with.
        """
        means = torch.stack([real_logits.detach().float().mean(), fake_logits.detach().float().mean()])
        self._new_logits.append(means)
        return self.logit_averages.lerp(means, 1 - LECAM_DECAY)

    def finish_codes(self, codebooks: Mapping[str, nn.Parameter], threshold: int | None, interval: int, step: int) -> None:
        """End the tokenizer's phase: fold what was recorded, and revive dead codes when that is due.

        Args:
            codebooks: The learned codebooks.
            threshold: See ``CodebookMonitor.revive``; None to revive none.
            interval: Steps from one revival to the next.
            step: Steps done, this one included.
        """
        for name, use in self.uses.items():
            assert isinstance(use, CodebookMonitor)
            use.fold()
            if threshold is not None and use.is_learned and step % interval == 0:
                use.revive(codebooks[name], name, step, threshold)
        if self._new_moments:
            moments = total(torch.stack(self._new_moments).mean(0)) / num_processes()
            self.latent_moments.lerp_(moments, 1 / self.window_steps)
            self._new_moments = []

    def finish_logits(self) -> None:
        """End the discriminator's phase."""
        if self._new_logits:
            means = total(torch.stack(self._new_logits).mean(0)) / num_processes()
            self.logit_averages.lerp_(means, 1 - LECAM_DECAY)
            self._new_logits = []

    def latent_std(self) -> float | None:
        """Standard deviation of recent continuous latents about their common mean; None before the first."""
        weight, mean, square = self.latent_moments.tolist()
        if weight == 0:
            return None
        variance = square / weight - (mean / weight) ** 2
        return float(max(variance, 0.0) ** 0.5)
