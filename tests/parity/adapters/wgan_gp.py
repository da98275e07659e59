"""How the outputs of wgan-gp parity files follow from their inputs."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from generative.convert.gan.studiogan import our_key
from generative.gan.dcgan import DCGANGenerator
from generative.gan.losses import ADVERSARIAL_LOSSES
from generative.gan.penalties import interpolated_gradient_penalty

SOURCE = "wgan-gp"
IMAGES = re.compile(r"^images(_train)?(?:_stride(\d+))?$")


def in_mode(network: Module, train: bool) -> Module:
    """A copy in train or eval mode: every output starts from the stored buffers."""
    return copy.deepcopy(network).train(train)


def generator_outputs(network: Module, inputs: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Those of the wanted images that are known: in eval or train mode, whole or every so many rows and columns."""
    results: dict[str, Tensor] = {}
    for name in names:
        match = IMAGES.match(name)
        if match:
            stride = int(match[2] or 1)
            with torch.no_grad():
                images = in_mode(network, train=match[1] is not None)(inputs["z"], inputs["y"])
            results[name] = images[:, :, ::stride, ::stride]
    return results


def penalty_outputs(network: Module, inputs: dict[str, Tensor], train: bool) -> dict[str, Tensor]:
    """Gradient penalty under the labels y_d, mean over the batch, shape (1,); and its gradients by our names."""
    ours = in_mode(network, train)
    real, fake, alpha, labels = (inputs[name] for name in ("real_images", "fake_images", "alpha", "y_d"))
    value = interpolated_gradient_penalty(lambda images: ours(images, labels), real, fake, alpha).mean().reshape(1)
    value.sum().backward()
    found = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    return {"": value.detach(), **found}


def discriminator_outputs(network: Module, inputs: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Those of the wanted logits, features, gradient penalties and gradients of the latter that are known."""
    results: dict[str, Tensor] = {}
    for train in (False, True):
        suffix = "_train" if train else ""
        with torch.no_grad():
            results[f"logits{suffix}"] = in_mode(network, train)(inputs["real_images"], inputs["y_d"])
            results[f"features{suffix}"] = in_mode(network, train).features(inputs["real_images"])
        penalties = penalty_outputs(network, inputs, train)
        results[f"grad_penalty{suffix}"] = penalties[""]
        for name in names:
            kind, _, official = name.partition("/")
            ours = our_key(network, official) if kind == f"grad_penalty{suffix}_grad" else None
            if ours in penalties:
                gradient = penalties[ours]
                results[name] = gradient if gradient.ndim else gradient.reshape(1)  # attention's weight, officially a vector
    return results


def loss_outputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The Wasserstein losses, shape (1,), where the file has logits for them."""
    if "loss/fake_logits" not in inputs:
        return {}
    real, fake = inputs["loss/real_logits"], inputs["loss/fake_logits"]
    game = ADVERSARIAL_LOSSES["wasserstein"]
    return {"d_loss": game.discriminator(real, fake).reshape(1), "g_loss": game.generator(fake, None).reshape(1)}


def compute(
    networks: dict[str, Module], inputs: dict[str, Tensor], config: dict[str, Any], wanted: list[str]
) -> dict[str, Tensor]:
    """Every wanted output.

    Args:
        networks: Generators and discriminators by module name, with the file's weights.
        inputs: The file's inputs.
        config: Official constructor arguments.
        wanted: Names of outputs.

    Returns:
        Outputs by name.

    Raises:
        KeyError: For a name that is not known.
    """
    results: dict[str, Tensor] = {}
    for module, network in networks.items():
        names = [name.removeprefix(f"{module}/") for name in wanted if name.startswith(f"{module}/")]
        find = generator_outputs if isinstance(network, DCGANGenerator) else discriminator_outputs
        results |= {f"{module}/{name}": value for name, value in find(network, inputs, names).items()}
    results |= {f"loss/{name}": value for name, value in loss_outputs(inputs).items()}
    missing = [name for name in wanted if name not in results]
    if missing:
        raise KeyError(f"unknown outputs of wgan-gp: {', '.join(missing)}")
    return {name: results[name] for name in wanted}
