"""How the outputs of Projected GAN's parity files follow from their inputs; its adapters share it."""

from __future__ import annotations

import functools

import torch
from outputs import Given, Table, Tensors
from torch import Tensor

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


@torch.enable_grad()
def hinge_outputs(inputs: Tensors) -> dict[str, Tensor]:
    """Both sides of the hinge loss, and the discriminator's gradients."""
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


def network_outputs(given: Given) -> dict[str, Tensor]:
    """Mixed maps, images and logits of all networks of a file."""
    results: dict[str, Tensor] = {}
    num_features = sum(key.startswith("features/") for key in given.inputs)
    maps = [given.inputs[f"features/{index}"] for index in range(num_features)]
    for projector in [network for network in given.networks.values() if isinstance(network, FeatureProjector)][:1]:
        mixed = projector_outputs(projector, maps)
        results |= {f"{mixing}/{index}": value for mixing, values in mixed.items() for index, value in enumerate(values)}
        maps = list(mixed.values())[-1]  # the heads look at the last mixing
    for name, network in given.networks.items():
        if isinstance(network, FastGANGenerator):
            results |= generator_outputs(name, network, given.inputs, given.config[name].get("img_channels", 3))
        elif isinstance(network, MultiScaleHeads):
            labels = given.inputs["y"][: len(maps[0])]
            results[f"{name}/logits"] = network.eval()(maps, labels)
            results[f"{name}/logits_train"] = network.train()(maps, labels)
    return results


def augmented(given: Given) -> dict[str, Tensor]:
    """Images under the file's policies of augmentation."""
    policies = [options.get("policy", "") for name, options in given.config.items() if name.startswith("diffaug")]
    return {name: value for policy in policies for name, value in augmentation_outputs(policy, given.inputs).items()}


def outputs(given: Given) -> Table:
    """The table of outputs."""
    run = functools.cache(lambda: network_outputs(given))

    def strided(name: str, stride: str) -> Tensor:
        return run()[name][:, :, :: int(stride), :: int(stride)]

    return {
        r"(.+/images(?:_train)?)_stride(\d+)": strided,
        "diffaug/.+": lambda: augmented(given),
        "hinge/.+": lambda: hinge_outputs(given.inputs),
        ".+": run,
    }
