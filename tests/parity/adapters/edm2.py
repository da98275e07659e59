"""How the outputs of edm2 parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from outputs import Given, Table
from torch import Tensor
from torch.nn import Module

from generative.convert.diffusion.edm2 import as_official, block_names, our_name
from generative.convert.diffusion.edm2_options import formulation, num_steps, sampler
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Branch, Condition, DenoiserOutput, evaluator
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.layers.magnitude_preserving import mp_cat, mp_silu, mp_sum, normalize
from generative.layers.resampling import resample_by_taps

SOURCE = "edm2"
SUM_BALANCE = 0.3  # of the file's example


def labels_of(rows: Tensor) -> Tensor:
    """Labels (B,) of rows (B, K) of which each is one class or none, as our networks take them; other rows as they are."""
    if rows.shape[1] and not torch.equal(rows.sum(1), rows.max(1).values):
        return rows
    weights = torch.cat([rows, 1 - rows.sum(1, keepdim=True)], dim=1)
    return weights.argmax(1)


class Recorded:
    """In the place of random streams: the file's draws, one after the other."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = iter(draws)

    def randn(self, *shape: int) -> Tensor:
        """The next one."""
        return next(self.draws)


def outputs(given: Given) -> Table:
    """The table of outputs."""
    inputs, config = given.inputs, given.config
    net, guide = given.networks["net"], given.networks.get("gnet", given.networks["net"])
    process = formulation(config)
    options = config.get("sampler", {})

    def run(network: Module, x: Tensor, sigma: Tensor, rows: Tensor | None) -> DenoiserOutput:
        labels = torch.full((len(x),), network.config.num_classes) if rows is None else labels_of(rows)
        if not network.config.num_classes:
            labels = torch.zeros(len(x), dtype=torch.int64)
        return evaluator(network, process)(SampleState(x), sigma, [Branch(Condition(labels))])[0]

    def denoised(network: Module, rows: Tensor | None) -> Tensor:
        output = run(network, inputs["x"], inputs["sigma"], rows)
        return process.predict_start(output, inputs["x"], inputs["sigma"])

    def element_losses(network: Module) -> Tensor:
        """The loss of each element: an image of one element each."""
        images, noise = inputs["images"], inputs["loss_noise"]
        times = (inputs["loss_rnd_normal"].flatten() * process.config.log_sigma_std + process.config.log_sigma_mean).exp()
        sample = process.add_noise(images, noise, times)
        output = run(network, sample, times, inputs["class_labels"])
        count = images[0].numel()
        alone = DenoiserOutput(
            output.prediction.reshape(-1, 1),
            log_variance=None if output.log_variance is None else output.log_variance.repeat_interleave(count),
        )
        flat = [value.reshape(-1, 1) for value in (images, noise, sample)]
        parts = process.losses(alone, *flat, times.repeat_interleave(count))
        return torch.stack(list(parts.values())).sum(0).reshape(images.shape)

    @functools.cache
    def trained() -> dict[str, Tensor]:
        network: Any = copy.deepcopy(net).train()
        for block in [*network.encoder, *network.decoder]:
            block.dropout.p = 0.0
        with torch.enable_grad():
            losses = element_losses(network)
            (losses.sum() / len(losses)).backward()
        blocks = block_names(network)
        wanted = [key.split("/", 2)[2] for key in given.recorded if key.startswith("train/") and key.count("/") > 1]
        results = {"train/loss": losses}
        for key in wanted:
            name = our_name(blocks, key)
            if name is None:
                continue
            parameter = network.get_parameter(name)
            results[f"train/weight_after_forward/{key}"] = as_official(name, parameter.detach(), network)
            results[f"train/grad/{key}"] = as_official(name, parameter.grad, network)
        return results

    def sampled(guidance: float, churn: float) -> Tensor:
        solver = sampler({**config, "sampler": {**options, "S_churn": churn}})
        labels = labels_of(inputs["class_labels"])
        predict = Extrapolation(scale=guidance, weak=guide).bind(evaluator(net, process), Condition(labels), process)
        noise: Any = Recorded(inputs["churn_noise"] if "churn_noise" in inputs else torch.empty(0))
        return solver.sample(predict, SampleState(inputs["sampler_noise"]), num_steps(config), noise, process).sample

    taps = config.get("resample_filter", (1, 1))
    guidance, churn = options.get("guidance", 1.0), options.get("S_churn", 0)
    return {
        "F_x": lambda: run(net, inputs["x"], inputs["sigma"], inputs["class_labels"]).prediction,
        "denoised": lambda: denoised(net, inputs["class_labels"]),
        "denoised_no_labels": lambda: denoised(net, None),
        "guide_denoised": lambda: denoised(guide, inputs["class_labels"]),
        "logvar": lambda: run(net, inputs["x"], inputs["sigma"], inputs["class_labels"]).log_variance.reshape(-1, 1, 1, 1),
        "fourier_noise_embedding": lambda: net.emb_fourier(process.network_time(inputs["sigma"])),
        "loss": lambda: element_losses(net),
        "normalize_example": lambda: normalize(inputs["x"]),
        "normalize_pixel_example": lambda: normalize(inputs["x"], dims=(1,)),
        "mp_silu_example": lambda: mp_silu(inputs["x"]),
        "mp_sum_example": lambda: mp_sum(inputs["x"], inputs["images"], SUM_BALANCE),
        "mp_cat_example": lambda: mp_cat(inputs["x"], inputs["images"][:, :1], config.get("concat_balance", 0.5)),
        "resample_down_example": lambda: resample_by_taps(inputs["x"], "down", taps),
        "resample_up_example": lambda: resample_by_taps(inputs["images"], "up", taps),
        "sampler_sigmas": lambda: process.sampling_times(num_steps(config))[:-1],
        "sampler_guided": lambda: sampled(guidance, churn),
        "sampler_guided_no_churn": lambda: sampled(guidance, 0),
        "sampler_unguided_no_churn": lambda: sampled(1.0, 0),
        "train/.+": trained,
    }
