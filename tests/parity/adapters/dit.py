"""How the outputs of dit parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from outputs import Given, Table
from torch import Tensor
from torch.nn import Module

from generative.convert.diffusion.dit import formulation
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Branch, Condition, DenoiserOutput, evaluator
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.diffusion.respacing import ShortenedChain
from generative.diffusion.samplers.ancestral import reverse_mean
from generative.layers.embeddings import timestep_embedding

SOURCE = "dit"
GUIDED_CHANNELS = 3  # the published sampler's, whatever the number of channels


def guided_forward(model: Module, x: Tensor, t: Tensor, y: Tensor, scale: float) -> Tensor:
    """The official guided forward: 2n rows, of which the first half of x is used; returns the conditional, then the null half.

    Both halves share the guided channels; the others stay as each half's branch predicted them.
    """
    half = len(x) // 2
    branches: list[DenoiserOutput] = []
    evaluate = evaluator(model, GaussianDiffusion())

    def recorded(state: SampleState, time: Tensor, wanted: Sequence[Branch]) -> list[DenoiserOutput]:
        branches.extend(evaluate(state, time, wanted))
        return branches

    guidance = Extrapolation(scale=scale, null_label=int(y[half]), channels=GUIDED_CHANNELS)
    guided = guidance.bind(recorded, Condition(y[:half]), GaussianDiffusion())(SampleState(x[:half]), t[:half])
    conditional, null = as_official(guided), as_official(branches[1])
    return torch.cat([conditional, torch.cat([conditional[:, :GUIDED_CHANNELS], null[:, GUIDED_CHANNELS:]], dim=1)])


def as_official(output: DenoiserOutput) -> Tensor:
    """Prediction and variances on one channel axis."""
    return output.prediction if output.variance is None else torch.cat([output.prediction, output.variance], dim=1)


def guided_step(model: Module, inputs: dict[str, Tensor], config: dict, num_steps: int) -> tuple[Tensor, Tensor]:
    """One ancestral step of the shortened chain for each row, at its own index and with the file's noise: (sample, x_0)."""
    chain = ShortenedChain(formulation(config).process, num_steps)
    index = inputs["t_sample"]
    seen = torch.tensor(chain.timesteps)[index]
    values = guided_forward(model, inputs["x_cfg"], seen, inputs["y_cfg"], config["cfg_scale"])
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
        "forward_with_cfg": lambda: guided_forward(model, inputs["x_cfg"], inputs["t_cfg"], inputs["y_cfg"], config["cfg_scale"]),
        r"(cfg_step(\d+))/(?:sample|pred_xstart)": lambda name, steps: {
            f"{name}/{key}": value
            for key, value in zip(("sample", "pred_xstart"), guided_step(model, inputs, config, int(steps)), strict=True)
        },
        "loss_.+": lambda: losses(model, inputs, config),
    }
