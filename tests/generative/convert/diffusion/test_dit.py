"""Official DiT options and checkpoints. Values are compared in tests/parity."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.convert import get_source, load_official
from generative.convert.diffusion.dit import formulation
from generative.core.errors import UserError

CONFIG = {"input_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 5}


def official_state() -> dict[str, Tensor]:
    """A state dict in the official layout for ``CONFIG``."""
    shapes = {
        "pos_embed": (1, 4, 16),
        "x_embedder.proj.weight": (16, 3, 2, 2),
        "x_embedder.proj.bias": (16,),
        "t_embedder.mlp.0.weight": (16, 256),
        "t_embedder.mlp.0.bias": (16,),
        "t_embedder.mlp.2.weight": (16, 16),
        "t_embedder.mlp.2.bias": (16,),
        "y_embedder.embedding_table.weight": (6, 16),
        "blocks.0.attn.qkv.weight": (48, 16),
        "blocks.0.attn.qkv.bias": (48,),
        "blocks.0.attn.proj.weight": (16, 16),
        "blocks.0.attn.proj.bias": (16,),
        "blocks.0.mlp.fc1.weight": (64, 16),
        "blocks.0.mlp.fc1.bias": (64,),
        "blocks.0.mlp.fc2.weight": (16, 64),
        "blocks.0.mlp.fc2.bias": (16,),
        "blocks.0.adaLN_modulation.1.weight": (96, 16),
        "blocks.0.adaLN_modulation.1.bias": (96,),
        "final_layer.linear.weight": (24, 16),
        "final_layer.linear.bias": (24,),
        "final_layer.adaLN_modulation.1.weight": (32, 16),
        "final_layer.adaLN_modulation.1.bias": (32,),
    }
    return {key: torch.full(shape, float(index)) for index, (key, shape) in enumerate(shapes.items())}


def test_every_official_tensor_finds_its_place() -> None:
    source = get_source("dit")
    networks = source.build(CONFIG)
    state = official_state()
    load_official(source, networks, {f"model/{key}": value for key, value in state.items()})
    loaded = sorted(tensor.flatten()[0].item() for tensor in networks["model"].state_dict().values())
    assert loaded == list(range(len(state)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": None}, "lacks position_embedding"),
        ({"blocks.1.attn.qkv.bias": torch.zeros(48)}, "has no place for blocks.1.attention.qkv.bias"),
        ({"head.weight": torch.zeros(1)}, "no place for the official keys head.weight"),
        ({"pos_embed": torch.zeros(1, 9, 16)}, r"other shapes for position_embedding \(1, 9, 16\) for \(1, 4, 16\)"),
        ({"decoder/weight": torch.zeros(1)}, "no place for the official keys decoder/weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    source = get_source("dit")
    state = {key: value for key, value in (official_state() | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        load_official(source, source.build(CONFIG), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": True}, "DiT option 'qk_norm' of facebookresearch/DiT is unknown here; known: input_size, "),
        ({"depth": "three"}, "DiT option depth of facebookresearch/DiT must be a whole number, got 'three'"),
        ({"learn_sigma": 1}, "learn_sigma of facebookresearch/DiT must be True or False, got 1"),
        ({"num_heads": True}, "num_heads of facebookresearch/DiT must be a whole number, got True"),
        ({"noise_schedule": "sigmoid"}, "noise_schedule='sigmoid' of .* is not supported here; supported: 'linear', 'sq"),
        ({"diffusion_steps": 0}, "diffusion_steps of facebookresearch/DiT must be a positive whole number, got 0"),
        ({"cfg_scale": None}, "cfg_scale of facebookresearch/DiT must be a number, got None"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("dit").build(CONFIG | change)


def test_official_defaults_are_those_of_the_largest_model() -> None:
    with torch.device("meta"):
        config = get_source("dit").build({})["model"].config
    assert (config.hidden_size, config.depth, config.num_heads, config.learn_sigma) == (1152, 28, 16, True)


def test_shorter_chains_end_in_as_much_noise() -> None:
    full, short = formulation({}), formulation({"diffusion_steps": 100, "learn_sigma": False})
    assert full.config.learned_variance and not short.config.learned_variance
    assert short.process.betas[0].item() == pytest.approx(10 * full.process.betas[0].item())
    assert short.process.alphas_cumprod[-1] < 1e-4


def test_unknown_source_is_refused() -> None:
    with pytest.raises(UserError, match="no source of official checkpoints named 'dit-3'; known: .*dit, .*sagan"):
        get_source("dit-3")


def published(hidden_size: int, num_heads: int, **change: Any) -> dict[str, Any]:
    return CONFIG | {"hidden_size": hidden_size, "num_heads": num_heads, "num_classes": 7} | change


@pytest.mark.parametrize(
    "config",
    [
        published(384, 6, depth=2),
        published(768, 12, learn_sigma=False, in_channels=4),
        published(1024, 16, input_size=16, patch_size=8, mlp_ratio=2.0),
        published(1152, 16, frequency_embedding_size=64),
    ],
)
def test_options_are_read_off_a_checkpoint(config: dict[str, Any]) -> None:
    """The network that the options found out build has the shapes, heads and all, of the one that the checkpoint is of."""
    source = get_source("dit")
    with torch.device("meta"):
        network = source.build(config)["model"]
        names = {ours: official for official, ours in zip(official_names(config["depth"]), network.state_dict(), strict=True)}
        state = {names[key]: value for key, value in network.state_dict().items()}
        found = source.recognise(state)
        assert found is not None and {key: found[key] for key in config if key != "cfg_scale"} == config
        assert source.build(found)["model"].config == network.config


def official_names(depth: int) -> list[str]:
    """Official keys in the order of our state dict."""
    from generative.convert.diffusion.dit_layout import KEY_PATTERNS
    from generative.diffusion.networks.dit import DiT

    with torch.device("meta"):
        network = DiT(sample_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=depth, num_heads=2, num_classes=5)
    blocks = [f"blocks.{index}.{rest}" for index in range(depth) for rest in BLOCK_NAMES]
    official = [key for key in official_state() if not key.startswith("blocks.")] + blocks
    ours = {}
    for key in official:
        pattern, replacement = next(pair for pair in KEY_PATTERNS if re.match(pair[0], key))
        ours[re.sub(pattern, replacement, key)] = key
    return [ours[key] for key in network.state_dict()]


BLOCK_NAMES = [key.removeprefix("blocks.0.") for key in official_state() if key.startswith("blocks.0.")]


def test_heads_that_no_table_knows_are_asked_for() -> None:
    source = get_source("dit")
    found = source.recognise(official_state())
    assert found is not None and found["num_heads"] is None
    with pytest.raises(UserError, match='does not tell num_heads of DiT .*; give {"num_heads": N} in --config'):
        source.build(found)
    assert source.build(found | {"num_heads": 2})["model"].config.num_heads == 2


def test_another_layout_is_not_recognised() -> None:
    state = official_state()
    del state["pos_embed"]
    assert get_source("dit").recognise(state) is None
    assert get_source("dit").recognise({"linear.weight": torch.zeros(2, 2)}) is None


def test_the_pipeline_samples_as_the_published_figure_was_sampled() -> None:
    source = get_source("dit")
    pixels = source.pipeline(source.build(CONFIG), CONFIG)
    assert pixels.sampling_defaults == {"num_inference_steps": 250, "guidance_scale": 1.5}
    assert pixels.scheduler.config.variance == "learned" and pixels.autoencoder is None
    latent = CONFIG | {"in_channels": 4, "cfg_scale": 4.0, "diffusion_steps": 100}
    assert source.pipeline(source.build(latent), latent).sampling_defaults == {
        "num_inference_steps": 100,
        "guidance_scale": 4.0,
        "guidance_channels": 3,
    }
    unconditional = CONFIG | {"class_dropout_prob": 0.0}
    assert source.pipeline(source.build(unconditional), unconditional).sampling_defaults == {"num_inference_steps": 250}
