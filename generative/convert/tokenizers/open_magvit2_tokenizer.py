"""Checkpoints of Open-MAGVIT2's image tokenizers (TencentARC/SEED-Voken): lfqgan.py and lfqgan_pretrain.py alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.arguments import (
    FLAG,
    LIST,
    NUMBER,
    POSITIVE,
    REQUIRED,
    SIZES,
    UNUSED,
    Argument,
    Constructor,
    one_of,
    optional,
)
from generative.convert.base import OfficialSource, UnknownKeysError, show_names, split_by_module
from generative.convert.keys import rename_by
from generative.convert.tokenizers.vqgan_options import PUBLISHED_GROUPS, count_indices, guess_groups
from generative.core.errors import UserError
from generative.tokenizers.lfq import LFQTokenizer
from generative.tokenizers.lookup_free_quantizer import check_factors

if TYPE_CHECKING:
    from pipelines.reconstruction import ImageReconstructionPipeline

GRID = 16
"""Tokens along an axis of the images that every published tokenizer was trained on: 128 pixels at stride 8, 256 at 16."""
# Arguments of VQModel that train, log or find files, and build no layer.
SCRIPT_OPTIONS = (
    "lossconfig",
    "ckpt_path",
    "ignore_keys",
    "image_key",
    "monitor",
    "learning_rate",
    "resume_lr",
    "warmup_epochs",
    "scheduler_type",
    "min_learning_rate",
    "stage",
    "lr_drop_epoch",
    "lr_drop_rate",
    "lr_drop_iter",
    "use_shared_epoch",
    "wp",
    "wp0",
    "wpe",
    "wp_iter",
    "max_iter",
    "sche_type",
)
AVERAGE = "model_ema."
"""Prefix of the averaged weights, whose names have lost their dots (ema.py)."""
# What a Lightning checkpoint holds beside the tokenizer: discriminator and perceptual network with their averages, the average's
# own counters, and the quantiser's constants, which later versions do not save.
IGNORED_KEYS = re.compile(
    r"^(loss\..*|model_ema\.(loss.*|decay|num_updates)|quantize\.(mask|pre_mask|post_mask|zero|codebook)"
    r"|model_ema\.quantize(mask|zero|codebook))$"
)
TOKENIZER_KEYS = re.compile(r"^(encoder|decoder)\.")

# Official key -> ours, first match wins.
KEY_PATTERNS = (
    (r"^(encoder|decoder)\.(conv_in|conv_out|norm_out)\.", r"\1.\2."),
    (r"^(encoder|decoder)\.mid_block\.(\d+)\.(conv[12]|norm[12])\.", r"\1.middle.\2.\3."),
    (r"^(encoder|decoder)\.mid_block\.(\d+)\.nin_shortcut\.", r"\1.middle.\2.shortcut."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.levels.\1.downsample."),
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.(conv[12]|norm[12])\.", r"encoder.levels.\1.blocks.\2.\3."),
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.nin_shortcut\.", r"encoder.levels.\1.blocks.\2.shortcut."),
    (r"^decoder\.up\.(\d+)\.upsample\.conv1\.", r"decoder.levels.\1.upsample."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.(conv[12]|norm[12])\.", r"decoder.levels.\1.blocks.\2.\3."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.nin_shortcut\.", r"decoder.levels.\1.blocks.\2.shortcut."),
    (r"^decoder\.adaptive\.(\d+)\.gamma\.", r"decoder.levels.\1.adaptive_norm.scale."),
    (r"^decoder\.adaptive\.(\d+)\.beta\.", r"decoder.levels.\1.adaptive_norm.bias."),
)
# Keys that every checkpoint has; no attention, so that VQGANs are other layouts.
OWN_KEYS = (
    "encoder.conv_in.weight",
    "encoder.conv_out.weight",
    "encoder.down.0.block.0.conv1.weight",
    "decoder.adaptive.0.gamma.weight",
    "decoder.conv_out.weight",
)


WEIGHT = replace(NUMBER, convert=float)
COLOUR = one_of((3,), " (tokenizers are for colour images)")
NETWORK = Constructor(
    "ddconfig",
    "Open-MAGVIT2",
    {
        "double_z": Argument(None, False, FLAG),  # taken and ignored by both halves of the network, as is the next
        "resolution": Argument(None, REQUIRED, POSITIVE),  # the published tokenizer for 256 pixels says 128
        "in_channels": Argument(None, REQUIRED, COLOUR),
        "out_ch": Argument(None, REQUIRED, COLOUR),
        "ch": Argument("ch", REQUIRED, POSITIVE),
        "ch_mult": Argument("ch_mult", (1, 2, 2, 4), SIZES),
        "num_res_blocks": Argument("num_res_blocks", REQUIRED, POSITIVE),
        "z_channels": Argument("num_bits", REQUIRED, POSITIVE),
    },
)
# Of our own are ``norm_groups``, hard-coded upstream, and ``image_size``, which upstream is the data's ``size``.
CONSTRUCTOR = Constructor(
    "VQModel",
    "Open-MAGVIT2",
    {
        "ddconfig": Argument(None, REQUIRED),
        "n_embed": Argument(None, REQUIRED, POSITIVE),
        "embed_dim": Argument(None, REQUIRED, POSITIVE),
        "token_factorization": Argument(None, False, FLAG),
        "factorized_bits": Argument(None, None, optional(LIST)),
        "norm_groups": Argument("norm_groups", PUBLISHED_GROUPS, POSITIVE, untold='{"norm_groups": N}'),
        "sample_minimization_weight": Argument("sample_entropy_weight", 1.0, WEIGHT),
        "batch_maximization_weight": Argument("codebook_entropy_weight", 1.0, WEIGHT),
        "image_size": Argument("image_size", None, optional(POSITIVE)),
        "use_ema": Argument(None, False, FLAG),  # ``convert_tokenizer`` takes the average where there is one
        "colorize_nlabels": Argument(None, None, one_of((None,), " (it shows segmentation maps)")),
        **dict.fromkeys(SCRIPT_OPTIONS, UNUSED),
    },
)


def build_tokenizer(config: Mapping[str, Any]) -> LFQTokenizer:
    """Build our tokenizer.

    Args:
        config: Arguments of the official ``VQModel``, ``ddconfig`` nested as there. Of our own are ``norm_groups`` (hard-coded
            upstream) and ``image_size``, which upstream is the data's ``size`` and not ``ddconfig.resolution``.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    values = CONSTRUCTOR.values(config)
    network = NETWORK.read(values["ddconfig"])
    check_bits(values, network["num_bits"])
    arguments = CONSTRUCTOR.read(config) | network
    if arguments["image_size"] is None:
        arguments["image_size"] = GRID * 2 ** (len(network["ch_mult"]) - 1)
    return LFQTokenizer(**arguments)


def check_bits(values: Mapping[str, Any], z_channels: int) -> None:
    """Check the bits of a code, which three official options state alike, and that sub-codebooks of a generator add up to them.

    Args:
        values: Arguments of ``VQModel`` by official name.
        z_channels: Of ``ddconfig``.

    Raises:
        UserError: If they do not agree.
    """
    num_codes = values["n_embed"]
    num_bits = num_codes.bit_length() - 1
    if num_codes != 2**num_bits or num_bits < 1:
        raise CONSTRUCTOR.refuse("n_embed", num_codes, "a power of two", " (a code is a word of bits)")
    for owner, name, value in ((CONSTRUCTOR, "embed_dim", values["embed_dim"]), (NETWORK, "z_channels", z_channels)):
        if value != num_bits:
            raise owner.refuse(name, value, f"{num_bits}, the bits of n_embed={num_codes}")
    # The official default is [9, 9] whatever the codebook, and read with token_factorization only.
    default = [9, 9] if values["token_factorization"] else [num_bits]
    check_factors(default if values["factorized_bits"] is None else values["factorized_bits"], num_bits)


def convert_tokenizer(state: Mapping[str, Tensor], use_average: bool = True) -> dict[str, Tensor]:
    """Rename the tensors of an official tokenizer.

    Args:
        state: The ``state_dict`` of a Lightning checkpoint, or only its encoder and decoder.
        use_average: Take the averaged weights where the checkpoint holds them, as the authors' scripts do (``ema_scope`` of
            reconstruct_image.py and ``init_from_ckpt`` of lfqgan.py, all published configurations having ``use_ema: True``).

    Returns:
        Tensors of ``LFQTokenizer``. Left out are those that ``IGNORED_KEYS`` names.

    Raises:
        UnknownKeysError: If a key is unknown.
        UserError: If the checkpoint averages some of the tokenizer's weights and lacks others.
    """
    own = [key for key in state if TOKENIZER_KEYS.match(key)]
    ours = {key: name for key in own if (name := rename_by(KEY_PATTERNS, key)) is not None}
    averages = {key: AVERAGE + key.replace(".", "") for key in own}
    known = {*ours, *averages.values(), *filter(IGNORED_KEYS.match, state)}
    unknown = [key for key in state if key not in known]
    if unknown:
        raise UnknownKeysError("Open-MAGVIT2's tokenizer", unknown)
    has_average = any(average in state for average in averages.values())
    missing = sorted(average for average in averages.values() if average not in state)
    if use_average and has_average and missing:
        raise UserError(
            f"the checkpoint averages some of the tokenizer's weights and lacks {show_names(missing)}; get another copy"
        )
    names = averages if use_average and has_average else {key: key for key in own}
    return {name: state[names[key]] for key, name in ours.items()}


def recognise_tokenizer(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Official options of a tokenizer by its tensors' names and shapes, None if it is another network.

    Neither the groups of norms nor the weights of the entropies are told: those of all published tokenizers are taken, the groups
    being None where they do not fit.
    """
    if any(key not in state or state[key].ndim > 4 for key in OWN_KEYS):  # of 5 axes are those of the video tokenizer
        return None
    ch = state["encoder.conv_in.weight"].shape[0]
    num_levels = count_indices(state, "encoder.down.")
    ch_mult = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] // ch for level in range(num_levels)]
    z_channels = state["encoder.conv_out.weight"].shape[0]
    return {
        "ddconfig": {
            "double_z": False,
            "z_channels": z_channels,
            "resolution": GRID * 2 ** (num_levels - 1),
            "in_channels": state["encoder.conv_in.weight"].shape[1],
            "out_ch": state["decoder.conv_out.weight"].shape[0],
            "ch": ch,
            "ch_mult": ch_mult,
            "num_res_blocks": count_indices(state, "encoder.down.0.block."),
        },
        "n_embed": 2**z_channels,
        "embed_dim": z_channels,
        "norm_groups": guess_groups(ch),
        "use_ema": any(key.startswith(AVERAGE) for key in state),
    }


class OpenMAGVIT2TokenizerSource(OfficialSource):
    """``VQModel`` of lfqgan.py, and of lfqgan_pretrain.py, which has the same network.

    Attributes:
        use_average: Whether ``convert_state`` takes averaged weights; ``build`` sets it to the option ``use_ema`` where given.
    """

    name = "magvit2-tokenizer"
    repository = "TencentARC/SEED-Voken"
    use_average = True

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our tokenizer; see ``build_tokenizer``.

        Returns:
            ``{"model": LFQTokenizer}``.
        """
        network = build_tokenizer(config)
        self.use_average = config.get("use_ema", True)
        return {"model": network}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; see ``convert_tokenizer``.

        Args:
            module: ``model``.
            state: Official tensors.
            network: Our tokenizer.
        """
        return convert_tokenizer(state, self.use_average)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint; see ``recognise_tokenizer``."""
        parts = split_by_module(state)
        return recognise_tokenizer(next(iter(parts.values()))) if set(parts) in ({""}, {"model"}) else None

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImageReconstructionPipeline:
        """Pipeline that encodes and decodes images.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.reconstruction import ImageReconstructionPipeline

        return ImageReconstructionPipeline(networks["model"])
