"""How the outputs of freeu parity files follow from their inputs."""

from __future__ import annotations

from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.free_u import CONSTRUCTOR, official_free_u
from generative.diffusion.free_u import scale_low_frequencies

SOURCE = "freeu"
BLOCKS = 3
THIRD_SKIP = 0.3
"""The third block's skip is this much of the first's."""
WITH_S1 = (("even", 1), ("odd", 2))
"""Filters recorded with s1; the others are with s2."""


def outputs(given: Given) -> Table:
    """The table of outputs."""
    inputs = given.inputs

    def stage(prefix: str, version: str, name: str) -> dict[str, Tensor]:
        free_u = official_free_u(given.config, "v1" if version == "1" else "v2")
        backbone, skip = inputs[f"backbone_{name}"], inputs["skip_odd" if name == "2" else "skip_even"]
        once, filtered = free_u(backbone, skip)
        hidden = backbone
        for _ in range(BLOCKS):
            hidden, _ = free_u(hidden, skip)
        _, third = free_u(backbone, THIRD_SKIP * skip)
        made = {"backbone": once, "skip": filtered, "after_three_blocks": hidden, "third_skip": third}
        return {f"{prefix}/{key}": value for key, value in made.items()}

    def filtered(size: str, threshold: str) -> Tensor:
        values = CONSTRUCTOR.values(given.config)
        scale = values["s1" if (size, int(threshold)) in WITH_S1 else "s2"]
        return scale_low_frequencies(inputs[f"skip_{size}"], int(threshold), scale)

    return {r"(v([12])_stage_(\w+))/\w+": stage, r"fourier_filter_(even|odd)_threshold(\d+)": filtered}
