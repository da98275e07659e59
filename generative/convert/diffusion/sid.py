"""Checkpoints of the SiD authors' code (mingyuanzhou/SiD): three networks of EDM's; the generator samples in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import NUMBER, Argument, Constructor, Kind
from generative.convert.base import OfficialSource, split_by_module
from generative.convert.diffusion.edm import build_unet, formulation
from generative.convert.diffusion.edm_keys import convert_tensors, recognise
from generative.core.errors import UserError
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.networks.dhariwal_unet import DhariwalUNet
from generative.diffusion.networks.song_unet import SongUNet
from generative.diffusion.samplers.heun import HeunSampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

NETWORK, LOSS = "network (all three)", "loss"
"""Groups of options: of ``EDMPrecond``, and of training."""
ANY_NUMBER = Kind("a number", NUMBER.fits, float)
TRAINING = Constructor(
    "SID_EDMLoss",
    "mingyuanzhou/SiD",
    {
        "alpha": Argument(None, 1.2, ANY_NUMBER),
        "tmax": Argument(None, 800, ANY_NUMBER),
        "init_sigma": Argument(None, 2.5, Kind("a positive number", lambda value: NUMBER.fits(value) and value > 0, float)),
        "P_mean": Argument(None, -1.2, ANY_NUMBER),
        "P_std": Argument(None, 1.2, ANY_NUMBER),
        "sigma_data": Argument(None, 0.5, ANY_NUMBER),
        "sigma_min": Argument(None, 0.002, ANY_NUMBER),
        "sigma_max": Argument(None, 80, ANY_NUMBER),
        "rho": Argument(None, 7.0, ANY_NUMBER),
        "loss_scaling_G": Argument(None, 100, ANY_NUMBER),
    },
)


def training_options(config: Mapping[str, Any]) -> dict[str, float]:
    """Options of training by official name, official defaults where none is given.

    Raises:
        UserError: If one is unknown or of the wrong kind, or there is a group of options that is neither.
    """
    unknown = [name for name in config if name not in (NETWORK, LOSS)]
    if unknown:
        raise UserError(f"options of mingyuanzhou/SiD are '{NETWORK}' and '{LOSS}', got {unknown[0]!r}")
    return TRAINING.values(config.get(LOSS, {}))


class SiDSource(OfficialSource):
    """Generator, teacher and fake score network of score identity distillation (arXiv 2404.04057)."""

    name = "sid"
    repository = "mingyuanzhou/SiD"
    modules = ("generator", "teacher", "fake_score")

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks, all three alike.

        Args:
            config: ``network (all three)``, arguments of ``EDMPrecond``, and ``loss``, those of training.

        Raises:
            UserError: If an option is unknown or of the wrong kind.
        """
        training_options(config)
        formulation(config.get(NETWORK, {}))
        return {module: build_unet(config.get(NETWORK, {})) for module in self.modules}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict, as EDM's."""
        assert isinstance(network, SongUNet | DhariwalUNet)
        return convert_tensors(state, network)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the options off several networks; one alone is told from EDM's by nothing, and must be named."""
        parts = split_by_module(state)
        known = [config for module in self.modules if (config := recognise(parts.get(module, {}))) is not None]
        return {NETWORK: known[0], LOSS: {}} if len(known) > 1 else None

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline of the generator: one Euler step from ``init_sigma`` is its denoised noise.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.

        Raises:
            UserError: If there is no generator among them.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        if "generator" not in networks:
            raise UserError("the networks of SiD lack the generator, which samples")
        trained, options = formulation(config.get(NETWORK, {})), training_options(config)
        levels = {"sigma_min": trained.config.sigma_min, "sigma_max": options["init_sigma"]}
        return DiffusionImagePipeline(
            networks["generator"],
            HeunSampler(order=1, **levels),
            sampling_defaults={"num_inference_steps": 1},
            formulation=EDM(sigma_data=trained.config.sigma_data, **levels),
        )
