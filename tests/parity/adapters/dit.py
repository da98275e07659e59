"""How the outputs of dit parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import re
from unittest import mock

import torch
from torch import Tensor
from torch.nn import Module

from generative.convert.dit import noise_scheduler
from generative.core.sampling import SampleState, classifier_free_guidance
from generative.diffusion.objective import DiffusionObjective
from generative.diffusion.schedule import respaced_timesteps
from generative.layers.embeddings import timestep_embedding

SOURCE = "dit"
GUIDED_CHANNELS = 3  # the published sampler's, whatever the number of channels
SINUSOID = re.compile(r"^timestep_sinusoid_(\d+)$")
GUIDED_STEP = re.compile(r"^cfg_step(\d+)/(sample|pred_xstart)$")


def guided_forward(model: Module, x: Tensor, t: Tensor, y: Tensor, scale: float) -> Tensor:
    """The official guided forward: 2n rows, of which the first half of x is used; returns the conditional, then the null half.

    Both halves share the guided channels; the others stay as each half's branch predicted them.
    """
    half = len(x) // 2
    null_label = int(y[half])
    branches: list[Tensor] = []

    def predict(state: SampleState, timestep: Tensor, class_labels: Tensor) -> Tensor:
        prediction = model(state.sample.repeat(2, 1, 1, 1), timestep, class_labels.flatten()).unflatten(0, (2, half))
        branches.append(prediction)
        return prediction

    guided = classifier_free_guidance(predict, y[:half], null_label, scale, channels=GUIDED_CHANNELS)
    conditional = guided(SampleState(x[:half]), t)
    null_rest = branches[0][1][:, GUIDED_CHANNELS:]
    return torch.cat([conditional, torch.cat([conditional[:, :GUIDED_CHANNELS], null_rest], dim=1)])


def guided_step(model: Module, inputs: dict[str, Tensor], config: dict, num_steps: int) -> tuple[Tensor, Tensor]:
    """One ancestral step of the shortened chain for each row, at its own index and with the file's noise: (sample, x_0)."""
    scheduler = noise_scheduler(config)
    timesteps = torch.tensor(respaced_timesteps(scheduler.config.num_train_timesteps, num_steps))
    scheduler.set_timesteps(timesteps=timesteps.flip(0).tolist())
    seen = timesteps[inputs["t_sample"]]
    output = guided_forward(model, inputs["x_cfg"], seen, inputs["y_cfg"], config["cfg_scale"])
    samples, starts = [], []
    for row, timestep in enumerate(seen):
        rows = slice(row, row + 1)
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", return_value=inputs["step_noise"][rows]):
            step = scheduler.step(output[rows], timestep, inputs["x_cfg"][rows])
        samples.append(step.prev_sample)
        starts.append(step.pred_original_sample)
    return torch.cat(samples), torch.cat(starts)


def losses(model: Module, inputs: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Loss of each image by the training objective, no label dropped."""
    objective = DiffusionObjective(model, noise_scheduler(config), torch.optim.AdamW)
    sample = objective.process.add_noise(inputs["x_start"], inputs["noise"], inputs["t"])
    output = model(sample, inputs["t"], inputs["y"])
    parts = objective.denoising_losses(output, inputs["x_start"], inputs["noise"], sample, inputs["t"])
    named = {"loss_mse": parts["mse"], "loss_total": torch.stack(list(parts.values())).sum(0)}
    return named | ({"loss_vb": parts["variational_bound"]} if "variational_bound" in parts else {})


@torch.no_grad()
def compute(networks: dict[str, Module], inputs: dict[str, Tensor], config: dict, wanted: list[str]) -> dict[str, Tensor]:
    """Every wanted output.

    Args:
        networks: ``model`` with the file's weights.
        inputs: The file's inputs.
        config: Official options.
        wanted: Names of outputs.

    Returns:
        Outputs by name.

    Raises:
        KeyError: For a name that is not known.
    """
    model = networks["model"].eval()
    simple = {
        "forward": lambda: model(inputs["x"], inputs["t"], inputs["y"]),
        "patch_tokens_plus_pos": lambda: model.embed_patches(inputs["x"]),
        "pos_embed_sincos": lambda: model.position_embedding[0],
        "t_embedder": lambda: model.timestep_embedder(inputs["t"]),
        "y_embedder": lambda: model.embed_labels(inputs["y"], len(inputs["y"])),
        "y_embedder_force_drop": lambda: model.embed_labels(
            inputs["y"].masked_fill(inputs["force_drop_ids"] == 1, model.config.num_classes), len(inputs["y"])
        ),
        "forward_with_cfg": lambda: guided_forward(model, inputs["x_cfg"], inputs["t_cfg"], inputs["y_cfg"], config["cfg_scale"]),
    }
    results: dict[str, Tensor] = {}
    for name in wanted:
        if name in simple:
            results[name] = simple[name]()
        elif match := SINUSOID.match(name):
            results[name] = timestep_embedding(inputs["t"], int(match[1]))
        elif match := GUIDED_STEP.match(name):
            sample, start = guided_step(model, inputs, config, int(match[1]))
            results[name] = sample if match[2] == "sample" else start
        elif name.startswith("loss_"):
            results[name] = losses(model, inputs, config)[name]
        else:
            raise KeyError(name)
    return results
