"""MAR's KL-16 autoencoder (kl16.ckpt of LTH14/mar, which eMIGM uses too) as diffusers' ``AutoencoderKL``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor

from generative.convert.arguments import SIZES, WHOLE, Argument, Constructor, one_of
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of

if TYPE_CHECKING:
    from pipelines.reconstruction import ImageReconstructionPipeline

# Hard-coded in models/vae.py: blocks of a level, groups of norms, size of the images and of the maps that have attention.
BLOCKS_PER_LEVEL, NORM_GROUPS, RESOLUTION, ATTENTION_RESOLUTION = 2, 32, 256, 16
# Factor on the latents (engine_mar.py).
SCALING_FACTOR = 0.2325

PARTS = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
ATTENTION_PARTS = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OUTER_PARTS = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}


# Arguments of ``AutoencoderKL``, and ``ch``, which is hard-coded in it.
CONSTRUCTOR = Constructor(
    "AutoencoderKL",
    "LTH14/mar",
    {
        "embed_dim": Argument("latent_channels", 16, WHOLE),
        "ch_mult": Argument("multipliers", (1, 1, 2, 2, 4), SIZES),
        "ch": Argument("width", 128, WHOLE),
        "use_variational": Argument(None, True, one_of((True,))),
    },
)


def has_attention(level: int) -> bool:
    """Whether a level of the encoder has attention; none of the decoder has."""
    return RESOLUTION >> level == ATTENTION_RESOLUTION


def rename(key: str, num_levels: int) -> str | None:
    """Our name of an official tensor, None if it has none."""
    path, _, tensor = key.rpartition(".")
    if path in ("quant_conv", "post_quant_conv"):
        return key
    match = re.fullmatch(r"(encoder|decoder)\.(\w+)", path)
    if match and match[2] in OUTER_PARTS:
        return f"{match[1]}.{OUTER_PARTS[match[2]]}.{tensor}"
    match = re.fullmatch(r"(encoder|decoder)\.mid\.(block|attn)_([12])\.(\w+)", path)
    if match:
        kind, parts = ("resnets", PARTS) if match[2] == "block" else ("attentions", ATTENTION_PARTS)
        return f"{match[1]}.mid_block.{kind}.{int(match[3]) - 1}.{parts[match[4]]}.{tensor}" if match[4] in parts else None
    match = re.fullmatch(
        r"(?:encoder\.(down)|decoder\.(up))\.(\d+)\.(?:(block|attn)\.(\d+)\.(\w+)|(?:down|up)sample\.conv)", path
    )
    if match is None:
        return None
    level = int(match[3])
    prefix = f"encoder.down_blocks.{level}" if match[1] else f"decoder.up_blocks.{num_levels - 1 - level}"
    if match[4] is None:
        return f"{prefix}.{'downsamplers' if match[1] else 'upsamplers'}.0.conv.{tensor}"
    kind, parts = ("resnets", PARTS) if match[4] == "block" else ("attentions", ATTENTION_PARTS)
    return f"{prefix}.{kind}.{match[5]}.{parts[match[6]]}.{tensor}" if match[6] in parts else None


class MARVAESource(OfficialSource):
    """The autoencoder of ``models/vae.py``; its latents are scaled by 0.2325."""

    name = "mar-vae"
    repository = CONSTRUCTOR.repository
    is_autoencoder = True

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build diffusers' autoencoder from official arguments.

        Args:
            config: ``embed_dim``, ``ch_mult``, ``use_variational``; and ``ch`` (128).

        Returns:
            ``{"model": AutoencoderKL}``.

        Raises:
            UserError: If an option is unknown or not supported.
        """
        arguments = CONSTRUCTOR.read(config)
        multipliers = arguments["multipliers"]
        levels = range(len(multipliers))
        network = AutoencoderKL(
            down_block_types=tuple("AttnDownEncoderBlock2D" if has_attention(i) else "DownEncoderBlock2D" for i in levels),
            up_block_types=tuple("UpDecoderBlock2D" for _ in levels),
            block_out_channels=tuple(arguments["width"] * multiplier for multiplier in multipliers),
            layers_per_block=BLOCKS_PER_LEVEL,
            latent_channels=arguments["latent_channels"],
            norm_num_groups=NORM_GROUPS,
            sample_size=RESOLUTION,
            scaling_factor=SCALING_FACTOR,
        )
        return {"model": network}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; 1x1 convolutions of attention become linear maps.

        Args:
            module: ``model``.
            state: Official tensors; those of the training loss (``loss.``) are left behind, as officially.
            network: The autoencoder.

        Raises:
            UnknownKeysError: If a key is unknown.
        """
        kept = [key for key in state if not key.startswith("loss.")]
        num_levels = len(network.config.block_out_channels)
        converted = {}
        for key, name in names_of("MAR's autoencoder", kept, partial(rename, num_levels=num_levels)).items():
            is_map = ".attentions." in name and state[key].ndim == 4
            converted[name] = state[key][:, :, 0, 0] if is_map else state[key]
        return converted

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the options off names and shapes.

        Args:
            state: Official tensors by key.

        Returns:
            What ``build`` takes; None for another layout, one with attention elsewhere among them.
        """
        own = ("encoder.down.0.block.0.conv1.weight", "encoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight")
        if any(key not in state for key in own) or any(key.startswith("quantize.") for key in state):
            return None
        levels = {int(match[1]) for match in (re.match(r"encoder\.down\.(\d+)\.block", key) for key in state) if match}
        attention = {match[0] for match in (re.match(r"(encoder\.down|decoder\.up)\.\d+\.attn", key) for key in state) if match}
        if attention != {f"encoder.down.{level}.attn" for level in levels if has_attention(level)}:
            return None
        embed_dim = state["post_quant_conv.weight"].shape[0]
        if state["quant_conv.weight"].shape[0] != 2 * embed_dim:
            return None
        width = state["encoder.conv_in.weight"].shape[0]
        widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in sorted(levels)]
        return {"embed_dim": embed_dim, "ch": width, "ch_mult": [size // width for size in widths]}

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImageReconstructionPipeline:
        """Pipeline that encodes and decodes images; its folder serves as ``--autoencoder`` of MAR and eMIGM.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.reconstruction import ImageReconstructionPipeline

        return ImageReconstructionPipeline(networks["model"])
