"""Start a run from the weights of another: networks and averages by name, everything else anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.core.sharding import network_class
from generative.core.tensor_parts import fill_network
from generative.core.weights import StoredNetwork, find_source, stored_networks

CLASSES = "num_classes"
"""Entry of a network's config that may differ."""


def start_from(
    source: Path, networks: Mapping[str, nn.Module], averages: Mapping[str, nn.Module], frozen: Mapping[str, str]
) -> list[str]:
    """Load the weights of another run, checkpoint or pipeline into networks and averages, in place.

    A network is found by its name, or else by its class where only one has it. Of a pipeline, both a network and its average get
    the pipeline's weights. Where the number of classes differs, tables of classes keep their fresh values.

    Args:
        source: A run (its newest checkpoint is taken, or else its pipeline), a checkpoint or a pipeline folder.
        networks: By name.
        averages: By name; each is a copy of the network that it follows.
        frozen: Fingerprints of this run's frozen parts.

    Returns:
        What the user should know, a line each.

    Raises:
        UserError: If the source holds none of the networks, or one of another kind or of other shapes, or is damaged.
    """
    folder = find_source(source, argument="--init-from")
    is_checkpoint = (folder / "state.json").is_file()
    stored = stored_networks((folder / "networks").glob("*") if is_checkpoint else folder.glob("*"))
    stored_averages = stored_networks((folder / "ema").glob("*")) if is_checkpoint else stored
    notes = [f"weights are those of '{folder}'"]
    trained = {name: network for name, network in networks.items() if any(True for _ in network.parameters())}
    found = {name: pick(stored, name, network) for name, network in trained.items()}
    if not any(found.values()):
        wanted = ", ".join(f"{name} ({network_class(network).__name__})" for name, network in trained.items())
        there = ", ".join(f"{name} ({network.kind})" for name, network in stored.items()) or "nothing"
        raise UserError(f"'{folder}' holds none of this configuration's networks: wanted {wanted}, found {there}")
    for name, network in trained.items():
        match = found[name]
        if match is None:
            notes.append(f"network '{name}' starts afresh: '{folder}' has none")
        else:
            notes += load_weights(name, network, match)
    for name, average in averages.items():
        match = pick(stored_averages, name, average) or pick(stored, name, average)
        if match is not None:
            load_weights(name, average, match)
    recorded = ckpt.read_state(folder).get("frozen", {}) if is_checkpoint else {}
    for name in sorted(set(recorded) & set(frozen)):
        if recorded[name] != frozen[name]:
            notes.append(f"these weights were trained with another frozen part '{name}' than this run's")
    return notes


def pick(stored: Mapping[str, StoredNetwork], name: str, network: nn.Module) -> StoredNetwork | None:
    """The stored network of a name, or the only one of its class."""
    kind = network_class(network).__name__
    alike = [candidate for candidate in stored.values() if candidate.kind == kind]
    if name in stored:
        return stored[name]
    return alike[0] if len(alike) == 1 else None


def load_weights(name: str, network: nn.Module, stored: StoredNetwork) -> list[str]:
    """Load a stored network's weights into one of the same kind; tables of classes of another number stay as they are.

    Returns:
        Where the two differ, a line each.

    Raises:
        UserError: If kinds, names of tensors or shapes differ.
    """
    if stored.kind != (kind := network_class(network).__name__):
        raise UserError(
            f"'{stored.folder}' holds a {stored.kind}, network '{name}' is a {kind}: start from weights of the same kind"
        )
    ours: dict[str, Any] = json.loads(network.to_json_string())  # type: ignore[operator]
    there, here = stored.config.get(CLASSES), ours.get(CLASSES)
    expected, tensors = network.state_dict(), stored.tensors()
    afresh: list[str] = []
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in expected or key not in tensors:
            place = "the stored network" if key in tensors else "this configuration's"
            raise UserError(f"'{stored.folder}' does not fit network '{name}': only {place} has '{key}'")
        if expected[key].shape == tensors[key].shape:
            continue
        if not is_class_table(tensors[key], there, expected[key], here):
            raise UserError(
                f"'{stored.folder}' does not fit network '{name}': '{key}' is {tuple(tensors[key].shape)} there and "
                f"{tuple(expected[key].shape)} here; start from weights of the same sizes"
            )
        afresh.append(key)
    fill_network(network, {key: expected[key] if key in afresh else tensors[key] for key in expected})
    notes = []
    if afresh:
        notes.append(f"network '{name}' has {here} classes, {there} there: {', '.join(afresh)} start afresh")
    for key in sorted(ours.keys() & stored.config.keys()):
        if key not in (CLASSES, *ckpt.PRIVATE_CONFIG_KEYS) and ours[key] != stored.config[key]:
            notes.append(f"network '{name}' has {key} {ours[key]}, the weights are of one with {stored.config[key]}")
    return notes


def is_class_table(stored: Tensor, classes_there: Any, expected: Tensor, classes_here: Any) -> bool:
    """Whether two shapes differ in one dimension alone, which counts the classes (perhaps and the null condition)."""
    if not isinstance(classes_there, int) or not isinstance(classes_here, int) or stored.dim() != expected.dim():
        return False
    different = [sizes for sizes in zip(stored.shape, expected.shape, strict=True) if sizes[0] != sizes[1]]
    if len(different) != 1:
        return False
    extra = {different[0][0] - classes_there, different[0][1] - classes_here}
    return extra in ({0}, {1})
