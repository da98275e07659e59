"""Checkpoints of Open-MAGVIT2's image tokenizers (TencentARC/SEED-Voken): lfqgan.py and lfqgan_pretrain.py alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.convert.base import OfficialSource, UnknownKeysError, show_names, split_by_module
from generative.convert.files.options import REQUIRED
from generative.convert.keys import rename_by
from generative.convert.tokenizers.vqgan_options import PUBLISHED_GROUPS, VQGANOptions, count_indices, guess_groups
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


class Options(VQGANOptions):
    """Arguments of the official ``VQModel`` or of its ``ddconfig``."""

    repository = "Open-MAGVIT2"

    def take_size(self, name: str, default: Any) -> int:
        """Take a positive whole number."""
        value = self.take(name, default, int)
        if value < 1:
            raise self.refuse(name, value, "1 or more")
        return value

    def take_groups(self) -> int:
        """Take the groups of every group norm, which are hard-coded upstream and None where a checkpoint must have others."""
        if self.options.get("norm_groups", PUBLISHED_GROUPS) is None:
            raise self.refuse("norm_groups", None, "a whole number, in --config", f" ({PUBLISHED_GROUPS} do not fit the width)")
        return self.take_size("norm_groups", PUBLISHED_GROUPS)


def build_tokenizer(config: Mapping[str, Any]) -> LFQTokenizer:
    """Build our tokenizer.

    Args:
        config: Arguments of the official ``VQModel``, ``ddconfig`` nested as there. Of our own are ``norm_groups`` (hard-coded
            upstream) and ``image_size``, which upstream is the data's ``size`` and not ``ddconfig.resolution``.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    options = Options("VQModel", config)
    network = Options("ddconfig", options.take("ddconfig", REQUIRED))
    network.choose("double_z", False, (False, True))  # taken and ignored by both halves of the network, as is the next
    network.take_size("resolution", REQUIRED)  # the published tokenizer for 256 pixels says 128
    for name in ("in_channels", "out_ch"):
        network.choose(name, REQUIRED, (3,), " (tokenizers are for colour images)")
    ch_mult = network.take_sizes("ch_mult", (1, 2, 2, 4))
    arguments = {
        "ch": network.take_size("ch", REQUIRED),
        "ch_mult": ch_mult,
        "num_res_blocks": network.take_size("num_res_blocks", REQUIRED),
        "num_bits": take_bits(options, network.take_size("z_channels", REQUIRED)),
        "norm_groups": options.take_groups(),
        "sample_entropy_weight": float(options.take("sample_minimization_weight", 1.0, float, int)),
        "codebook_entropy_weight": float(options.take("batch_maximization_weight", 1.0, float, int)),
        "image_size": options.take_size("image_size", GRID * 2 ** (len(ch_mult) - 1)),
    }
    network.finish()
    options.choose("use_ema", False, (False, True))  # ``convert_tokenizer`` takes the average where there is one
    options.choose("colorize_nlabels", None, (None,), " (it shows segmentation maps)")
    options.drop(*SCRIPT_OPTIONS)
    options.finish()
    return LFQTokenizer(**arguments)


def take_bits(options: Options, z_channels: int) -> int:
    """Bits of a code, which three official options state alike; the sub-codebooks that a generator uses must add up to them."""
    num_codes = options.take_size("n_embed", REQUIRED)
    num_bits = num_codes.bit_length() - 1
    if num_codes != 2**num_bits or num_bits < 1:
        raise options.refuse("n_embed", num_codes, "a power of two", " (a code is a word of bits)")
    for name, value in (("embed_dim", options.take_size("embed_dim", REQUIRED)), ("z_channels", z_channels)):
        if value != num_bits:
            raise options.refuse(name, value, f"{num_bits}, the bits of n_embed={num_codes}")
    is_factorized = options.choose("token_factorization", False, (False, True))
    # The official default is [9, 9] whatever the codebook, and read with token_factorization only.
    factors = options.take("factorized_bits", [9, 9] if is_factorized else [num_bits], list, tuple)
    check_factors(factors, num_bits)
    return num_bits


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
