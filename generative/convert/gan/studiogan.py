"""DCGAN checkpoints of PyTorch-StudioGAN (POSTECH-CVLab), whose ``deep_conv`` networks train with WGAN-GP and other losses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor, nn

from generative.convert.base import OfficialSource
from generative.convert.gan.spectral import add_singular_values
from generative.convert.gan.studiogan_options import (
    OWN_OPTIONS,
    TRAINING_OPTIONS,
    UNUSED_OPTIONS,
    build_discriminator,
    build_generator,
    kind_of,
    recognise_networks,
)
from generative.convert.keys import names_of
from generative.core.errors import UserError
from generative.gan.dcgan import DCGANGenerator
from generative.layers.batch_norm import AffineBatchNorm2d
from generative.layers.class_embedding import ClassEmbedding

if TYPE_CHECKING:
    from pipelines.gan import GANImagePipeline

# Official submodule -> ours, within a block, within an attention and outside.
BLOCK_NAMES = {
    "generator": {"deconv0": "convs.{}", "bn0": "norms.{}", "bn0.bn": "norms.{}.norm", "bn0.gain": "norms.{}.gain"}
    | {"bn0.bias": "norms.{}.bias"},
    "discriminator": {"conv0": "blocks.{}.0", "bn0": "blocks.{}.1", "conv1": "blocks.{}.3", "bn1": "blocks.{}.4"},
}
ATTENTION_NAMES = {"": "", "conv1x1_theta": ".query", "conv1x1_phi": ".key", "conv1x1_g": ".value", "conv1x1_attn": ".out"}
OUTER_NAMES = {
    "generator": {"linear0": "linear", "conv4": "conv_out"},
    "discriminator": {"conv1": "last.0", "bn1": "last.1", "linear1": "linear", "embedding": "class_embedding"},
}
TENSOR_NAMES = {
    **{name: name for name in ("weight", "bias", "running_mean", "running_var")},
    **{"weight_orig": "weight", "weight_u": "spectral_norm.u", "weight_v": "spectral_norm.v", "sigma": "gamma"},
}
COUNTER = "num_batches_tracked"  # torch counts batches for a momentum of None, which is not used


def official_blocks(network: nn.Module) -> list[str]:
    """Our prefix for each official block, in order: attention is a block of its own, after the one whose output it sees."""
    num_blocks = len(network.convs if isinstance(network, DCGANGenerator) else network.blocks)  # type: ignore[arg-type]
    attentions: nn.ModuleDict = network.attentions  # type: ignore[assignment]
    return [name for i in range(num_blocks) for name in ([str(i), f"attentions.{i}"] if str(i) in attentions else [str(i)])]


def rename_module(network: nn.Module, path: str) -> str | None:
    """Our name for an official submodule, None if it has none."""
    kind = "generator" if isinstance(network, DCGANGenerator) else "discriminator"
    match = re.fullmatch(r"blocks\.(\d+)\.0(?:\.(.+))?", path)
    if match is None:
        return OUTER_NAMES[kind].get(path)
    blocks = official_blocks(network)
    if int(match[1]) >= len(blocks):
        return None
    block, inner = blocks[int(match[1])], match[2] or ""
    if block.startswith("attentions"):
        return block + ATTENTION_NAMES[inner] if inner in ATTENTION_NAMES else None
    return BLOCK_NAMES[kind][inner].format(block) if inner in BLOCK_NAMES[kind] else None


def our_key(network: nn.Module, key: str) -> str | None:
    """Our name for an official parameter or buffer, None if it has none."""
    path, _, tensor = key.rpartition(".")
    ours = rename_module(network, path)
    if ours is None or tensor not in TENSOR_NAMES or ours not in dict(network.named_modules()):
        return None
    is_gain = tensor == "weight" and isinstance(network.get_submodule(ours), AffineBatchNorm2d)
    return f"{ours}.gain" if is_gain else f"{ours}.{TENSOR_NAMES[tensor]}"


def reshape(network: nn.Module, name: str, value: Tensor) -> Tensor:
    """An official tensor, or its gradient, in the shape of ours."""
    path, _, tensor = name.rpartition(".")
    if tensor in ("u", "v"):
        return value[None]  # (n,) -> (1, n)
    if tensor == "gamma":
        return value.reshape(())
    is_table = tensor == "weight" and isinstance(network.get_submodule(path), ClassEmbedding)
    return value.T.contiguous() if is_table else value  # a layer on one-hot labels (C, K) -> a table (K, C)


class StudioGANSource(OfficialSource):
    """The ``deep_conv`` generator and discriminator of PyTorch-StudioGAN."""

    name = "wgan-gp"
    repository = "POSTECH-CVLab/PyTorch-StudioGAN"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from official constructor arguments.

        Args:
            config: ``{"generator": {...}, "discriminator": {...}, "common": {...}}``: official arguments and configuration keys
                by network, those in ``common`` for all. There may be several networks of a kind (``generator_cond``). Beside them
                may stand ``width_divisor``, which divides the official widths, and ``gp_lambda``, which builds nothing.

        Returns:
            Networks by the same names.

        Raises:
            UserError: If a module or option is unknown or unsupported.
        """
        modules = {name: value for name, value in config.items() if kind_of(name) and isinstance(value, dict)}
        unknown = [name for name in config if name not in {*modules, "common", "width_divisor", *TRAINING_OPTIONS}]
        if unknown or not modules:
            raise UserError(f"{self.name} has the modules generator and discriminator, got {unknown[0] if unknown else 'none'!r}")
        common, divisor = config.get("common", {}), config.get("width_divisor", 1)
        if not isinstance(divisor, int) or divisor < 1:
            raise UserError(f"width_divisor must be a whole number of at least 1, got {divisor!r}")
        networks: dict[str, ModelMixin] = {}
        for module, own in modules.items():
            kind = kind_of(module) or ""
            other = next(name for name in OWN_OPTIONS if name != kind)
            foreign = OWN_OPTIONS[other] | set(UNUSED_OPTIONS[other])
            options = {name: value for name, value in common.items() if name not in foreign} | own
            make = build_generator if kind == "generator" else build_discriminator
            networks[module] = make(module, options, divisor)
        return networks

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict's tensors.

        Args:
            module: Name of the network, as in ``build``.
            state: Official tensors by name.
            network: Our network, from ``build``.

        Returns:
            Our state dict.

        Raises:
            UnknownKeysError: If a key is unknown.
        """

        def is_counter(key: str) -> bool:
            path, _, tensor = key.rpartition(".")
            return tensor == COUNTER and rename_module(network, path) is not None

        kept = [key for key in state if not is_counter(key)]
        names = names_of(f"{module} of {self.name}", kept, partial(our_key, network))
        converted = {name: reshape(network, name, state[key]) for key, name in names.items()}
        transposed = [name for name, layer in network.named_modules() if isinstance(layer, (nn.ConvTranspose2d, ClassEmbedding))]
        add_singular_values(converted, transposed)
        return converted

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        What leaves no trace has the official default: activation, epsilon and momentum of batch norm, and the image size of a
        discriminator alone.

        Args:
            state: Tensors by ``<module>/<key>``, or those of one network by ``<key>``.

        Returns:
            What ``build`` takes; None if the layout is another.
        """
        return recognise_networks(state)

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> GANImagePipeline:
        """Pipeline around the generator.

        Args:
            networks: From ``build``.
            config: What they were built from.

        Raises:
            UserError: If there is no generator, or more than one.
        """
        from pipelines.gan import GANImagePipeline

        generators = [name for name in networks if kind_of(name) == "generator"]
        if len(generators) != 1:
            raise UserError(f"{self.name} samples from one generator, the checkpoint holds {', '.join(generators) or 'none'}")
        return GANImagePipeline(generator=networks[generators[0]])
