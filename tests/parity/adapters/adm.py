"""How the outputs of adm parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

from dataclasses import replace

import torch
from adm_outputs import ancestral, as_official, ddim, losses, told, under
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.adm import ADMSource
from generative.convert.diffusion.adm_keys import UNET_PATTERNS, official_tensor, our_key
from generative.diffusion.denoiser import DenoiserOutput
from generative.layers.embeddings import timestep_embedding

SOURCE = "adm"


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs, config = given.model, given.inputs, {**given.config, **given.sampling}
    source = ADMSource()
    trained, options = source.formulation(config), source.constructor.values(config)
    labels = inputs.get("y")

    def forward(sample: Tensor, timestep: Tensor) -> DenoiserOutput:
        return model(sample, timestep, labels)

    def training() -> dict[str, Tensor]:
        sample = trained.add_noise(inputs["x_start"], inputs["noise"], inputs["t"])
        return losses(trained, forward(sample, trained.network_time(inputs["t"])), inputs)

    @torch.enable_grad()
    def gradient(key: str) -> Tensor:
        model.zero_grad()
        training()["loss_total"].mean().backward()
        name = our_key(key, UNET_PATTERNS)
        return official_tensor(key, dict(model.named_parameters())[name].grad)

    def step(kind: str, guided: str | None) -> dict[str, Tensor]:
        respacing, index = options[f"{kind}_respacing"], inputs[f"t_{kind}"]
        output = forward(inputs["x"], told(trained, respacing, index))
        if guided:
            output = replace(output, gradient=inputs["cond_grad"])
        run = (trained, respacing, output, inputs["x"], index, inputs.get("step_noise", torch.zeros_like(inputs["x"])))
        values = ancestral(*run, clip=True) if kind == "ancestral" else ddim(*run, eta=0.0)
        return under(f"{kind}{guided or ''}", values)

    return {
        "forward": lambda: as_official(forward(inputs["x"], trained.network_time(inputs["t"]))),
        "timestep_embedding": lambda: timestep_embedding(inputs["t"], model.config.model_channels),
        "loss_.+": training,
        "grad_loss/(.+)": gradient,
        "(ancestral|ddim)(_guided)?/.+": step,
    }
