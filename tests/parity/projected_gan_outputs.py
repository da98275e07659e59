"""How the outputs of Projected GAN's parity files follow from their inputs; its adapters share it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from generative.gan.augment import (
    SMALL_CUTOUT_RATIO,
    ColorDraws,
    PlaceDraws,
    apply_color,
    apply_cutout,
    apply_translation,
)
from generative.gan.fastgan import FastGANGenerator
from generative.gan.losses import ADVERSARIAL_LOSSES
from generative.gan.projected import FeatureProjector
from generative.gan.projected_heads import MultiScaleHeads

Tensors = Mapping[str, Tensor]

STRIDED = re.compile(r"^(.+/images(?:_train)?)(?:_stride(\d+))?$")


def noise_maps(network: FastGANGenerator, inputs: Tensors) -> list[Tensor]:
    """The file's noise in the order of our injections: two at every size."""
    sizes = [shape[-1] for shape in network.noise_shapes]
    return [inputs[f"noise/feat_{size}_{index % 2}"] for index, size in enumerate(sizes)]


def generator_outputs(name: str, network: FastGANGenerator, inputs: Tensors, num_channels: int) -> dict[str, Tensor]:
    """Images in eval mode, then in one train-mode call; grey ones with the one channel that the official network makes."""
    results = {}
    arguments = (inputs["z"], inputs["y"], noise_maps(network, inputs))
    for mode, output in ((False, "images"), (True, "images_train")):
        results[f"{name}/{output}"] = network.train(mode)(*arguments)[:, :num_channels]
    return results


def projector_outputs(network: FeatureProjector, features: list[Tensor]) -> dict[str, list[Tensor]]:
    """Mixed maps by the name of the mixing."""
    mixed = {"ccm": network.mix_channels(features)}
    if network.config.projection == "scale":
        mixed["csm"] = network(features)
    return mixed


def augmentation_outputs(policy: str, inputs: Tensors) -> dict[str, Tensor]:
    """Images after the first, the first two, ... augmentations of a policy, each by the name of the last one."""
    draws = {key.removeprefix("diffaug/"): value for key, value in inputs.items() if key.startswith("diffaug/")}
    images = draws["images"]
    results = {}
    for name in filter(None, policy.split(",")):
        if name == "color":
            images = apply_color(images, ColorDraws(*(draws[field].reshape(-1, 1, 1, 1) for field in ColorDraws._fields)))
        else:
            places = PlaceDraws(*(draws[f"{name}_{axis}"].reshape(-1, 1) for axis in "xy"))  # x is the row axis
            images = (
                apply_translation(images, places) if name == "translation" else apply_cutout(images, places, SMALL_CUTOUT_RATIO)
            )
        results[f"diffaug/{name}"] = images
    return results


def hinge_outputs(inputs: Tensors) -> dict[str, Tensor]:
    """Both sides of the hinge game, and the discriminator's gradients."""
    real = inputs["hinge/real_logits"].clone().requires_grad_(True)
    fake = inputs["hinge/fake_logits"].clone().requires_grad_(True)
    loss = ADVERSARIAL_LOSSES["hinge"].discriminator(real, fake)
    grad_real, grad_fake = torch.autograd.grad(loss, (real, fake))
    return {
        "hinge/d_loss": loss.reshape(1),
        "hinge/g_loss": ADVERSARIAL_LOSSES["hinge"].generator(fake, real).reshape(1),
        "hinge/d_grad_real": grad_real,
        "hinge/d_grad_fake": grad_fake,
    }


def compute_projected_gan(
    networks: Mapping[str, Module], inputs: Tensors, config: Mapping[str, Any], wanted: list[str]
) -> dict[str, Tensor]:
    """Every wanted output.

    Args:
        networks: By module, with the file's weights.
        inputs: The file's inputs.
        config: Official constructor arguments by module.
        wanted: Names of outputs.

    Returns:
        Outputs by name.

    Raises:
        KeyError: For a name that is not known.
    """
    results: dict[str, Tensor] = {}
    num_features = sum(key.startswith("features/") for key in inputs)
    features = [inputs[f"features/{index}"] for index in range(num_features)]
    with torch.no_grad():
        projectors = [network for network in networks.values() if isinstance(network, FeatureProjector)]
        for projector in projectors[:1]:
            for mixing, maps in projector_outputs(projector, features).items():
                results |= {f"{mixing}/{index}": value for index, value in enumerate(maps)}
                seen = maps  # the heads look at the last mixing
        for name, network in networks.items():
            if isinstance(network, FastGANGenerator):
                results |= generator_outputs(name, network, inputs, config[name].get("img_channels", 3))
            elif isinstance(network, MultiScaleHeads):
                maps = seen if projectors else features
                labels = inputs["y"][: len(maps[0])]
                results[f"{name}/logits"] = network.eval()(maps, labels)
                results[f"{name}/logits_train"] = network.train()(maps, labels)
    for name, options in config.items():
        if name.startswith("diffaug"):
            results |= augmentation_outputs(options.get("policy", ""), inputs)
    if "hinge/real_logits" in inputs:
        results |= hinge_outputs(inputs)
    found = {}
    for name in wanted:
        strided = STRIDED.match(name)
        if strided is not None and strided[1] in results:
            stride = int(strided[2] or 1)
            found[name] = results[strided[1]][:, :, ::stride, ::stride]
        elif name in results:
            found[name] = results[name]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise KeyError(f"unknown outputs of projected-gan: {', '.join(missing)}")
    return found
