"""How the outputs of magvit2-tokenizer parity files follow from their inputs."""

from __future__ import annotations

import torch
from outputs import Given, Table, Tensors
from torch import Tensor
from torch.nn import Module

from generative.tokenizers.lookup_free_quantizer import join_ids, split_ids

SOURCE = "magvit2-tokenizer"


def image_outputs(model: Module, inputs: Tensors, bits: list[int]) -> dict[str, Tensor]:
    """Latents, codes, ids and reconstructions of images."""
    latents = model.encode_latents(inputs["images"])
    ids = model.latents_to_ids(latents)
    codes = model.ids_to_latents(ids, tuple(latents.shape[2:]))
    pre, post = split_ids(ids, bits)
    return {"h": latents, "ids": ids, "ids_pre": pre, "ids_post": post, "quant": codes, "recon": model.reconstruct(codes)}


def id_outputs(model: Module, inputs: Tensors, grid_size: tuple[int, int], bits: list[int]) -> dict[str, Tensor]:
    """Codes and images of ids, taken apart and put together again on the way."""
    ids = join_ids(split_ids(inputs["given_ids"], bits), bits)
    codes = model.ids_to_latents(ids, grid_size)
    return {"codes_of_given_ids": codes, "given_ids_image": model.reconstruct(codes)}


@torch.enable_grad()
def training_outputs(model: Module, latents: Tensor) -> dict[str, Tensor]:
    """Losses of the quantiser in training, and their gradients."""
    latents = latents.clone().requires_grad_(True)
    quantized = model.quantizer.train()(latents)
    losses = quantized.losses
    sample_entropy, codebook_entropy = model.quantizer.entropies(latents.movedim(1, -1).flatten(0, 2))
    gradients = [torch.autograd.grad(losses[name], latents, retain_graph=True)[0] for name in ("entropy", "commitment")]
    return {
        "z_ids": quantized.use.ids.reshape(len(latents), -1),
        "z_losses": torch.stack([sample_entropy, codebook_entropy, losses["entropy"], losses["commitment"]]),
        "z_entropy_loss_grad": gradients[0],
        "z_commitment_grad": gradients[1],
    }


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs = given.model, given.inputs
    half = model.num_bits // 2
    bits = given.config.get("factorized_bits", [half, model.num_bits - half])

    def of_ids() -> dict[str, Tensor]:
        side = int(inputs["given_ids"].shape[1] ** 0.5)
        grid = model.encode_latents(inputs["images"]).shape[2:] if "images" in inputs else (side, side)
        return id_outputs(model, inputs, tuple(grid), bits)

    return {
        "h|ids|ids_pre|ids_post|quant|recon": lambda: image_outputs(model, inputs, bits),
        "codes_of_given_ids|given_ids_image": of_ids,
        "z_.+": lambda: training_outputs(model, inputs["z"]),
    }
