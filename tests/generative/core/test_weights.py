"""Networks and averages of runs, checkpoints and pipelines, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from generative.core import checkpoint as ckpt
from generative.core.ema import ConstantEMA
from generative.core.errors import UserError
from generative.core.weights import load_network
from generative.diffusion.networks.dit import DiT

OLD_RUNS = Path(__file__).parents[2] / "fixtures" / "old_runs"


@pytest.fixture
def run(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy GAN of 6 steps with an average of its generator, and checkpoints of steps 4 and 6."""
    monkeypatch.setattr("generative.core.weights.network_class", lambda stored: getattr(toy, stored.kind))
    toy.build_trainer(toy.gan(toy.adam, ema=ConstantEMA(0.9)), tmp_path / "run").fit()
    return tmp_path / "run"


def holds(network: Any, folder: Path) -> bool:
    saved = load_file(folder / ckpt.WEIGHTS)
    return saved.keys() == network.state_dict().keys() and all(torch.equal(saved[k], v) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({}, "checkpoint-00000006/ema/generator"),
        ({"step": 4}, "checkpoint-00000004/ema/generator"),
        ({"name": "generator"}, "checkpoint-00000006/ema/generator"),
        ({"name": "generator", "average": False, "step": 4}, "checkpoint-00000004/networks/generator"),
        ({"name": "discriminator", "average": False}, "checkpoint-00000006/networks/discriminator"),
        ({"name": "network"}, "pipeline/network"),
    ],
)
def test_any_network_of_a_run(run: Path, options: dict[str, Any], place: str) -> None:
    before = torch.get_rng_state()
    network, fingerprint = load_network(run, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert holds(network, run / place)
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert fingerprint == ckpt.fingerprint_network(network)
    again, same = load_network(run / place)
    assert same == fingerprint and holds(again, run / place)


def test_checkpoints_and_pipelines(run: Path) -> None:
    assert holds(load_network(run / "checkpoint-00000004")[0], run / "checkpoint-00000004" / "ema" / "generator")
    assert holds(load_network(run / "pipeline")[0], run / "pipeline" / "network")


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("", {"name": "discriminator"}, "holds no average 'discriminator'; it has generator (ToyGenerator)"),
        ("", {"average": False}, "holds 2 networks (discriminator (ToyDiscriminator), generator (ToyGenerator)); give the name"),
        ("", {"step": 5}, "holds no checkpoint of step 5; it has 4, 6"),
        ("pipeline", {"average": False}, "is a pipeline, which holds no weights in training"),
        ("pipeline", {"step": 6}, "holds no checkpoint of step 6; it has no checkpoint"),
        ("pipeline", {"name": "../pipeline/network"}, "holds no average '../pipeline/network'; it has network (ToyGenerator)"),
        ("pipeline/network", {"name": "other"}, "is the folder of one network"),
        ("nowhere", {}, "nowhere' does not exist; give a run"),
        ("samples", {}, "samples' holds no checkpoint and no pipeline"),
    ],
)
def test_what_is_not_there_is_one_sentence(run: Path, place: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_network(run / place, **options)
    assert message in str(caught.value)


def test_a_run_without_an_average(toy: ModuleType, tmp_path: Path) -> None:
    toy.build_trainer(toy.gan(toy.adam), tmp_path).fit()
    with pytest.raises(UserError, match=r"holds no averages \(none\); take the other weights \(average=False\)"):
        load_network(tmp_path)


def test_classes_of_an_old_run_and_of_diffusers(tmp_path: Path) -> None:
    network, _ = load_network(OLD_RUNS / "dit")
    assert isinstance(network, DiT)
    transformer, one = load_network(OLD_RUNS / "var", "transformer")
    tokenizer, other = load_network(OLD_RUNS / "var", "tokenizer")
    assert one != other and type(transformer) is not type(tokenizer)
    with pytest.raises(UserError, match="holds 2 averages .*; give the name of one"):
        load_network(OLD_RUNS / "var")
    autoencoder = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    autoencoder.save_pretrained(tmp_path)
    assert load_network(tmp_path)[1] == ckpt.fingerprint_network(autoencoder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Popen", "is of a class 'Popen' that this version of diffusers does not have"),
        ("UserError", "is of class UserError, which is no network"),
        ("DDPMScheduler", "is of class DDPMScheduler, which is no network"),
    ],
)
def test_nothing_else_is_loaded(tmp_path: Path, kind: str, message: str) -> None:
    shutil.copytree(OLD_RUNS / "dit" / "pipeline" / "denoiser", tmp_path / "net")
    edit(tmp_path / "net", _class_name=kind)
    with pytest.raises(UserError, match=message):
        load_network(tmp_path / "net")


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    shutil.copytree(OLD_RUNS / "dit" / "pipeline" / "denoiser", folder)
    depth = json.loads((folder / "config.json").read_text())["depth"]
    edit(folder, depth=depth + 1)
    with pytest.raises(UserError, match="the weights in .* are not those of its config.json: missing_keys"):
        load_network(folder)
    edit(folder, depth=depth)
    (folder / ckpt.WEIGHTS).write_bytes(b"half")
    with pytest.raises(UserError, match="cannot be loaded, a file of it is missing or damaged"):
        load_network(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object"):
        load_network(folder)


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
