"""How the outputs of sagan parity files follow from their inputs."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import Module

from generative.convert.biggan_pytorch import our_key

SOURCE = "sagan"
STRIDED = re.compile(r"^images_train(?:_stride(\d+))?$")


def official_buffer(module: str, network: Module, key: str) -> Tensor:
    """Our buffer under its official name and shape."""
    name = our_key(module, key)
    if name is None:
        raise KeyError(f"after_train/{module}/{key}")
    value = network.state_dict()[name]
    spectral = re.search(r"\.(u|sv)(\d+)$", key)
    if spectral is None:
        return value.clone()
    return value[int(spectral[2])].reshape((1, -1) if spectral[1] == "u" else (1,)).clone()


def discriminator_gradients(network: Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of sum(logits * cotangent) in eval mode, by our names."""
    network.eval()
    network.zero_grad()
    logits = network(inputs["images"], inputs["y_d"]).reshape(inputs["cotangent"].shape)
    (logits * inputs["cotangent"]).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def compute(networks: dict[str, Module], inputs: dict[str, Tensor], config: dict, wanted: list[str]) -> dict[str, Tensor]:
    """Every wanted output.

    Args:
        networks: ``generator`` and ``discriminator`` with the file's weights.
        inputs: The file's inputs.
        config: Official constructor arguments.
        wanted: Names of outputs.

    Returns:
        Outputs by name.

    Raises:
        KeyError: For a name that is not known.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    results: dict[str, Tensor] = {}
    rows = len(inputs["images"])
    gradients = discriminator_gradients(discriminator, inputs)
    with torch.no_grad():
        generator.eval(), discriminator.eval()
        results["images"] = generator(inputs["z"], inputs["y"])
        results["features"] = discriminator.features(inputs["images"])
        results["logits"] = discriminator(inputs["images"], inputs["y_d"]).reshape(rows, -1)
        generator.train(), discriminator.train()
        images_train = generator(inputs["z"], inputs["y"])
        results["logits_train"] = discriminator(inputs["images"], inputs["y_d"]).reshape(rows, -1)
    for name in wanted:
        kind, _, key = name.partition("/")
        module, _, official = key.partition("/")
        strided = STRIDED.match(name)
        if strided:
            stride = int(strided[1] or 1)
            results[name] = images_train[:, :, ::stride, ::stride]
        elif kind == "after_train" and module in networks:
            results[name] = official_buffer(module, networks[module], official)
        elif kind == "grad" and module == "discriminator":
            results[name] = gradients[our_key(module, official) or ""]
    missing = [name for name in wanted if name not in results]
    if missing:
        raise KeyError(f"unknown outputs of sagan: {', '.join(missing)}")
    return {name: results[name] for name in wanted}
