"""Official options and checkpoints of MAR and eMIGM, at their published sizes on the meta device. Values are in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from generative.convert import get_source, load_official
from generative.convert.autoregressive.mar import chain_timesteps
from generative.convert.base import differences
from generative.core.errors import UserError

# Width, depth, heads of encoder and decoder, depth and width of the head, channels, number of official tensors.
MAR_PUBLISHED = {
    "B": (768, 12, 12, 6, 1024, 16, 364),
    "L": (1024, 16, 16, 8, 1280, 16, 476),
    "H": (1280, 20, 16, 12, 1536, 16, 604),
}
EMIGM_PUBLISHED = {
    "XS-256": (448, 10, 8, 3, 1024, 16, 292),
    "S-256": (512, 12, 8, 3, 1024, 16, 340),
    "B-256": (768, 12, 12, 6, 1024, 16, 364),
    "L-256": (1024, 16, 16, 8, 1280, 16, 476),
    "H-256": (1280, 20, 16, 12, 1536, 16, 604),
    "XS-512": (448, 10, 8, 6, 1280, 32, 316),
    "S-512": (512, 12, 8, 6, 1280, 32, 364),
    "B-512": (768, 12, 12, 8, 1280, 32, 380),
    "L-512": (1024, 16, 16, 8, 1280, 32, 476),
}
CASES = [*(("mar", name) for name in MAR_PUBLISHED), *(("emigm", name) for name in EMIGM_PUBLISHED)]
SMALL: dict[str, Any] = {
    "img_size": 32, "vae_stride": 8, "vae_embed_dim": 3, "class_num": 5, "buffer_size": 2, "diffloss_d": 1, "diffloss_w": 8,
    "encoder_embed_dim": 16, "encoder_depth": 1, "encoder_num_heads": 2,
    "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip


def official_shapes(
    width: int, depth: int, head_depth: int, head_width: int, channels: int, mask_token: tuple[int, ...], tokens: int = 256,
    buffer: int = 64, classes: int = 1000,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Names and shapes of the official state dict."""
    shapes: dict[str, tuple[int, ...]] = {
        "fake_latent": (1, width),
        "mask_token": mask_token,
        "encoder_pos_embed_learned": (1, tokens + buffer, width),
        "decoder_pos_embed_learned": (1, tokens + buffer, width),
        "diffusion_pos_embed_learned": (1, tokens, width),
        "class_emb.weight": (classes, width),
    }

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    linear("z_proj", width, channels)
    norm("z_proj_ln", width)
    linear("decoder_embed", width, width)
    for part in ("encoder", "decoder"):
        norm(f"{part}_norm", width)
        for index in range(depth):
            block = f"{part}_blocks.{index}"
            norm(f"{block}.norm1", width)
            linear(f"{block}.attn.qkv", 3 * width, width)
            linear(f"{block}.attn.proj", width, width)
            norm(f"{block}.norm2", width)
            linear(f"{block}.mlp.fc1", 4 * width, width)
            linear(f"{block}.mlp.fc2", width, 4 * width)
    net = "diffloss.net"
    linear(f"{net}.time_embed.mlp.0", head_width, 256)
    linear(f"{net}.time_embed.mlp.2", head_width, head_width)
    linear(f"{net}.cond_embed", head_width, width)
    linear(f"{net}.input_proj", head_width, channels)
    for index in range(head_depth):
        norm(f"{net}.res_blocks.{index}.in_ln", head_width)
        linear(f"{net}.res_blocks.{index}.mlp.0", head_width, head_width)
        linear(f"{net}.res_blocks.{index}.mlp.2", head_width, head_width)
        linear(f"{net}.res_blocks.{index}.adaLN_modulation.1", 3 * head_width, head_width)
    linear(f"{net}.final_layer.linear", 2 * channels, head_width)
    linear(f"{net}.final_layer.adaLN_modulation.1", 2 * head_width, head_width)
    return shapes


def small_state(source: str) -> dict[str, Tensor]:
    mask_token = (1, 1, 16) if source == "mar" else (1, 16)
    shapes = official_shapes(16, 1, 1, 8, 3, mask_token, tokens=16, buffer=2, classes=5)
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}


@pytest.mark.parametrize(("source_name", "size"), CASES)
def test_published_checkpoints_are_recognised_and_every_tensor_finds_its_place(source_name: str, size: str) -> None:
    published = MAR_PUBLISHED if source_name == "mar" else EMIGM_PUBLISHED
    width, depth, heads, head_depth, head_width, channels, num_tensors = published[size]
    mask_token = (1, 1, width) if source_name == "mar" else (1, width)
    shapes = official_shapes(width, depth, head_depth, head_width, channels, mask_token)
    assert len(shapes) == num_tensors
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        source, other = get_source(source_name), get_source("emigm" if source_name == "mar" else "mar")
        config = source.recognise(state)
        assert config is not None and other.recognise(state) is None
        network = source.build(config)["model"]
        converted = source.convert_state("model", state, network)
    assert not any(differences(converted, network.state_dict()).values())
    assert config["img_size"] == (512 if channels == 32 else 256)
    for part in ("encoder", "decoder"):
        assert network.config[f"{part}_num_heads"] == heads and network.config[f"{part}_depth"] == depth


@pytest.mark.parametrize("source_name", ["mar", "emigm"])
def test_small_checkpoints_load_and_make_a_pipeline(source_name: str) -> None:
    source, state = get_source(source_name), small_state(source_name)
    config = source.recognise(state)
    assert config is not None and config["encoder_num_heads"] is None
    with pytest.raises(UserError, match='does not tell encoder_num_heads of .*; give {"encoder_num_heads": N}'):
        source.build(config)
    config |= {"encoder_num_heads": 2, "decoder_num_heads": 2, "img_size": 32, "vae_stride": 8}
    networks = source.build(config)
    load_official(source, networks, state)
    pipeline = source.pipeline(networks, config)
    assert pipeline.image_size == 4 and pipeline.sampling_defaults["guidance_scale"] in (3.0, 4.0)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "num_diffusion_steps": 2}
    assert pipeline([1, 2], output_type="pt", **options).images.shape == (2, 3, 4, 4)  # type: ignore[operator]


def test_a_tied_mask_token_wins_as_in_the_official_loader() -> None:
    source, state = get_source("emigm"), small_state("emigm")
    networks = source.build(SMALL | {"use_unsup_cfg": True})
    load_official(source, networks, state)
    assert torch.equal(networks["model"].null_embedding, state["mask_token"])
    untied = source.build(SMALL)
    load_official(source, untied, state | {"mask_token": torch.zeros(1, 1, 16)})
    assert torch.equal(untied["model"].null_embedding, state["fake_latent"])


def test_official_chains() -> None:
    assert chain_timesteps("100") == chain_timesteps(100) == 100
    assert chain_timesteps("ddim5") == [0, 200, 400, 600, 800]
    assert chain_timesteps("2,3") == [0, 499, 500, 750, 999]
    assert chain_timesteps("1,2") == [0, 500, 999]
    for wrong in ("ddim600", "", "x", "3,", "-5", None, "501,600"):
        with pytest.raises(UserError, match="num_sampling_steps must be"):
            chain_timesteps(wrong)


def test_training_options_build_nothing_and_checkpointing_is_kept() -> None:
    source = get_source("mar")
    options = {"mask_ratio_min": 0.1, "label_drop_prob": 0.3, "diffusion_batch_mul": 2, "num_sampling_steps": "7"}
    network = source.build(SMALL | options | {"grad_checkpointing": True})["model"]
    assert network.gradient_checkpointing and network.head.gradient_checkpointing
    assert source.build(SMALL)["model"].config.norm_eps == 1e-6


@pytest.mark.parametrize(
    ("source_name", "options", "sentence"),
    [
        ("mar", {"widht": 1}, "MAR option 'widht' of LTH14/mar is unknown here"),
        ("mar", {"class_num": "10"}, "class_num of LTH14/mar must be a whole number"),
        ("mar", {"mask_ratio_min": 2}, "mask_ratio_min must be in"),
        ("mar", {"label_drop_prob": -0.1}, "label_drop_prob of LTH14/mar must be in"),
        ("mar", {"diffusion_batch_mul": 0}, "diffusion_batch_mul of LTH14/mar must be a positive whole number"),
        ("mar", {"img_size": 4}, "img_size of LTH14/mar must be at least vae_stride 8, got 4"),
        ("mar", {"num_sampling_steps": "1"}, "num_diffusion_steps must be in 2..1000, got 1"),
        ("mar", {"use_mae": True}, "'use_mae' of LTH14/mar is unknown"),
        ("emigm", {"mask_strategy": "sine"}, "mask_strategy must be"),
        ("emigm", {"sampling_algo": "ddim"}, "sampling_algo='ddim' of ML-GSAI/eMIGM is not supported"),
        ("emigm", {"cfg_t_min": 0.9, "cfg_t_max": 0.1}, "cfg_t_min and cfg_t_max"),
        ("emigm", {"clamp_t_min": 1.0}, "clamp_t_min must be in"),
        ("emigm", {"sampling_algo": "dpm-solver", "num_sampling_steps": "ddim5"}, "dpm-solver must be a number"),
        ("emigm", {"use_unsup_cfg": True, "decoder_embed_dim": 8}, "one width, got 16 and 8"),
    ],
)
def test_wrong_options_are_refused(source_name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        get_source(source_name).build(SMALL | options)
