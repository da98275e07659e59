"""How the outputs of BigGAN-PyTorch's parity files (sagan, biggan, biggan-deep) follow from their inputs.

The adapters of the three models share it; they differ in their source and in how it names our tensors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping

import torch
from outputs import Given, Table, Tensors
from torch import Tensor
from torch.nn import Module, Parameter

from generative.core.ema import ConstantEMA, start_average, update_average
from generative.gan.losses import ADVERSARIAL_LOSSES
from generative.gan.orthogonal import add_orthogonal_gradient
from generative.gan.sampling import TF_HUB_THRESHOLD, truncated_normal

OurKey = Callable[[str, str], str | None]

SPECTRAL_TENSOR = re.compile(r"\.(u|sv)(\d+)$")


def official_buffer(module: str, network: Module, key: str, our_key: OurKey) -> Tensor:
    """Our buffer under its official name and shape.

    Args:
        module: ``generator`` or ``discriminator``.
        network: Our network.
        key: Official name, such as ``linear.u0``.
        our_key: ``(module, official key) -> our key``, from the source.

    Raises:
        KeyError: If our network has no such tensor.
    """
    if key.endswith(".accumulation_counter"):  # standing sums, which the official train mode leaves at 0 unless told otherwise
        return torch.zeros(1)
    name = our_key(module, key)
    if name is None:
        raise KeyError(f"after_train/{module}/{key}")
    value = network.state_dict()[name]
    spectral = SPECTRAL_TENSOR.search(key)
    if spectral is None:
        return value.clone()
    return value[int(spectral[2])].reshape((1, -1) if spectral[1] == "u" else (1,)).clone()


@torch.enable_grad()
def discriminator_gradients(network: Module, inputs: Tensors) -> dict[str, Tensor]:
    """Gradients of sum(logits * cotangent) in eval mode, by our names."""
    network.zero_grad()
    logits = network(inputs["images"], inputs["y_d"]).reshape(inputs["cotangent"].shape)
    (logits * inputs["cotangent"]).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


def network_outputs(networks: Mapping[str, Module], inputs: Tensors) -> dict[str, Tensor]:
    """Images, features and logits in eval mode, then in one train-mode call each, which moves the buffers."""
    results: dict[str, Tensor] = {}
    generator, discriminator = networks.get("generator"), networks.get("discriminator")
    with torch.no_grad():
        if generator is not None and "z" in inputs:
            z = inputs["z"][:, : generator.z_dim]  # the official code passes over what hierarchical noise leaves undivided
            results["images"] = generator.eval()(z, inputs["y"])
            results["images_train"] = generator.train()(z, inputs["y"])
        if discriminator is not None and "images" in inputs:
            rows = len(inputs["images"])
            results["features"] = discriminator.eval().features(inputs["images"])
            results["logits"] = discriminator(inputs["images"], inputs["y_d"]).reshape(rows, -1)
            results["logits_train"] = discriminator.train()(inputs["images"], inputs["y_d"]).reshape(rows, -1)
    return results


def hinge_outputs(inputs: Tensors) -> dict[str, Tensor]:
    """Both sides of the hinge loss; logits of 1 (real) and -1 (fake) cost nothing, which tells its two terms apart."""
    real, fake = inputs["hinge/real_logits"], inputs["hinge/fake_logits"]
    hinge = ADVERSARIAL_LOSSES["hinge"]
    losses = {
        "d_loss": hinge.discriminator(real, fake),
        "d_loss_real": hinge.discriminator(real, torch.full_like(fake, -1.0)),
        "d_loss_fake": hinge.discriminator(torch.full_like(real, 1.0), fake),
        "g_loss": hinge.generator(fake, None),
    }
    return {f"hinge/{name}": loss.reshape(1) for name, loss in losses.items()}


def ortho_outputs(inputs: Tensors) -> dict[str, Tensor]:
    """Gradients after orthogonal regularisation, which spares the shared class embedding."""
    parameters: dict[str, Parameter] = {}
    for key, value in inputs.items():
        prefix, _, name = key.partition("_")
        if prefix == "ortho/weight":
            parameters[name] = Parameter(value.clone())
            parameters[name].grad = inputs[f"ortho/grad_before_{name}"].clone()
    regularised = [parameter for name, parameter in parameters.items() if name != "shared"]
    add_orthogonal_gradient(regularised, inputs["ortho/strength"].item())
    return {f"ortho/grad_after_{name}": parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


class Steps(Module):
    """A network whose tensors are given at each step.

    Args:
        values: (T, ...) by name; those named ``running...`` are buffers.
    """

    def __init__(self, values: Tensors) -> None:
        super().__init__()
        self.values = dict(values)
        for name, rows in values.items():
            if name.startswith("running"):
                self.register_buffer(name, rows[0].clone())
            else:
                self.register_parameter(name, Parameter(rows[0].clone()))

    def go_to(self, step: int) -> None:
        """Take the values of a step."""
        self.load_state_dict({name: rows[step] for name, rows in self.values.items()})


def ema_outputs(inputs: Tensors) -> dict[str, Tensor]:
    """Average of parameters and buffers after each step; step t of one image has seen t images."""
    source = Steps({key.removeprefix("ema/source_"): value for key, value in inputs.items() if key.startswith("ema/source_")})
    # The official code copies while t < start, ours while the images seen are at most start_images.
    profile = ConstantEMA(inputs["ema/decay"].item(), start_images=int(inputs["ema/start_itr"]) - 1, warmup=False)
    average = start_average(source)
    rows = [{name: value.clone() for name, value in average.state_dict().items()}]
    for step in range(1, max(len(values) for values in source.values.values())):
        source.go_to(step)
        update_average(average, source, profile.decay(images_seen=step, batch_size=1), "average")
        rows.append({name: value.clone() for name, value in average.state_dict().items()})
    return {f"ema/target_{name}": torch.stack([row[name] for row in rows]) for name in source.values}


def truncation_outputs(inputs: Tensors) -> dict[str, Tensor]:
    """The three distributions that go by the name of truncation."""
    threshold = inputs["trunc/threshold"].item()
    return {
        "trunc/z_truncated": truncated_normal(inputs["trunc/uniform"], threshold),
        "trunc/z_hub": threshold * truncated_normal(inputs["trunc/uniform"], TF_HUB_THRESHOLD),
        "trunc/z_scaled": threshold * inputs["trunc/normal"],
    }


def outputs_by(our_key: OurKey, given: Given) -> Table:
    """The table of outputs.

    Args:
        our_key: ``(module, official key) -> our key``, from the source.
        given: ``generator`` and ``discriminator``, or one of them.
    """
    inputs = given.inputs

    @functools.cache
    def run() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Gradients of the stored buffers, then images, features and logits, which move them."""
        gradients = discriminator_gradients(given.networks["discriminator"], inputs) if "cotangent" in inputs else {}
        return gradients, network_outputs(given.networks, inputs)

    def strided(name: str, stride: str) -> Tensor:
        return run()[1][name][:, :, :: int(stride), :: int(stride)]

    def after_train(module: str, key: str) -> Tensor:
        run()
        return official_buffer(module, given.networks[module], key, our_key)

    return {
        "(?:images|logits)(?:_train)?|features": lambda: run()[1],
        r"(images(?:_train)?)_stride(\d+)": strided,
        "after_train/([^/]+)/(.+)": after_train,
        "grad/(discriminator)/(.+)": lambda module, key: run()[0][our_key(module, key) or ""],
        "hinge/.+": lambda: hinge_outputs(inputs),
        "ortho/.+": lambda: ortho_outputs(inputs),
        "ema/.+": lambda: ema_outputs(inputs),
        "trunc/.+": lambda: truncation_outputs(inputs),
    }
