"""What a training will take, before it starts: parameters, operations and memory, measured on hollow tensors."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.core.metering import Meter, as_accelerator, hollow_out
from generative.core.objective import Objective, Phase
from generative.core.runtime import Precision
from generative.core.step import checkpoint_activations
from generative.core.types import Batch, StepContext

FEW_IMAGES, MORE_IMAGES = 2, 4
"""Sizes of two micro-batches whose costs tell what an image costs and what is the same for any number (normalised weights)."""
LEAN_IMAGES = (8, 16)
"""The same where activations are computed again: of fewer images, most is alive where weights are large, not where maps are."""
LATE_STEP = 10**9
"""Step that costs are measured at: whatever enters late (an adversary) has entered."""

MakeBatch = Callable[[int], Batch]
"""Makes a micro-batch of so many images."""


@dataclass(frozen=True)
class Activations:
    """Memory of activations and of what is at work beside them, in bytes.

    Attributes:
        per_image: Of each image of a micro-batch.
        fixed: Whatever its size.
    """

    per_image: float
    fixed: float

    def of(self, images: int) -> float:
        """Of a micro-batch."""
        return self.fixed + self.per_image * images


@dataclass(frozen=True)
class Footprint:
    """What a training costs.

    Attributes:
        parameters: Trained parameters by network.
        frozen_parameters: Of frozen networks.
        forward_flops: Operations per image of the forward passes of a training step, frozen networks' too.
        step_flops: Of the whole step: forward and backward, every phase as often as it runs. Nothing computed twice counts twice.
        weights: Bytes of the trained networks' parameters.
        gradients: Bytes of their gradients.
        optimizer: Bytes of the optimizers' states.
        averages: Bytes of each average, by name.
        buffers: Bytes of the trained networks' and the objective's buffers.
        frozen: Bytes of the frozen networks.
        activations: Of the phase that takes most, everything kept for the backward pass.
        checkpointed: The same with gradient checkpointing; None where no network can.
    """

    parameters: dict[str, int]
    frozen_parameters: dict[str, int]
    forward_flops: float
    step_flops: float
    weights: float
    gradients: float
    optimizer: float
    averages: dict[str, float]
    buffers: float
    frozen: float
    activations: Activations
    checkpointed: Activations | None


def measure_footprint(objective: Objective, make_batch: MakeBatch, precision: Precision = "no") -> Footprint:
    """Measure what a training of an objective costs on an accelerator.

    Its networks lose their weights: they are replaced by tensors without content, on which the losses and their gradients are
    computed in seconds, however large they are. Whatever else the losses draw or hold stays real.

    Args:
        objective: What is trained, its networks on any device, ``meta`` included. It can be used for nothing else afterwards.
        make_batch: Makes a micro-batch, real or made by the objective's encoders; called when the networks are hollow.
        precision: Of the training.

    Raises:
        UserError: If a loss cannot be computed without the data's content.
    """
    hollow_out([*objective.networks.values(), *objective.frozen.values()])
    optimizer = optimizer_bytes(objective)
    phases = objective.phases()
    few, _ = measure_phases(objective, phases, make_batch(FEW_IMAGES), precision)
    more, (forward, step) = measure_phases(objective, phases, make_batch(MORE_IMAGES), precision)
    activations = line_through((FEW_IMAGES, MORE_IMAGES), (few, more))
    checkpointed = None
    if has_checkpointing(objective):
        checkpoint_activations(objective.networks)
        lean = [measure_phases(objective, phases, make_batch(images), precision)[0] for images in LEAN_IMAGES]
        checkpointed = line_through(LEAN_IMAGES, lean)
    repeats = max(phase.repeats for phase in phases)
    networks = objective.networks
    return Footprint(
        parameters={name: count(network.parameters()) for name, network in networks.items()},
        frozen_parameters={name: count(network.parameters()) for name, network in objective.frozen.items()},
        forward_flops=forward / (MORE_IMAGES * repeats),
        step_flops=step / (MORE_IMAGES * repeats),
        weights=size_of(parameter for network in networks.values() for parameter in network.parameters()),
        gradients=size_of(p for network in networks.values() for p in network.parameters() if p.requires_grad),
        optimizer=optimizer,
        averages={
            name: size_of([*networks[spec.network].parameters(), *networks[spec.network].buffers()])
            for name, spec in objective.ema.items()
        },
        buffers=size_of([*(b for network in networks.values() for b in network.buffers()), *objective.buffers.values()]),
        frozen=size_of(t for network in objective.frozen.values() for t in [*network.parameters(), *network.buffers()]),
        activations=activations,
        checkpointed=checkpointed,
    )


def measure_phases(
    objective: Objective, phases: list[Phase], batch: Batch, precision: Precision, seconds: float | None = None
) -> tuple[int, tuple[float, float]]:
    """Run the losses of a step on one micro-batch, and their gradients.

    Args:
        objective: Its networks hollow.
        phases: Its phases.
        batch: The micro-batch.
        precision: Of the training.
        seconds: Longest time for a phase; None for any.

    Returns:
        Most bytes alive at once, weights and their gradients left out; and operations of the forward passes and of the whole,
        every phase counted as often as a step runs it.
    """
    networks = objective.networks
    trainable = {name: [p for p in network.parameters() if p.requires_grad] for name, network in networks.items()}
    held = [
        t for network in [*networks.values(), *objective.frozen.values()] for t in [*network.parameters(), *network.buffers()]
    ]
    cache: dict[str, Any] = {}
    peak, forward, total = 0, 0.0, 0.0
    for phase in phases:
        for name, network in networks.items():
            network.train(name not in phase.eval_networks)
            for parameter in trainable[name]:
                parameter.requires_grad_(name in phase.networks)
                parameter.grad = None
        times = phase.repeats / phase.interval
        context = StepContext(LATE_STEP, LATE_STEP, torch.Generator().manual_seed(0), cache)
        meter = Meter([*held, *objective.buffers.values()], seconds)
        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda p, meter=meter: meter.leave_out(p.grad))
            for name in phase.networks
            for parameter in trainable[name]
        ]
        with warnings.catch_warnings(), as_accelerator(precision), meter:
            warnings.simplefilter("ignore")  # about the processor's ways
            loss = phase.loss_fn(networks, batch, context)["loss"]
            forward += times * meter.operations
            with torch.autocast("cpu", enabled=False):
                differentiate(loss)
        del loss
        for hook in hooks:
            hook.remove()
        total += times * meter.operations
        peak = max(peak, meter.peak)
    for parameters in trainable.values():
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
    return peak, (forward, total)


def differentiate(loss: Tensor) -> None:
    """``loss.backward()``, during which modes stay on: what is computed again is computed by the same rules."""
    torch.autograd.graph._engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def count_step_flops(objective: Objective, make_batch: MakeBatch, seconds: float) -> float | None:
    """Operations per image of a training step, as ``Footprint.step_flops``, of an objective that is trained afterwards.

    They are counted on a hollow twin, which draws nothing that the training draws and leaves everything as it was.

    Args:
        objective: Neither compiled, nor sharded, nor with gradient checkpointing.
        make_batch: Makes a micro-batch.
        seconds: Give up after so long.

    Returns:
        None if it takes longer, or cannot be done.
    """
    started = time.perf_counter()
    restore = hollow_out([*objective.networks.values(), *objective.frozen.values()])
    try:
        with torch.random.fork_rng([]):
            twin = copy.deepcopy(objective)
            phases, batch = twin.phases(), make_batch(MORE_IMAGES)
            left = seconds - (time.perf_counter() - started)
            _, (_, total) = measure_phases(twin, phases, batch, "no", left)
        return total / (MORE_IMAGES * max(phase.repeats for phase in phases))
    except Exception:  # a gauge never stops a run
        return None
    finally:
        restore()


def line_through(images: Sequence[int], costs: Sequence[float]) -> Activations:
    """Costs of an image and of none, from those of two micro-batches."""
    per_image = (costs[1] - costs[0]) / (images[1] - images[0])
    return Activations(per_image, max(0.0, costs[1] - per_image * images[1]))


def has_checkpointing(objective: Objective) -> bool:
    """Whether any network can compute its activations again."""
    return any(getattr(network, "_supports_gradient_checkpointing", False) for network in objective.networks.values())


def optimizer_bytes(objective: Objective) -> float:
    """Bytes of all optimizers' states: those of a small parameter of each group after a step, scaled to the group's size.

    Raises:
        UserError: If an optimizer cannot be built.
    """
    total = 0.0
    for name, factory in objective.optimizers.items():
        groups = objective.parameter_groups(name)
        small = [{**group, "params": [nn.Parameter(torch.zeros(8, 8))]} for group in groups]
        try:
            optimizer = factory(small)
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer '{name}' cannot be built: {error}") from error
        for group in small:
            group["params"][0].grad = torch.ones(8, 8)
        optimizer.step()
        for group, little in zip(groups, small, strict=True):
            parameter = little["params"][0]
            state = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor) and value.dim()]
            total += size_of(state) / size_of([parameter]) * size_of(group["params"])
    return total


def count(parameters: Iterable[Tensor]) -> int:
    """Number of values in parameters."""
    return sum(parameter.numel() for parameter in parameters)


def size_of(tensors: Iterable[Tensor]) -> float:
    """Bytes of tensors, each counted once."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in tensors}.values()))
