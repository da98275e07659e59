"""How the outputs of edm2_ema parity files follow from their inputs, through the code that trains: averages, rates, latents."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from outputs import Given, Table
from torch import Tensor, nn

from generative.convert.diffusion.edm2_ema import official_training
from generative.core.ema import EMAProfile, PowerEMA, exponent_to_std, start_average, std_to_exponent, update_average
from generative.core.images import images_to_float, images_to_uint8
from generative.core.posthoc_ema import Profile, combine, inner_products
from generative.tokenizers.latents import scale_latents

SOURCE = "edm2_ema"
NUM_TRACKED = 2  # averages of ``power_ema``, the first of the file's deviations
RESPONSE_TIME = 20  # of ``profile_response``
CONTRAST = 1.1  # of ``rgb_decoded``, so that clipping shows


class Weights(nn.Module):
    """A network of one parameter."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.clone())


def track(profile: EMAProfile, path: Tensor, batch_size: int) -> Tensor:
    """The average after every step of a path of weights, the first of which are those at the start."""
    network = Weights(path[0])
    average, found = start_average(network), []
    for step, value in enumerate(path[1:], start=1):
        network.value.copy_(value)
        update_average(average, network, profile.decay(step * batch_size, batch_size), "copy")
        found.append(average.value.detach().clone())
    return torch.stack(found)


def profiles(given: Given, side: str) -> list[Profile]:
    """Profiles of one side of the post-hoc system."""
    pairs = zip(given.inputs[f"posthoc_{side}_ofs"].tolist(), given.inputs[f"posthoc_{side}_std"].tolist(), strict=True)
    return [Profile(images, std) for images, std in pairs]


def tensor(values: np.ndarray | list) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def outputs(given: Given) -> Table:
    """The table of outputs."""
    inputs, options = given.inputs, {**given.config, **given.sampling}
    official, stds = official_training(options), inputs["stds"].tolist()
    recorded = given.recorded

    def beta() -> Tensor:
        times = inputs["beta_t_next"].tolist()
        return tensor([[PowerEMA(std=std).decay(time, official.batch_size) for time in times] for std in stds])

    def power_ema() -> Tensor:
        number = recorded["power_ema"].shape[1] if "power_ema" in recorded else NUM_TRACKED
        path = inputs["param_trajectory"]
        return torch.stack([track(PowerEMA(std=std), path, official.batch_size) for std in stds[:number]], dim=1)

    def profile_response() -> Tensor:
        length, time = RESPONSE_TIME + 4, RESPONSE_TIME
        if "profile_response" in recorded:
            length, time = len(recorded["profile_response"]), int(recorded["profile_response"].nonzero().max())
        return tensor(Profile(time, stds[0]).response(length))

    def learning_rate() -> Tensor:
        # The official ramp-up does not count the batch of the step itself.
        factors = [official.schedule.factor(images, 0, images) for images in inputs["lr_cur_nimg"].tolist()]
        return official.learning_rate * tensor(factors)

    def final_latents() -> Tensor:
        mean, std = inputs["raw_latents"].chunk(2, dim=1)
        network = AutoencoderKL(
            block_out_channels=(4,), norm_num_groups=1, latent_channels=mean.shape[1], **official.latent_config
        )
        return scale_latents(network, mean + std * inputs["latent_noise"])

    encoded = images_to_float(inputs["rgb_uint8"].to(torch.uint8)) if "rgb_uint8" in inputs else torch.zeros(0)
    return {
        "std_to_exp": lambda: tensor([std_to_exponent(std) for std in stds]),
        "exp_to_std": lambda: tensor([exponent_to_std(exponent) for exponent in inputs["exps"].tolist()]),
        "beta": beta,
        "power_ema": power_ema,
        "traditional_ema": lambda: track(official.traditional_average, inputs["param_trajectory"], official.batch_size),
        "posthoc_coefficients": lambda: tensor(combine(profiles(given, "in"), profiles(given, "out"))[0]),
        "posthoc_gram_times_1e6": lambda: tensor(inner_products(profiles(given, "in"), profiles(given, "in")) * 1e6),
        "profile_response": profile_response,
        "learning_rate": learning_rate,
        "final_latents": final_latents,
        "rgb_encoded": lambda: encoded,
        "rgb_decoded": lambda: images_to_uint8(CONTRAST * encoded).float(),
    }
