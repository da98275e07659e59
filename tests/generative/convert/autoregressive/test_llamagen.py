"""LlamaGen's checkpoints: every key and shape of the published sizes, options told by them, what is refused."""

from __future__ import annotations

import pytest
import torch
from llama_shapes import block_shapes, on_meta
from torch import Tensor

from generative.convert import load_official
from generative.convert.autoregressive.llamagen import LlamaGenSource, guidance_interval
from generative.convert.base import differences
from generative.core.errors import UserError
from generative.core.guidance import step_guidance
from pipelines.reconstruction import ImageReconstructionPipeline

SOURCE = LlamaGenSource()
# dim, layers, heads, inner width, tokens of every published class-conditional model (GPT_B ... GPT_3B of gpt.py).
PUBLISHED = {
    "c2i_B_256": (768, 12, 12, 2048, 256),
    "c2i_L_256": (1024, 24, 16, 2816, 256),
    "c2i_L_384": (1024, 24, 16, 2816, 576),
    "c2i_XL_384": (1280, 36, 20, 3584, 576),
    "c2i_XXL_384": (1536, 48, 24, 4096, 576),
    "c2i_3B_384": (3200, 24, 32, 8704, 576),
}
TINY = {"dim": 16, "n_layer": 2, "n_head": 2, "multiple_of": 8, "num_classes": 3, "vocab_size": 6, "block_size": 4}
TINY_VQ = {
    "codebook_size": 6, "codebook_embed_dim": 4, "encoder_ch_mult": [1, 1], "decoder_ch_mult": [1, 1], "z_channels": 4,
    "ch": 4, "num_res_blocks": 1, "norm_groups": 2,
}  # fmt: skip


def official_gpt(dim: int, layers: int, inner: int, codes: int = 16384, rows: int = 1001) -> dict[str, Tensor]:
    """Keys and shapes of the official Transformer's state dict, on the meta device."""
    shapes = {
        "cls_embedding.embedding_table": (rows, dim),
        "tok_embeddings": (codes, dim),
        "norm": (dim,),
        "output": (codes, dim),
    }
    for layer in range(layers):
        shapes |= block_shapes(f"layers.{layer}", dim, inner)
    return on_meta(shapes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_key_and_shape_has_its_place(name: str) -> None:
    dim, layers, heads, inner, tokens = PUBLISHED[name]
    state = official_gpt(dim, layers, inner)
    assert len(state) == 7 * layers + 4
    config = SOURCE.recognise(state)
    sizes = {"vocab_size": 16384, "num_classes": 1000, "n_layer": layers, "dim": dim, "n_head": heads, "n_kv_head": None}
    assert config["gpt"] | {"block_size": tokens} == sizes | {"block_size": tokens}
    assert config["gpt"]["block_size"] == (tokens if dim > 1024 else None)
    with torch.device("meta"):
        network = SOURCE.build({"gpt": config["gpt"] | {"block_size": tokens}})["gpt"]
    assert not any(differences(SOURCE.convert_state("gpt", state, network), network.state_dict()).values())


def tiny_state(**options: object) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Official options and tensors of both tiny networks, the official layout made from ours."""
    config = {"gpt": TINY | options, "vq": TINY_VQ}
    inner = 48
    gpt = official_gpt(16, 2, inner, 6, 4)
    generator = torch.Generator().manual_seed(0)
    return config, {f"gpt/{key}": torch.randn(value.shape, generator=generator) for key, value in gpt.items()}


def test_the_two_inner_matrices_are_joined_gate_first() -> None:
    config, state = tiny_state()
    networks = SOURCE.build({"gpt": config["gpt"]})
    load_official(SOURCE, networks, state | {"gpt/freqs_cis": torch.zeros(5, 4, 2)})
    joined = networks["gpt"].blocks[1].mlp.gate_up_proj.weight
    assert torch.equal(joined[:48], state["gpt/layers.1.feed_forward.w1.weight"])
    assert torch.equal(joined[48:], state["gpt/layers.1.feed_forward.w3.weight"])
    without = {key: value for key, value in state.items() if key != "gpt/layers.1.feed_forward.w3.weight"}
    with pytest.raises(UserError, match="lacks blocks.1.mlp.gate_up_proj.weight"):
        load_official(SOURCE, networks, without)


def test_other_widths_and_groups_are_told() -> None:
    state = official_gpt(768, 2, 1000)
    state["layers.0.attention.wqkv.weight"] = torch.empty(768 + 2 * 4 * 64, 768, device="meta")
    options = SOURCE.recognise(state)["gpt"] | {"block_size": 256}
    assert options["n_kv_head"] == 4
    network = SOURCE.build({"gpt": options})["gpt"]
    assert network.blocks[0].mlp.down_proj.weight.shape == (768, 1000)


def test_what_a_checkpoint_does_not_tell_is_asked_for() -> None:
    config = SOURCE.recognise(official_gpt(768, 1, 2048))
    with pytest.raises(UserError, match="block_size"):
        SOURCE.build(config)
    with pytest.raises(UserError, match="n_head"):
        SOURCE.build({"gpt": SOURCE.recognise(official_gpt(100, 1, 512))["gpt"] | {"block_size": 16}})
    told = SOURCE.recognise(official_gpt(768, 1, 2048) | {"freqs_cis": torch.zeros(577, 32, 2)})
    assert told["gpt"]["block_size"] == 576
    assert SOURCE.recognise({"layers.0.weight": torch.zeros(2)}) is None
    assert SOURCE.recognise({"generator/x": torch.zeros(2)}) is None


def test_both_networks_make_a_pipeline() -> None:
    networks = SOURCE.build({"gpt": TINY, "vq": TINY_VQ})
    assert networks["vq"].config.image_size == 4  # 2 x 2 tokens at stride 2
    pipeline = SOURCE.pipeline(networks, {})
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([0, 2], guidance_scale=2.0, output_type="pt").images.shape == (2, 3, 4, 4)
    assert isinstance(SOURCE.pipeline({"vq": networks["vq"]}, {}), ImageReconstructionPipeline)
    with pytest.raises(UserError, match="its tokenizer too"):
        SOURCE.pipeline({"gpt": networks["gpt"]}, {})


def test_keys_of_both_files_are_sorted_by_network() -> None:
    state = official_gpt(16, 1, 48, 6, 4)
    both = SOURCE.rekey(state | {"quant_conv.weight": torch.zeros(1)})
    assert set(both) == {f"gpt/{key}" for key in state} | {"vq/quant_conv.weight"}
    assert SOURCE.rekey(state) == state


@pytest.mark.parametrize("class_dropout_prob", [0.1, 0.0])
def test_without_class_dropout_there_is_no_null_class(class_dropout_prob: float) -> None:
    network = SOURCE.build({"gpt": TINY | {"class_dropout_prob": class_dropout_prob}})["gpt"]
    assert len(network.class_embedding.weight) == (4 if class_dropout_prob else 3)


def test_the_official_interval_guides_the_same_positions() -> None:
    for length in (4, 16, 576):
        for interval in range(-1, length + 1):
            scale = step_guidance(3.0, length, "constant", guidance_interval(interval, length))
            guided = [(scale(i) if callable(scale) else scale) == 3.0 for i in range(length)]
            assert guided == [interval < 0 or i == 0 or i - 1 <= interval for i in range(length)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "has the modules gpt and vq"),
        ({"t5": {}}, "t5"),
        ({"gpt": TINY | {"model_type": "t2i"}}, "model_type='t2i'"),
        ({"gpt": TINY | {"cls_token_num": 120}}, "cls_token_num=120"),
        ({"gpt": TINY | {"block_size": 15}}, "block_size of FoundationVision/LlamaGen must be a square number of tokens, got 15"),
        ({"gpt": TINY | {"no_such": 1}}, "no_such"),
        ({"gpt": TINY | {"dim": 18}}, "hidden_size 18"),
        ({"gpt": TINY | {"norm_eps": "small"}}, "norm_eps"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SOURCE.build(config)
