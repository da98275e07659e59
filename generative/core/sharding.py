"""Networks cut over processes by PyTorch's FSDP2: each keeps its part of weights, gradients, optimizer states and averages.

Weights are gathered where they are needed, block by block, and gradients go back to their owners while the backward pass runs
(Rajbhandari et al., arXiv 1910.02054; Zhao et al., arXiv 2304.11277). Autocast stays what makes bf16, so that a sharded run
computes what an unsharded one does.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState
from torch.distributed.tensor import DTensor

from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.core.trainer_config import TrainerConfig

ShardMode = Literal["none", "full", "hybrid"]

MIN_BLOCK_SHARE = 0.005
"""Of a network's parameters: a smaller block travels with the rest, as each gather has its price."""

SHARDABLE_OPTIMIZERS = ("Adam", "AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "LAMB")
"""Those that move each number by itself, whatever lies beside it, and LAMB, which asks for the norms of whole weights."""


def shard_mesh(mode: ShardMode, group_size: int | None, num_processes: int, device: torch.device) -> DeviceMesh | None:
    """The processes among which networks are cut.

    Args:
        mode: ``full`` cuts over all processes, ``hybrid`` over groups of them, each of which holds everything.
        group_size: Processes of a group; None for those of one machine.
        num_processes: All of them; one alone has nothing to cut.
        device: Of the networks.

    Raises:
        UserError: If groups of that size do not add up to the processes.
    """
    size = shard_count(mode, group_size, num_processes, int(os.environ.get("LOCAL_WORLD_SIZE", num_processes)))
    if size == 1:
        return None
    if mode == "full":
        return init_device_mesh(device.type, (num_processes,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (num_processes // size, size), mesh_dim_names=("replicate", "shard"))


def shard_count(mode: ShardMode, group_size: int | None, num_processes: int, per_machine: int) -> int:
    """Over how many processes weights, gradients, optimizer states and averages are cut; 1 where they are whole.

    Args:
        mode: As ``shard_mesh``.
        group_size: As ``shard_mesh``.
        num_processes: As ``shard_mesh``.
        per_machine: Processes of one machine, a group's size where none is given.

    Raises:
        UserError: If groups of that size do not add up to the processes.
    """
    if group_size is not None and mode != "hybrid":
        raise UserError(f"trainer.shard_group_size goes with trainer.shard hybrid, which is {mode}; leave it out, or set hybrid")
    if mode == "none" or num_processes == 1:
        return 1
    if mode == "full":
        return num_processes
    size = group_size or per_machine
    if size < 2 or num_processes % size:
        raise UserError(
            f"trainer.shard_group_size {size} does not divide {num_processes} processes into groups of 2 or more; "
            "give the processes of one machine, or set trainer.shard to full or none"
        )
    return size


def check_networks(networks: Mapping[str, nn.Module], obstacle: str | None, settings: TrainerConfig) -> None:
    """Refuse networks and settings that cannot be cut, before anything is trained.

    Args:
        networks: What is trained.
        obstacle: The objective's own reason, ``Objective.shard_obstacle``.
        settings: Of the trainer.

    Raises:
        UserError: Naming the first reason.
    """
    if settings.mixed_precision == "fp16":
        raise UserError(
            f"trainer.shard {settings.shard} works with mixed_precision no and bf16, got fp16; use bf16, or shard none"
        )
    if settings.channels_last:
        raise UserError(f"trainer.shard {settings.shard} and trainer.channels_last exclude each other; turn one of them off")
    if obstacle is not None:
        raise UserError(f"trainer.shard {settings.shard} cannot be: {obstacle}; set trainer.shard none")
    owners: dict[int, str] = {}
    for name, network in networks.items():
        for parameter in network.parameters():
            if (other := owners.setdefault(id(parameter), name)) != name:
                shared = f"networks '{other}' and '{name}' share a weight"
                raise UserError(f"trainer.shard {settings.shard} cannot be: {shared}; set trainer.shard none")


def check_optimizers(optimizers: Mapping[str, torch.optim.Optimizer], settings: TrainerConfig) -> None:
    """Refuse optimizers that may look at whole weights.

    Raises:
        UserError: Naming the first.
    """
    for name, optimizer in optimizers.items():
        if type(optimizer).__name__ not in SHARDABLE_OPTIMIZERS:
            raise UserError(
                f"trainer.shard {settings.shard} gives optimizers parts of weights, and '{name}', {type(optimizer).__name__}, "
                f"may look at whole ones; use one of {', '.join(SHARDABLE_OPTIMIZERS)}, or set trainer.shard none"
            )


class Sharding:
    """How the networks of a run are cut; without a mesh they are whole and nothing here does anything.

    Where a step has one phase, blocks are freed after their use and gathered again in the backward pass. Where it has several, as
    a GAN's, networks are used in more than one way at once (penalties differentiate twice, losses read the last layer's weight):
    then weights stay gathered until the phase ends, and gradients, optimizer states and averages alone are cut all the time.

    Args:
        mesh: From ``shard_mesh``.
        num_phases: Phases of a training step.
    """

    def __init__(self, mesh: DeviceMesh | None, num_phases: int = 1) -> None:
        self.mesh = mesh
        self.keeps_weights = num_phases > 1

    @property
    def is_active(self) -> bool:
        """Whether anything is cut."""
        return self.mesh is not None

    def shard(self, network: nn.Module) -> None:
        """Cut a network in place; parameters without dimensions stay whole on every process."""
        if self.mesh is None:
            return
        # Hooks sit on what a network returns; a view of it would lose them if it were written into, which no loss of ours does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        options: dict[str, Any] = {
            "mesh": self.mesh,
            "reshard_after_forward": not self.keeps_weights,
            "ignored_params": {p for p in network.parameters() if p.dim() == 0},
        }
        for block in find_blocks(network):
            fully_shard(block, **options)
            for name in forward_methods(block):
                register_fsdp_forward_method(block, name)
        fully_shard(network, **options)
        for module in sharded_modules(network):
            # Sums, as everywhere in the trainer, which knows what to divide by.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            if self.keeps_weights:
                module.set_reshard_after_backward(False, recurse=False)

    def shard_average(self, average: nn.Module, network: nn.Module) -> None:
        """Cut an average, which shared the network's weights until those were cut, as its network is."""
        if self.mesh is None:
            return
        parts = dict(network.named_parameters(remove_duplicate=False))
        made: dict[int, nn.Parameter] = {}
        for prefix, module in average.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                part = parts[f"{prefix}.{name}" if prefix else name]
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(part.detach().clone(), requires_grad=False)
                setattr(module, name, made[id(parameter)])

    def begin_phase(self, networks: Mapping[str, nn.Module]) -> None:
        """Let modules that hold their weights at a norm do so before they are gathered: what is gathered is thrown away."""
        if self.mesh is None:
            return
        for network in networks.values():
            for module in network.modules():
                if module.training and callable(force_norm := getattr(module, "force_norm", None)):
                    force_norm()

    @contextmanager
    def explained(self, phase: str) -> Iterator[None]:
        """Inside, a loss is computed.

        Raises:
            UserError: If it meets a weight of which this process has only a part: the first step shows it.
        """
        try:
            yield
        except RuntimeError as error:
            if self.mesh is None or "mixed torch.Tensor and DTensor" not in str(error):
                raise
            raise UserError(
                f"trainer.shard cannot be: the loss of phase '{phase}' uses weights otherwise than by calling a network or its "
                "blocks; set trainer.shard none"
            ) from error

    def end_phase(self, networks: Mapping[str, nn.Module]) -> None:
        """Send the gradients home that no hook has sent (second derivatives pass some by), and free all gathered weights."""
        for network in networks.values() if self.mesh is not None else ():
            if any(p.requires_grad for p in network.parameters()):
                root = network._get_fsdp_state()  # type: ignore[operator]
                if root._is_root:  # it is told in the first forward pass
                    root._root_post_backward_final_callback()
            for module in sharded_modules(network):
                module.reshard()


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated parts of a network that are worth a gather of their own: entries of its outermost module lists.

    Where an entry only holds others, as a level of a U-Net does, they are the blocks. One that shares a weight with the rest of
    the network is left to it.
    """
    uses: dict[int, int] = {}
    for _, parameter in network.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    least = MIN_BLOCK_SHARE * sum(p.numel() for p in network.parameters())
    blocks: list[nn.Module] = []

    def visit(module: nn.Module, is_listed: bool) -> None:
        is_container = type(module).forward is nn.Module.forward  # it is never called, only what is in it
        if is_listed and not is_container:
            members = list(module.named_parameters(remove_duplicate=False))
            own = {id(p): 0 for _, p in members}
            for _, parameter in members:
                own[id(parameter)] += 1
            if sum(p.numel() for p in module.parameters()) >= least and all(uses[key] == count for key, count in own.items()):
                blocks.append(module)
            return
        for child in module.children():
            visit(child, is_container)

    visit(network, False)
    return blocks


def forward_methods(module: nn.Module) -> tuple[str, ...]:
    """Methods of a block that its network calls beside calling the block, which need its weights gathered as well."""
    names: tuple[str, ...] = getattr(module, "forward_methods", ())
    return names


def sharded_modules(network: nn.Module) -> Iterator[FSDPModule]:
    """The parts of a network that FSDP gathers at once, itself among them."""
    return (module for module in network.modules() if isinstance(module, FSDPModule))


def separate_groups(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups whose members are either all cut or all whole, as optimizers move a group at once."""
    separate = []
    for group in groups:
        members = list(group["params"])
        if not any(isinstance(p, DTensor) for p in members):
            separate.append({**group, "params": members})
            continue
        for kind in (True, False):
            if alike := [p for p in members if isinstance(p, DTensor) == kind]:
                separate.append({**group, "params": alike})
    return separate


def network_class(network: nn.Module) -> type[nn.Module]:
    """A network's own class, which FSDP hides behind one that it makes."""
    kind = type(network)
    return kind.__mro__[2] if isinstance(network, FSDPModule) else kind


@contextmanager
def undressed(network: nn.Module) -> Iterator[None]:
    """Inside, modules are of their own classes and without FSDP's hooks and state, so that they can be copied."""
    dressed = [(module, type(module)) for module in network.modules() if isinstance(module, FSDPModule)]
    taken: list[tuple[dict[Any, Any], dict[Any, Any]]] = []

    def take(table: dict[Any, Any], keys: Iterable[Any]) -> None:
        taken.append((table, dict(table)))
        for key in keys:
            del table[key]

    try:
        for module, _ in dressed:
            module.__class__ = network_class(module)  # type: ignore[assignment]
            names = forward_methods(module)
            take(module.__dict__, [key for key in module.__dict__ if key in names or key.startswith("__composable_api")])
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                take(hooks, [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), FSDPState)])
        yield
    finally:
        for table, content in taken:
            table.clear()
            table.update(content)
        for module, kind in dressed:
            module.__class__ = kind  # type: ignore[assignment]
