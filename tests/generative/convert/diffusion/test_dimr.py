"""Official DiMR options and checkpoints. Values are compared in tests/parity."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from generative.convert import get_source, load_official
from generative.core.errors import UserError

SHARED = {"image_input_ratio": 1, "final_kernel_size": 3, "dropout_prob": 0}


def stages(width: int, depths: tuple[int, int], size: int = 32, heads: int = 16) -> list[dict[str, Any]]:
    """A branch of transformers and one of ConvNeXt twice as high and half as wide, as published."""
    low, high = {"max_height": size // 2, "max_width": size // 2}, {"max_height": size, "max_width": size}
    transformer = {"block_type": "TransformerBlock", "dim": width, "hidden_dim": 2 * width, "num_attention_heads": heads}
    convnext = {"block_type": "ConvNeXtBlock", "dim": width // 2, "hidden_dim": width, "kernel_size": 7}
    return [
        SHARED | transformer | low | {"num_blocks": depths[0], "input_feature_ratio": 2},
        SHARED | convnext | high | {"num_blocks": depths[1], "input_feature_ratio": 1},
    ]


OPTIONS: dict[str, Any] = {"channels": 4, "num_classes": 1001, "block_grad_to_lowres": False, "norm_type": "TDRMSN"}
PUBLISHED = {
    "XL/2R": OPTIONS | {"stage_configs": stages(960, (39, 20))},
    "G/2R": OPTIONS | {"stage_configs": stages(1152, (57, 29))},
}
TINY: dict[str, Any] = OPTIONS | {"num_classes": 6, "stage_configs": stages(16, (2, 1), 8, 2)}
TIMED = ("param0", "param1", "nodecay_weight", "nodecay_bias")


def official_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official constructor, for two branches and TDRMSN, written down from its layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    below = 0

    def add(name: str, *shape: int, bias: bool = True) -> None:
        shapes.update({f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {}))

    def add_timed(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in TIMED})

    def add_norm(name: str, width: int) -> None:
        add_timed(f"{name}.weight", width)
        add_timed(f"{name}.bias", width)

    for index, stage in enumerate(config["stage_configs"]):
        prefix, width, hidden, patch = f"stages.{index}", stage["dim"], stage["hidden_dim"], stage["input_feature_ratio"]
        add(f"{prefix}.input_layer.1", width, config["channels"], patch, patch)
        add(f"{prefix}.input_layer.3.position_embeddings", stage["max_height"] * stage["max_width"], width, bias=False)
        half = stage["num_blocks"] // 2
        for block in range(2 * half + 1):
            name = f"{prefix}.blocks.{block}"
            if stage["block_type"] == "TransformerBlock":
                add(f"{name}.block1.query_key_value", 3 * width, width, bias=False)
                add(f"{name}.block1.dense", width, width)
                add_timed(f"{name}.block1.norm.scale", width)
            else:
                add(f"{name}.block1.1", width, 1, stage["kernel_size"], stage["kernel_size"])
            add_timed(f"{name}.block2.norm.scale", width)
            add(f"{name}.block2.w0", hidden, width)
            add(f"{name}.block2.w1", hidden, width)
            add(f"{name}.block2.w2", width, hidden)
        for place in range(half):
            add(f"{prefix}.skip_denses.{place}", width, 2 * width)
        if stage["block_type"] == "TransformerBlock":
            add(f"{prefix}.class_embeds", config["num_classes"], width, bias=False)
        if below:
            add_norm(f"{prefix}.upsample.0", below)
            add(f"{prefix}.upsample.1.kernel", 4 * width, below)
            add_norm(f"{prefix}.upsample.2", width)
        add_norm(f"{prefix}.output_layer.0", width)
        add(f"{prefix}.output_layer.2", config["channels"], width, 3, 3)
        below = width * (2 * half + 2)
    return shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_recognised_and_fit(name: str) -> None:
    source = get_source("dimr")
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in official_shapes(PUBLISHED[name]).items()}
        config = source.recognise(state)
        assert config is not None
        networks = source.build(config)
        load_official(source, networks, state)
    model, published = networks["model"], source.build(TINY)["model"]
    assert config["norm_type"] == "TDRMSN" and config["pe_type"] == "APE" and config["num_classes"] == 1001
    assert model.config.num_classes == model.null_label == 1000 and model.config.sample_size == 32
    assert model.config.block_types == published.config.block_types
    assert source.recognise({key: value for key, value in state.items() if "w0" not in key}) is None


def test_a_width_that_was_not_published_leaves_the_heads_to_the_user() -> None:
    source = get_source("dimr")
    state = {key: torch.empty(shape, device="meta") for key, shape in official_shapes(TINY).items()}
    config = source.recognise(state)
    assert config is not None and config["stage_configs"][0]["num_attention_heads"] is None
    with pytest.raises(UserError, match="does not tell num_attention_heads of transformer stage of qihao067/DiMR"):
        source.build(config)


def test_the_pipeline_samples_as_the_published_figure_was_sampled() -> None:
    source = get_source("dimr")
    pipeline = source.pipeline(source.build(TINY), TINY)
    assert pipeline.sampling_defaults == {"num_inference_steps": 250, "guidance_scale": 1.4}
    solver, process = pipeline.scheduler.config, pipeline.formulation
    assert (solver.order, solver.grid, solver.algorithm) == (3, "time_uniform", "dpmsolver++")
    told = process.network_time(torch.tensor([0, 499, 999]))
    torch.testing.assert_close(told, torch.tensor([-3.992, 0.0, 4.0]), atol=1e-5, rtol=0)
    free = {key: value for key, value in TINY.items() if key != "num_classes"} | {"sample_steps": 7}
    pipeline = source.pipeline(source.build(free), free)
    assert pipeline.sampling_defaults == {"num_inference_steps": 7} and not pipeline.denoiser.config.class_conditional


@pytest.mark.parametrize(
    ("change", "stage_change", "message"),
    [
        ({"condition_dim": 3}, {}, "MRModel option 'condition_dim' of qihao067/DiMR is unknown here; known: channels, "),
        (
            {"norm_type": "BN"},
            {},
            "norm_type='BN' of qihao067/DiMR is not supported here; supported: 'LN', 'RMSN'",
        ),
        ({"pe_type": "Axial_RoPE"}, {}, "axial_rope has no place for a class token"),
        ({"loss_coeffs": [1]}, {}, "loss_coeffs of qihao067/DiMR must be one number for each of 2 stages, got 1"),
        ({"beta_schedule": "cosine"}, {}, "beta_schedule of qihao067/DiMR must be text such as 'sqrt-linear "),
        ({"stage_configs": []}, {}, "stage_configs of qihao067/DiMR must have one stage at least, got none"),
        ({}, {"max_width": 8}, "max_height and max_width of qihao067/DiMR must be equal, .* got 4 and 8"),
        ({}, {"block_type": "MLP"}, "block_type='MLP' of qihao067/DiMR is not supported here"),
        ({}, {"experts": 8}, "transformer stage option 'experts' of qihao067/DiMR is unknown here"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], stage_change: dict[str, Any], message: str) -> None:
    config = copy.deepcopy(TINY)
    config["stage_configs"][0] |= stage_change
    with pytest.raises(UserError, match=message):
        get_source("dimr").build(config | change)
