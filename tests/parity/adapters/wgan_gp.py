"""How the outputs of wgan-gp parity files follow from their inputs."""

from __future__ import annotations

import copy
import functools

import torch
from outputs import Given, Table, Tensors
from torch import Tensor
from torch.nn import Module

from generative.convert.gan.studiogan import our_key
from generative.gan.dcgan import DCGANGenerator
from generative.gan.losses import ADVERSARIAL_LOSSES
from generative.gan.penalties import interpolated_gradient_penalty

SOURCE = "wgan-gp"


def in_mode(network: Module, train: bool) -> Module:
    """A copy in train or eval mode: every output starts from the stored buffers."""
    return copy.deepcopy(network).train(train)


def generator_table(name: str, network: Module, inputs: Tensors) -> Table:
    """Images in eval or train mode, whole or every so many rows and columns."""

    def images(train: str | None, stride: str | None) -> Tensor:
        made = in_mode(network, train is not None)(inputs["z"], inputs["y"])
        return made[:, :, :: int(stride or 1), :: int(stride or 1)]

    return {rf"{name}/images(_train)?(?:_stride(\d+))?": images}


@torch.enable_grad()
def gradient_penalty(network: Module, inputs: Tensors, train: bool) -> dict[str, Tensor]:
    """Gradient penalty under the labels y_d, mean over the batch, shape (1,); and its gradients by our names."""
    ours = in_mode(network, train)
    real, fake, alpha, labels = (inputs[name] for name in ("real_images", "fake_images", "alpha", "y_d"))
    value = interpolated_gradient_penalty(lambda images: ours(images, labels), real, fake, alpha).mean().reshape(1)
    value.sum().backward()
    found = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    return {"": value, **found}


def discriminator_table(name: str, network: Module, inputs: Tensors) -> Table:
    """Logits, features, gradient penalties and gradients of the latter, in eval or train mode."""
    images, labels = inputs["real_images"], inputs["y_d"]
    penalty = functools.cache(lambda train: gradient_penalty(network, inputs, train is not None))

    def gradient(train: str | None, key: str) -> Tensor:
        return torch.atleast_1d(penalty(train)[our_key(network, key) or key])  # attention's weight, officially a vector

    return {
        f"{name}/logits(_train)?": lambda train: in_mode(network, train is not None)(images, labels),
        f"{name}/features(_train)?": lambda train: in_mode(network, train is not None).features(images),
        f"{name}/grad_penalty(_train)?": lambda train: penalty(train)[""],
        f"{name}/grad_penalty(_train)?_grad/(.+)": gradient,
    }


def losses(inputs: Tensors) -> dict[str, Tensor]:
    """The Wasserstein losses, shape (1,)."""
    real, fake = inputs["loss/real_logits"], inputs["loss/fake_logits"]
    wasserstein = ADVERSARIAL_LOSSES["wasserstein"]
    return {
        "loss/d_loss": wasserstein.discriminator(real, fake).reshape(1),
        "loss/g_loss": wasserstein.generator(fake, None).reshape(1),
    }


def outputs(given: Given) -> Table:
    """The table of outputs: generators and discriminators by module name, and losses."""
    table: dict = {"loss/.+": lambda: losses(given.inputs)}
    for name, network in given.networks.items():
        part = generator_table if isinstance(network, DCGANGenerator) else discriminator_table
        table |= part(name, network, given.inputs)
    return table
