"""How the outputs of magvit2-tokenizer parity files follow from their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from generative.tokenizers.lookup_free_quantizer import join_ids, split_ids

SOURCE = "magvit2-tokenizer"


def image_outputs(model: Module, inputs: Mapping[str, Tensor], bits: list[int]) -> dict[str, Tensor]:
    """Latents, codes, ids and reconstructions of images."""
    latents = model.encode_latents(inputs["images"])
    ids = model.latents_to_ids(latents)
    codes = model.ids_to_latents(ids, tuple(latents.shape[2:]))
    pre, post = split_ids(ids, bits)
    return {"h": latents, "ids": ids, "ids_pre": pre, "ids_post": post, "quant": codes, "recon": model.reconstruct(codes)}


def id_outputs(model: Module, inputs: Mapping[str, Tensor], grid_size: tuple[int, int], bits: list[int]) -> dict[str, Tensor]:
    """Codes and images of ids, taken apart and put together again on the way."""
    ids = join_ids(split_ids(inputs["given_ids"], bits), bits)
    codes = model.ids_to_latents(ids, grid_size)
    return {"codes_of_given_ids": codes, "given_ids_image": model.reconstruct(codes)}


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


def compute(
    networks: Mapping[str, Module], inputs: dict[str, Tensor], config: dict[str, Any], wanted: list[str]
) -> dict[str, Tensor]:
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
    half = model.num_bits // 2
    bits = config.get("factorized_bits", [half, model.num_bits - half])
    results: dict[str, Tensor] = {}
    with torch.no_grad():
        if "images" in inputs:
            results |= image_outputs(model, inputs, bits)
        if "given_ids" in inputs:
            grid = results["h"].shape[2:] if "h" in results else [int(inputs["given_ids"].shape[1] ** 0.5)] * 2
            results |= id_outputs(model, inputs, (grid[0], grid[1]), bits)
    if "z" in inputs:
        results |= training_outputs(model, inputs["z"])
    missing = [name for name in wanted if name not in results]
    if missing:
        raise KeyError(f"unknown outputs of magvit2-tokenizer: {', '.join(missing)}")
    return {name: results[name] for name in wanted}
