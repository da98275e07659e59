"""What a checkpoint that does not fit is told: every key, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.convert.base import MismatchError, OfficialSource, UnknownKeysError, load_official, split_by_module, split_modules
from generative.core.errors import UserError


class Network(ModelMixin, ConfigMixin):
    """Some linear layers."""

    @register_to_config
    def __init__(self, num_layers: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 3) for _ in range(num_layers))


class Source(OfficialSource):
    """Official names are ours behind ``net.``."""

    name = "toy"
    repository = "nobody/toy"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        return {module: Network(**options) for module, options in config.items()}

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        unknown = [key for key in state if not key.startswith("net.")]
        if unknown:
            raise UnknownKeysError(f"{module} of toy", unknown)
        return {key.removeprefix("net."): value for key, value in state.items()}

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        return None

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> Any:
        raise UserError("toy has no pipeline")


def official(module: str, num_layers: int = 8) -> dict[str, Tensor]:
    return {f"{module}/net.{key}": torch.ones_like(value) for key, value in Network(num_layers).state_dict().items()}


def test_everything_that_fits_is_loaded() -> None:
    networks = Source().build({"generator": {}, "discriminator": {"num_layers": 1}})
    load_official(Source(), networks, official("generator") | official("discriminator", 1))
    assert all(bool((value == 1).all()) for network in networks.values() for value in network.state_dict().values())


def test_every_key_that_does_not_fit_is_named() -> None:
    networks = Source().build({"generator": {}, "discriminator": {"num_layers": 1}})
    state = official("generator") | official("discriminator", 1)
    for index in range(7):
        del state[f"generator/net.layers.{index}.bias"]
        state[f"generator/strange.{index}"] = torch.ones(1)
    state["generator/net.layers.0.weight"] = torch.ones(3, 5)
    state["generator/net.layers.1.more"] = torch.ones(1)
    state["discriminator/net.layers.0.bias"] = torch.ones(4)
    with pytest.raises(MismatchError) as caught:
        load_official(Source(), networks, state)
    assert caught.value.problems == [
        *(f"generator: no place for strange.{index}" for index in range(7)),
        *(f"generator: lacks layers.{index}.bias" for index in range(7)),
        "generator: has no place for layers.1.more",
        "generator: has other shapes for layers.0.weight (3, 5) for (3, 2)",
        "discriminator: has other shapes for layers.0.bias (4,) for (3,)",
    ]
    sentence = str(caught.value)
    assert "generator of toy has no place for the official keys strange.0, " in sentence and "strange.4 and 2 more" in sentence
    assert "the official checkpoint of toy (generator) lacks layers.0.bias, " in sentence
    assert not any(bool((value == 1).all()) for value in networks["discriminator"].state_dict().values()), "half of it is loaded"


def test_tensors_by_module() -> None:
    two = Source().build({"generator": {}, "discriminator": {}})
    assert split_modules(two, {"generator/a": torch.ones(1)}) == {"generator": {"a": torch.ones(1)}, "discriminator": {}}
    with pytest.raises(MismatchError, match="tensors of no module of generator, discriminator: b, encoder/a") as caught:
        split_modules(two, {"generator/a": torch.ones(1), "encoder/a": torch.ones(1), "b": torch.ones(1)})
    assert caught.value.problems == ["belongs to no module: b", "belongs to no module: encoder/a"]
    one = Source().build({"generator": {}})
    assert list(split_modules(one, {"Generator/GBlock/w": torch.ones(1)})["generator"]) == ["Generator/GBlock/w"]
    assert list(split_modules(one, {"generator/a": torch.ones(1)})["generator"]) == ["a"]
    with pytest.raises(MismatchError, match="no module of generator: b"):
        split_modules(one, {"generator/a": torch.ones(1), "b": torch.ones(1)})


def test_names_are_split_by_the_module_that_they_begin_with() -> None:
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    parts = split_by_module({"generator/a.weight": one, "discriminator/a.weight": two, "generator/b/c": three, "a.weight": two})
    assert parts == {"generator": {"a.weight": one, "b/c": three}, "discriminator": {"a.weight": two}, "": {"a.weight": two}}
    assert split_by_module({}) == {}
