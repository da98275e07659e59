"""Training of MAR and eMIGM: masked means, weights, autoencoders, weight decay, and that the loss falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from seeded import generator

from generative.autoregressive.continuous.emigm import EMIGM
from generative.autoregressive.continuous.mar import MAR
from generative.autoregressive.continuous.objective import ContinuousTokenObjective, EMIGMObjective, MARObjective
from generative.autoregressive.options import MAROptions
from generative.core.ema import ConstantEMA
from generative.core.errors import UserError
from generative.core.types import Batch, StepContext
from generative.tokenizers.base import fingerprint

SMALL: dict[str, Any] = {
    "sample_size": 4, "patch_size": 2, "in_channels": 3, "num_classes": 5, "buffer_size": 2,
    "encoder_hidden_size": 16, "encoder_depth": 1, "encoder_num_heads": 2, "residual_dropout": 0.0, "attention_dropout": 0.0,
    "decoder_hidden_size": 16, "decoder_depth": 1, "decoder_num_heads": 2, "head_width": 8, "head_depth": 1,
}  # fmt: skip


def batch() -> Batch:
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return {"images": images, "class_labels": torch.arange(6) % 5}


def objectives() -> list[ContinuousTokenObjective]:
    torch.manual_seed(0)
    return [
        MARObjective(MAR(**SMALL), torch.optim.AdamW, mask_ratio_min=0.3),
        EMIGMObjective(EMIGM(**SMALL), torch.optim.AdamW, diffusion_batch_mul=3),
        EMIGMObjective(EMIGM(**SMALL, drop_masked=False, mask_strategy="linear"), torch.optim.AdamW, weighted_loss=True),
    ]


def autoencoder(**options: Any) -> AutoencoderKL:
    torch.manual_seed(1)
    sizes = {"block_out_channels": (4, 4), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 2}
    return AutoencoderKL(**sizes, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, scaling_factor=0.5, **options)


@pytest.mark.parametrize("index", range(3))
def test_loss_is_a_sum_over_noised_masked_tokens(index: int) -> None:
    objective = objectives()[index]
    losses = objective.loss(objective.networks, batch(), StepContext(0, 0, generator()))
    masked = round(float(losses["masked_share"]) * 24)  # 6 images of 4 tokens
    assert losses["denominator"] == masked * objective.diffusion_batch_mul
    mean = losses["loss"] / losses["denominator"]
    if index < 2:
        torch.testing.assert_close(mean, losses["mse"] + losses["variational_bound"])
        assert 0.5 < float(losses["mse"].detach()) < 2  # a new head predicts no noise
    losses["loss"].backward()
    again = objective.loss(objective.networks, batch(), StepContext(0, 0, generator()))
    assert torch.equal(again["loss"], losses["loss"])
    assert not torch.equal(objective.loss(objective.networks, batch(), StepContext(0, 0, generator(1)))["loss"], losses["loss"])


def test_weights_are_those_of_each_image() -> None:
    objective = objectives()[2]
    draw = objective.masking.draw(6, 4, generator())
    assert draw.weights is not None and len(draw.weights.unique()) == 6
    plain = EMIGMObjective(objective.networks["network"], torch.optim.AdamW)  # type: ignore[arg-type]
    plain.masking = type(plain.masking)("linear", per_image=True)  # type: ignore[call-arg]
    weighted = objective.loss(objective.networks, batch(), StepContext(0, 0, generator()))
    unweighted = plain.loss(objective.networks, batch(), StepContext(0, 0, generator()))
    torch.testing.assert_close(weighted["mse"], unweighted["mse"])
    assert bool(weighted["loss"] > unweighted["loss"])  # 1 / p is above 1


@pytest.mark.parametrize("index", range(2))
def test_the_loss_falls(index: int) -> None:
    objective = objectives()[index]
    network = objective.networks["network"].train()
    optimizer = torch.optim.AdamW(objective.parameter_groups("network"), lr=1e-2)
    first = last = 0.0
    for step in range(40):
        losses = objective.loss(objective.networks, batch(), StepContext(0, 0, generator(step)))
        optimizer.zero_grad()
        (losses["loss"] / losses["denominator"]).backward()
        optimizer.step()
        first += float(losses["mse"].detach()) * (step < 10) / 10
        last += float(losses["mse"].detach()) * (step >= 30) / 10
    assert last < 0.8 * first and network.training


def test_all_parameters_learn_and_the_head_and_vectors_do_not_decay() -> None:
    objective = objectives()[0]
    network = objective.networks["network"]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    objective.label_dropout = 0.5
    for seed in range(12):  # some masks leave nothing to see
        objective.loss(objective.networks, batch(), StepContext(0, 0, generator(seed)))["loss"].backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    decayed, kept = objective.parameter_groups("network")
    names = {id(p): name for name, p in network.named_parameters()}
    assert kept["weight_decay"] == 0 and "weight_decay" not in decayed
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
    assert {"head.output.weight", "encoder_norm.weight"} <= {names[id(p)] for p in kept["params"]}
    assert {"null_embedding", "encoder_positions", "class_embedding.weight"} <= {names[id(p)] for p in decayed["params"]}


def test_latents_come_from_the_autoencoder_or_the_cache() -> None:
    vae = autoencoder()
    objective = MARObjective(MAR(**SMALL), torch.optim.AdamW, ConstantEMA(0.9), vae)
    assert objective.image_size == 8 and objective.encoder_fingerprint() == fingerprint(vae)
    assert not any(p.requires_grad for p in vae.parameters()) and set(objective.ema) == {"network"}
    images: Batch = {"images": torch.zeros(2, 3, 8, 8), "class_labels": torch.tensor([0, 1])}
    assert objective.encoder.encode(images, generator()).shape == (2, 3, 4, 4)
    cached: Batch = {"latents": torch.ones(2, 3, 4, 4), "class_labels": torch.tensor([0, 1])}
    assert torch.equal(objective.encoder.encode(cached, generator()), cached["latents"])
    assert objectives()[0].encoder_fingerprint() is None


def test_pipelines_carry_the_sampling_options() -> None:
    mar, emigm, _ = objectives()
    assert mar.pipeline(mar.networks).sampling_defaults["guidance_schedule"] == "linear"
    assert emigm.pipeline(emigm.networks).sampling_defaults["solver"] == "dpm-solver"


def test_wrong_options_are_refused() -> None:
    network = MAR(**SMALL)
    with pytest.raises(UserError, match="in_channels=3 but the autoencoder's latents have 4 channels"):
        MARObjective(network, torch.optim.AdamW, autoencoder=AutoencoderKL(latent_channels=4))
    with pytest.raises(UserError, match="autoencoder must be an AutoencoderKL or AutoencoderDC"):
        MARObjective(network, torch.optim.AdamW, autoencoder=network)
    with pytest.raises(UserError, match=r"label_dropout must be in \[0, 1\), got 1"):
        MARObjective(network, torch.optim.AdamW, label_dropout=1)
    with pytest.raises(UserError, match="diffusion_batch_mul must be at least 1, got 0"):
        MARObjective(network, torch.optim.AdamW, diffusion_batch_mul=0)
    with pytest.raises(UserError, match="guidance_scale must be 0 or more"):
        MARObjective(network, torch.optim.AdamW, sampling=MAROptions(guidance_scale=-1))
