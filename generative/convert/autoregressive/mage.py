"""Checkpoints of MAGE as RCG's authors' code has it (LTH14/rcg, pixel_generator/mage), with the tokenizer that they hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.masked.mage import MAGETransformer
from generative.autoregressive.masked.mage_masking import MAGEMasking
from generative.autoregressive.masked.parallel_decoding import check_choice_temperature, masked_counts
from generative.convert.arguments import ANY, FLAG, NUMBER, POSITIVE, SHARE, SIZES, UNUSED, WHOLE, Argument, Constructor, at_least
from generative.convert.base import OfficialSource, split_by_module
from generative.convert.keys import names_of, rename_by
from generative.convert.tokenizers.vqgan_options import PUBLISHED_GROUPS, guess_groups
from generative.core.errors import UserError
from generative.tokenizers.maskgit_vq import MaskGITVQTokenizer

if TYPE_CHECKING:
    from pipelines.mage import MAGEPipeline

REPOSITORY = "LTH14/rcg"
# Hard-coded officially: tokens of an image, ids behind the codes (classes) and the classes of the class table.
GRID_SIZE, NUM_SPARE_IDS, NUM_CLASSES = (16, 16), 1000, 1000
# Heads of the encoder by width (mage_vit_base_patch16 and so on) and of every decoder; a checkpoint does not tell.
HEADS, DECODER_HEADS = MappingProxyType({768: 12, 1024: 16, 1280: 16}), 16
# What the published FIDs were sampled with (README): iterations, and the temperature of the choice by width.
SAMPLING_ITERATIONS, CHOICE_TEMPERATURES = 20, MappingProxyType({768: 6.0, 1024: 11.0})
BLOCK = r"(decoder_)?blocks\.(\d+)\."
OWN_KEYS = ("token_emb.word_embeddings.weight", "mlm_layer.fc.weight", "mlm_layer.bias", "decoder_pos_embed_learned")
# Official key -> ours, first match wins.
KEY_PATTERNS = (
    (r"^token_emb\.word_embeddings\.", "token_embedding."),
    (r"^token_emb\.position_embeddings\.", "position_embedding."),
    (r"^token_emb\.LayerNorm\.", "embedding_norm."),
    (r"^latent_prior_proj\.", "vector_embedding.linear."),
    (r"^fake_latent$", "vector_embedding.null"),
    (r"^class_emb\.", "class_embedding."),
    (rf"^{BLOCK}(norm[12]|mlp\.fc[12])\.", r"\1blocks.\2.\3."),
    (rf"^{BLOCK}attn\.qkv\.", r"\1blocks.\2.attention.qkv."),
    (rf"^{BLOCK}attn\.proj\.", r"\1blocks.\2.attention.out."),
    (r"^(norm|decoder_norm)\.", r"\1."),
    (r"^decoder_embed\.", "decoder_projection."),
    (r"^decoder_pos_embed_learned$", "decoder_positions"),
    (r"^mlm_layer\.fc\.", "head."),
    (r"^mlm_layer\.ln\.", "head_norm."),
    (r"^mlm_layer\.bias$", "head_bias"),
)
# Of the tokenizer, ``VQModel``.
TOKENIZER_PATTERNS = (
    (r"^quantize\.embedding\.weight$", "quantizer.codebook"),
    (r"^(encoder|decoder)\.(conv_in|norm_out|conv_out)\.", r"\1.\2."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid.1."),
    (r"^(encoder)\.down\.(\d+)\.block\.", r"\1.levels.\2."),
    (r"^(decoder)\.up\.(\d+)\.block\.", r"\1.levels.\2."),
    (r"^(decoder)\.up\.(\d+)\.upsample\.", r"\1.upsamples.\2."),
)
# Tensors that the official network holds and never reads, and the encoder that its training keeps beside it.
UNREAD = re.compile(
    r"(cls_token|mask_token|pos_embed|decoder_pos_embed|token_emb\.position_ids)$|(patch_embed|decoder_pred|pretrained_encoder)\."
)

NETWORK = Constructor(
    "MaskedGenerativeEncoderViT",
    REPOSITORY,
    {
        "img_size": Argument(None, 256, POSITIVE),
        "patch_size": Argument(None, 16, POSITIVE),
        "in_chans": UNUSED,
        "embed_dim": Argument("hidden_size", 1024, WHOLE),
        "depth": Argument("depth", 24, WHOLE),
        "num_heads": Argument("num_heads", 16, WHOLE, untold='{"net": {"num_heads": N}}'),
        "decoder_embed_dim": Argument("decoder_hidden_size", 512, WHOLE),
        "decoder_depth": Argument("decoder_depth", 8, WHOLE),
        "decoder_num_heads": Argument("decoder_num_heads", 16, WHOLE, untold='{"net": {"decoder_num_heads": N}}'),
        "mlp_ratio": Argument("mlp_ratio", 4.0, NUMBER),
        "norm_eps": Argument("norm_eps", 1e-6, NUMBER),  # of norm_layer, which the published sizes give
        "norm_pix_loss": UNUSED,
        "mask_ratio_min": Argument(None, 0.5, NUMBER),
        "mask_ratio_max": Argument(None, 1.0, NUMBER),
        "mask_ratio_mu": Argument(None, 0.55, NUMBER),
        "mask_ratio_std": Argument(None, 0.25, NUMBER),
        "use_rep": Argument(None, True, FLAG),
        "rep_dim": Argument("representation_dim", 256, WHOLE),
        "rep_drop_prob": Argument(None, 0.0, SHARE),
        "use_class_label": Argument(None, False, FLAG),
        **{
            name: UNUSED
            for name in (
                *("vqgan_ckpt_path", "pretrained_enc_arch", "pretrained_enc_path", "pretrained_enc_proj_dim"),
                *("pretrained_enc_withproj", "pretrained_rdm_ckpt", "pretrained_rdm_cfg"),
            )
        },
    },
)
TOKENIZER = Constructor(
    "VQModel",
    REPOSITORY,
    {
        "resolution": Argument("image_size", 256, WHOLE),
        "n_embed": Argument("num_codes", 1024, WHOLE),
        "embed_dim": Argument("code_dim", 256, WHOLE),
        "ch": Argument("ch", 128, WHOLE),
        "ch_mult": Argument("ch_mult", (1, 1, 2, 2, 4), SIZES),
        "num_res_blocks": Argument("num_res_blocks", 2, WHOLE),
        "norm_groups": Argument("norm_groups", PUBLISHED_GROUPS, WHOLE, untold='{"vqgan": {"norm_groups": N}}'),
    },
)
OPTIONS = Constructor(
    "MAGE",
    REPOSITORY,
    {
        "codebook_size": Argument("num_codes", 1024, POSITIVE),
        "net": Argument(None, MappingProxyType({}), ANY),
        "vqgan": Argument(None, None, ANY),
        "mask_rate": Argument(None, None, ANY),
        "rep_drop_u": Argument(None, None, ANY),
        "num_iter": Argument(None, SAMPLING_ITERATIONS, at_least(1)),
        "choice_temperature": Argument(None, CHOICE_TEMPERATURES[768], NUMBER),
        "cfg": Argument(None, 0.0, NUMBER),
    },
)


def masking(config: Mapping[str, Any]) -> MAGEMasking:
    """The official distribution of the share of masked tokens.

    Args:
        config: Official options; those of ``net`` are read.
    """
    values = NETWORK.values(OPTIONS.values(config)["net"])
    return MAGEMasking(values["mask_ratio_min"], values["mask_ratio_max"], values["mask_ratio_mu"], values["mask_ratio_std"])


class MAGESource(OfficialSource):
    """MAGE conditioned on a representation, a class or nothing, and its tokenizer; the encoder beside them is left out."""

    name = "mage"
    repository = REPOSITORY
    modules = ("model", "vqgan")

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our transformer from official arguments.

        Args:
            config: ``codebook_size``, ``net`` (arguments of the official class), ``vqgan`` (those of its tokenizer, if that is to
                be built too), and options of sampling, which are checked.

        Returns:
            The transformer as ``model``, and the tokenizer as ``vqgan``.

        Raises:
            UserError: If an option is unknown, of the wrong kind or out of range.
        """
        values = OPTIONS.values(config)
        net = NETWORK.values(values["net"])
        if net["use_rep"] and net["use_class_label"]:
            raise UserError(f"use_rep and use_class_label of {REPOSITORY} exclude one another; set one of them to False")
        if net["img_size"] // net["patch_size"] != GRID_SIZE[0]:
            raise UserError(
                f"img_size of {REPOSITORY} must be {GRID_SIZE[0]} times patch_size {net['patch_size']}, as its tokens are "
                f"{GRID_SIZE[0]} x {GRID_SIZE[1]}, got {net['img_size']}"
            )
        masking(config)
        masked_counts(math.prod(GRID_SIZE), values["num_iter"])
        check_choice_temperature(values["choice_temperature"])
        if net["use_class_label"] and values["cfg"]:
            raise UserError(f"cfg of {REPOSITORY} must be 0 with use_class_label, which has no null class, got {values['cfg']}")
        condition = "representation" if net["use_rep"] else "class" if net["use_class_label"] else "none"
        network = MAGETransformer(
            **OPTIONS.read(config),
            **NETWORK.read(values["net"]),
            num_classes=NUM_CLASSES if condition == "class" else 1,
            condition=condition,
            class_dropout_prob=net["rep_drop_prob"] if condition == "representation" else 0.0,
            grid_size=GRID_SIZE,
            num_spare_ids=NUM_SPARE_IDS,
        )
        return {"model": network} | ({} if values["vqgan"] is None else {"vqgan": self.build_tokenizer(values)})

    def build_tokenizer(self, values: Mapping[str, Any]) -> MaskGITVQTokenizer:
        """The tokenizer.

        Args:
            values: Options, ``vqgan`` among them.

        Raises:
            UserError: If its codes or its grid are not the transformer's.
        """
        tokenizer = MaskGITVQTokenizer(**TOKENIZER.read(values["vqgan"]))
        if (tokenizer.num_codes, tokenizer.grid_size) != (values["codebook_size"], GRID_SIZE):
            raise UserError(
                f"the tokenizer has {tokenizer.num_codes} codes on a grid of {tokenizer.grid_size}, and MAGE of {REPOSITORY} "
                f"takes {values['codebook_size']} on {GRID_SIZE}"
            )
        return tokenizer

    def rekey(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tell apart the transformer and the tokenizer, which a training checkpoint holds under ``vqgan.``."""
        if not any(key.startswith("vqgan.") for key in state):
            return dict(state)
        return {f"vqgan/{key[6:]}" if key.startswith("vqgan.") else f"model/{key}": value for key, value in state.items()}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict, without the tensors that are never read.

        Args:
            module: ``model`` or ``vqgan``.
            state: Official tensors.
            network: Our transformer or tokenizer.

        Raises:
            UnknownKeysError: If a key is unknown.
        """
        if module == "vqgan":
            names = names_of("VQModel", state, partial(tokenizer_key, len(network.config.ch_mult)))
            return {name: state[key] for key, name in names.items()}
        read = [key for key in state if not UNREAD.match(key)]
        if network.config.condition != "representation":  # officially there, whatever the condition
            read = [key for key in read if key != "fake_latent"]
        names = names_of(NETWORK.owner, read, partial(rename_by, KEY_PATTERNS))
        return {name: state[key].flatten() if name == "head_bias" else state[key] for key, name in names.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Official tensors by key.

        Returns:
            What ``build`` takes, heads None where the width is none of the published ones; None for another layout. A
            representation is taken to have been dropped for guidance, as in the published models.
        """
        parts = split_by_module(state)
        tokenizer, state = parts.get("vqgan"), parts.get("model", parts.get("", {}))
        if any(key not in state for key in OWN_KEYS):
            return None
        num_ids, width = state["token_emb.word_embeddings.weight"].shape
        decoder_width = state["decoder_pos_embed_learned"].shape[2]
        use_rep = "latent_prior_proj.weight" in state
        net = {
            "embed_dim": width,
            "depth": count_blocks(state, "blocks"),
            "num_heads": HEADS.get(width),
            "decoder_embed_dim": decoder_width,
            "decoder_depth": count_blocks(state, "decoder_blocks"),
            "decoder_num_heads": DECODER_HEADS if decoder_width in HEADS else None,
            "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
            "use_rep": use_rep,
            "use_class_label": "class_emb.weight" in state,
            "rep_drop_prob": 0.1 if use_rep else 0.0,
        }
        if use_rep:
            net["rep_dim"] = state["latent_prior_proj.weight"].shape[1]
        temperature = CHOICE_TEMPERATURES.get(width, CHOICE_TEMPERATURES[1024])
        config = {"codebook_size": num_ids - NUM_SPARE_IDS - 1, "net": net, "choice_temperature": temperature}
        return config | ({} if tokenizer is None else {"vqgan": read_tokenizer(tokenizer)})

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> MAGEPipeline:
        """Pipeline with the published sampling; one conditioned on representations samples once `generative rcg` adds those.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.

        Raises:
            UserError: If there is no tokenizer among them.
        """
        from pipelines.mage import MAGEPipeline

        if "vqgan" not in networks:
            raise UserError(
                "the checkpoint holds MAGE without the tokenizer (vqgan.*), and makes no images; give the authors' whole file, "
                "checkpoint-last.pth or that of their README"
            )
        values = OPTIONS.values(config)
        defaults = {
            "num_inference_steps": values["num_iter"],
            "choice_temperature": values["choice_temperature"],
            "guidance_scale": 1.0 + values["cfg"],
        }
        return MAGEPipeline(networks["model"], networks["vqgan"], sampling_defaults=defaults)


def tokenizer_key(num_levels: int, key: str) -> str | None:
    """Our name of a tensor of the tokenizer; the official decoder counts its resolutions from the images' own on."""
    key = re.sub(r"\.nin_shortcut\.", ".shortcut.", key)
    key = re.sub(r"^decoder\.up\.(\d+)\.", lambda match: f"decoder.up.{num_levels - 1 - int(match[1])}.", key)
    return rename_by(TOKENIZER_PATTERNS, key)


def read_tokenizer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Official options of the tokenizer, read off names and shapes; groups of its norms where the published number divides."""
    num_codes, code_dim = state["quantize.embedding.weight"].shape
    ch = state["encoder.conv_in.weight"].shape[0]
    levels = count_blocks(state, r"encoder\.down")
    widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    return {
        "resolution": GRID_SIZE[0] * 2 ** (levels - 1),
        "n_embed": num_codes,
        "embed_dim": code_dim,
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": count_blocks(state, r"encoder\.down\.0\.block"),
        "norm_groups": guess_groups(ch),
    }


def count_blocks(state: Mapping[str, Tensor], name: str) -> int:
    """Number of numbered blocks of a name."""
    return 1 + max((int(match[1]) for match in (re.match(rf"{name}\.(\d+)\.", key) for key in state) if match), default=-1)
