"""What a source of official checkpoints must say: how its options and its tensors map to ours."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from generative.core.errors import UserError

MAX_NAMES_SHOWN = 5
"""Names listed in a message before the rest is only counted."""


class OfficialSource(abc.ABC):
    """One official checkpoint layout.

    Attributes:
        name: Short name, for example ``dit``.
        repository: Where the layout comes from, for example ``facebookresearch/DiT``.
    """

    name: str
    repository: str

    @abc.abstractmethod
    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from the official constructor's arguments.

        Args:
            config: Official arguments by name; every one is consumed.

        Returns:
            Networks by module name, ``model`` where there is but one.

        Raises:
            UserError: If an option is unknown or its value has no equal here.
        """

    @abc.abstractmethod
    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict.

        Args:
            module: Name of the module as in ``build``.
            state: Official tensors by key; every one is accounted for.
            network: Our network, which the result will be loaded into.

        Returns:
            Tensors by our keys.

        Raises:
            UserError: If a key is unknown.
        """


def show_names(names: list[str]) -> str:
    """List a few names for a message, and count the rest."""
    rest = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(names[:MAX_NAMES_SHOWN]) + rest


def split_modules(networks: Mapping[str, ModelMixin], state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort official tensors by module.

    Args:
        networks: Networks by module name.
        state: Tensors by ``<module>/<key>``, or by ``<key>`` where there is one network.

    Raises:
        UserError: If a tensor belongs to no module.
    """
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in networks}
    only = next(iter(networks)) if len(networks) == 1 else None
    strays = []
    for key, value in state.items():
        module, slash, rest = key.partition("/")
        if slash and module in parts:
            parts[module][rest] = value
        elif only is not None and not slash:
            parts[only][key] = value
        else:
            strays.append(key)
    if strays:
        raise UserError(f"the checkpoint has tensors of no module of {', '.join(networks)}: {show_names(sorted(strays))}")
    return parts


def load_official(source: OfficialSource, networks: Mapping[str, ModelMixin], state: Mapping[str, Tensor]) -> None:
    """Load official tensors into our networks, all of them and nothing else.

    Args:
        source: The layout.
        networks: From ``source.build``; changed in place.
        state: Official tensors by ``<module>/<key>``, or by ``<key>`` where there is one network.

    Raises:
        UserError: If a tensor is missing, left over or of another shape.
    """
    for module, tensors in split_modules(networks, state).items():
        network = networks[module]
        converted = source.convert_state(module, tensors, network)
        ours = network.state_dict()
        wrong_shape = [
            f"{key} {tuple(value.shape)} for {tuple(ours[key].shape)}"
            for key, value in converted.items()
            if key in ours and value.shape != ours[key].shape
        ]
        problems = {
            "lacks": sorted(ours.keys() - converted.keys()),
            "has no place for": sorted(converted.keys() - ours.keys()),
            "has other shapes for": wrong_shape,
        }
        for verb, names in problems.items():
            if names:
                raise UserError(f"the official checkpoint of {source.name} ({module}) {verb} {show_names(names)}")
        network.load_state_dict(converted)
