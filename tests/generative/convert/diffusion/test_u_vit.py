"""Official U-ViT options and checkpoints. Values are compared in tests/parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from generative.convert import get_source, load_official
from generative.convert.diffusion.u_vit import KEY_PATTERNS
from generative.core.errors import UserError

NNET = {"img_size": 4, "patch_size": 2, "in_chans": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 6}
LATENT = {"nnet": NNET, "null_label": 5}
PIXEL = {"nnet": NNET | {"in_chans": 3}, "pixel": True}
M, L, H = (
    {"embed_dim": width, "depth": depth, "num_heads": heads}
    for width, depth, heads in ((768, 16, 12), (1024, 20, 16), (1152, 28, 16))
)
PIXELS_64 = {"img_size": 64, "patch_size": 4, "in_chans": 3, "num_classes": 1000}
LATENTS_256 = {"img_size": 32, "patch_size": 2, "in_chans": 4, "num_classes": 1001}
LATENTS_512 = {"img_size": 64, "patch_size": 4, "in_chans": 4, "num_classes": 1001}
PUBLISHED: dict[str, dict[str, Any]] = {
    "cifar10": {"img_size": 32, "patch_size": 2, "in_chans": 3, "embed_dim": 512, "depth": 12, "num_heads": 8, "num_classes": -1},
    "64 M": PIXELS_64 | M,
    "64 L": PIXELS_64 | L,
    "256 L": LATENTS_256 | L,
    "256 H": LATENTS_256 | H | {"conv": False},
    "512 L": LATENTS_512 | L,
    "512 H": LATENTS_512 | H | {"conv": False},
}


def official_shapes(nnet: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official constructor, written down from its layers."""
    width, patch, channels = nnet["embed_dim"], nnet["patch_size"], nnet["in_chans"]
    hidden, values = 4 * width, patch**2 * channels
    labels = nnet["num_classes"]
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, (nnet["img_size"] // patch) ** 2 + (2 if labels > 0 else 1), width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "decoder_pred.weight": (values, width),
        "decoder_pred.bias": (values,),
    }
    if labels > 0:
        shapes["label_emb.weight"] = (labels, width)
    if nnet.get("conv", True):
        shapes |= {"final_layer.weight": (channels, channels, 3, 3), "final_layer.bias": (channels,)}
    half = nnet["depth"] // 2
    for block in (
        *(f"in_blocks.{index}" for index in range(half)),
        "mid_block",
        *(f"out_blocks.{index}" for index in range(half)),
    ):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        shapes |= {
            f"{block}.attn.qkv.weight": (3 * width, width),
            f"{block}.attn.proj.weight": (width, width),
            f"{block}.attn.proj.bias": (width,),
            f"{block}.mlp.fc1.weight": (hidden, width),
            f"{block}.mlp.fc1.bias": (hidden,),
            f"{block}.mlp.fc2.weight": (width, hidden),
            f"{block}.mlp.fc2.bias": (width,),
        }
        if block.startswith("out"):
            shapes |= {f"{block}.skip_linear.weight": (width, 2 * width), f"{block}.skip_linear.bias": (width,)}
    return shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_are_recognised_and_fit(name: str) -> None:
    nnet = PUBLISHED[name]
    source = get_source("u-vit")
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in official_shapes(nnet).items()}
        config = source.recognise(state)
        assert config is not None
        networks = source.build(config)
        load_official(source, networks, state)
    assert {key: config["nnet"][key] for key in nnet} == nnet
    is_latent = nnet["in_chans"] == 4
    assert config["pixel"] is not is_latent and config["null_label"] == (1000 if is_latent else None)
    assert networks["model"].null_label == config["null_label"]


def test_another_layout_is_not_recognised() -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in official_shapes(PUBLISHED["256 L"]).items()}
    del state["mid_block.attn.qkv.weight"]
    assert get_source("u-vit").recognise(state) is None
    assert len({ours for _, ours in KEY_PATTERNS}) == len(KEY_PATTERNS)


def test_a_width_that_was_not_published_leaves_the_heads_to_the_user() -> None:
    source = get_source("u-vit")
    state = {key: torch.empty(shape, device="meta") for key, shape in official_shapes(NNET | {"embed_dim": 64}).items()}
    config = source.recognise(state)
    assert config is not None and config["nnet"]["num_heads"] is None
    with pytest.raises(UserError, match=r'does not tell num_heads of UViT of baofff/U-ViT; give {"nnet": {"num_heads": N}}'):
        source.build(config)


def test_latent_models_are_sampled_as_published() -> None:
    source = get_source("u-vit")
    pipeline = source.pipeline(source.build(LATENT), LATENT)
    assert pipeline.sampling_defaults == {"num_inference_steps": 50, "guidance_scale": 1.4}
    solver = pipeline.scheduler.config
    assert (solver.order, solver.grid, solver.algorithm) == (3, "time_uniform", "dpmsolver++")
    process = pipeline.formulation.config
    assert (process.beta_schedule, process.beta_start, process.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert (process.time_scale, process.time_offset, process.interpolation) == (1.0, 1.0, "log_alpha")
    large = LATENT | {"nnet": NNET | {"img_size": 64}}
    assert source.pipeline(source.build(large), large).sampling_defaults["guidance_scale"] == pytest.approx(1.7)
    other = LATENT | {"guidance_s": 0.0, "sample_steps": 9}
    assert source.pipeline(source.build(other), other).sampling_defaults == {"num_inference_steps": 9, "guidance_scale": 1.0}


def test_pixel_models_are_sampled_as_published() -> None:
    source = get_source("u-vit")
    pipeline = source.pipeline(source.build(PIXEL), PIXEL)
    assert pipeline.sampling_defaults == {"num_inference_steps": 50}
    solver, process = pipeline.scheduler.config, pipeline.formulation.config
    assert (solver.order, solver.grid, solver.algorithm) == (3, "log_snr", "dpmsolver")
    assert (process.schedule, process.time_scale, process.min_time) == ("vp_sde", 999.0, 1e-4)
    slow = PIXEL | {"algorithm": "euler_maruyama_sde", "sample_steps": 1000}
    pipeline = source.pipeline(source.build(slow), slow)
    sde = pipeline.scheduler.config
    assert (sde.form, sde.diffusion_scale, sde.last_step, sde.last_step_size) == ("sbdm", 1.0, "mean", 1e-3)
    assert pipeline.sampling_defaults == {"num_inference_steps": 1000}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LATENT | {"nnet": NNET | {"rope": True}}, "UViT option 'rope' of baofff/U-ViT is unknown here; known: img_size, "),
        (LATENT | {"cfg": True}, "training script option 'cfg' of baofff/U-ViT is unknown here; known: nnet, "),
        ({"nnet": NNET, "null_label": 3}, "null_label of baofff/U-ViT must be the last of num_classes 6, .* got 3"),
        ({"nnet": NNET | {"num_classes": -1}, "null_label": 5}, "null_label 5 of baofff/U-ViT needs a network with num_classes"),
        (LATENT | {"algorithm": "euler_maruyama_ode"}, "algorithm euler_maruyama_ode of baofff/U-ViT is of pixel models"),
        ({"nnet": NNET | {"patch_size": 3}}, "UViT: patch_size must divide sample_size 4, got 3"),
        ({"null_label": 5}, "training script of baofff/U-ViT needs the option nnet"),
    ],
)
def test_options_without_an_equal_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("u-vit").build(config)
