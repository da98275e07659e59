"""How the outputs of adm_upsampler parity files follow from their inputs."""

from __future__ import annotations

from adm_outputs import as_official
from outputs import Given, Table

from generative.diffusion.objectives.upsampling import area_average

SOURCE = "adm_upsampler"


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs = given.model, given.inputs
    small = inputs["low_res"]
    channels = model.config.in_channels
    return {
        "forward": lambda: as_official(model(inputs["x"], inputs["t"], inputs.get("y"), low_resolution=small)),
        "upsampled_low_res": lambda: model.read(inputs["x"], small)[:, channels:],
        "training_low_res": lambda: area_average(inputs["high_res"], small.shape[-1]),
    }
