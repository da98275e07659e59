"""How the outputs of var-vqvae parity files follow from their inputs, through the code that trains and samples."""

from __future__ import annotations

import torch
from outputs import Given, Table
from torch import Tensor

from generative.convert.tokenizers.var_vqvae import official_loss

SOURCE = "var-vqvae"
GRADIENTS = ("vq_loss_grad_f", "vq_loss_grad_embedding", "vq_loss_grad_phi0_weight")


@torch.enable_grad()
def training_loss(given: Given) -> dict[str, Tensor]:
    """The official loss of the quantiser and its gradients, through the loss only."""
    model = given.model
    latents = model.encode_latents(given.inputs["images"]).detach().requires_grad_()
    loss = official_loss(model.quantizer(latents).losses, given.config)
    sources = [latents, model.quantizer.codebook]
    if len(model.quantizer.phis):
        sources.append(model.quantizer.phis[0].weight)
    gradients = torch.autograd.grad(loss, sources)
    names = GRADIENTS[: len(sources)]
    return {"vq_loss": loss.detach().reshape(1)} | dict(zip(names, gradients, strict=True))


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, images, given_ids = given.model, given.inputs["images"], given.inputs["given_ids"]
    ids = model.encode(images)
    return {
        "f": lambda: model.encode_latents(images),
        "ids": ids,
        "f_hats": lambda: torch.stack(model.accumulate(ids)),
        "recon_image": lambda: model.decode(ids),
        "var_input": lambda: model.teacher_inputs(ids),
        "forward_image_unclamped": lambda: model(images).images,
        "given_ids_f_hats": lambda: torch.stack(model.accumulate(given_ids)),
        "given_ids_image": lambda: model.decode(given_ids),
        "given_ids_var_input": lambda: model.teacher_inputs(given_ids),
        "vq_loss.*": lambda: training_loss(given),
    }
