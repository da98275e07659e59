"""The U-Nets of EDM. Their agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from denoiser_contract import DenoiserContract, randomized
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.networks.dhariwal_unet import DhariwalUNet
from generative.diffusion.networks.edm_unet import EDMUNet
from generative.diffusion.networks.song_unet import SongUNet

NETWORKS = pytest.mark.parametrize("network_class", [SongUNet, DhariwalUNet])
NCSNPP = {"embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": (1, 3, 3, 1)}
SKIPS = {"encoder_type": "skip", "decoder_type": "skip"}


def make_unet(network_class: type[EDMUNet], **options: Any) -> EDMUNet:
    """A tiny U-Net with random weights."""
    torch.manual_seed(0)  # of the Fourier embedding's frequencies
    small = {"sample_size": 8, "num_classes": 4, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "augment_dim": 9}
    heads = {"channels_per_head": 8} if network_class is DhariwalUNet else {}
    return randomized(network_class(**(small | {"attn_resolutions": (4,)} | heads | options)))


def make_inputs(size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples, times, labels (one of them null) and labels of augmentation."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(3, 3, size, size, generator=generator)
    return sample, torch.tensor([-1.5, 0.1, 1.0]), torch.tensor([0, 3, 4]), torch.randn(3, 9, generator=generator)


class EDMContract(DenoiserContract):
    network_class: ClassVar[type[EDMUNet]]
    times = (-1.5, 0.1, 1.0)
    checkpointed = {"dropout": 0.3}

    def make(self, **options: Any) -> EDMUNet:
        return make_unet(self.network_class, **options)

    def check_without_labels(self, network: EDMUNet, sample: Tensor, times: Tensor) -> None:
        """No label is a one-hot vector of zeros, officially."""
        assert network(sample, times).prediction.shape == sample.shape


class TestSong(EDMContract):
    network_class = SongUNet
    variants = ({}, NCSNPP, {"class_conditional": False})
    saved = NCSNPP


class TestNCSNPP(EDMContract):
    network_class = SongUNet

    def make(self, **options: Any) -> EDMUNet:
        return super().make(**(NCSNPP | options))


class TestDhariwal(EDMContract):
    network_class = DhariwalUNet
    variants = ({}, {"channels_per_head": 64, "num_blocks": 2}, {"class_conditional": False})


@pytest.mark.parametrize(
    ("network_class", "options"),
    [
        (SongUNet, {}),
        (SongUNet, NCSNPP),
        (SongUNet, SKIPS | {"channel_mult": (2, 1, 1)}),
        (SongUNet, {"channel_mult": (1,), "attn_resolutions": ()}),
        (DhariwalUNet, {}),
        (DhariwalUNet, {"channels_per_head": 64, "num_blocks": 2}),
    ],
)
def test_each_image_depends_on_its_own_inputs_only(network_class: type[EDMUNet], options: dict[str, Any]) -> None:
    network = make_unet(network_class, **options)
    inputs = make_inputs()
    together = network(*inputs).prediction
    assert together.shape == (3, 3, 8, 8)
    for row in range(3):
        alone = network(*(value[row : row + 1] for value in inputs)).prediction
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)
    for place in range(4):
        changed = [value.flip(0) if index == place else value for index, value in enumerate(inputs)]
        assert not torch.allclose(together, network(*changed).prediction)


@NETWORKS
def test_the_null_condition_is_a_row_of_zeros(network_class: type[EDMUNet]) -> None:
    network = make_unet(network_class, class_dropout_prob=0.1)
    sample, times, _, _ = make_inputs()
    absent = network(sample, times).prediction
    assert network.null_label == 4
    assert torch.equal(network(sample, times, torch.full((3,), 4)).prediction, absent)
    assert torch.equal(network(sample, times, torch.zeros(3, 4), torch.zeros(3, 9)).prediction, absent)
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 1, 2]), 4).float()
    torch.testing.assert_close(network(sample, times, one_hot).prediction, network(sample, times, torch.arange(3)).prediction)
    assert make_unet(network_class).null_label is None


@NETWORKS
def test_the_null_representation_is_zeros_and_a_fresh_one_is_as_large_as_a_class(network_class: type[EDMUNet]) -> None:
    network = make_unet(network_class, representation_dim=6, class_dropout_prob=0.1)
    sample, times, labels, _ = make_inputs()
    absent = network(sample, times).prediction
    assert torch.equal(network(sample, times, vector=torch.zeros(3, 6)).prediction, absent)
    assert not any("label_" in name for name in network.state_dict())
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "model_channels": 32, "channel_mult": (1,), "num_blocks": 1, "num_classes": 256}
    of_classes, of_vectors = network_class(**sizes), network_class(**sizes, representation_dim=256)
    vector = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))
    sizes_of = [
        made.embed_labels(torch.arange(64), 64, given).std() for made, given in ((of_classes, None), (of_vectors, vector))
    ]
    torch.testing.assert_close(*sizes_of, rtol=0.1, atol=0)


@NETWORKS
def test_a_network_without_classes_ignores_labels(network_class: type[EDMUNet]) -> None:
    network = make_unet(network_class, class_conditional=False)
    sample, times, labels, _ = make_inputs()
    assert torch.equal(network(sample, times, labels).prediction, network(sample, times).prediction)
    assert not any("label" in name for name in network.state_dict())


@NETWORKS
def test_fresh_networks_predict_next_to_nothing(network_class: type[EDMUNet]) -> None:
    torch.manual_seed(0)
    network = network_class(sample_size=8, model_channels=16, channel_mult=(1, 2), num_blocks=1, num_classes=4)
    assert network(*make_inputs()[:3]).prediction.abs().max() < 1e-3


@NETWORKS
def test_decoders_join_skips_of_known_widths(network_class: type[EDMUNet]) -> None:
    network = make_unet(network_class, channel_mult=(1, 2, 3))
    seen = []

    def watch(hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(hidden.shape[1])
        return hidden, 0 * skip

    plain = network(*make_inputs()).prediction
    network.skip_transform = watch
    assert not torch.allclose(network(*make_inputs()).prediction, plain)
    assert network.decoder_widths == tuple(dict.fromkeys(seen)) == (24, 16, 8)


@pytest.mark.parametrize(
    ("network_class", "options", "message"),
    [
        (SongUNet, {"num_blocks": 0}, "SongUNet: num_blocks must be at least 1, got 0"),
        (SongUNet, {"dropout": 1.0}, r"SongUNet: dropout must be in \[0, 1\), got 1.0"),
        (SongUNet, {"channel_mult": ()}, "SongUNet: channel_mult must be positive whole numbers, one a level"),
        (SongUNet, {"channel_mult": (1, 1, 1, 1, 1)}, "SongUNet: sample_size must halve 4 times .* got 8"),
        (SongUNet, {"model_channels": 3}, "must be even and at least 4, got 3"),
        (SongUNet, {"encoder_type": "deep"}, "encoder_type must be one of standard, residual, skip, got 'deep'"),
        (SongUNet, {"resample_filter": (1, 2, 1)}, "resample_filter must be an even number of taps"),
        (SongUNet, {"class_conditional": False, "class_dropout_prob": 0.1}, "has no meaning without classes"),
        (DhariwalUNet, {"model_channels": 7}, "DhariwalUNet: model_channels must be even, got 7"),
        (DhariwalUNet, {"model_channels": 14}, "14 channels does not divide into the 3 groups"),
        (DhariwalUNet, {"num_classes": 0}, "DhariwalUNet: num_classes must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_be_are_refused(network_class: type[EDMUNet], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_unet(network_class, **options)
