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
from generative.diffusion.networks.dhariwal_unet import DhariwalUNet
from generative.diffusion.networks.song_unet import SongUNet
from generative.diffusion.samplers.one_step import OneStepSampler

if TYPE_CHECKING:
    from pipelines.diffusion import DiffusionImagePipeline

NETWORK, LOSS, MODULES = "network (all three)", "loss", "modules"
"""Groups of options: of ``EDMPrecond``, and of training; and which networks there are, where not all three."""
ADVERSARIAL_SUFFIX = "_EncoderDecoder"
"""Ends the names of the same U-Nets in the code of SiDA, whose encoder discriminates too."""
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
    unknown = [name for name in config if name not in (NETWORK, LOSS, MODULES)]
    if unknown:
        raise UserError(f"options of mingyuanzhou/SiD are '{NETWORK}' and '{LOSS}', got {unknown[0]!r}")
    return TRAINING.values(config.get(LOSS, {}))


def network_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of ``EDMPrecond``, with the U-Net's name as EDM's code has it."""
    options = config.get(NETWORK, {})
    if not isinstance(options, Mapping) or not isinstance(options.get("model_type"), str):
        return options  # type: ignore[no-any-return]
    return {**options, "model_type": options["model_type"].removesuffix(ADVERSARIAL_SUFFIX)}


class SiDSource(OfficialSource):
    """Generator, teacher and fake score network of score identity distillation (arXiv 2404.04057), or the generator alone.

    The published files (of SiDA, arXiv 2410.14919, too) hold the generator alone, which nothing but their names tells from a
    network of EDM's; under another name it is taken for the generator where the source is given.
    """

    name = "sid"
    repository = "mingyuanzhou/SiD"
    modules = ("generator", "teacher", "fake_score")
    file_names = r"network-snapshot-\d\.\d{6}-\d+\.pkl"  # alpha, then thousands of images

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks, all alike.

        Args:
            config: ``network (all three)``, arguments of ``EDMPrecond``; ``loss``, those of training; and ``modules``, which
                networks there are, where not all three.

        Raises:
            UserError: If an option is unknown or of the wrong kind.
        """
        training_options(config)
        options = network_options(config)
        formulation(options)
        modules = config.get(MODULES, self.modules)
        if not isinstance(modules, list | tuple) or not modules or not {*modules} <= {*self.modules}:
            raise UserError(f"'{MODULES}' of mingyuanzhou/SiD must list some of {', '.join(self.modules)}, got {modules!r}")
        return {module: build_unet(options) for module in modules}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict, as EDM's."""
        assert isinstance(network, SongUNet | DhariwalUNet)
        return convert_tensors(state, network)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the options off the networks that are there, the generator among them; see ``edm_keys.recognise``."""
        parts = split_by_module(state)
        known = {module: config for module in self.modules if (config := recognise(parts.get(module, {}))) is not None}
        if "generator" not in known or len(known) != len(parts):
            return None
        found: dict[str, Any] = {NETWORK: known["generator"], LOSS: TRAINING.values({})}
        return found if len(known) == len(self.modules) else {**found, MODULES: list(known)}

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> DiffusionImagePipeline:
        """Pipeline of the generator: its denoised noise of ``init_sigma``, in one call.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.

        Raises:
            UserError: If there is no generator among them.
        """
        from pipelines.diffusion import DiffusionImagePipeline

        if "generator" not in networks:
            raise UserError("the networks of SiD lack the generator, which samples")
        trained, options = formulation(network_options(config)), training_options(config)
        return DiffusionImagePipeline(
            networks["generator"],
            OneStepSampler(options["init_sigma"]),
            sampling_defaults={"num_inference_steps": 1},
            formulation=trained,
        )
