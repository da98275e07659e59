"""One optimizer step of one phase: exact accumulation over micro-batches and processes, whatever the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from generative.core.errors import UserError
from generative.core.gradient_buckets import GradientBuckets
from generative.core.objective import Objective, Phase
from generative.core.seeding import derive_seed, keyed_generator
from generative.core.sharding import Sharding
from generative.core.tensor_parts import local_part, total_norm
from generative.core.types import Batch, Losses, StepContext


class PhaseRunner:
    """Runs phases of an objective on the accelerator.

    Networks are not wrapped in DistributedDataParallel, whose reducer fails on phases that leave a parameter without gradient; a
    GAN's phases share networks. ``GradientBuckets`` sums gradients over processes during the last backward pass of a phase.

    Args:
        objective: What is trained.
        optimizers: Its optimizers by name, prepared by the accelerator.
        accelerator: Device, precision and processes.
        seed: Seed of the run.
        micro_batches: Micro-batches per process and step.
        max_grad_norm: Clip the gradient of a phase to this L2 norm; None only measures it.
        sharding: How the networks are cut over processes; None where they are whole.
    """

    def __init__(
        self,
        objective: Objective,
        optimizers: dict[str, Any],
        accelerator: Accelerator,
        seed: int,
        micro_batches: int,
        max_grad_norm: float | None,
        sharding: Sharding | None = None,
    ) -> None:
        self.objective = objective
        self.optimizers = optimizers
        self.accelerator = accelerator
        self.seed = seed
        self.num_slots = micro_batches * accelerator.num_processes
        self.max_grad_norm = max_grad_norm
        self.sharding = sharding or Sharding(None)
        # What the objective left trainable when it was built; anything it froze stays frozen in every phase.
        self.trainable = {name: [p for p in net.parameters() if p.requires_grad] for name, net in objective.networks.items()}
        self.group = torch.distributed.new_group() if accelerator.num_processes > 1 else None
        self._buckets: dict[tuple[str, ...], GradientBuckets] = {}

    def run(
        self,
        phase: Phase,
        repeat: int,
        step: int,
        images_seen: int,
        batches: Sequence[Batch],
        caches: Sequence[dict[str, Any]],
    ) -> Losses:
        """Run one phase on one batch, given as micro-batches.

        Args:
            phase: The phase.
            repeat: Which of its repeats this is.
            step: Training steps done so far.
            images_seen: Training images drawn so far.
            batches: This process's micro-batches.
            caches: One cache per micro-batch, shared with the other phases of the step.

        Returns:
            Detached scalars: every loss (mean over micro-batches, or the exact masked mean) and ``grad_norm``, before clipping.
        """
        networks = self.objective.networks
        parameters = self._select(phase)
        optimizer = self.optimizers[phase.optimizer]
        optimizer.zero_grad(set_to_none=True)
        self.sharding.begin_phase({name: networks[name] for name in phase.networks})
        records: list[Losses] = []
        for micro_batch, (batch, cache) in enumerate(zip(batches, caches, strict=True)):
            slot = micro_batch * self.accelerator.num_processes + self.accelerator.process_index
            key = (self.seed, step, phase.name, repeat, slot)
            torch.manual_seed(derive_seed(*key, "dropout"))
            context = StepContext(step, images_seen, keyed_generator(*key, device=self.accelerator.device), cache)
            with self.accelerator.autocast(), self.sharding.explained(phase.name):
                losses = phase.loss_fn(networks, batch, context)
            is_last = micro_batch == len(batches) - 1
            with self._buckets_of(phase).reduced() if is_last and self.group is not None else nullcontext():
                self.accelerator.backward(losses["loss"])
            records.append({name: value.detach().float() for name, value in losses.items()})
        self.sharding.end_phase(networks)
        values, divisor = self._average(records)
        divide_gradients(parameters, divisor)
        self.accelerator.unscale_gradients(optimizer)
        if phase.before_step:
            phase.before_step(networks, step)
        gradients = [p.grad for p in parameters if p.grad is not None]
        values["grad_norm"] = total_norm(gradients).float()
        if self.max_grad_norm is not None:
            clip_gradients(gradients, self.max_grad_norm, values["grad_norm"])
        optimizer.step()
        if phase.after_step:
            with torch.no_grad():
                phase.after_step(networks, step)
        return values

    def _select(self, phase: Phase) -> list[nn.Parameter]:
        """Set modes and freeze everything outside the phase; returns the parameters it trains."""
        for name, network in self.objective.networks.items():
            network.train(name not in phase.eval_networks)
            for parameter in self.trainable[name]:
                parameter.requires_grad_(name in phase.networks)
        return [p for name in phase.networks for p in self.trainable[name]]

    def _average(self, records: list[Losses]) -> tuple[Losses, Tensor | float]:
        """Average the losses of this process's micro-batches and find what the summed gradients are to be divided by."""
        if "denominator" not in records[0]:
            return {name: torch.stack([r[name] for r in records]).mean() for name in records[0]}, float(self.num_slots)
        totals = {name: torch.stack([r[name] for r in records]).sum() for name in records[0]}
        local = totals.pop("denominator")
        values = {name: total / (or_one(local) if name == "loss" else len(records)) for name, total in totals.items()}
        return values, or_one(self.accelerator.reduce(local, reduction="sum") if self.accelerator.num_processes > 1 else local)

    def _buckets_of(self, phase: Phase) -> GradientBuckets:
        """Buckets of the networks that a phase trains, made once."""
        if phase.networks not in self._buckets:
            self._buckets[phase.networks] = GradientBuckets(
                [p for name in phase.networks for p in self.trainable[name] if not isinstance(p, DTensor)], self.group
            )
        return self._buckets[phase.networks]


def divide_gradients(parameters: Sequence[nn.Parameter], divisor: Tensor | float) -> None:
    """Divide the gradients of those parameters that have one."""
    gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
    if gradients and not (isinstance(divisor, float) and divisor == 1.0):
        torch._foreach_div_(gradients, divisor)


def clip_gradients(gradients: Sequence[Tensor], limit: float, norm: Tensor) -> None:
    """Scale gradients whose norm is above a limit down to it, in place (as ``torch.nn.utils.clip_grads_with_norm_``)."""
    if gradients:
        torch._foreach_mul_([local_part(gradient) for gradient in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))


def or_one(denominator: Tensor) -> Tensor:
    """The denominator, or 1 where there was nothing to sum: a mean over nothing is 0, not NaN."""
    return torch.where(denominator == 0, torch.ones_like(denominator), denominator)


@torch.no_grad()
def checkpoint_activations(networks: Mapping[str, nn.Module], is_compiled: bool = False) -> None:
    """Turn on gradient checkpointing of the networks that have it, as all of diffusers' that say so do.

    Args:
        networks: By name.
        is_compiled: Whether they are compiled: then networks with layers that say ``moves_in_training`` are left out, because a
            compiled graph that computes a block again reads state that later passes have moved.

    Raises:
        UserError: If none has.
    """
    models = [network for network in networks.values() if isinstance(network, ModelMixin)]
    able = [network for network in models if network._supports_gradient_checkpointing]
    named = ", ".join(type(network).__name__ for network in networks.values())
    if not able:
        raise UserError(f"trainer.gradient_checkpointing needs a network that supports it, and {named} does not; set it to false")
    if is_compiled:
        able = [network for network in able if not any(getattr(m, "moves_in_training", False) for m in network.modules())]
    if not able:
        raise UserError(
            f"trainer.compile and trainer.gradient_checkpointing exclude each other for {named}, whose norms have state that "
            "moves in every forward pass; turn one of them off"
        )
    for network in able:
        network.enable_gradient_checkpointing()


def average_buffers(networks: dict[str, nn.Module], accelerator: Accelerator) -> None:
    """Average floating-point buffers (moving statistics) over processes, so that every process evaluates the same network.

    Modules that say ``has_frozen_buffers`` are left out: their buffers are weights that never move, which averaging would round.
    """
    if accelerator.num_processes == 1:
        return
    modules = [module for network in networks.values() for module in network.modules()]
    moving = [module for module in modules if not getattr(module, "has_frozen_buffers", False)]
    buffers = [b for module in moving for b in module.buffers(recurse=False) if b.is_floating_point()]
    if not buffers:
        return
    flat = accelerator.reduce(torch.cat([b.float().flatten() for b in buffers]), reduction="mean")
    for buffer, value in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(value.view_as(buffer))
