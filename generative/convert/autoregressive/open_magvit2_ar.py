"""Checkpoints of Open-MAGVIT2's autoregressive models (TencentARC/SEED-Voken)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.sub_token.magvit2 import MAGVIT2Transformer
from generative.convert.arguments import NUMBER, REQUIRED, UNUSED, WHOLE, Argument, Constructor, Kind, is_sizes, one_of
from generative.convert.autoregressive.llama_keys import GRID, SHARED_ARGUMENTS, convert_state, recognise_blocks
from generative.convert.base import OfficialSource, split_by_module
from generative.convert.tokenizers.open_magvit2_tokenizer import build_tokenizer, convert_tokenizer, recognise_tokenizer
from generative.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.magvit2 import MAGVIT2Pipeline

BLOCKS = MappingProxyType({"spatial_blocks": "blocks", "factorized_blocks": "intra_blocks"})
OTHER_KEYS = MappingProxyType(
    {
        "class_emb.embedding_table.weight": "class_embedding.weight",
        "pre_emb.weight": "embeddings.0.weight",
        "post_emb.weight": "embeddings.1.weight",
        "norm.weight": "norm.weight",
        "head.0.weight": "heads.0.weight",
        "head.1.weight": "heads.1.weight",
    }
)
OWN_KEYS = (*OTHER_KEYS, "spatial_blocks.0.attention.wqkv.weight", "factorized_blocks.0.feed_forward.w1.weight")
# Prefixes within a Lightning checkpoint of the whole model (cond_transformer_gpt.py) -> our modules. The stage that encodes
# classes and the permuter have no tensors.
LIGHTNING = MappingProxyType({"transformer.": "model", "first_stage_model.": "tokenizer"})
BLOCK_SIZE = 256  # of all published models: 16 x 16 tokens
NUM_SUB_TOKENS = 2
# What the published figures were sampled with (scripts/evaluation/sample_gpu.sh), by width: guidance, temperature per sub-token.
SAMPLING = MappingProxyType(
    {
        1024: {"guidance_scale": [1.9, 2.0], "temperature": [1.0, 1.0]},
        1280: {"guidance_scale": [1.9, 1.9], "temperature": [1.1, 1.0]},
        1536: {"guidance_scale": [1.75, 1.85], "temperature": [1.1, 1.0]},
    }
)


CONSTRUCTOR = Constructor(
    "GPT",
    "Open-MAGVIT2",
    {
        **SHARED_ARGUMENTS,
        "vocab_size": Argument(None, REQUIRED, WHOLE),  # builds nothing there either, as the next three
        "cond_dim": UNUSED,
        "embd_pdrop": UNUSED,
        "n_unmasked": UNUSED,
        "token_factorization": Argument(None, False, one_of((True,), " (the official class asserts it)")),
        "factorized_k": Argument(None, 2, one_of((2,), " (the official class embeds two sub-tokens)")),
        "factorized_bits": Argument(
            "sub_token_bits",
            (9, 9),
            Kind("two positive whole numbers", lambda bits: is_sizes(bits) and len(bits) == NUM_SUB_TOKENS, tuple),
        ),
        "class_num": Argument("num_classes", 1000, WHOLE),
        "block_size": Argument("grid_size", REQUIRED, GRID),
        "dim": Argument("hidden_size", 256, WHOLE),
        "spatial_n_layer": Argument("depth", 12, WHOLE),
        "factorized_n_layer": Argument("intra_depth", 2, WHOLE),
        "n_head": Argument("num_heads", 8, WHOLE, untold='{"n_head": N}'),
        "initalizer_range": Argument("initializer_range", 0.02, NUMBER),  # the official spelling
        "token_drop": Argument("embedding_dropout", 0.1, NUMBER),
        "resid_dropout_p": Argument("residual_dropout", 0.0, NUMBER),
    },
)


def build_transformer(config: Mapping[str, Any]) -> MAGVIT2Transformer:
    """Build our transformer from arguments of the official ``GPT``.

    Raises:
        UserError: If an option is unknown or has no equal here, as those that the official class itself cannot run.
    """
    arguments = CONSTRUCTOR.read(config)
    return MAGVIT2Transformer(**arguments, num_codes=2 ** sum(arguments["sub_token_bits"]))


def recognise_transformer(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read the official options off a transformer's names and shapes.

    Returns:
        What ``build_transformer`` takes, ``n_head`` None where nothing tells it; None for another layout.
    """
    if any(key not in state for key in OWN_KEYS):
        return None
    options = recognise_blocks(state, "spatial_blocks")
    bits = [state[f"head.{k}.weight"].shape[0].bit_length() - 1 for k in range(2)]
    return {
        "vocab_size": 2 ** sum(bits),
        "block_size": BLOCK_SIZE,
        "spatial_n_layer": options.pop("depth"),
        "factorized_n_layer": recognise_blocks(state, "factorized_blocks")["depth"],
        "class_num": state["class_emb.embedding_table.weight"].shape[0] - 1,
        "token_factorization": True,
        "factorized_bits": bits,
        **options,
    }


class OpenMAGVIT2ARSource(OfficialSource):
    """``GPT`` of gpt.py, alone or within the Lightning model with its tokenizer.

    The official options are those of ``GPT``, or with the tokenizer ``{"model": {...}, "tokenizer": {...}}``, the latter of
    ``VQModel`` (see ``generative.convert.tokenizers.open_magvit2_tokenizer``).
    """

    name = "magvit2-ar"
    repository = "TencentARC/SEED-Voken"
    modules = ("model", "tokenizer")

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our networks from official arguments.

        Returns:
            ``{"model": MAGVIT2Transformer}``, and ``"tokenizer"`` where its options are given.

        Raises:
            UserError: If a module or option is unknown or unsupported.
        """
        if "model" not in config and "tokenizer" not in config:
            return {"model": build_transformer(config)}
        unknown = [name for name in config if name not in ("model", "tokenizer")]
        if unknown:
            raise UserError(f"{self.name} has the modules model and tokenizer, got {', '.join(unknown)}")
        builders = {"model": build_transformer, "tokenizer": build_tokenizer}
        return {module: builders[module](options) for module, options in config.items()}

    def rekey(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a Lightning checkpoint by ``<module>/<key>``; others, and a transformer's alone, as they are."""
        if not any(key.startswith(prefix) for key in state for prefix in LIGHTNING):
            return dict(state)
        has_tokenizer = any(key.startswith("first_stage_model.") for key in state)
        renamed = {}
        for key, value in state.items():
            prefix = next((prefix for prefix in LIGHTNING if key.startswith(prefix)), "")
            module = f"{LIGHTNING[prefix]}/" if prefix and has_tokenizer else ""
            renamed[module + key.removeprefix(prefix)] = value
        return renamed

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; rotary angles and caches in it are left out, and constants of the tokenizer.

        Args:
            module: ``model`` or ``tokenizer``.
            state: Official tensors; of a transformer alone with or without ``transformer.`` before their names.
            network: Our network.

        Raises:
            UserError: If a key is unknown.
        """
        if module == "tokenizer":
            return convert_tokenizer(state)
        return convert_state("Open-MAGVIT2's GPT", state, BLOCKS, OTHER_KEYS)

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Tensors by ``<module>/<key>``, or those of the transformer by ``<key>``.

        Returns:
            What ``build`` takes; None for another layout.
        """
        parts = split_by_module(state)
        if set(parts) == {""}:
            return recognise_transformer(parts[""])
        if "model" not in parts or not set(parts) <= {"model", "tokenizer"}:
            return None
        config = {"model": recognise_transformer(parts["model"])}
        if "tokenizer" in parts:
            config["tokenizer"] = recognise_tokenizer(parts["tokenizer"])
        return config if all(options is not None for options in config.values()) else None

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> MAGVIT2Pipeline:
        """Pipeline that samples as the published figures were.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.

        Raises:
            UserError: If the transformer or the tokenizer is missing.
        """
        from pipelines.magvit2 import MAGVIT2Pipeline

        if "model" not in networks or "tokenizer" not in networks:
            missing = "transformer" if "tokenizer" in networks else "tokenizer (first_stage_model)"
            raise UserError(f"the checkpoint of {self.name} lacks its {missing}; give the whole Lightning one, or both")
        transformer = networks["model"]
        defaults = SAMPLING.get(transformer.config.hidden_size)
        return MAGVIT2Pipeline(transformer, networks["tokenizer"], sampling_defaults=dict(defaults) if defaults else None)
