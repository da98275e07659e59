"""Training on images of several sizes in one batch: the loss, its gradients, latents, refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.diffusion.formulations.interpolant import Interpolant
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.fit import FiT
from generative.diffusion.objectives.any_size import AnySizeObjective
from generative.layers.packing import pack_rows, to_images, to_patches
from generative.tokenizers.latents import encode_images

SIZES = torch.tensor([[4, 4], [2, 3], [1, 5]])
SMALL: dict[str, Any] = {"sample_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 1, "num_heads": 2}


def make_objective(network: type[FiT] | type[DiT] = FiT, autoencoder: Any = None, **options: Any) -> AnySizeObjective:
    torch.manual_seed(0)
    denoiser = network(**(SMALL | {"num_classes": 4} | options))
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    formulation = Interpolant(data_time=1, density="logit_normal")
    return AnySizeObjective(denoiser, formulation, partial(torch.optim.AdamW, lr=1e-3), autoencoder=autoencoder)


def batch(side: int = 2, packed: bool = False) -> Any:
    images = torch.randn(3, 3, 16, side**2, generator=torch.Generator().manual_seed(1))
    made = {"images": images, "sizes": SIZES, "class_labels": torch.tensor([0, 1, 3])}
    return made | ({"packing": pack_rows(SIZES, 16, 16)} if packed else {})


def context() -> StepContext:
    return StepContext(0, 0, torch.Generator().manual_seed(2))


def test_the_loss_is_the_mean_over_images_of_their_own_tokens() -> None:
    objective = make_objective()
    made = batch()
    loss = objective.loss(objective.networks, made, context())["loss"]
    generator = context().generator
    _, labels = objective.inputs(made, StepContext(0, 0, generator))
    times = objective.formulation.draw_times(3, generator)
    noise = torch.randn(made["images"].shape, generator=generator)
    each = []
    for row, (height, width) in enumerate(SIZES.tolist()):
        start, drawn = (to_images(values[row : row + 1], height, width, 2) for values in (made["images"], noise))
        time = times[row : row + 1]
        sample = objective.formulation.add_noise(start, drawn, time)
        output = objective.networks["denoiser"](sample, time, labels[row : row + 1])
        each.append(objective.formulation.losses(output, start, drawn, sample, time)["mse"])
    torch.testing.assert_close(loss, torch.cat(each).mean())


def test_packed_training_is_padded_training() -> None:
    objective = make_objective(q_norm="layernorm", k_norm="layernorm", adaln_type="lora", adaln_lora_dim=4)
    results: list[tuple[Tensor, list[Tensor]]] = []
    for packed in (False, True):
        loss = objective.loss(objective.networks, batch(packed=packed), context())["loss"]
        results.append((loss, list(torch.autograd.grad(loss, list(objective.networks["denoiser"].parameters())))))
    torch.testing.assert_close(results[0][0], results[1][0])
    for padded, packed_gradient in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(padded, packed_gradient, rtol=1e-3, atol=1e-5)


def test_latents_are_those_of_each_image_alone() -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    autoencoder = AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=2, sample_size=16, **blocks)
    objective = make_objective(autoencoder=autoencoder, in_channels=2)
    made = batch(side=4)
    patches = objective.encode(made["images"], SIZES, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for row in (2, 1, 0):  # by size, the smaller height first
        height, width = SIZES[row].tolist()
        latents = encode_images(autoencoder, to_images(made["images"][row : row + 1], height, width, 4), generator)
        torch.testing.assert_close(patches[row : row + 1, :, : height * width], to_patches(latents, 2))
        assert not patches[row, :, height * width :].any()
    assert torch.isfinite(objective.loss(objective.networks, made, context())["loss"])


def test_what_does_not_fit_is_refused_before_a_network_runs() -> None:
    with pytest.raises(UserError, match="AnySizeObjective trains on several sizes, and DiT takes one; use a FiT"):
        make_objective(DiT).phases()
    with pytest.raises(UserError, match="trains no variance; set learn_sigma"):
        make_objective(learn_sigma=True).phases()
    objective = make_objective()
    square = {"images": torch.randn(1, 3, 8, 8), "class_labels": torch.tensor([0])}
    with pytest.raises(UserError, match="give it an AspectDataset"):
        objective.inputs(square, context())
    with pytest.raises(UserError, match="a token of this denoiser is 2x2 pixels, and the data's are 4 wide; set token_size"):
        objective.inputs(batch(side=4), context())
    with pytest.raises(UserError, match="up to 16 tokens long and the denoiser's context_size is 12; lower max_tokens"):
        make_objective(context_size=12).inputs(batch(), context())
