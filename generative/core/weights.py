"""Networks and averages of saved runs, checkpoints and pipelines, by name: teachers, guides, tokenizers, starts of other runs.

Nothing of a folder is executed: classes are ours or diffusers', found by name, and weights are safetensors.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from torch import Tensor

from generative.core import checkpoint as ckpt
from generative.core.classes import PACKAGES, class_modules, find_class
from generative.core.errors import UserError
from generative.core.hub import local_folder

CONFIG = "config.json"
PLACES = "give a run (runs/NAME), a checkpoint or a pipeline folder"


@dataclass(frozen=True)
class StoredNetwork:
    """A network as a folder holds it; nothing of it is built.

    Attributes:
        folder: With config.json and safetensors.
        config: Content of config.json.
    """

    folder: Path
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """Name of its class."""
        return str(self.config.get("_class_name"))

    def tensors(self) -> dict[str, Tensor]:
        """Its weights and buffers by name, of one file or several."""
        found: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            found |= ckpt.read_tensors(path)
        return found


def load_network(
    folder: str | Path, name: str | None = None, average: bool = True, step: int | None = None
) -> tuple[ModelMixin, str]:
    """Load a network that was trained, converted or loaded for a run.

    Args:
        folder: A run (its newest checkpoint is taken, or else its pipeline), a checkpoint, a pipeline folder (or ``user/repo`` of
            the hub), or a network's own folder with config.json and safetensors.
        name: Its name there: of an average (``denoiser``, the first, or ``denoiser-std-0.1``), of a trained network, or of a
            pipeline's part, such as a tokenizer. None where but one network is trained, for its first average.
        average: Take averages (which pipelines hold), not the weights in training themselves.
        step: Step of the run's checkpoint; None for the newest.

    Returns:
        The network, on the CPU, frozen and in eval mode, and its fingerprint: sha256 of class, config and weights, as checkpoints
        record those of their frozen parts.

    Raises:
        UserError: If it is not there, it is not clear which is meant, or it is damaged or of an unknown class.
    """
    stored = find_network(Path(folder), name, average, step)
    # Building it draws random numbers, which whoever loads it must not miss.
    with torch.random.fork_rng(devices=[]):
        network = read_network(stored.folder, network_class(stored))
    return network, ckpt.fingerprint_network(network)


def find_network(folder: Path, name: str | None = None, average: bool = True, step: int | None = None) -> StoredNetwork:
    """Find what ``load_network`` loads.

    Raises:
        UserError: If it is not there, or it is not clear which is meant.
    """
    if (folder / CONFIG).is_file():
        own = stored_networks([folder]).get(folder.name)
        if own is None or step is not None or name not in (None, folder.name):
            raise UserError(f"'{folder}' is the folder of one network; give it without a name and a step, or {PLACES}")
        return own
    source = find_source(folder, step)
    parts = stored_networks((source / ckpt.PIPELINE).glob("*"))
    if (source / "state.json").is_file():
        ckpt.read_state(source)
        named = stored_networks((source / ("ema" if average else "networks")).glob("*"))
        if average and name is None:  # of several averages of a network, the first is named like it
            trained = stored_networks((source / "networks").glob("*"))
            named = {key: stored for key, stored in named.items() if key in trained} or named
    elif average:
        named = stored_networks(source.glob("*"))
    else:
        raise UserError(f"'{folder}' is a pipeline, which holds no weights in training; give its run, or take the average")
    kind = "average" if average else "network"
    if name is None and len(named) == 1:
        return next(iter(named.values()))
    if name is not None and (found := named.get(name) or (parts.get(name) if average else None)) is not None:
        return found
    there = ", ".join(f"{key} ({stored.kind})" for key, stored in named.items()) or "none"
    if name is None:
        wanted = "give the name of one" if named else f"take the other weights (average={not average})"
        raise UserError(f"'{source}' holds {len(named) or 'no'} {kind}s ({there}); {wanted}")
    raise UserError(f"'{source}' holds no {kind} '{name}'; it has {there}")


def find_source(source: Path, step: int | None = None, argument: str = "") -> Path:
    """The checkpoint or pipeline folder to read: of a run, its newest checkpoint, or else its pipeline.

    Args:
        source: A run, a checkpoint or a pipeline folder, or ``user/repo`` of the hub; see ``local_folder``.
        step: Step of the run's checkpoint; None for the newest.
        argument: Name of the argument that gave the folder, for messages.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    shown = f"{argument} '{source}'".strip()
    source = local_folder(source)
    if not source.is_dir():
        raise UserError(f"{shown} does not exist; {PLACES}")
    checkpoints = [source] if (source / "state.json").is_file() else ckpt.list_checkpoints(source)
    if step is not None:
        steps = {ckpt.read_state(path)["step"]: path for path in checkpoints}
        if step not in steps:
            there = ", ".join(str(number) for number in steps) or "no checkpoint"
            raise UserError(f"{shown} holds no checkpoint of step {step}; it has {there}")
        checkpoints = [steps[step]]
    if checkpoints:
        ckpt.verify_manifest(checkpoints[-1])
        return checkpoints[-1]
    for folder in (source / ckpt.PIPELINE, source):
        if (folder / "model_index.json").is_file():
            return folder
    raise UserError(f"{shown} holds no checkpoint and no pipeline; {PLACES}")


def stored_networks(folders: Iterable[Path]) -> dict[str, StoredNetwork]:
    """Networks by name among some folders: those with a config.json and safetensors.

    Raises:
        UserError: If a config.json cannot be read.
    """
    found = {}
    for folder in sorted(folders):
        if (folder / CONFIG).is_file() and any(folder.glob("*.safetensors")):
            try:
                config = json.loads((folder / CONFIG).read_text())
            except (OSError, ValueError, RecursionError) as error:
                raise UserError(f"'{folder}' holds no readable config.json") from error
            if not isinstance(config, dict):
                raise UserError(f"'{folder / CONFIG}' is damaged: it must hold a JSON object")
            found[folder.name] = StoredNetwork(folder, config)
    return found


def network_class(stored: StoredNetwork) -> type[ModelMixin]:
    """The class of a stored network.

    Raises:
        UserError: If it is neither one of ours nor of diffusers', or is no network.
    """
    found = component_class(stored.kind, PACKAGES[0] if stored.kind in class_modules() else "diffusers", stored.folder)
    if not (inspect.isclass(found) and issubclass(found, ModelMixin)):
        raise UserError(f"'{stored.folder}' is of class {stored.kind}, which is no network that can be loaded")
    return found


def component_class(name: str, library: str, folder: Path) -> Any:
    """The class of a saved component.

    Args:
        name: The class.
        library: Module that a file names: of ours a hint only, as files move, else ``diffusers``.
        folder: Where it was saved, for messages.

    Raises:
        UserError: If there is no such class.
    """
    if library.split(".")[0] in PACKAGES:
        return find_class(name, library)
    found = getattr(diffusers, name, None)
    if found is None:
        raise UserError(f"'{folder}' is of a class '{name}' that this version of diffusers does not have")
    return found


def read_network(folder: Path, kind: type[ModelMixin]) -> ModelMixin:
    """Build a network and fill it with a folder's weights, all of them and no others.

    Args:
        folder: With config.json and safetensors.
        kind: Its class.

    Returns:
        The network, on the CPU, frozen and in eval mode.

    Raises:
        UserError: If a file is missing or damaged, or weights and config do not fit.
    """
    try:
        network, report = kind.from_pretrained(
            str(folder), use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"'{folder}' cannot be loaded, a file of it is missing or damaged: {reason}") from error
    # diffusers only warns of these, and leaves random numbers in what is missing.
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise UserError(f"the weights in '{folder}' are not those of its {CONFIG}: {problem} such as {report[problem][0]}")
    for tensor in [*network.parameters(), *network.buffers()]:
        # Tensors read from a file lie at any address, and sums over unaligned memory round differently.
        tensor.data = tensor.data.clone()
    result: ModelMixin = network.requires_grad_(False).eval()
    return result
