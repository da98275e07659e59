"""``generative train CONFIG --dry-run``: what a training would take, told without data, weights or a GPU; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import Namespace

from generative.cli.config import OneSentenceParser, build_train_parser, condense, dump_config, fill_num_classes, refusal
from generative.cli.data_shape import DataShape
from generative.cli.stand_ins import fill_in, is_there, shipped_objective
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.core.footprint import Activations, Footprint
    from generative.core.objective import Objective
    from generative.core.trainer_config import TrainerConfig

ASSUMED_MFU = 0.4
RESERVED = 1.5e9
"""Bytes that CUDA, its libraries and fragments of memory take beside what is counted."""
PROCESSES_A_MACHINE = 8
"""Which hybrid sharding takes for a group, where the launcher is not there to say."""
SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Plan:
    """For which machines costs are told.

    Attributes:
        device: Name of a device, see ``generative.core.devices``.
        num_processes: One for each device.
        mfu: Share of the device's peak that the training is assumed to reach.
    """

    device: str = "h100"
    num_processes: int = 8
    mfu: float = ASSUMED_MFU

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise UserError(f"--num-processes must be at least 1, got {self.num_processes}")
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu must be in (0, 1], got {self.mfu}")


def run(parser: OneSentenceParser, config: Namespace, plan: Plan) -> int:
    """Print what a configuration would take; returns the exit code.

    Args:
        parser: The configuration's parser.
        config: The configuration.
        plan: The machines.

    Raises:
        UserError: If the device is not known, the batch does not divide, or the parts of the configuration do not fit.
    """
    from generative.core.devices import named_device
    from generative.core.footprint import measure_footprint

    device = named_device(plan.device)
    data = DataShape(config.data)
    built, notes = build_empty(parser, config, data)
    trainer: TrainerConfig = built.trainer
    micro_batch = micro_batch_size(trainer, plan.num_processes)
    shards = count_shards(built.objective, trainer, plan.num_processes)
    footprint = measure_footprint(built.objective, lambda size: data.batch(size, built.objective), trainer.mixed_precision)
    lines = [
        *describe_network(footprint),
        *describe_memory(footprint, trainer, plan.num_processes, shards, micro_batch, device.memory),
    ]
    peak = device.peak(trainer.mixed_precision)
    rate = plan.mfu * peak * plan.num_processes / footprint.step_flops
    days = trainer.total_images / rate / SECONDS_A_DAY
    precision = "float32" if trainer.mixed_precision == "no" else trainer.mixed_precision
    lines += [
        f"speed: {rate:,.0f} images/s on {plan.num_processes} x {device.title}, at an assumed MFU of {plan.mfu:g} (--mfu) of "
        f"{peak / 1e12:,.4g} TFLOPS in {precision} ({device.source})",
        f"time: {describe_days(days)} for {trainer.total_images:,} images",
        *(f"note: {note}" for note in [*data.notes, *notes]),
    ]
    print("\n".join(lines))
    return 0


# ---------------------------------------------------------------------- what is built


def build_empty(parser: OneSentenceParser, config: Namespace, data: DataShape) -> tuple[Namespace, list[str]]:
    """Build objective and trainer settings of a configuration, every network without weights and every missing file stood for.

    Returns:
        Both, and what was stood for, one sentence each.

    Raises:
        UserError: What a constructor raised.
    """
    import torch
    from torch import nn

    from generative.core.objective import Objective

    content = yaml.safe_load(dump_config(parser, config))
    notes = fill_in(content["objective"], data.image_size)
    content["evaluation"] = None
    filled = build_train_parser()
    try:
        parsed = filled.parse_args(["--config", yaml.safe_dump(content, sort_keys=False, allow_unicode=True)])
    except UserError as error:
        raise UserError(condense(str(error))) from error
    fill_num_classes(parsed.objective, data.num_classes)
    del parsed["data"]

    def build_network(kind: Any, *args: Any, **kwargs: Any) -> Any:
        if hasattr(kind, "wrapped_function"):  # a function that loads an existing network stands in the class's place
            return kind(*args, **kwargs)
        with torch.device("meta"):
            return kind(*args, **kwargs)

    def build_objective(kind: Any, *args: Any, **kwargs: Any) -> Any:
        for key, value in kwargs.items():
            if isinstance(value, Path) and not is_there(value) and (node := shipped_objective(str(value))) is not None:
                kwargs[key] = build_pipeline(node, data)
                notes.append(f"{key} '{value}' is not there: taken from the configuration that trains it")
        return kind(*args, **kwargs)

    try:
        built = filled.instantiate(parsed, instantiators=[(build_network, nn.Module, True), (build_objective, Objective, True)])
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise UserError(refusal(str(error)) if cause is None else str(cause)) from error
    return built, notes


def build_pipeline(objective: dict[str, Any], data: DataShape) -> Any:
    """The pipeline of an objective of another run, without weights."""
    parser = build_train_parser()
    shell = {
        "objective": objective,
        "data": {"class_path": "generative.data.labels.LabelsDataset", "init_args": {"num_classes": 1, "image_size": 1}},
        "trainer": {"output_dir": "unused", "total_images": 1},
    }
    config = parser.parse_args(["--config", yaml.safe_dump(shell)])
    inner = build_empty(parser, config, data)[0].objective
    return inner.pipeline(inner.networks)


def micro_batch_size(trainer: TrainerConfig, num_processes: int) -> int:
    """Images of a micro-batch of one process.

    Raises:
        UserError: If the batch does not divide.
    """
    slots = trainer.gradient_accumulation_steps * num_processes
    if trainer.batch_size % slots:
        raise UserError(
            f"trainer.batch_size {trainer.batch_size} does not divide into {trainer.gradient_accumulation_steps} micro-batches "
            f"on {num_processes} processes (--num-processes); choose a multiple of {slots}"
        )
    return trainer.batch_size // slots


def count_shards(objective: Objective, trainer: TrainerConfig, num_processes: int) -> int:
    """Over how many processes the networks are cut.

    Raises:
        UserError: If they cannot be, as the training itself would say.
    """
    import torch

    from generative.core.sharding import check_networks, check_optimizers, shard_count

    shards = shard_count(trainer.shard, trainer.shard_group_size, num_processes, min(num_processes, PROCESSES_A_MACHINE))
    if shards > 1:
        check_networks(objective.networks, objective.shard_obstacle, trainer)
        small = [torch.nn.Parameter(torch.zeros(1, 1))]
        optimizers = {
            name: factory([{**group, "params": small} for group in objective.parameter_groups(name)[:1]])
            for name, factory in objective.optimizers.items()
        }
        check_optimizers(optimizers, trainer)
    return shards


# ---------------------------------------------------------------------- what is told


def describe_network(footprint: Footprint) -> list[str]:
    """Parameters and operations."""
    trained = ", ".join(f"{name} {in_millions(number)}" for name, number in footprint.parameters.items())
    frozen = ", ".join(f"{name} {in_millions(number)}" for name, number in footprint.frozen_parameters.items())
    return [
        f"parameters: {trained}" + (f"; frozen: {frozen}" if frozen else ""),
        f"FLOPs an image: {in_units(footprint.forward_flops)} forward, {in_units(footprint.step_flops)} a training step "
        "(two to a multiply-add)",
    ]


def describe_memory(
    footprint: Footprint, trainer: TrainerConfig, num_processes: int, shards: int, micro_batch: int, available: float
) -> list[str]:
    """Memory of a process by part, whether it fits, and what would make it fit."""
    used = footprint.activations
    other: Activations | None = footprint.checkpointed
    if trainer.gradient_checkpointing and footprint.checkpointed is not None:
        used, other = footprint.checkpointed, footprint.activations
    parts = {
        "weights": footprint.weights / shards,
        "gradients": footprint.gradients / shards,
        "optimizer": footprint.optimizer / shards,
        **{f"average '{name}'": size / shards for name, size in footprint.averages.items()},
        "buffers": footprint.buffers,
        "frozen networks": footprint.frozen,
        "activations": used.of(micro_batch),
    }
    total = sum(parts.values())
    how = "" if shards == 1 else f", of which {shards} each hold a share"
    steps = trainer.gradient_accumulation_steps
    lines = [
        f"memory of each of {num_processes} processes{how} (micro-batch of {micro_batch}, {steps} a step):",
        *(f"  {name:<24}{size / 1e9:9.2f} GB" for name, size in parts.items() if size),
    ]
    if other is None:
        lines.append("  (no network of it has gradient checkpointing)")
    else:
        without = "without" if trainer.gradient_checkpointing else "with"
        lines.append(f"  ({without} gradient checkpointing the activations would be {other.of(micro_batch) / 1e9:.2f} GB)")
    fits = total + RESERVED <= available
    verdict = "it fits" if fits else "it does NOT fit"
    lines.append(f"  {'total':<24}{total / 1e9:9.2f} GB of {available / 1e9:.0f}: {verdict}")
    if not fits:
        room = available - RESERVED - total + parts["activations"]
        cut = sum(parts[name] for name in parts if name in ("weights", "gradients", "optimizer") or name.startswith("average"))
        freed = cut * (1 - 1 / num_processes) if shards == 1 else 0.0
        lines.append(f"  to make it fit: {advise(room, freed, used, other, trainer, num_processes)}")
    return lines


def advise(
    room: float, freed: float, used: Activations, other: Activations | None, trainer: TrainerConfig, num_processes: int
) -> str:
    """What would make a training fit, the cheapest first.

    Args:
        room: Bytes that there are for activations.
        freed: Bytes more if the networks were cut over the processes; 0 where they are.
        used: Those of the training as it is.
        other: Those with gradient checkpointing switched over; None where there is none.
        trainer: Settings.
        num_processes: Number of processes.
    """
    images = trainer.batch_size // num_processes
    for count in range(trainer.gradient_accumulation_steps, images + 1):
        if images % count == 0 and used.of(images // count) <= room:
            return f"--trainer.gradient_accumulation_steps {count} (micro-batches of {images // count})"
    if not trainer.gradient_checkpointing and other is not None and other.of(1) <= room:
        return "--trainer.gradient_checkpointing true, and smaller micro-batches if that is not enough"
    if freed and used.of(images // trainer.gradient_accumulation_steps) <= room + freed:
        return "--trainer.shard full"
    least = used if other is None or trainer.gradient_checkpointing else other
    if freed and least.of(1) <= room + freed:
        return "--trainer.shard full, with smaller micro-batches or --trainer.gradient_checkpointing true"
    return "a device with more memory, or fewer parameters: there is no room for the activations of one image"


def in_millions(number: int) -> str:
    """A number of parameters."""
    return f"{number / 1e6:,.1f} M"


def in_units(flops: float) -> str:
    """A number of operations."""
    for unit, size in (("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:,.4g} {unit}FLOP"
    return f"{flops / 1e6:,.4g} MFLOP"


def describe_days(days: float) -> str:
    """A time, in the unit that it is told in."""
    if days >= 1:
        return f"{days:,.1f} days"
    return f"{days * 24:.1f} hours" if days >= 1 / 24 else f"{days * 1440:.1f} minutes"
