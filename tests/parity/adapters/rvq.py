"""How the outputs of rvq parity files follow from their inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

SOURCE = "rvq"
GIVEN_DECODED = re.compile(r"^given_decoded(?:_first(\d+))?$")


@torch.no_grad()
def compute(
    networks: Mapping[str, Module], inputs: dict[str, Tensor], config: dict[str, Any], wanted: list[str]
) -> dict[str, Tensor]:
    """Every wanted output.

    Args:
        networks: ``model`` with the file's codebooks.
        inputs: The file's inputs.
        config: Official options.
        wanted: Names of outputs.

    Returns:
        Outputs by name.

    Raises:
        KeyError: For a name that is not known.
    """
    model, vectors = networks["model"].eval(), inputs["vectors"]
    found = model.quantize(vectors)
    results = {
        "ids": found.ids,
        "cumulative": found.cumulative,
        "residual": found.residuals[-1] - found.codes[-1],
        "mse_per_depth": (found.cumulative - vectors).square().mean(dim=(1, 2)),
    }
    for name in wanted:
        match = GIVEN_DECODED.match(name)
        if match is not None:
            results[name] = model.embed(inputs["given_ids"][:, : int(match[1]) if match[1] else None])
    missing = [name for name in wanted if name not in results]
    if missing:
        raise KeyError(f"unknown outputs of rvq: {', '.join(missing)}")
    return {name: results[name] for name in wanted}
