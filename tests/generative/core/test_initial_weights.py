"""Starting from the weights of another run."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from generative.core.errors import UserError
from generative.core.initial_weights import start_from
from generative.core.trainer import Trainer


def equal(one: nn.Module, other: nn.Module, but: tuple[str, ...] = ()) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in ours if key not in but)


@pytest.fixture
def source(toy: ModuleType, tmp_path: Path) -> Trainer:
    """A run of two steps, its networks and averages apart."""
    trainer: Trainer = toy.build_trainer(toy.denoiser(), tmp_path / "source", total_images=16)
    trainer.fit()
    assert not equal(trainer.objective.networks["net"], trainer.averages["net"])
    return trainer


def fresh(toy: ModuleType, folder: Path, **options: Any) -> Trainer:
    objective = toy.denoiser(**options)
    for parameter in objective.networks["net"].parameters():
        nn.init.normal_(parameter)
    dataset = toy.ToyImages(num_classes=objective.num_classes)
    trainer: Trainer = toy.build_trainer(objective, folder / "fresh", dataset=dataset)
    return trainer


@pytest.mark.parametrize("place", ["source", "source/checkpoint-00000002"])
def test_networks_and_averages_of_a_run(toy: ModuleType, tmp_path: Path, source: Trainer, place: str) -> None:
    trainer = fresh(toy, tmp_path)
    assert trainer.start_from(tmp_path / place) == [f"weights are those of '{tmp_path}/source/checkpoint-00000002'"]
    assert equal(trainer.objective.networks["net"], source.objective.networks["net"])
    assert equal(trainer.averages["net"], source.averages["net"])
    assert trainer.step == 0
    assert not trainer.optimizers["net"].optimizer.state


def test_a_pipeline_gives_both_its_weights(toy: ModuleType, tmp_path: Path, source: Trainer) -> None:
    """Found by its class: the pipeline calls it otherwise."""
    trainer = fresh(toy, tmp_path)
    trainer.start_from(tmp_path / "source" / "pipeline")
    assert equal(trainer.objective.networks["net"], source.averages["net"])
    assert equal(trainer.averages["net"], source.averages["net"])


def test_another_number_of_classes_is_told(toy: ModuleType, tmp_path: Path, source: Trainer) -> None:
    trainer = fresh(toy, tmp_path, num_classes=5)
    before = trainer.objective.networks["net"].state_dict()["embed.weight"].clone()
    notes = trainer.start_from(tmp_path / "source")
    assert notes[1:] == ["network 'net' has 5 classes, 3 there: embed.weight start afresh"]
    for network, theirs in (
        (trainer.objective.networks["net"], source.objective.networks["net"]),
        (trainer.averages["net"], source.averages["net"]),
    ):
        assert torch.equal(network.state_dict()["embed.weight"], before)
        assert equal(network, theirs, but=("embed.weight",))
    trainer.fit()


def test_what_has_no_counterpart_starts_afresh(toy: ModuleType, tmp_path: Path) -> None:
    toy.build_trainer(toy.gan(toy.adam), tmp_path / "source", total_images=16).fit()
    objective = toy.ToyGAN(toy.adam, toy.adam)
    discriminator = {key: value.clone() for key, value in objective.networks["discriminator"].state_dict().items()}
    notes = toy.build_trainer(objective, tmp_path / "fresh").start_from(tmp_path / "source" / "pipeline")
    assert notes[1:] == [f"network 'discriminator' starts afresh: '{tmp_path}/source/pipeline' has none"]
    assert all(torch.equal(value, objective.networks["discriminator"].state_dict()[key]) for key, value in discriminator.items())


def test_other_settings_and_other_frozen_parts_are_told(toy: ModuleType, tmp_path: Path, source: Trainer) -> None:
    objective = toy.denoiser(dropout=0.5)
    notes = start_from(tmp_path / "source", objective.networks, {}, {})
    assert notes[1:] == ["network 'net' has dropout 0.5, the weights are of one with 0.2"]
    path = tmp_path / "source" / "checkpoint-00000002" / "state.json"
    state = json.loads(path.read_text())
    text = json.dumps({**state, "frozen": {"tokenizer": "a"}})
    path.write_text(text)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["files"]["state.json"] = len(text)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    notes = start_from(tmp_path / "source", objective.networks, {}, {"tokenizer": "b"})
    assert notes[-1] == "these weights were trained with another frozen part 'tokenizer' than this run's"


def test_what_does_not_fit_is_one_sentence(toy: ModuleType, tmp_path: Path, source: Trainer) -> None:
    def refuses(message: str, place: str = "source", **options: Any) -> None:
        trainer = fresh(toy, tmp_path, **options)
        before = {key: value.clone() for key, value in trainer.objective.networks["net"].state_dict().items()}
        with pytest.raises(UserError, match=message) as caught:
            trainer.start_from(tmp_path / place)
        assert "\n" not in str(caught.value)
        after = trainer.objective.networks["net"].state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())

    refuses(r"'embed.weight' is \(3, 8\) there and \(3, 16\) here", width=16)
    refuses("only the stored network has 'norm.bias'", batch_norm=False)
    refuses("does not exist", "nowhere")
    (tmp_path / "empty").mkdir()
    refuses("holds no checkpoint and no pipeline", "empty")
    with pytest.raises(UserError, match=r"holds none of this configuration's networks: wanted generator \(ToyGenerator\)"):
        toy.build_trainer(toy.gan(toy.adam), tmp_path / "gan").start_from(tmp_path / "source")
    objective = toy.denoiser()
    objective.networks["net"] = toy.ToyGenerator()
    with pytest.raises(UserError, match="holds a ToyNet, network 'net' is a ToyGenerator"):
        start_from(tmp_path / "source", objective.networks, {}, {})
    weights = tmp_path / "source" / "checkpoint-00000002" / "networks" / "net" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    refuses("is missing or damaged")
