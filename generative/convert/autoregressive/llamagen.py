"""Checkpoints of LlamaGen (FoundationVision/LlamaGen): the class-conditional transformer and its VQ tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.next_token.transformer import ImageTransformer
from generative.convert.arguments import NUMBER, UNUSED, WHOLE, Argument, Constructor, one_of
from generative.convert.autoregressive.llama_keys import GRID, SHARED_ARGUMENTS, convert_state, recognise_blocks
from generative.convert.base import OfficialSource, split_by_module
from generative.convert.tokenizers.llamagen_vq import CH_MULT_16, build_vq, convert_vq_state, recognise_vq
from generative.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.base import ImagePipeline

MODULES = ("gpt", "vq")
BLOCKS = MappingProxyType({"layers": "blocks"})
OTHER_KEYS = MappingProxyType(
    {
        "cls_embedding.embedding_table.weight": "class_embedding.weight",
        "tok_embeddings.weight": "token_embedding.weight",
        "norm.weight": "norm.weight",
        "output.weight": "head.weight",
    }
)
OWN_KEYS = (*OTHER_KEYS, "layers.0.attention.wqkv.weight", "layers.0.feed_forward.w1.weight")
FREQUENCIES = "freqs_cis"
WIDEST_BOTH = 1024
"""Wider published models (XL and up) are of 384 pixels only; B and L are of 256 and 384, which their tensors do not tell."""
TOKENS_384 = 576
# What the published figures were sampled with (GETTING_STARTED.md): guidance by width, images brought to 256 pixels.
GUIDANCE = MappingProxyType({768: 2.0, 1024: 2.0, 1280: 1.75, 1536: 1.75, 3200: 1.65})
SCORED_SIZE = 256


# Fields of ``ModelArgs``.
CONSTRUCTOR = Constructor(
    "gpt",
    "FoundationVision/LlamaGen",
    {
        **SHARED_ARGUMENTS,
        "model_type": Argument(None, "c2i", one_of(("c2i",), " (text-conditional models are not)")),
        "caption_dim": UNUSED,  # of text-conditional models
        "vocab_size": Argument("num_codes", 16384, WHOLE),
        "num_classes": Argument("num_classes", 1000, WHOLE),
        "block_size": Argument("grid_size", 256, GRID, untold='{"gpt": {"block_size": 256}} (of 256 pixels; 576 of 384)'),
        "dim": Argument("hidden_size", 4096, WHOLE),
        "n_layer": Argument("depth", 32, WHOLE),
        "n_head": Argument("num_heads", 32, WHOLE, untold='{"gpt": {"n_head": N}}'),
        "token_dropout_p": Argument("embedding_dropout", 0.1, NUMBER),
        "resid_dropout_p": Argument("residual_dropout", 0.1, NUMBER),
        "initializer_range": Argument("initializer_range", 0.02, NUMBER),
        # The label dropout itself is the objective's; without it the official network has no null class.
        "class_dropout_prob": Argument("null_class", 0.1, replace(NUMBER, convert=lambda share: share > 0)),
    },
)


def build_gpt(config: Mapping[str, Any]) -> ImageTransformer:
    """Build our transformer from fields of the official ``ModelArgs``.

    Raises:
        UserError: If an option is unknown or has no equal here.
    """
    return ImageTransformer(**CONSTRUCTOR.read(config), class_rope="zero")


def recognise_gpt(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the official options off a transformer's names and shapes.

    Returns:
        What ``build_gpt`` takes, ``n_head`` and ``block_size`` None where nothing tells them; None for another layout.
    """
    if any(key not in state for key in OWN_KEYS):
        return None
    options = recognise_blocks(state, "layers")
    num_rows = state["cls_embedding.embedding_table.weight"].shape[0]
    block_size = TOKENS_384 if options["dim"] > WIDEST_BOTH else None
    if FREQUENCIES in state:
        block_size = len(state[FREQUENCIES]) - 1
    return {
        "vocab_size": state["tok_embeddings.weight"].shape[0],
        "num_classes": num_rows - 1,  # published models were all trained with a null class
        "block_size": block_size,
        "n_layer": options.pop("depth"),
        **options,
    }


class LlamaGenSource(OfficialSource):
    """The class-conditional ``Transformer`` of gpt.py and the ``VQModel`` of vq_model.py."""

    name = "llamagen"
    repository = "FoundationVision/LlamaGen"
    modules = MODULES

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from official arguments.

        Args:
            config: ``{"gpt": {...}, "vq": {...}}``, either of which may be missing. The tokenizer's ``image_size``, if it is not
                given, is what the transformer's ``block_size`` asks for.

        Returns:
            Networks by the same names.

        Raises:
            UserError: If a module or option is unknown or unsupported.
        """
        unknown = [module for module in config if module not in MODULES]
        if unknown or not config:
            raise UserError(f"{self.name} has the modules {' and '.join(MODULES)}, got {', '.join(unknown) or 'none'}")
        networks: dict[str, ModelMixin] = {}
        if "gpt" in config:
            networks["gpt"] = build_gpt(config["gpt"])
        if "vq" in config:
            options = config["vq"]
            if "gpt" in networks and isinstance(options, Mapping):
                stride = 2 ** (len(options.get("encoder_ch_mult", CH_MULT_16)) - 1)
                options = {"image_size": networks["gpt"].config.grid_size[0] * stride} | dict(options)
            networks["vq"] = build_vq(options)
        return networks

    def rekey(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name the modules of tensors that come without (both networks' keys together): ``<module>/<key>``.

        Tensors of one network alone are left as they are.
        """
        vq = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
        if any("/" in key for key in state) or not any(key.startswith(vq) for key in state) or OWN_KEYS[0] not in state:
            return dict(state)
        return {f"{'vq' if key.startswith(vq) else 'gpt'}/{key}": value for key, value in state.items()}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; rotary angles and caches in it are left out.

        Args:
            module: ``gpt`` or ``vq``.
            state: Official tensors.
            network: Our network.

        Raises:
            UserError: If a key is unknown.
        """
        if module == "vq":
            return convert_vq_state(state, network)
        return convert_state("LlamaGen's Transformer", state, BLOCKS, OTHER_KEYS)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Tensors by ``<module>/<key>``, or those of one network by ``<key>``.

        Returns:
            What ``build`` takes; None for another layout.
        """
        recognisers = {"gpt": recognise_gpt, "vq": recognise_vq}
        config: dict[str, Any] = {}
        for module, tensors in split_by_module(state).items():
            if module and module not in MODULES:
                return None
            found = {name: options for name in ([module] if module else MODULES) if (options := recognisers[name](tensors))}
            if not found:
                return None
            config |= found
        return config

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> ImagePipeline:
        """Pipeline that samples as the published figures were; of a tokenizer alone, one that encodes and decodes.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.

        Raises:
            UserError: If there is a transformer without a tokenizer.
        """
        from pipelines.autoregressive import AutoregressiveImagePipeline
        from pipelines.reconstruction import ImageReconstructionPipeline

        if "gpt" not in networks:
            return ImageReconstructionPipeline(networks["vq"])
        if "vq" not in networks:
            raise UserError("the checkpoint of llamagen holds the transformer only; give its tokenizer too (vq_ds16_c2i.pt)")
        transformer, tokenizer = networks["gpt"], networks["vq"]
        defaults: dict[str, Any] = {}
        if transformer.config.null_class:
            defaults["guidance_scale"] = GUIDANCE.get(transformer.config.hidden_size, 1.0)
        if tokenizer.config.image_size == math.isqrt(TOKENS_384) * 16:
            defaults["output_size"] = SCORED_SIZE
        return AutoregressiveImagePipeline(transformer, tokenizer, sampling_defaults=defaults)


def guidance_interval(cfg_interval: int, num_tokens: int) -> tuple[float, float] | None:
    """``guidance_interval`` of our pipeline for the official ``cfg_interval``.

    The official sampler guides the first token and then decoding steps 0 to ``cfg_interval``, which make tokens 1 to
    ``cfg_interval + 1``.

    Args:
        cfg_interval: Negative for all tokens.
        num_tokens: L.
    """
    return None if cfg_interval < 0 else (max(num_tokens - cfg_interval - 2, 0) / num_tokens, 1.0)
