"""Checkpoints of the BigGAN authors' PyTorch code (ajbrock/BigGAN-PyTorch) from its BigGAN.py: SAGAN and BigGAN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import FLAG, OFF, Argument
from generative.convert.base import OfficialSource
from generative.convert.gan.biggan_keys import MODULE_NAMES, KeyMap
from generative.convert.gan.biggan_options import (
    discriminator_arguments,
    discriminator_constructor,
    generator_arguments,
    generator_constructor,
)
from generative.convert.gan.biggan_recognition import recognise_networks
from generative.core.errors import UserError
from generative.gan.biggan import BigGANDiscriminator, BigGANGenerator
from generative.gan.sagan import SAGANDiscriminator, SAGANGenerator

if TYPE_CHECKING:
    from pipelines.base import ImageGenerationPipeline

our_key = KeyMap(MODULE_NAMES).our_key


class SAGANSource(OfficialSource):
    """SAGAN as ``BigGAN.py`` of BigGAN-PyTorch builds it, generator and discriminator."""

    name = "sagan"
    repository = "ajbrock/BigGAN-PyTorch"
    keys = KeyMap(MODULE_NAMES)
    generator = generator_constructor({"hier": Argument(None, False, OFF)})  # hierarchical noise is BigGAN's
    discriminator = discriminator_constructor({})
    launch_eps = 1e-8
    """SN_eps of its launch script."""
    launch_init = "xavier"
    """G_init and D_init of its launch script."""

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from official constructor arguments.

        Args:
            config: ``{"generator": {...}, "discriminator": {...}}``, either of which may be missing.

        Returns:
            Networks by the same names.

        Raises:
            UserError: If a module or option is unknown or unsupported.
        """
        builders = {"generator": self.build_generator, "discriminator": self.build_discriminator}
        unknown = [module for module in config if module not in builders]
        if unknown or not config:
            raise UserError(f"{self.name} has the modules generator and discriminator, got {unknown or 'none'}")
        return {module: builders[module](options) for module, options in config.items()}

    def build_generator(self, config: Mapping[str, Any]) -> ModelMixin:
        """Build our generator."""
        return SAGANGenerator(**generator_arguments(self.generator, config))

    def build_discriminator(self, config: Mapping[str, Any]) -> ModelMixin:
        """Build our discriminator."""
        return SAGANDiscriminator(**discriminator_arguments(self.discriminator, config))

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict's tensors.

        Args:
            module: ``generator`` or ``discriminator``.
            state: Official tensors by name.
            network: Our network, from ``build``.

        Returns:
            Our state dict.

        Raises:
            UserError: If a key is unknown, or the batch norm holds standing sums.
        """
        return self.keys.convert(self.name, module, state)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        What leaves no trace in a checkpoint (epsilons, initialisation) is as the launch script of the model has it. A
        discriminator alone may be SAGAN's or BigGAN's, which have one layout.

        Args:
            state: Tensors by ``<module>/<key>``, or those of one network by ``<key>``.

        Returns:
            What ``build`` takes; None if the layout is another.
        """
        config = recognise_networks(state)
        if config is None or ("generator" in config and not self.is_ours(config["generator"])):
            return None
        for module, options in config.items():
            options |= {"SN_eps": self.launch_eps, f"{module[0].upper()}_init": self.launch_init}
        return config

    def is_ours(self, generator: Mapping[str, Any]) -> bool:
        """Whether a generator of these official options goes by this name: tables of gains and biases are SAGAN's."""
        return not generator["G_shared"]

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImageGenerationPipeline:
        """Pipeline around the generator.

        Args:
            networks: From ``build``.
            config: What they were built from.

        Raises:
            UserError: If there is no generator.
        """
        from pipelines.gan import GANImagePipeline

        if "generator" not in networks:
            raise UserError(
                f"the checkpoint of {self.name} holds a discriminator only, which makes no images; give its generator"
            )
        return GANImagePipeline(generator=networks["generator"])


class BigGANSource(SAGANSource):
    """BigGAN as ``BigGAN.py`` of BigGAN-PyTorch builds it, generator and discriminator."""

    name = "biggan"
    generator = generator_constructor({"hier": Argument("hierarchical", False, FLAG)})
    launch_eps = 1e-6
    launch_init = "ortho"

    def build_generator(self, config: Mapping[str, Any]) -> ModelMixin:
        """Build our generator; the official code cannot run hierarchical noise without a shared embedding."""
        values = self.generator.values(config)
        if values["hier"] and not values["G_shared"]:
            raise UserError("generator option hier=True of BigGAN-PyTorch needs G_shared=True, got G_shared=False")
        return BigGANGenerator(**generator_arguments(self.generator, config))

    def build_discriminator(self, config: Mapping[str, Any]) -> ModelMixin:
        """Build our discriminator."""
        return BigGANDiscriminator(**discriminator_arguments(self.discriminator, config))

    def is_ours(self, generator: Mapping[str, Any]) -> bool:
        """Whether a generator of these official options goes by this name: a shared embedding is BigGAN's."""
        return bool(generator["G_shared"])
