"""All that training changes, as a checkpoint keeps it: networks, averages, buffers, optimizers and the loss scaler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.core.objective import Objective


class TrainedState:
    """Saves and loads what training changes.

    Args:
        objective: Its networks and buffers.
        averages: By name.
        optimizers: By name, as the accelerator prepared them.
        scaler: Of half precision; None without.
    """

    def __init__(
        self, objective: Objective, averages: Mapping[str, nn.Module], optimizers: Mapping[str, Any], scaler: Any = None
    ) -> None:
        self.objective = objective
        self.averages = averages
        self.optimizers = optimizers
        self.scaler = scaler
        self.parameter_names = {
            id(p): f"{name}.{key}" for name, network in objective.networks.items() for key, p in network.named_parameters()
        }

    def save(self, folder: Path) -> dict[str, Any]:
        """Write everything into a checkpoint's folder.

        Returns:
            What is not a tensor, for its state.json.
        """
        for kind, networks in (("networks", self.objective.networks), ("ema", self.averages)):
            for name, network in networks.items():
                ckpt.save_network(network, folder / kind / name)
        ckpt.save_buffers(self.objective.buffers, folder)
        (folder / "optimizers").mkdir()
        entries: dict[str, Any] = {
            "optimizer_scalars": {
                name: ckpt.save_optimizer(
                    optimizer.optimizer, self.parameter_names, folder / "optimizers" / f"{name}.safetensors"
                )
                for name, optimizer in self.optimizers.items()
            }
        }
        if self.scaler is not None:
            entries["grad_scaler"] = self.scaler.state_dict()
        return entries

    def load(self, folder: Path, saved: Mapping[str, Any]) -> None:
        """Take everything from a checkpoint's folder, in place.

        Args:
            folder: The checkpoint.
            saved: Its state.json.

        Raises:
            UserError: If something of it is damaged or of another model.
        """
        for name in self.averages:
            if not (folder / "ema" / name).is_dir():
                there = ", ".join(sorted(path.name for path in (folder / "ema").glob("*"))) or "none"
                raise UserError(
                    f"checkpoint '{folder}' holds no average '{name}' (it has {there}): a run keeps the averages it began "
                    "with; give its own `ema`, or start a new run with --init-from"
                )
        for kind, networks in (("networks", self.objective.networks), ("ema", self.averages)):
            for name, network in networks.items():
                ckpt.load_network(network, folder / kind / name)
        ckpt.load_buffers(self.objective.buffers, folder)
        for name, optimizer in self.optimizers.items():
            path = folder / "optimizers" / f"{name}.safetensors"
            ckpt.load_optimizer(optimizer.optimizer, self.parameter_names, path, saved["optimizer_scalars"][name])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["grad_scaler"])
