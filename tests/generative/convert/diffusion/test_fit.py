"""Official FiT and FiTv2 options and checkpoints. Values are compared in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from generative.convert import get_source, load_official
from generative.convert.diffusion.fit_options import formulation, guidance_defaults
from generative.core.errors import UserError
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.fit import FIT_SIZES, FiT

# The authors' configurations (configs/fit, configs/fitv2), as far as a checkpoint tells them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "FiT-XL": {"hidden_size": 1152, "depth": 28, "use_swiglu_large": True, "learn_sigma": True, "num_heads": 16},
    "FiTv2-XL": {"hidden_size": 1152, "depth": 36, "adaln_type": "lora", "adaln_lora_dim": 288, "num_heads": 16},
    "FiTv2-3B": {"hidden_size": 2304, "depth": 40, "adaln_type": "lora", "adaln_lora_dim": 576, "num_heads": 24},
}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def official_shapes(width: int, depth: int, rank: int | None, inner: int, out: int) -> dict[str, tuple[int, ...]]:
    """Official tensors of networks with SwiGLU, as the official constructor makes them."""
    shapes = (
        linear("x_embedder.proj", 16, width) | linear("t_embedder.mlp.0", 256, width) | linear("t_embedder.mlp.2", width, width)
    )
    shapes["y_embedder.embedding_table.weight"] = (1001, width)
    if rank is not None:
        shapes |= linear("global_adaLN_modulation.1", width, 6 * width)
    for index in range(depth):
        block = f"blocks.{index}"
        shapes |= linear(f"{block}.attn.qkv", width, 3 * width) | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.fc1_g", width, inner) | linear(f"{block}.mlp.fc1_x", width, inner)
        shapes |= linear(f"{block}.mlp.fc2", inner, width)
        if rank is None:
            shapes |= linear(f"{block}.adaLN_modulation.1", width, 6 * width)
        else:
            shapes |= linear(f"{block}.adaLN_modulation.1", width, rank)
            shapes |= linear(f"{block}.adaLN_modulation.2", rank, 6 * width)
    return shapes | linear("final_layer.linear", width, out) | linear("final_layer.adaLN_modulation.1", width, 2 * width)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_checkpoints_are_recognised_and_every_tensor_has_its_place(name: str) -> None:
    options = PUBLISHED[name]
    width, is_first = options["hidden_size"], name == "FiT-XL"
    inner = 4 * width if is_first else 8 * width // 3
    shapes = official_shapes(width, options["depth"], options.get("adaln_lora_dim"), inner, 32 if is_first else 16)
    source = get_source("fitv2")
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        found = source.recognise(state)
        assert found is not None and {key: found.get(key) for key in options} == options
        network = source.build(found)["model"]
        renamed = source.convert_state("model", state, network)
        ours = FiT(sample_size=32, **FIT_SIZES[name])
    expected = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in renamed.items()} == expected
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


def test_published_networks_scale_for_longer_sides() -> None:
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in official_shapes(1152, 1, 288, 3072, 16).items()}
        config = get_source("fitv2").build(get_source("fitv2").recognise(state))["model"].config
    assert (config.custom_freqs, config.decouple, config.online_rope, config.ori_max_pe_len) == ("ntk-aware", True, True, 16)
    assert (config.q_norm, config.sample_size, config.context_size) == ("layernorm", 32, 256)


CONFIG = {
    "context_size": 16,
    "hidden_size": 16,
    "depth": 1,
    "num_heads": 2,
    "num_classes": 5,
    "use_swiglu": True,
    "use_sit": True,
}
CONFIG |= {"learn_sigma": False}


def state_of(config: dict[str, Any]) -> dict[str, Tensor]:
    shapes = official_shapes(16, 1, None, 42, 16) | {"y_embedder.embedding_table.weight": (6, 16)}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def test_a_gate_without_its_other_half_is_refused() -> None:
    source, state = get_source("fitv2"), state_of(CONFIG)
    load_official(source, source.build(CONFIG), {f"model/{key}": value for key, value in state.items()})
    del state["blocks.0.mlp.fc1_x.bias"]
    with pytest.raises(UserError, match=r"lacks 'blocks\.0\.mlp\.fc1_x\.bias', which goes with 'blocks\.0\.mlp\.fc1_g\.bias'"):
        load_official(source, source.build(CONFIG), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learn_sigma": True}, "learn_sigma of whlzy/FiT has no meaning with use_sit"),
        ({"custom_freqs": "xpos"}, "custom_freqs of whlzy/FiT must be 'normal', 'linear'"),
        ({"q_norm": "batchnorm"}, "q_norm of whlzy/FiT must be None, 'none', "),
        ({"transport": {"path": "Linear"}}, "Transport option 'path' of whlzy/FiT is unknown here"),
        ({"transport": {"snr_type": "cosine"}}, "snr_type='cosine' of .* is not supported here; supported: 'uniform', 'lognorm'"),
        ({"adaln_type": "lora"}, "adaln_lora_dim is the rank of adaln_type lora, got None"),
        ({"scale_pow": -1.0}, "scale_pow of whlzy/FiT must be a number of 0 or more"),
        ({"rope": 2}, "FiT option 'rope' of whlzy/FiT is unknown here; known: context_size"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("fitv2").build(CONFIG | change)


def test_what_networks_are_trained_under() -> None:
    flow = formulation({"use_sit": True, "transport": {"path_type": "GVP", "snr_type": "lognorm"}})
    assert (flow.config.path, flow.config.density, flow.config.data_time) == ("gvp", "logit_normal", 1)
    assert formulation({"use_sit": True, "transport": {}}).config.density == "uniform"
    chain = formulation({})
    assert isinstance(chain, GaussianDiffusion) and chain.config.learned_variance


def test_pipelines_guide_as_published() -> None:
    source = get_source("fitv2")
    config = CONFIG | {"scale_pow": 0.8}
    pipeline = source.pipeline(source.build(config), config)
    defaults = pipeline.merge_options()
    assert (defaults.guidance_scale, defaults.guidance_channels, defaults.num_inference_steps) == (1.5, 3, 250)
    assert (defaults.guidance_schedule, defaults.guidance_exponent) == ("falling_power_cosine", 0.8)
    assert guidance_defaults({"class_dropout_prob": 0.0}) == {}
