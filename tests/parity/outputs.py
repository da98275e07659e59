"""How the outputs of a parity file are computed: an adapter is a ``SOURCE`` and a table of outputs by name.

``outputs(given)`` of an adapter makes the table. A key is the name of an output, or a regular expression of several; what stands
there is the output, several by name (a dictionary), or a function of the expression's groups that makes either. Nothing keeps
gradients: a function that needs them asks for them (``torch.enable_grad``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

Tensors = Mapping[str, Tensor]
Made = Tensor | Tensors
Table = Mapping[str, Made | Callable[..., Made]]


@dataclass(frozen=True)
class Given:
    """What outputs are computed from.

    Attributes:
        networks: By module, with the file's weights, in eval mode.
        inputs: The file's inputs.
        config: Official options, in some files by module.
        sampling: Options of the recorded sampling that the config does not hold.
        recorded: The file's own outputs: its sampler may have made draws that no input tells and an output shows.
    """

    networks: Mapping[str, Module]
    inputs: Tensors
    config: Mapping[str, Any]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    recorded: Tensors = field(default_factory=dict)

    @property
    def model(self) -> Any:
        """The network of a file of one."""
        return self.networks["model"]


def find(table: Table, name: str) -> Made:
    """Compute what stands in a table under a name, or under the first expression that the whole name matches.

    Raises:
        KeyError: If there is neither.
    """
    for key, maker in table.items():
        match = re.fullmatch(key, name)
        if key == name or match:
            return maker(*(match.groups() if match else ())) if callable(maker) else maker
    raise KeyError(name)


@torch.no_grad()
def compute(adapter: ModuleType, given: Given, wanted: list[str]) -> dict[str, Tensor]:
    """Every wanted output.

    Raises:
        KeyError: For a name that the adapter does not know.
    """
    for network in given.networks.values():
        network.eval()
    table: Table = adapter.outputs(given)
    results: dict[str, Tensor] = {}
    for name in wanted:
        if name not in results:
            made = find(table, name)
            results |= {name: made} if isinstance(made, Tensor) else made
    return {name: results[name] for name in wanted}
