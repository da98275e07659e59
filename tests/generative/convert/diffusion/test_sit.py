"""Official SiT options and checkpoints. Values are compared in tests/parity, names and shapes with DiT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from generative.convert import get_source
from generative.convert.diffusion.sit import formulation, sde_sampler
from generative.convert.files.read import Checkpoint, NetworkPart
from generative.convert.files.recognise import recognise
from generative.core.errors import UserError
from generative.diffusion.formulations.interpolant import Interpolant

CONFIG = {"input_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
SDE = {"diffusion_form": "sigma", "diffusion_norm": 1.0, "last_step": "Mean", "last_step_size": 0.04, "num_steps": 6}


def test_the_pipeline_samples_as_the_published_figure_was_sampled() -> None:
    source = get_source("sit")
    pipeline = source.pipeline(source.build(CONFIG), CONFIG)
    assert pipeline.sampling_defaults == {"num_inference_steps": 250, "guidance_scale": 1.5, "guidance_channels": 3}
    config = pipeline.scheduler.config
    assert (config.form, config.last_step, config.last_step_size, config.method) == ("sigma", "mean", 0.04, "euler")
    assert pipeline.formulation.identity() == Interpolant(data_time=1).identity()
    other = CONFIG | {"sde": SDE | {"diffusion_form": "decreasing", "last_step": None, "sampling_method": "Heun"}}
    pipeline = source.pipeline(source.build(other), other)
    config = pipeline.scheduler.config
    assert (config.form, config.last_step, config.method) == ("decreasing", "none", "heun")
    assert pipeline.sampling_defaults["num_inference_steps"] == 6


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({}, (0.0, 1.0)),
        ({"path_type": "GVP", "train_eps": 0.1, "sample_eps": 0.1}, (0.0, 1.0)),
        ({"prediction": "noise"}, (0.001, 0.999)),
        ({"prediction": "score", "sample_eps": 0.1}, (0.001, 0.999)),
        ({"prediction": "score", "train_eps": 0.1, "sample_eps": 0.01}, (0.01, 0.99)),
        ({"path_type": "VP"}, (0.001, 1.0)),
    ],
)
def test_the_path_is_followed_as_far_as_officially(options: dict[str, Any], levels: tuple[float, float]) -> None:
    config = formulation(CONFIG | options).config
    assert (config.min_level, config.max_level) == levels


def test_the_last_step_is_as_long_as_it_says_wherever_the_path_ends() -> None:
    config = CONFIG | {"prediction": "noise", "sde": SDE}
    grid, data = sde_sampler(config).grid(formulation(config), 6)
    assert (float(grid[0]), float(grid[-1]), float(data)) == pytest.approx((0.001, 0.96, 1.0))
    grid, _ = sde_sampler(config, last_step=None).grid(formulation(config), 6)
    assert float(grid[-1]) == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path_type": "cosine"}, "path_type='cosine' of willisma/SiT is not supported here; supported: 'Linear', 'GVP', 'VP'"),
        ({"prediction": "x"}, "prediction='x' of willisma/SiT is not supported here; supported: 'velocity', 'noise', 'score'"),
        ({"qk_norm": True}, "SiT option 'qk_norm' of willisma/SiT is unknown here; known: input_size, "),
        ({"sde": {"churn": 1}}, "SDE sampler option 'churn' of willisma/SiT is unknown here; known: diffusion_form, "),
        ({"sde": {"diffusion_form": "x"}}, "SDE sampler option diffusion_form='x' of willisma/SiT is not supported here"),
        ({"sde": 3}, "sde of willisma/SiT must be options by name, got 3"),
        ({"prediction": "noise", "train_eps": 0.1}, "train_eps of willisma/SiT needs sample_eps beside it; give both or neither"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("sit").build(CONFIG | change)


def checkpoint(name: str, arguments: dict[str, Any] | None = None) -> Checkpoint:
    """Tensors that may be of DiT or of SiT, in a file of a name, with arguments of a training script."""
    with torch.device("meta"):
        network = get_source("sit").build(CONFIG | {"hidden_size": 384, "num_heads": 6, "num_classes": 7})["model"]
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    official = {
        "pos_embed": "position_embedding",
        "x_embedder.proj.weight": "patch_embedding.weight",
        "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
        "y_embedder.embedding_table.weight": "label_embedding.weight",
        "blocks.0.adaLN_modulation.1.weight": "blocks.0.modulation.weight",
        "blocks.0.mlp.fc1.weight": "blocks.0.mlp.fc1.weight",
        "final_layer.linear.weight": "final_layer.linear.weight",
    }
    state = {key: torch.empty(shapes[ours], device="meta") for key, ours in official.items()}
    return Checkpoint([NetworkPart(Path(name), None, state, arguments=arguments or {})], {}, [])


def test_the_file_name_or_the_user_tells_dit_from_sit() -> None:
    for name, wanted in (("DiT-XL-2-256x256.pt", "dit"), ("SiT-XL-2-256x256.pt", "sit")):
        given = checkpoint(name)
        assert recognise(given, given.parts, None, None).source.name == wanted
    given = checkpoint("0050000.pt")
    with pytest.raises(UserError, match="the checkpoint may be of any of dit, sit; say which with --source"):
        recognise(given, given.parts, None, None)
    given = checkpoint("0050000.pt", {"model": "SiT-XL/2", "path_type": "VP", "prediction": "noise", "num_classes": 3})
    found = recognise(given, given.parts, None, None)
    assert (found.config["path_type"], found.config["prediction"], found.config["num_classes"]) == ("VP", "noise", 7)
    found = recognise(given, given.parts, "sit", {"path_type": "GVP"})
    assert found.config["path_type"] == "GVP" and found.config["learn_sigma"] and found.config["num_heads"] == 6
