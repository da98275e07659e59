"""Open-MAGVIT2's autoregressive checkpoints: published keys and shapes, Lightning's prefixes, what is refused."""

from __future__ import annotations

import pytest
import torch
from llama_shapes import block_shapes, on_meta
from torch import Tensor

from generative.convert import load_official
from generative.convert.autoregressive.open_magvit2_ar import OpenMAGVIT2ARSource
from generative.convert.base import differences
from generative.core.errors import UserError

# dim, spatial blocks, intra blocks, heads, inner width (imagenet_conditional_llama_{B,L,XL}.yaml).
PUBLISHED = {"B": (1024, 24, 2, 16, 2816), "L": (1280, 36, 3, 20, 3584), "XL": (1536, 48, 4, 24, 4096)}
TINY = {
    "vocab_size": 32, "block_size": 4, "dim": 16, "spatial_n_layer": 1, "factorized_n_layer": 1, "n_head": 2, "class_num": 3,
    "token_factorization": True, "factorized_bits": [2, 3], "multiple_of": 8,
}  # fmt: skip


def official(
    dim: int, spatial: int, intra: int, inner: int, bits: tuple[int, int] = (6, 12), rows: int = 1001
) -> dict[str, Tensor]:
    """Keys and shapes of the official GPT's state dict, on the meta device."""
    shapes = {
        "class_emb.embedding_table": (rows, dim),
        "pre_emb": (2 ** bits[0], dim),
        "post_emb": (2 ** bits[1], dim),
        "norm": (dim,),
    }
    shapes |= {f"head.{k}": (2**count, dim) for k, count in enumerate(bits)}
    for blocks, count in (("spatial_blocks", spatial), ("factorized_blocks", intra)):
        for index in range(count):
            shapes |= block_shapes(f"{blocks}.{index}", dim, inner)
    return on_meta(shapes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_key_and_shape_has_its_place(name: str) -> None:
    dim, spatial, intra, heads, inner = PUBLISHED[name]
    source = OpenMAGVIT2ARSource()
    state = official(dim, spatial, intra, inner)
    assert len(state) == 7 * (spatial + intra) + 6
    config = source.recognise(source.rekey({f"transformer.{key}": value for key, value in state.items()}))
    assert (config["n_head"], config["spatial_n_layer"], config["factorized_n_layer"]) == (heads, spatial, intra)
    assert config["factorized_bits"] == [6, 12] and config["class_num"] == 1000
    with torch.device("meta"):
        network = source.build(config)["model"]
    assert not any(differences(source.convert_state("model", state, network), network.state_dict()).values())


def test_a_lightning_checkpoint_holds_both_networks() -> None:
    source = OpenMAGVIT2ARSource()
    state = {f"transformer.{key}": value for key, value in official(16, 1, 1, 48, (2, 3), 4).items()}
    state |= {"first_stage_model.encoder.conv_in.weight": torch.zeros(1), "first_stage_model.quantize.mask": torch.zeros(1)}
    keyed = source.rekey(state)
    assert {key.partition("/")[0] for key in keyed} == {"model", "tokenizer"}
    assert "tokenizer/encoder.conv_in.weight" in keyed and "model/pre_emb.weight" in keyed
    assert source.recognise(keyed) is None  # that is no tokenizer


def test_the_transformer_alone_makes_no_pipeline() -> None:
    source = OpenMAGVIT2ARSource()
    networks = source.build(TINY)
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(value.shape, generator=generator) for key, value in official(16, 1, 1, 48, (2, 3), 4).items()}
    load_official(source, networks, state)
    model = networks["model"]
    assert torch.equal(model.embeddings[1].weight, state["post_emb.weight"])
    assert torch.equal(model.intra_blocks[0].mlp.gate_up_proj.weight[48:], state["factorized_blocks.0.feed_forward.w3.weight"])
    with pytest.raises(UserError, match="lacks its tokenizer"):
        source.pipeline(networks, TINY)
    with pytest.raises(UserError, match="no_such"):
        load_official(source, networks, state | {"no_such.weight": torch.zeros(1)})


def test_both_networks_make_a_pipeline() -> None:
    source = OpenMAGVIT2ARSource()
    network = {"z_channels": 5, "resolution": 4, "in_channels": 3, "out_ch": 3, "ch": 4, "ch_mult": [1, 1], "num_res_blocks": 1}
    tokenizer = {"ddconfig": network, "n_embed": 32, "embed_dim": 5, "norm_groups": 2, "image_size": 4}
    pipeline = source.pipeline(source.build({"model": TINY, "tokenizer": tokenizer}), {})
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([0, 2], guidance_scale=(2.0, 1.5), output_type="pt").images.shape == (2, 3, 4, 4)
    with pytest.raises(UserError, match="modules model and tokenizer, got first"):
        source.build({"model": TINY, "first": {}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_factorization": False}, "token_factorization=False"),
        ({"factorized_k": 3}, "factorized_k=3"),
        ({"factorized_bits": [2, 3, 4]}, "factorized_bits"),
        ({"cls_token_num": 2}, "cls_token_num=2"),
        ({"block_size": 5}, "block_size of Open-MAGVIT2 must be a square number of tokens, got 5"),
        ({"n_head": None}, "n_head"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OpenMAGVIT2ARSource().build(TINY | options)
