"""VAR's multi-scale VQVAE (FoundationVision/VAR, models/vqvae.py): options and keys, for its own file and for VAR's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import ANY, FLAG, NUMBER, SIZES, UNUSED, WHOLE, Argument, Constructor
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of, rename_by
from generative.convert.tokenizers.vqgan_options import NETWORK_ARGUMENTS, count_indices, guess_groups, spell_out
from generative.tokenizers.multi_scale_vq import MultiScaleVQTokenizer

if TYPE_CHECKING:
    from pipelines.reconstruction import ImageReconstructionPipeline

# The official constructor's default scales, those of 256 pixels; the published file serves 512 pixels as well.
PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
CH_MULT = (1, 1, 2, 2, 4)  # hard-coded in the official constructor
# A count of how often each code was hit, (scales, V), which nothing but the official training log reads.
HIT_COUNTS = "quantize.ema_vocab_hit_SV"
OWN_KEYS = (
    "encoder.down.0.block.0.conv1.weight",
    "encoder.mid.block_1.conv1.weight",
    "decoder.up.0.block.0.conv1.weight",
    "quantize.embedding.weight",
    "quant_conv.weight",
)
MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}
# Official key -> ours; levels of the decoder are renumbered, see ``our_key``.
KEY_PATTERNS = (
    (r"^(encoder|decoder)\.(conv_in|norm_out|conv_out)\.", r"\1.\2."),
    (r"^(quant_conv|post_quant_conv)\.", r"\1."),
    (r"^quantize\.embedding\.weight$", "quantizer.codebook"),
    (r"^quantize\.quant_resi\.qresi\.", "quantizer.phis.0."),
    (r"^quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.", r"quantizer.phis.\1."),
    (r"^(encoder)\.down\.(\d+)\.downsample\.", r"\1.downsamples.\2."),
    (r"^(decoder)\.up\.(\d+)\.upsample\.", r"\1.upsamples.\2."),
    (r"^(encoder|decoder)\.(?:down|up)\.(\d+)\.block\.(\d+)\.", r"\1.levels.\2.blocks.\3."),
    (r"^(encoder|decoder)\.(?:down|up)\.(\d+)\.attn\.(\d+)\.", r"\1.levels.\2.attentions.\3."),
)


# Arguments of ``VQVAE``, and what it hard-codes.
CONSTRUCTOR = Constructor(
    "VQVAE",
    "FoundationVision/VAR",
    {
        **NETWORK_ARGUMENTS,
        "vocab_size": Argument("num_codes", 4096, WHOLE),
        "z_channels": Argument("latent_channels", 32, WHOLE),
        "v_patch_nums": Argument("patch_nums", PATCH_NUMS_256, SIZES, untold='{"v_patch_nums": [...]}'),
        "ch_mult": Argument("ch_mult", CH_MULT, SIZES),
        "using_sa": Argument("using_sa", True, FLAG),
        "using_mid_sa": Argument("using_mid_sa", True, FLAG),
        "dropout": Argument("dropout", 0.0, NUMBER),
        "quant_conv_ks": Argument("quant_conv_ks", 3, WHOLE),
        "quant_resi": Argument("quant_resi", 0.5, NUMBER),
        "share_quant_resi": Argument("share_quant_resi", 4, WHOLE),
        "default_qresi_counts": Argument("default_qresi_counts", 0, WHOLE),
        "using_znorm": Argument("using_znorm", False, FLAG),
        "beta": Argument(None, 0.25, NUMBER),  # weight of the commitment loss, see ``official_loss``
        "phi_index_of_scale": Argument(None, None, ANY),  # must be what follows from the others
        "test_mode": UNUSED,
    },
)


def build_vqvae(config: Mapping[str, Any]) -> MultiScaleVQTokenizer:
    """Build our tokenizer from the official constructor's arguments.

    Args:
        config: Arguments of the official ``VQVAE``, beside them those that it hard-codes (``in_channels``, ``ch_mult``,
            ``num_res_blocks``, ``using_sa``, ``using_mid_sa``, ``norm_groups``).

    Raises:
        UserError: If an option is unknown or its value has no equal here.
    """
    arguments = CONSTRUCTOR.read(spell_out(config))
    side = arguments["patch_nums"][-1]
    tokenizer = MultiScaleVQTokenizer(**arguments, image_size=side * 2 ** (len(arguments["ch_mult"]) - 1))
    phis, stated = list(tokenizer.quantizer.phi_of_scale), config.get("phi_index_of_scale")
    if stated is not None and list(stated) != phis:
        raise CONSTRUCTOR.refuse("phi_index_of_scale", stated, f"{phis}, which follows from the other options")
    return tokenizer


def our_key(key: str, num_levels: int) -> str | None:
    """Our name for an official tensor, None if it has none."""
    middle = re.match(r"^(encoder|decoder)\.mid\.(block_1|attn_1|block_2)\.(.+)$", key)
    renamed = f"{middle[1]}.mid.{MIDDLE[middle[2]]}.{middle[3]}" if middle else rename_by(KEY_PATTERNS, key)
    if renamed is None:
        return None
    # Official levels are numbered from the images' resolution, our decoder's in the order in which they run.
    renamed = re.sub(
        r"^(decoder\.(?:levels|upsamples)\.)(\d+)", lambda match: f"{match[1]}{num_levels - 1 - int(match[2])}", renamed
    )
    return renamed.replace(".nin_shortcut.", ".shortcut.").replace(".proj_out.", ".out.")


def convert_vqvae_state(state: Mapping[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
    """Rename the official tensors of a VQVAE; its counts of code use, a log, are left out.

    Args:
        state: Official tensors by key.
        network: From ``build_vqvae``.

    Raises:
        UnknownKeysError: If a key is unknown.
    """
    num_levels = len(network.config.ch_mult)
    kept = [key for key in state if key != HIT_COUNTS]
    names = names_of("VAR's VQVAE", kept, partial(our_key, num_levels=num_levels))
    return {name: state[key] for key, name in names.items()}


def recognise_vqvae(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the official options off a VQVAE's names and shapes.

    What they do not tell is the published model's: scales (where their number is the published one), the residual ratio, no
    normalisation.

    Args:
        state: Official tensors by key.

    Returns:
        What ``build_vqvae`` takes, ``v_patch_nums`` or ``norm_groups`` None where nothing tells them; None for another layout.
    """
    phis = [key for key in state if key.startswith("quantize.quant_resi.")]
    if any(key not in state for key in OWN_KEYS) or not (phis or HIT_COUNTS in state):
        return None
    ch = state["encoder.conv_in.weight"].shape[0]
    num_levels = count_indices(state, "encoder.down.")
    num_scales = len(state[HIT_COUNTS]) if HIT_COUNTS in state else len(PATCH_NUMS_256)
    ch_mult = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] // ch for level in range(num_levels)]
    num_codes, width = state["quantize.embedding.weight"].shape
    own_phis = count_indices(state, "quantize.quant_resi.")
    shared_phis = count_indices(state, "quantize.quant_resi.qresi_ls.")
    return {
        "vocab_size": num_codes,
        "z_channels": width,
        "ch": ch,
        "ch_mult": ch_mult,
        "num_res_blocks": count_indices(state, "encoder.down.0.block."),
        "norm_groups": guess_groups(ch),
        "using_sa": f"encoder.down.{num_levels - 1}.attn.0.norm.weight" in state,
        "using_mid_sa": "encoder.mid.attn_1.norm.weight" in state,
        "quant_conv_ks": state["quant_conv.weight"].shape[2],
        "quant_resi": 0.5 if phis else 0.0,
        "share_quant_resi": 0 if own_phis else shared_phis or 1,
        "default_qresi_counts": own_phis,
        "v_patch_nums": list(PATCH_NUMS_256) if num_scales == len(PATCH_NUMS_256) else None,
    }


def official_loss(losses: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """The official ``vq_loss`` (): codebook term plus ``beta`` times commitment term.

    Args:
        losses: Of a ``Reconstruction`` or ``Quantized``.
        config: Official options.
    """
    return losses["codebook"] + config.get("beta", 0.25) * losses["commitment"]


class VARVQVAESource(OfficialSource):
    """The tokenizer alone, as ``vae_ch160v4096z32.pth`` holds it."""

    name = "var-vqvae"
    repository = "FoundationVision/VAR"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our tokenizer; see ``build_vqvae``.

        Returns:
            ``{"model": MultiScaleVQTokenizer}``.
        """
        return {"model": build_vqvae(config)}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; see ``convert_vqvae_state``."""
        return convert_vqvae_state(state, network)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off names and shapes; see ``recognise_vqvae``."""
        return recognise_vqvae(state)

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImageReconstructionPipeline:
        """Pipeline that encodes and decodes images.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.reconstruction import ImageReconstructionPipeline

        return ImageReconstructionPipeline(networks["model"])
