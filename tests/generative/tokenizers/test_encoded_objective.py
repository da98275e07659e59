"""What a network is trained on: ids, latents or pixels, cached or encoded now, and labels of which some are dropped."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from seeded import generator
from torch import nn

from generative.core.errors import UserError
from generative.core.types import Batch, Losses, Networks, StepContext
from generative.tokenizers.base import fingerprint
from generative.tokenizers.encoded_objective import EncodedObjective, FrozenEncoder, drop_labels
from generative.tokenizers.latents import encode_images
from generative.tokenizers.pixel import PixelTokenizer
from pipelines.base import ImagePipeline

SIZE = SimpleNamespace(config=SimpleNamespace(sample_size=4, num_classes=3))


class Plain(EncodedObjective):
    """Nothing but what is shared."""

    def loss(self, networks: Networks, batch: Batch, context: StepContext) -> Losses:
        return {}

    def pipeline(self, networks: Networks) -> ImagePipeline:
        raise AssertionError("not sampled from")


def make_autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**blocks, block_out_channels=(4, 4), norm_num_groups=2, latents_mean=[0.1] * 4, latents_std=[2.0] * 4)


def make_batch(size: int) -> Batch:
    return {"images": torch.rand(6, 3, size, size, generator=generator()) * 2 - 1, "class_labels": torch.arange(6) % 3}


def test_ids_of_a_tokenizer() -> None:
    tokenizer = PixelTokenizer(2, 3)
    encoder, batch = FrozenEncoder(tokenizer), make_batch(2)
    assert torch.equal(encoder.encode(batch, generator()), tokenizer.encode(batch["images"]))
    cached: Batch = {"tokens": torch.ones(6, 4, dtype=torch.int64)}
    assert encoder.encode(cached, generator()) is cached["tokens"]
    assert encoder.networks == {"tokenizer": tokenizer} and encoder.fingerprint == fingerprint(tokenizer)
    assert encoder.image_size(SIZE) == 2  # the tokenizer's own


def test_latents_of_an_autoencoder() -> None:
    """Scaled by channel, drawn from the generator alone, without gradients."""
    autoencoder = make_autoencoder().train()
    encoder, batch = FrozenEncoder(autoencoder), make_batch(8)
    assert not autoencoder.training and not any(p.requires_grad for p in autoencoder.parameters())
    latents = encoder.encode(batch, generator())
    assert torch.equal(latents, encode_images(autoencoder, batch["images"], generator())) and not latents.requires_grad
    cached: Batch = {"latents": torch.ones(6, 4, 4, 4)}
    assert encoder.encode(cached, generator()) is cached["latents"]
    assert encoder.networks == {"autoencoder": autoencoder} and encoder.fingerprint == fingerprint(autoencoder)
    assert encoder.image_size(SIZE) == 8


def test_images_as_they_are() -> None:
    encoder, batch = FrozenEncoder(None), make_batch(4)
    assert encoder.encode(batch, generator()) is batch["images"]
    assert (encoder.networks, encoder.fingerprint, encoder.image_size(SIZE)) == ({}, None, 4)


def test_another_network_is_refused() -> None:
    with pytest.raises(UserError, match="autoencoder must be an AutoencoderKL or AutoencoderDC .*got Linear"):
        FrozenEncoder(nn.Linear(1, 1))


def test_latents_are_drawn_before_labels_are_dropped() -> None:
    objective = Plain("net", SIZE, make_autoencoder(), torch.optim.AdamW, None, 0.5)
    batch, ours = make_batch(8), generator()
    latents, labels = objective.inputs(batch, StepContext(0, 0, ours))
    theirs = generator()
    assert torch.equal(latents, encode_images(objective.frozen["autoencoder"], batch["images"], theirs))
    assert torch.equal(labels, torch.where(torch.rand(6, generator=theirs) < 0.5, 3, batch["class_labels"]))
    assert torch.equal(torch.rand(3, generator=ours), torch.rand(3, generator=theirs))  # nothing else was drawn
    (phase,) = objective.phases()
    assert (phase.name, phase.networks, phase.optimizer) == ("net", ("net",), "net")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_of_labels_outside_their_range_are_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"label_dropout must be in \[0, 1\), got"):
        Plain("net", SIZE, None, torch.optim.AdamW, None, share)


def test_labels_are_dropped_at_the_given_rate_and_others_kept() -> None:
    labels = torch.arange(10).repeat(1000)
    dropped = drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0))
    assert (dropped == 10).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped[dropped < 10], labels[dropped < 10])
    assert torch.equal(drop_labels(labels, 10, 0.1, torch.Generator().manual_seed(0)), dropped)


def test_rate_zero_drops_nothing_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    labels = torch.arange(10)
    assert drop_labels(labels, 10, 0.0, generator) is labels
    assert torch.equal(generator.get_state(), state)
