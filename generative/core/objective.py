"""A method is an ``Objective`` that lists ``Phase``s and can build a pipeline. This file is the whole contract."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from generative.core.ema import EMASpec
from generative.core.generation import SampleRequest, generate_images
from generative.core.options import SamplingOptions
from generative.core.types import Batch, Losses, Networks, StepContext

if TYPE_CHECKING:
    from pipelines.base import ImageGenerationPipeline, ImagePipeline

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
"""Parameter groups -> optimizer. In YAML: ``{class_path: torch.optim.AdamW, init_args: {lr: 1.0e-4}}``."""
StepHook = Callable[[Networks, int], None]
"""Called with the networks and the training steps done before this one."""


class LossFn(Protocol):
    """Loss of one phase on one micro-batch: a function of tensors, with all its randomness handed in."""

    def __call__(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        """Compute the losses.

        Args:
            networks: Every network of the objective; those outside the phase are frozen.
            batch: One micro-batch.
            context: The step, the generator of all its draws, and what phases share.

        Returns:
            ``Losses`` with key ``"loss"``.
        """


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimizer step within a training step: which networks, which loss, how often.

    Attributes:
        name: Prefix of its logged values.
        networks: Names of the networks it trains; all others are frozen during it.
        loss_fn: The loss, see ``LossFn``.
        optimizer: Name of one of the objective's optimizers; lazy phases share one with the phase they regularise.
        interval: Run at every ``interval``-th step only (lazy regularisation).
        repeats: Optimizer steps in a row, each with fresh data (several critic steps).
        eval_networks: Networks in eval mode during the phase; every other network is in train mode.
        before_step: Called after gradients are reduced and before they are clipped: may edit gradients.
        after_step: Called after the optimizer's step: may edit weights and the objective's buffers.
    """

    name: str
    networks: tuple[str, ...]
    loss_fn: LossFn
    optimizer: str
    interval: int = 1
    repeats: int = 1
    eval_networks: tuple[str, ...] = ()
    before_step: StepHook | None = None
    after_step: StepHook | None = None

    def __post_init__(self) -> None:
        for field, value in (("interval", self.interval), ("repeats", self.repeats)):
            if value < 1:
                raise ValueError(f"phase '{self.name}': {field} must be at least 1, got {value}")


class Objective(abc.ABC):
    """What is trained and how: networks, optimizers, phases, averages, and the pipeline that samples from the result.

    The trainer knows nothing else of a method. Constructor arguments are the method's YAML schema. Subclasses set the attributes
    in their constructor.

    Attributes:
        networks: Trained networks by name; diffusers ``ModelMixin`` + ``ConfigMixin``.
        frozen: Networks that are used but never trained (a tokenizer, a feature network).
        buffers: State of the training beside the networks, by name (moving averages, counts); checkpoints keep it. Written in
            place, never replaced, and with the same values on every process: what processes measured is summed first.
        optimizers: Factories by name.
        ema: Averages by name, see ``average_specs``. The one named like its network is the one that samples.
        num_classes: Classes of the data that the objective expects; class labels are in [0, num_classes).
        uses_labels: Whether a class label has any effect; without, data of any classes will do.
        image_size: Height and width of the images, in pixels.
        label_dropout: Share of labels replaced by the null condition in training; None where there is no such thing. Samples
            cannot be guided from a null condition that was never trained, and the trainer refuses to.
        usage: What to do with the run's pipeline, said when training is done; ``{run}`` stands for its folder.
        sampling_networks: Names of the networks that ``prepare_for_sampling`` and ``pipeline`` use, and no others: each is
            handed over as a copy of its own that shares the weights. None for all.
        sampling: Options of samples drawn during training, and those that its pipeline starts from ever after.
        loss_extractors: Feature extractors (names of ``metrics.registry.EXTRACTORS``) whose networks a loss or a discriminator
            looks through; the trainer refuses to score with them.
        shard_obstacle: Why the networks cannot be cut over processes (``trainer.shard``), in a clause; None where they can: where
            losses use a network by calling it, and in no other way if there is but one phase.
    """

    usage: str = "sample with `generative sample {run} --class-labels 0`"
    label_dropout: float | None = None
    sampling_networks: tuple[str, ...] | None = None
    loss_extractors: frozenset[str] = frozenset()
    uses_labels: bool = True
    shard_obstacle: str | None = None
    sampling: SamplingOptions = SamplingOptions()
    networks: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    buffers: Mapping[str, Tensor] = MappingProxyType({})
    optimizers: dict[str, OptimizerFactory]
    ema: dict[str, EMASpec]
    num_classes: int
    image_size: int

    @abc.abstractmethod
    def phases(self) -> list[Phase]:
        """List the phases of a training step, in order."""

    @abc.abstractmethod
    def pipeline(self, networks: Networks) -> ImagePipeline:
        """Build the pipeline that samples from these networks (the averages, when the trainer calls it).

        Args:
            networks: Those that ``sampling_networks`` names.
        """

    def parameter_groups(self, optimizer: str) -> list[dict[str, Any]]:
        """Parameter groups of an optimizer: by default all parameters of the networks whose phases use it, in one group.

        Args:
            optimizer: Name of the optimizer.

        Returns:
            torch parameter groups; every entry of ``params`` is a parameter of ``self.networks``.
        """
        names = dict.fromkeys(name for phase in self.phases() if phase.optimizer == optimizer for name in phase.networks)
        return [{"params": [p for name in names for p in self.networks[name].parameters()]}]

    def prepare_for_sampling(self, networks: Networks, generator: torch.Generator) -> None:  # noqa: B027 - optional hook
        """Make averaged networks ready to sample, once for all that is sampled and saved at a step (standing statistics).

        Args:
            networks: Copies of those that ``sampling_networks`` names. Their buffers, modes and configs may be changed; their
                weights are shared with the training and may not.
            generator: Source of the randomness used.
        """

    def sampling_defaults(self) -> dict[str, Any]:
        """Options of samples drawn during training by name: those that the pipeline keeps as its defaults."""
        return self.sampling.to_dict()

    def identity(self) -> Mapping[str, Any]:
        """What decides what the networks learn, beside themselves and the frozen parts: JSON values by name.

        A checkpoint records it, and a run that differs in one of them does not go on from it. Weights of losses, rates and
        sampling options do not belong here: they may change while a run goes on.
        """
        return {}

    def encoder_fingerprint(self) -> str | None:
        """Fingerprint of the frozen tokenizer or autoencoder that turns images into what is trained on; None without one.

        The trainer refuses cached tokens or latents of another.
        """
        return None

    def encodings(self, batch: Batch, generator: torch.Generator) -> Batch:
        """What caches of the frozen encoders would bring of a batch's images: ``tokens``, ``latents``, ``representations``.

        Args:
            batch: Brings ``images``.
            generator: Source of latents' randomness.

        Returns:
            Those that the objective trains on; by default none, for one without an encoder.
        """
        return {}

    def as_cached(self, batch: Batch, brings: Collection[str], generator: torch.Generator) -> Batch:
        """A batch of images as caches would bring it.

        Args:
            batch: Brings ``images``.
            brings: What the caches hold, by its names in ``Batch``; none leaves the batch as it is. Tokens and latents take the
                images' place unless these are named too.
            generator: Source of latents' randomness.
        """
        if not brings:
            return batch
        found = {name: value for name, value in self.encodings(batch, generator).items() if name in brings}
        is_replaced = "images" not in brings and bool(found.keys() & {"tokens", "latents"})
        kept = {name: value for name, value in batch.items() if not (is_replaced and name == "images")}
        return cast(Batch, {**kept, **found})

    def representation_fingerprint(self) -> str | None:
        """Fingerprint of the frozen encoder of the representations that networks are conditioned on; None without one.

        The trainer refuses cached representations of another.
        """
        return None

    def example_images(
        self, pipeline: ImagePipeline, requests: Sequence[SampleRequest], real: Tensor, seed: int, columns: int
    ) -> Tensor:
        """Images of the grid that is made during training: samples, unless the method makes something else (reconstructions).

        Args:
            pipeline: From ``pipeline``.
            requests: One per image of the grid, row by row.
            real: (N, 3, H, W) uint8 training images of the same classes, in the same places.
            seed: Seed of the run.
            columns: Images to a row.

        Returns:
            (M, 3, H, W) uint8, M a multiple of ``columns``.
        """
        generator = cast("ImageGenerationPipeline", pipeline)
        if generator.num_classes == 1:  # it has no classes, whatever the data have
            requests = [SampleRequest(0, index) for index in range(len(requests))]
        batches = generate_images(generator, requests, seed=seed, batch_size=50, options={})
        return torch.cat([images.cpu() for _, images in batches])

    def diagnose(self, networks: Networks, real: Batch) -> Losses:
        """Measure how healthy the training is: called for every log entry, so it should cost less than a step.

        Args:
            networks: The networks in training (not their averages), in eval mode and without gradients; torch's own random
                numbers are put back afterwards. Buffers must stay as they are.
            real: Some real images, the same at every call: a few of each of a few classes.

        Returns:
            Scalars, logged as ``diagnosis/name``.
        """
        return {}

    def warnings(self, history: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        """Warn of trends in the history of a run.

        Args:
            history: The latest log entries, oldest first (evaluations are watched for every family alike).

        Returns:
            One sentence by rule, of the rules that apply now; each is said once while it lasts.
        """
        return {}
