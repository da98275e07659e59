"""How the outputs of mar parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import torch
from masked_autoencoder_outputs import FileNoise, Recorder, features, file_drawing, masked_rows, numbered
from outputs import Given, Table, Tensors
from torch import Tensor
from torch.nn import Module

from generative.autoregressive.continuous.diffusion_head import guide, head_losses
from generative.autoregressive.continuous.head_samplers import AncestralHeadSampler
from generative.autoregressive.continuous.objective import MARObjective
from generative.autoregressive.continuous.schedulers import RandomOrderScheduler
from generative.convert.autoregressive.mar import chain_timesteps
from pipelines.mar import MARPipeline

SOURCE = "mar"
GUIDANCE, TEMPERATURE = 2.9, 0.95  # of the files' samples


def token_losses(network: Module, inputs: Tensors, config: dict) -> dict[str, Tensor]:
    """The training loss, its gradient at the head's last bias, and its terms for every row before masking."""
    objective = MARObjective(network, torch.optim.AdamW, diffusion_batch_mul=config.get("diffusion_batch_mul", 4))
    rows = masked_rows(inputs, objective.diffusion_batch_mul)
    tokens, masked = network.patchify(inputs["latents"]), inputs["mask"] == 1
    arguments = (network, tokens, masked, inputs["labels"], inputs["t"][rows], inputs["noise"][rows])
    with torch.enable_grad():
        mse, bound = objective.token_losses(*arguments)
        loss = (mse + bound).sum() / rows.sum()
        (gradient,) = torch.autograd.grad(loss, network.head.output.bias)
    target = objective.copies(tokens.flatten(0, 1))
    noised = objective.process.add_noise(target, inputs["noise"], inputs["t"])
    output = network.head(noised, inputs["t"], objective.copies(features(network, inputs, null=False).flatten(0, 1)))
    mse, bound = head_losses(objective.process, output, target, inputs["noise"], noised, inputs["t"])
    return {
        "loss": loss.reshape(1),
        "grad_final_linear_bias": gradient,
        "loss_mse_per_token": mse,
        "loss_vb_rows_t0": bound[inputs["t"] == 0],
        "loss_vb_rows_tpos": bound[inputs["t"] > 0],
    }


def guided_step(network: Module, inputs: Tensors) -> Tensor:
    """One guided reverse step of the chain of 100, each row at its own index."""
    sampler = AncestralHeadSampler(100, TEMPERATURE)
    times = torch.tensor(sampler.chain.timesteps)[inputs["step_index"]]
    condition = torch.stack([inputs["step_z"], inputs["step_z_null"]])
    output = guide(network.head(inputs["step_x"], times, condition), GUIDANCE, network.token_size)
    return sampler.reverse_step(output, inputs["step_x"], inputs["step_index"], inputs["step_noise"])


def samples(network: Module, inputs: Tensors, config: dict) -> dict[str, Tensor]:
    """Latents from the file's orders and noise, and the masks before each iteration."""
    noises = numbered(inputs, "sample_noise_")
    sampler = AncestralHeadSampler(chain_timesteps(config.get("num_sampling_steps", "100")), TEMPERATURE)
    scheduler = RandomOrderScheduler(file_drawing(network.head, sampler, iter(noises)), GUIDANCE, "linear")
    recorder = Recorder(scheduler)
    pipeline = MARPipeline(network)
    pipeline.set_progress_bar_config(disable=True)
    state = super(MARPipeline, pipeline).prepare_state(inputs["labels"], FileNoise([]))
    state.memory["order"] = inputs["orders"]
    state = pipeline.run(inputs["labels"], scheduler, len(noises), FileNoise([]), state)
    return {"sample_latents": network.unpatchify(state.sample), "sample_masks": torch.stack(recorder.masks)}


def outputs(given: Given) -> Table:
    """The table of outputs."""
    network, inputs = given.model, given.inputs
    num_rows = inputs["mask"].numel()
    chain = AncestralHeadSampler(100).chain
    z = features(network, inputs, null=False)
    tokens = network.patchify(inputs["latents"])
    return {
        "tokens": tokens,
        "z": z,
        "z_null": lambda: features(network, inputs, null=True),
        "net_out": lambda: network.head(tokens.flatten(0, 1), inputs["t"][:num_rows], z.flatten(0, 1)),
        "spaced100_timesteps": lambda: torch.tensor(chain.timesteps),
        "spaced100_betas": lambda: chain.process.betas.float(),
        "step_sample": lambda: guided_step(network, inputs),
        "loss.*|grad_.+": lambda: token_losses(network, inputs, given.config),
        "sample_.+": lambda: samples(network, inputs, given.config),
    }
