"""What a denoiser is given and what it gives back, whatever the network: conditions, guidance branches and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from generative.core.sampling import SampleState

if TYPE_CHECKING:
    from generative.diffusion.formulations.base import Formulation


@dataclass(frozen=True)
class DenoiserOutput:
    """Everything that a denoiser may predict for B noised samples; a ``Formulation`` says what ``prediction`` means.

    Attributes:
        prediction: (B, C, h, w) noise, data, velocity, ... at the sample's own size.
        variance: (B, C, h, w) learned variance of the reverse step, as a fraction between its bounds in [-1, 1] (arXiv
            2102.09672, eq. 15); None where the network learns none.
        log_variance: (B,) uncertainty u(sigma) that EDM2 learns (arXiv 2312.02696, eq. 21).
        pyramid: Predictions at lower resolutions, smallest first (DiMR, arXiv 2406.09416).
        features: (B, L, D) hidden tokens for an auxiliary loss (REPA, arXiv 2410.06940).
        memory: What the network reads back at the next step (RIN's latents, arXiv 2212.11972), each (B, ...); see ``has_memory``.
        gradient: (B, C, h, w) of log p(y | x_t), of classifier guidance; samplers add it to the score, as their papers do.
    """

    prediction: Tensor
    variance: Tensor | None = None
    log_variance: Tensor | None = None
    pyramid: tuple[Tensor, ...] = ()
    features: Tensor | None = None
    memory: tuple[Tensor, ...] = ()
    gradient: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> DenoiserOutput:
        """Apply a function to every tensor."""
        changed: dict[str, Any] = {name: tuple(map(function, getattr(self, name))) for name in ("pyramid", "memory")}
        for name in ("prediction", "variance", "log_variance", "features", "gradient"):
            value = getattr(self, name)
            changed[name] = None if value is None else function(value)
        return DenoiserOutput(**changed)

    def float(self) -> DenoiserOutput:
        """The same in float32: losses and solvers are never run in half precision."""
        return self.map(lambda tensor: tensor.float())

    def unbind(self, count: int) -> list[DenoiserOutput]:
        """Split the outputs of ``count`` branches that shared a forward pass, each (B, ...)."""
        if count == 1:
            return [self]
        return [self.map(lambda tensor, index=index: tensor.unflatten(0, (count, -1))[index]) for index in range(count)]  # type: ignore[misc]


@dataclass(frozen=True)
class Condition:
    """What a denoiser is conditioned on, besides the noised sample and its time.

    Attributes:
        class_labels: (B,) int64; the null condition of a network with ``num_classes`` classes is the label ``num_classes``.
        vector: (B, D) representation (RCG, arXiv 2312.03701).
        low_resolution: (B, 3, H', W') images in [-1, 1] to be brought to a higher resolution (ADM's upsampler, arXiv 2105.05233).
        sizes: (B, 2) int64 height and width in tokens, where one batch holds several (FiT, arXiv 2410.13925).
        packing: (R, L) int64 which token stands where, where several images share a row of tokens, see
            ``generative.layers.packing``; absent in sampling.
        end_time: (B,) time that a step ends at (MeanFlow, arXiv 2505.13447).
        augment_labels: (B, D) how training images were augmented (EDM, arXiv 2206.00364, appendix F.2); absent in sampling.
        memory: What the network gave back at the step before (``DenoiserOutput.memory``); none at the first step.
    """

    class_labels: Tensor
    vector: Tensor | None = None
    low_resolution: Tensor | None = None
    sizes: Tensor | None = None
    packing: Tensor | None = None
    end_time: Tensor | None = None
    augment_labels: Tensor | None = None
    memory: tuple[Tensor, ...] = ()

    def null(self, null_label: int) -> Condition:
        """The same with every class label replaced by the null label."""
        return replace(self, class_labels=torch.full_like(self.class_labels, null_label))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a network: those that are set, besides the class labels."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "class_labels"}
        return {name: value for name, value in values.items() if value is not None and not (name == "memory" and not value)}

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Conditions of several branches one after the other along the batch."""
        if len(conditions) == 1:
            return conditions[0]
        joined: dict[str, Any] = {}
        for field in fields(Condition):
            values = [getattr(condition, field.name) for condition in conditions]
            if field.name == "memory":
                joined[field.name] = tuple(torch.cat(parts) for parts in zip(*values, strict=True))
            else:
                joined[field.name] = None if values[0] is None else torch.cat(values)
        return Condition(**joined)


@dataclass(frozen=True)
class Branch:
    """One evaluation that guidance asks for.

    Attributes:
        condition: Under which condition.
        network: By which network; None for the pipeline's own.
    """

    condition: Condition
    network: nn.Module | None = None


NETWORK_MEMORY = "network memory"
"""Where ``SampleState.memory`` keeps what networks gave back, by the ``id`` of the network."""


def has_memory(network: Any) -> bool:
    """Whether a denoiser reads back at a step of sampling what it gave back at the one before (``carries_memory``)."""
    return bool(getattr(network, "carries_memory", False))


Evaluate = Callable[[SampleState, Tensor, Sequence[Branch]], list[DenoiserOutput]]
"""``(state, time, branches) -> outputs``, one a branch; branches of one network share a forward pass."""

Predict = Callable[[SampleState, Tensor], DenoiserOutput]
"""``(state, time) -> output``: conditions bound, guidance included. What a sampler calls."""


class CallCount:
    """Counts the calls of an ``Evaluate``: guidance may ask for none where nothing is to be predicted.

    Attributes:
        calls: So far.
    """

    def __init__(self) -> None:
        self.calls = 0

    def watch(self, evaluate: Evaluate) -> Evaluate:
        """The same, counted."""

        def counted(state: SampleState, time: Tensor, branches: Sequence[Branch]) -> list[DenoiserOutput]:
            self.calls += 1
            return evaluate(state, time, branches)

        return counted


def evaluator(network: nn.Module, formulation: Formulation) -> Evaluate:
    """The evaluation of branches: those of one network in one forward pass, each input as the formulation scales it.

    All branches of a network with a memory read what its first one, the conditional, gave back at the evaluation before.

    Args:
        network: The pipeline's own, for branches that name no other. A denoiser is called as ``(sample, time, class_labels,
            **other conditions) -> DenoiserOutput``.
        formulation: What it was trained under.
    """

    def evaluate(state: SampleState, time: Tensor, branches: Sequence[Branch]) -> list[DenoiserOutput]:
        batch_size = len(state.sample)
        sample, told = formulation.network_input(state.sample, time)
        told = told.to(sample.device, non_blocking=sample.is_cuda).reshape(-1).expand(batch_size)
        outputs: dict[int, DenoiserOutput] = {}
        places: dict[int, tuple[nn.Module, list[int]]] = {}
        for place, branch in enumerate(branches):
            chosen = network if branch.network is None else branch.network
            places.setdefault(id(chosen), (chosen, []))[1].append(place)
        memories = state.memory.setdefault(NETWORK_MEMORY, {})
        for chosen, members in places.values():
            assert isinstance(chosen.dtype, torch.dtype)
            memory = memories.get(id(chosen), ())
            condition = Condition.cat([replace(branches[place].condition, memory=memory) for place in members])
            repeated = sample.to(chosen.dtype).repeat(len(members), *[1] * (sample.dim() - 1))
            output = chosen(repeated, told.repeat(len(members)), condition.class_labels, **condition.arguments())
            outputs |= zip(members, output.float().unbind(len(members)), strict=True)
            memories[id(chosen)] = outputs[members[0]].memory
        return [outputs[place] for place in range(len(branches))]

    return evaluate
