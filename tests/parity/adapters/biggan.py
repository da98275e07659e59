"""How the outputs of biggan parity files follow from their inputs."""

from __future__ import annotations

from typing import Any

from biggan_outputs import compute as compute_outputs
from torch import Tensor
from torch.nn import Module

from generative.convert.gan.biggan_pytorch import our_key

SOURCE = "biggan"


def compute(
    networks: dict[str, Module], inputs: dict[str, Tensor], config: dict[str, Any], wanted: list[str]
) -> dict[str, Tensor]:
    """Every wanted output by name; see ``biggan_outputs.compute``."""
    return compute_outputs(networks, inputs, wanted, our_key)
