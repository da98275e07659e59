"""Options of EDM2's official code (NVlabs/edm2): of the network, its sampler, its loss and the encoder of its latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from generative.convert.arguments import (
    FLAG,
    LIST,
    NUMBER,
    NUMBERS,
    POSITIVE,
    REQUIRED,
    SIZES,
    TEXT,
    UNUSED,
    WHOLE,
    Argument,
    Constructor,
    Kind,
    at_least,
    optional,
)
from generative.core.errors import UserError
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.networks.edm2 import EDM2UNet
from generative.diffusion.samplers.heun import HeunSampler

REPOSITORY = "NVlabs/edm2"
SIZE_LIST = Kind("a list of whole numbers", lambda value: LIST.fits(value) and all(WHOLE.fits(size) for size in value), tuple)
SOME_NUMBERS = Kind("a list of numbers", lambda value: NUMBERS.fits(value) and len(value) > 0, list)
NO_LIMIT = Kind("a number or None", optional(NUMBER).fits, lambda value: None if value == math.inf else value)
GROUP = Argument(None, {}, Kind("options by name", lambda value: isinstance(value, Mapping)))

# Arguments of the official ``Precond`` and of the ``UNet`` and ``Block`` that it hands them on to.
PRECOND = {
    "img_resolution": Argument("sample_size", REQUIRED, POSITIVE),
    "img_channels": Argument("in_channels", REQUIRED, POSITIVE),
    "label_dim": Argument(None, REQUIRED, at_least(0)),
    "use_fp16": Argument(None, True, FLAG),  # precision is a pipeline's, not a network's
    "sigma_data": Argument(None, 0.5, NUMBER),
    "logvar_channels": Argument("logvar_channels", 128, POSITIVE),
    "model_channels": Argument("model_channels", 192, POSITIVE),
    "channel_mult": Argument("channel_mult", (1, 2, 3, 4), SIZES),
    "channel_mult_noise": Argument("channel_mult_noise", None, optional(POSITIVE)),
    "channel_mult_emb": Argument("channel_mult_emb", None, optional(POSITIVE)),
    "num_blocks": Argument("num_blocks", 3, POSITIVE),
    "attn_resolutions": Argument("attention_resolutions", (16, 8), SIZE_LIST),
    "label_balance": Argument("label_balance", 0.5, NUMBER),
    "concat_balance": Argument("concat_balance", 0.5, NUMBER),
    "resample_filter": Argument("resample_filter", (1, 1), NUMBERS),
    "channels_per_head": Argument("channels_per_head", 64, POSITIVE),
    "dropout": Argument("dropout", 0, NUMBER),
    "res_balance": Argument("residual_balance", 0.3, NUMBER),
    "attn_balance": Argument("attention_balance", 0.3, NUMBER),
    "clip_act": Argument("clip_act", 256, optional(NUMBER)),
}
# Of the official sampler, of which ``guidance`` needs the other network.
SAMPLER = {
    "num_steps": Argument(None, 32, POSITIVE),
    "guidance": Argument(None, 1, NUMBER),
    "sigma_min": Argument("sigma_min", 0.002, NUMBER),
    "sigma_max": Argument("sigma_max", 80, NUMBER),
    "rho": Argument("rho", 7, NUMBER),
    "S_churn": Argument("churn", 0, NUMBER),
    "S_min": Argument("churn_min", 0, NUMBER),
    "S_max": Argument("churn_max", None, NO_LIMIT),
    "S_noise": Argument("noise_scale", 1, NUMBER),
}
LOSS = {
    "P_mean": Argument("log_sigma_mean", -0.4, NUMBER),
    "P_std": Argument("log_sigma_std", 1.0, NUMBER),
    "sigma_data": Argument("sigma_data", 0.5, NUMBER),
}
# Of ``StabilityVAEEncoder``, whose networks take images in [0, 1].
ENCODER = {
    "vae_name": Argument(None, "stabilityai/sd-vae-ft-mse", TEXT),
    "raw_mean": Argument(None, [5.81, 3.25, 0.12, -2.15], SOME_NUMBERS),
    "raw_std": Argument(None, [4.17, 4.62, 3.71, 3.28], SOME_NUMBERS),
    "final_mean": Argument(None, 0, NUMBER),
    "final_std": Argument(None, 0.5, NUMBER),
    "batch_size": UNUSED,
}
OPTIONS = {**PRECOND, "gnet_config": GROUP, "sampler": GROUP, "loss": GROUP, "encoder": GROUP}
IMAGE_RANGE = (0.0, 1.0)
ENCODER_CLASS = "StabilityVAEEncoder"


def constructor(owner: str, arguments: Mapping[str, Argument]) -> Constructor:
    """A table of the official code's for an owner of a name."""
    return Constructor(owner, REPOSITORY, arguments)


def build_network(owner: str, config: Mapping[str, Any]) -> EDM2UNet:
    """Our network of the arguments of ``Precond``."""
    table = constructor(owner, PRECOND)
    num_classes = table.values(config)["label_dim"]
    return EDM2UNet(**table.read(config), num_classes=max(num_classes, 1), class_conditional=num_classes > 0)


def formulation(config: Mapping[str, Any]) -> EDM:
    """The official preconditioning and loss, with the grid of the official sampler.

    Raises:
        UserError: If an option is unknown or out of range, or the loss and the network disagree on ``sigma_data``.
    """
    sampler = constructor("sampler", SAMPLER).read(config.get("sampler", {}))
    loss = constructor("loss", LOSS).read({"sigma_data": config.get("sigma_data", 0.5)} | dict(config.get("loss", {})))
    if loss["sigma_data"] != config.get("sigma_data", 0.5):
        raise UserError(
            f"sigma_data of EDM2 must be one number for loss and network, got {loss['sigma_data']} and {config.get('sigma_data')}"
        )
    return EDM(**loss, **{name: sampler[name] for name in ("sigma_min", "sigma_max", "rho")})


def sampler(config: Mapping[str, Any]) -> HeunSampler:
    """The official sampler with its options."""
    return HeunSampler(**constructor("sampler", SAMPLER).read(config.get("sampler", {})))


def num_steps(config: Mapping[str, Any]) -> int:
    """Steps of the official sampler."""
    steps: int = constructor("sampler", SAMPLER).values(config.get("sampler", {}))["num_steps"]
    return steps


def latent_scaling(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of an autoencoder's config that bring its latents to the official mean and deviation.

    Args:
        encoder: Options of the official encoder, see ``ENCODER``.

    Returns:
        ``scaling_factor``, ``latents_mean`` and ``latents_std``, as ``set_latent_scaling`` takes them.

    Raises:
        UserError: If they are unknown or out of range.
    """
    options = constructor("encoder", ENCODER).values(encoder)
    means, deviations = options["raw_mean"], options["raw_std"]
    if len(means) != len(deviations) or not all(value > 0 for value in (*deviations, options["final_std"])):
        raise UserError(
            "encoder options raw_mean and raw_std of EDM2 must be as many, and deviations above 0, "
            f"got {means}, {deviations} and {options['final_std']}"
        )
    shift = options["final_mean"] / options["final_std"]
    return {
        "scaling_factor": float(options["final_std"]),
        "latents_mean": [mean - shift * std for mean, std in zip(means, deviations, strict=True)],
        "latents_std": deviations,
    }
