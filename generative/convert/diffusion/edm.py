"""Checkpoints of the EDM authors' code (NVlabs/edm): DDPM++, NCSN++ and ADM under EDM's preconditioning."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import (
    DROPOUT,
    FLAG,
    NUMBER,
    NUMBERS,
    POSITIVE,
    REQUIRED,
    SIZES,
    UNUSED,
    Argument,
    Constructor,
    Kind,
    is_sizes,
    is_whole,
    one_of,
)
from generative.convert.base import OfficialSource
from generative.convert.diffusion.edm_keys import convert_tensors, recognise
from generative.core.errors import UserError
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.networks.dhariwal_unet import DhariwalUNet
from generative.diffusion.networks.song_unet import SongUNet
from generative.diffusion.samplers.heun import HeunSampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

# Noise levels of the official sampler, within what the preconditioning allows.
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
COUNT = Kind("a whole number of 0 or more", lambda value: is_whole(value) and value >= 0)
LEVEL = Kind("a number", lambda value: NUMBER.fits(value) or value == "inf", float)
RESOLUTIONS = Kind("a list of sizes", lambda value: is_sizes(value) or value in ([], ()), tuple)

PRECONDITIONING: MappingProxyType[str, Argument] = MappingProxyType(
    {
        "img_resolution": Argument("sample_size", REQUIRED, POSITIVE),
        "img_channels": Argument("in_channels", REQUIRED, POSITIVE),
        "label_dim": Argument(None, 0, COUNT),
        "use_fp16": Argument(None, False, FLAG),
        "sigma_min": Argument(None, 0, LEVEL),
        "sigma_max": Argument(None, "inf", LEVEL),
        "sigma_data": Argument(None, 0.5, NUMBER),
        "model_type": Argument(None, "DhariwalUNet", one_of(("SongUNet", "DhariwalUNet"))),
        "augment_dim": Argument("augment_dim", 0, COUNT),
        "channel_mult_emb": Argument("channel_mult_emb", 4, POSITIVE),
        "dropout": Argument("dropout", 0.10, DROPOUT),
        "label_dropout": Argument("class_dropout_prob", 0, DROPOUT),
        "note": UNUSED,  # a remark on the file
    }
)
SONG = Constructor(
    "SongUNet",
    "NVlabs/edm",
    PRECONDITIONING
    | {
        "model_channels": Argument("model_channels", 128, POSITIVE),
        "channel_mult": Argument("channel_mult", (1, 2, 2, 2), SIZES),
        "num_blocks": Argument("num_blocks", 4, POSITIVE),
        "attn_resolutions": Argument("attn_resolutions", (16,), RESOLUTIONS),
        "embedding_type": Argument("embedding_type", "positional", one_of(("positional", "fourier"))),
        "channel_mult_noise": Argument("channel_mult_noise", 1, POSITIVE),
        "encoder_type": Argument("encoder_type", "standard", one_of(("standard", "residual", "skip"))),
        "decoder_type": Argument("decoder_type", "standard", one_of(("standard", "skip"))),
        "resample_filter": Argument("resample_filter", (1, 1), NUMBERS),
    },
)
DHARIWAL = Constructor(
    "DhariwalUNet",
    "NVlabs/edm",
    PRECONDITIONING
    | {
        "model_channels": Argument("model_channels", 192, POSITIVE),
        "channel_mult": Argument("channel_mult", (1, 2, 3, 4), SIZES),
        "num_blocks": Argument("num_blocks", 3, POSITIVE),
        "attn_resolutions": Argument("attn_resolutions", (32, 16, 8), RESOLUTIONS),
        "channels_per_head": Argument("channels_per_head", 64, POSITIVE),  # a constant of the official code
    },
)
# Classes of the same U-Nets under other preconditionings (table 1 of the paper), whose tensors have the same names.
OTHER_PRECONDITIONINGS = ("VPPrecond", "VEPrecond", "iDDPMPrecond")
# How the published FIDs were sampled (README of NVlabs/edm): steps by resolution; ImageNet at 64 with churn.
STEPS, MANY_STEPS, CHURNED_STEPS = 18, 40, 256
IMAGENET_CLASSES = 1000
CHURN: MappingProxyType[str, float] = MappingProxyType(
    {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "noise_scale": 1.003}
)


def constructor(config: Mapping[str, Any]) -> Constructor:
    """Table of the U-Net that some official options name.

    Raises:
        UserError: If there is no such U-Net.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"options of EDMPrecond of NVlabs/edm must be a mapping by name, got {config!r}")
    return SONG if DHARIWAL.value("model_type", config) == "SongUNet" else DHARIWAL


def build_unet(config: Mapping[str, Any]) -> SongUNet | DhariwalUNet:
    """Our network from the arguments of ``EDMPrecond``.

    Raises:
        UserError: If an option is unknown or its value has no equal here.
    """
    table = constructor(config)
    values, arguments = table.values(config), table.read(config)
    arguments |= {"num_classes": max(1, values["label_dim"]), "class_conditional": values["label_dim"] > 0}
    return SongUNet(**arguments) if table is SONG else DhariwalUNet(**arguments)


def formulation(config: Mapping[str, Any]) -> EDM:
    """The preconditioning, and the noise levels of the official sampler as far as it supports them.

    Raises:
        UserError: As ``build_unet``.
    """
    values = constructor(config).values(config)
    return EDM(
        sigma_data=float(values["sigma_data"]),
        sigma_min=max(SIGMA_MIN, values["sigma_min"]),
        sigma_max=min(SIGMA_MAX, values["sigma_max"]),
    )


class EDMSource(OfficialSource):
    """``EDMPrecond`` around a ``SongUNet`` or a ``DhariwalUNet``."""

    name = "edm"
    repository = "NVlabs/edm"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our network.

        Args:
            config: Arguments of ``EDMPrecond``, those of the U-Net among them.

        Returns:
            ``{"model": SongUNet or DhariwalUNet}``.

        Raises:
            UserError: If an option is unknown or of the wrong kind.
        """
        formulation(config)
        return {"model": build_unet(config)}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict, stored filters of resampling included."""
        assert isinstance(network, SongUNet | DhariwalUNet)
        return convert_tensors(state, network)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off names and shapes; see ``edm_keys.recognise``."""
        return recognise(state)

    def check_class(self, class_name: str) -> None:
        """Refuse the paper's baselines.

        Raises:
            UserError: If the network is one.
        """
        name = class_name.rpartition(".")[2]
        if name in OTHER_PRECONDITIONINGS:
            raise UserError(
                f"the network is of {name} of NVlabs/edm, a baseline under another preconditioning than EDM's, which has no "
                "equal here; give an EDMPrecond (edm-*.pkl)"
            )

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline with the sampler of the published FID.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        trained, network = formulation(config), networks["model"]
        is_imagenet = isinstance(network, DhariwalUNet) and network.config.num_classes == IMAGENET_CLASSES
        steps = CHURNED_STEPS if is_imagenet else STEPS if network.config.sample_size <= 32 else MANY_STEPS
        sampler = HeunSampler(
            sigma_min=trained.config.sigma_min, sigma_max=trained.config.sigma_max, **(CHURN if is_imagenet else {})
        )
        return DiffusionImagePipeline(network, sampler, sampling_defaults={"num_inference_steps": steps}, formulation=trained)
