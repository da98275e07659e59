"""How the outputs of var-vqvae parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module

from generative.convert.tokenizers.var_vqvae import official_loss

SOURCE = "var-vqvae"
GRADIENTS = ("vq_loss_grad_f", "vq_loss_grad_embedding", "vq_loss_grad_phi0_weight")


def training_loss(model: Module, inputs: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """The official loss of the quantiser and its gradients, through the loss only."""
    latents = model.encode_latents(inputs["images"]).detach().requires_grad_()
    loss = official_loss(model.quantizer(latents).losses, config)
    sources = [latents, model.quantizer.codebook]
    if len(model.quantizer.phis):
        sources.append(model.quantizer.phis[0].weight)
    gradients = torch.autograd.grad(loss, sources)
    names = GRADIENTS[: len(sources)]
    return {"vq_loss": loss.detach().reshape(1)} | dict(zip(names, gradients, strict=True))


def compute(networks: dict[str, Module], inputs: dict[str, Tensor], config: dict, wanted: list[str]) -> dict[str, Tensor]:
    """Every wanted output.

    Args:
        networks: ``model`` with the file's weights.
        inputs: The file's inputs.
        config: Official options.
        wanted: Names of outputs.

    Returns:
        Outputs by name.

    Raises:
        KeyError: For a name that is not known.
    """
    model = networks["model"].eval()
    images = inputs["images"]

    def ids() -> Tensor:
        return model.encode(images)

    simple: dict[str, Callable[[], Tensor]] = {
        "f": lambda: model.encode_latents(images),
        "ids": ids,
        "f_hats": lambda: torch.stack(model.accumulate(ids())),
        "recon_image": lambda: model.decode(ids()),
        "var_input": lambda: model.teacher_inputs(ids()),
        "forward_image_unclamped": lambda: model(images).images,
        "given_ids_f_hats": lambda: torch.stack(model.accumulate(inputs["given_ids"])),
        "given_ids_image": lambda: model.decode(inputs["given_ids"]),
        "given_ids_var_input": lambda: model.teacher_inputs(inputs["given_ids"]),
    }
    results: dict[str, Tensor] = {}
    training = training_loss(model, inputs, config) if any(name.startswith("vq_loss") for name in wanted) else {}
    for name in wanted:
        if name in training:
            results[name] = training[name]
        else:
            with torch.no_grad():
                results[name] = simple[name]()
    return results
