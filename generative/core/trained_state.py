"""All that training changes, as a checkpoint keeps it: networks, averages, buffers, optimizers and the loss scaler."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.core.objective import Objective
from generative.core.sharding import undressed
from generative.core.tensor_files import TensorFile


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

    def files(self) -> list[TensorFile]:
        """All of its tensors, as they are now, by the file of a checkpoint that they go into."""
        files = [
            TensorFile(Path(kind) / name / ckpt.WEIGHTS, network.state_dict(), ckpt.WEIGHTS_METADATA)
            for kind, networks in self._networks().items()
            for name, network in networks.items()
        ]
        if self.objective.buffers:
            files.append(TensorFile(Path(ckpt.BUFFERS), self.objective.buffers))
        for name, optimizer in self.optimizers.items():
            tensors, _ = ckpt.optimizer_tensors(optimizer.optimizer, self.parameter_names)
            files.append(TensorFile(Path("optimizers") / f"{name}.safetensors", tensors))
        return files

    def entries(self) -> dict[str, Any]:
        """What is not a tensor, for a checkpoint's state.json."""
        entries: dict[str, Any] = {
            "optimizer_scalars": {
                name: ckpt.optimizer_tensors(optimizer.optimizer, self.parameter_names)[1]
                for name, optimizer in self.optimizers.items()
            }
        }
        if self.scaler is not None:
            entries["grad_scaler"] = self.scaler.state_dict()
        return entries

    def configs(self) -> dict[str, str]:
        """Configuration of every network, as JSON, by its file in a checkpoint; to be taken while nothing trains."""
        texts: dict[str, str] = {}
        for kind, networks in self._networks().items():
            for name, network in networks.items():
                with undressed(network):
                    texts[f"{kind}/{name}/config.json"] = network.to_json_string()  # type: ignore[operator]
        return texts

    def _networks(self) -> dict[str, Mapping[str, nn.Module]]:
        """Networks by name, by the folder of a checkpoint that they go into."""
        return {"networks": self.objective.networks, "ema": self.averages}

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
        for kind, networks in self._networks().items():
            for name, network in networks.items():
                ckpt.load_network(network, folder / kind / name)
        ckpt.load_buffers(self.objective.buffers, folder)
        for name, optimizer in self.optimizers.items():
            path = folder / "optimizers" / f"{name}.safetensors"
            ckpt.load_optimizer(optimizer.optimizer, self.parameter_names, path, saved["optimizer_scalars"][name])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["grad_scaler"])
