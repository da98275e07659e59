"""RCG's representation diffusion: official options, keys of whole checkpoints, schedules."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.cli.main import main
from generative.convert import get_source, load_official
from generative.convert.diffusion.rcg import formulation
from generative.core.errors import UserError
from pipelines.representation import load_representation

PUBLISHED: dict[str, Any] = {
    "unet": {
        "in_channels": 256,
        "time_embed_dim": 256,
        "model_channels": 1536,
        "bottleneck_channels": 1536,
        "out_channels": 256,
        "num_res_blocks": 12,
    },
    "cond_stage": {"embed_dim": 512, "n_classes": 1},
}
TINY: dict[str, Any] = {
    "unet": PUBLISHED["unet"]
    | {
        "in_channels": 6,
        "out_channels": 6,
        "time_embed_dim": 4,
        "model_channels": 12,
        "bottleneck_channels": 10,
        "num_res_blocks": 2,
    },
    "cond_stage": {"embed_dim": 8, "n_classes": 3},
}


def with_classes(config: dict[str, Any], n_classes: int) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    changed["unet"] |= {"use_context": True, "context_channels": changed["cond_stage"]["embed_dim"]}
    changed["cond_stage"]["n_classes"] = n_classes
    return changed


def official_state(config: dict[str, Any], device: str = "cpu") -> dict[str, Tensor]:
    """Tensors of the official classes by their names, as the layout has them."""
    unet, classes = config["unet"], config["cond_stage"]
    width, middle, time = unet["model_channels"], unet["bottleneck_channels"], unet["time_embed_dim"]
    shapes: dict[str, tuple[int, ...]] = {"cond_stage/embedding.weight": (classes["n_classes"], classes["embed_dim"])}

    def linear(name: str, fan_in: int, fan_out: int) -> None:
        shapes.update({f"unet/{name}.weight": (fan_out, fan_in), f"unet/{name}.bias": (fan_out,)})

    def norm(name: str, size: int) -> None:
        shapes.update({f"unet/{name}.weight": (size,), f"unet/{name}.bias": (size,)})

    linear("time_embed.0", width, time)
    linear("time_embed.2", time, time)
    linear("input_proj", unet["in_channels"], width)
    for index in range(unet["num_res_blocks"]):
        block = f"res_blocks.{index}."
        norm(block + "in_layers.0", width)
        linear(block + "in_layers.2", width, middle)
        linear(block + "emb_layers.1", time, middle)
        norm(block + "out_layers.0", middle)
        linear(block + "out_layers.3", middle, width)
        if unet.get("use_context"):
            linear(block + "context_layers.1", classes["embed_dim"], middle)
    norm("out.0", width)
    linear("out.2", width, unet["in_channels"])
    return {key: torch.zeros(shape, device=device) for key, shape in shapes.items()}


@pytest.mark.parametrize("n_classes", [1, 1000])
def test_published_checkpoints(n_classes: int) -> None:
    config = PUBLISHED if n_classes == 1 else with_classes(PUBLISHED, n_classes)
    source = get_source("rcg")
    with torch.device("meta"):
        networks = source.build(config)
        state = official_state(config, "meta")
        load_official(source, networks, state)
    recognised = source.recognise(state)
    assert recognised is not None and all(recognised["unet"][key] == value for key, value in config["unet"].items())
    assert networks["model"].config.class_conditional == (n_classes > 1)


def test_a_whole_checkpoint_gives_its_average(tmp_path: Path) -> None:
    config = with_classes(TINY, 3)
    state, whole = official_state(config), {"betas": torch.zeros(1000), "pretrained_encoder.cls_token": torch.zeros(1)}
    for key, value in state.items():
        name = key.partition("/")[2]
        if key.startswith("unet/"):
            whole[f"model.diffusion_model.{name}"] = value
            whole[f"model_ema.diffusion_model{name.replace('.', '')}"] = torch.full_like(value, 0.25)
        else:
            whole[f"cond_stage_model.{name}"] = value
    torch.save({"model": whole, "epoch": 199}, tmp_path / "rdm.pth")
    assert main(["convert", str(tmp_path / "rdm.pth"), "--output", str(tmp_path / "pipeline")]) == 0
    pipeline = load_representation(tmp_path / "pipeline")
    assert pipeline.num_classes == 3 and pipeline.dim == 6 and pipeline.sampling_defaults["num_inference_steps"] == 250
    assert float(pipeline.denoiser.input.weight.detach().mean()) == 0.25 and pipeline.scheduler.config.eta == 1.0


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [
        ("linear", lambda s: torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2),
        ("sqrt_linear", lambda s: torch.linspace(0.0015, 0.0195, 1000, dtype=torch.float64)),
        ("sqrt", lambda s: torch.linspace(0.0015, 0.0195, 1000, dtype=torch.float64) ** 0.5),
    ],
)
def test_official_schedules(schedule: str, betas: Any) -> None:
    options = TINY | {"beta_schedule": schedule, "schedule": {"linear_start": 0.0015, "linear_end": 0.0195}}
    torch.testing.assert_close(formulation(options).process.betas, betas(None), rtol=1e-5, atol=0)


def test_the_cosine_schedule_and_noise_prediction() -> None:
    trained = formulation(TINY | {"beta_schedule": "cosine", "parameterization": "eps"})
    expected = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert trained.process.alphas_cumprod[499].item() == pytest.approx(expected, rel=1e-4)
    assert trained.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"unet": TINY["unet"] | {"attention": 1}}, "'attention' of LTH14/rcg is unknown here"),
        ({"cond_stage": {"embed_dim": 8, "width": 1}}, "'width' of LTH14/rcg is unknown here"),
        ({"schedule": {"linear_begin": 1}}, "'linear_begin' of LTH14/rcg is unknown here"),
        ({"unet": TINY["unet"] | {"out_channels": 12}}, "out_channels=12 of LTH14/rcg must be in_channels 6"),
        ({"unet": TINY["unet"] | {"use_context": True}}, "context_channels 512 of LTH14/rcg must be embed_dim 8"),
        ({"parameterization": "v"}, "parameterization='v'"),
        ({"input_scale": 2.0}, "input_scale=2.0"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        get_source("rcg").build(TINY | change)
    assert "\n" not in str(caught.value)
