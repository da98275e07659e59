"""How the outputs of dit parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import torch
from dit_outputs import as_official, guided_forward
from outputs import Given, Table
from torch import Tensor
from torch.nn import Module

from generative.convert.diffusion.dit import formulation
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.respacing import ShortenedChain
from generative.diffusion.samplers.ancestral import reverse_mean
from generative.layers.embeddings import timestep_embedding

SOURCE = "dit"
OFFICIAL_GUIDANCE = 4.0  # of sample.py


def cfg_scale(config: dict) -> float:
    """Guidance of the file, or the official sampling script's default."""
    return config.get("cfg_scale", OFFICIAL_GUIDANCE)


def guided_step(model: Module, inputs: dict[str, Tensor], config: dict, num_steps: int) -> tuple[Tensor, Tensor]:
    """One ancestral step of the shortened chain for each row, at its own index and with the file's noise: (sample, x_0)."""
    chain = ShortenedChain(formulation(config).process, num_steps)
    index = inputs["t_sample"]
    seen = torch.tensor(chain.timesteps)[index]
    values = guided_forward(model, inputs["x_cfg"], seen, inputs["y_cfg"], cfg_scale(config), formulation(config))
    learned = config.get("learn_sigma", True)
    output = DenoiserOutput(*values.chunk(2, dim=1)) if learned else DenoiserOutput(values)
    mean, log_variance = reverse_mean(chain.process, output, inputs["x_cfg"], index, "learned" if learned else "large")
    is_noisy = (index > 0).reshape(-1, 1, 1, 1)
    start = chain.process.predict_start(output.prediction, inputs["x_cfg"], index)
    return mean + is_noisy * (0.5 * log_variance).exp() * inputs["step_noise"], start


def losses(model: Module, inputs: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Loss of each image by the formulation of training, no label dropped."""
    trained = formulation(config)
    sample = trained.add_noise(inputs["x_start"], inputs["noise"], inputs["t"])
    output = model(sample, inputs["t"], inputs["y"])
    parts = trained.losses(output, inputs["x_start"], inputs["noise"], sample, inputs["t"])
    named = {"loss_mse": parts["mse"], "loss_total": torch.stack(list(parts.values())).sum(0)}
    return named | ({"loss_vb": parts["variational_bound"]} if "variational_bound" in parts else {})


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs, config = given.model, given.inputs, given.config

    def without_labels() -> Tensor:
        labels = inputs["y"].masked_fill(inputs["force_drop_ids"] == 1, model.config.num_classes)
        return model.embed_labels(labels, len(labels))

    return {
        "forward": lambda: as_official(model(inputs["x"], inputs["t"], inputs["y"])),
        "patch_tokens_plus_pos": lambda: model.embed_patches(inputs["x"]),
        "pos_embed_sincos": lambda: model.position_embedding[0],
        "t_embedder": lambda: model.timestep_embedder(inputs["t"]),
        r"timestep_sinusoid_(\d+)": lambda size: timestep_embedding(inputs["t"], int(size)),
        "y_embedder": lambda: model.embed_labels(inputs["y"], len(inputs["y"])),
        "y_embedder_force_drop": without_labels,
        "forward_with_cfg": lambda: guided_forward(
            model, inputs["x_cfg"], inputs["t_cfg"], inputs["y_cfg"], cfg_scale(config), formulation(config)
        ),
        r"(cfg_step(\d+))/(?:sample|pred_xstart)": lambda name, steps: {
            f"{name}/{key}": value
            for key, value in zip(("sample", "pred_xstart"), guided_step(model, inputs, config, int(steps)), strict=True)
        },
        "loss_.+": lambda: losses(model, inputs, config),
    }
