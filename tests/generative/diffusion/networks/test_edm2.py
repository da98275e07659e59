"""The magnitude-preserving U-Net. Its agreement with the official implementation is tested in tests/parity."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from denoiser_contract import DenoiserContract
from torch import Tensor

from generative.core.errors import UserError
from generative.diffusion.networks.edm2 import EDM2UNet
from generative.layers.magnitude_preserving import (
    MPConv2d,
    MPFourier,
    MPLayer,
    MPLinear,
    ScaledRows,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    row_scale,
)
from generative.layers.resampling import resample_by_taps

SMALL: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "num_classes": 4,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attention_resolutions": (4,),
    "channels_per_head": 8,
    "logvar_channels": 8,
}


def make_unet(**options: Any) -> EDM2UNet:
    """A tiny network whose gains, which start at zero, are made random, so that everything shows in its output."""
    torch.manual_seed(0)
    model = EDM2UNet(**(SMALL | options))
    for parameter in model.parameters():
        if parameter.dim() == 0:
            torch.nn.init.normal_(parameter)
    return model.eval()


def inputs(batch_size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples, times and labels, the last of them null."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch_size, 3, 8, 8, generator=generator)
    return sample, torch.linspace(-1, 1, batch_size), torch.arange(batch_size) + 5 - batch_size


class TestDenoiser(DenoiserContract):
    variants = ({}, {"channel_mult": (2, 1), "num_blocks": 2}, {"class_conditional": False})
    times = (-1.0, 0.1, 1.0)
    checkpointed = {"dropout": 0.5}

    def make(self, **options: Any) -> EDM2UNet:
        return make_unet(**options)

    def check_without_labels(self, network: EDM2UNet, sample: Tensor, times: Tensor) -> None:
        """No label is a one-hot vector of zeros, officially."""
        assert network(sample, times).prediction.shape == sample.shape


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channel_mult": (2, 1), "num_blocks": 2},
        {"channel_mult": (1,)},
        {"attention_resolutions": ()},
        {"attention_resolutions": (8,), "channels_per_head": 64},
        {"channel_mult_noise": 2, "channel_mult_emb": 3, "resample_filter": (1, 3, 3, 1), "clip_act": None},
        {"class_conditional": False},
    ],
)
def test_output_shape_and_gradients(options: dict[str, Any]) -> None:
    model = make_unet(**options).train()
    output = model(*inputs())
    assert output.prediction.shape == (3, 3, 8, 8) and output.log_variance.shape == (3,)
    (output.prediction.square().sum() + output.log_variance.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_fresh_network_predicts_zero_and_the_null_label_is_no_label() -> None:
    sample, times, _ = inputs()
    assert not EDM2UNet(**SMALL)(sample, times).prediction.any()
    model = make_unet(class_dropout_prob=0.1)
    null = model(sample, times, torch.full((3,), model.null_label)).prediction
    assert torch.equal(model(sample, times).prediction, null)
    assert not torch.allclose(model(sample, times, torch.tensor([0, 1, 2])).prediction, null)
    assert make_unet().null_label is None


def test_weights_of_classes_stand_for_labels() -> None:
    sample, times, labels = inputs()
    model = make_unet()
    expected = model(sample, times, labels).prediction
    assert torch.equal(model(sample, times, F.one_hot(labels, 5)[:, :4].float()).prediction, expected)


def test_representations_count_by_their_direction_and_zeros_are_null() -> None:
    sample, times, _ = inputs()
    model = make_unet(representation_dim=6, class_dropout_prob=0.1)
    vector = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
    expected = model(sample, times, vector=vector).prediction
    torch.testing.assert_close(model(sample, times, vector=5 * vector).prediction, expected, rtol=1e-2, atol=1e-3)
    null = model(sample, times).prediction
    assert torch.equal(model(sample, times, vector=torch.zeros(3, 6)).prediction, null) and not torch.allclose(null, expected)
    wide = make_unet(representation_dim=256, model_channels=64)
    embedded = wide.vector_embedding(3 * torch.randn(64, 256), None, 64)
    assert embedded.dtype == torch.float32 and abs(embedded.square().mean().sqrt() - 1) < 0.1


def test_training_normalises_the_weights_in_place_and_evaluation_leaves_them() -> None:
    model = make_unet()
    before = copy.deepcopy(model.state_dict())
    expected = model(*inputs())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    trained = model.train()(*inputs())
    layers = [module for module in model.modules() if isinstance(module, MPLayer)]
    rows = [layer.weight.flatten(1).square().mean(1).sqrt() for layer in layers]
    assert all(torch.allclose(row, torch.ones_like(row), atol=1e-3) for row in rows) and len(layers) > 20
    # Weights are normalised at every use, so that it changes next to nothing in what is computed.
    torch.testing.assert_close(trained.prediction, expected.prediction, rtol=1e-3, atol=1e-3)


def test_skips_pass_through_join() -> None:
    model = make_unet(channel_mult=(1, 2, 2))
    widths: list[int] = []

    def zero_skips(hidden: torch.Tensor, skip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        widths.append(hidden.shape[1])
        return hidden, torch.zeros_like(skip)

    expected = model(*inputs()).prediction
    model.skip_transform = zero_skips
    assert not torch.allclose(model(*inputs()).prediction, expected)
    assert tuple(dict.fromkeys(widths)) == model.decoder_widths == (16, 8)


def test_layers_keep_the_magnitude() -> None:
    torch.manual_seed(0)
    sample = torch.randn(8, 64, 16, 16)
    for result in (
        MPConv2d(64, 64)(sample)[:, :, 1:-1, 1:-1],
        MPLinear(64, 64)(sample.movedim(1, -1)),
        mp_silu(sample),
        mp_sum(sample, sample.flip(0), 0.3),
        mp_cat(sample[:, :16], sample[:, 16:] + 0.0, 0.3),
        MPFourier(256)(torch.randn(64)),
        normalize(7 * sample, dims=(1,)),
    ):
        assert abs(result.square().mean().sqrt() - 1) < 0.05


def test_resampling_halves_and_doubles() -> None:
    sample = torch.randn(2, 3, 8, 8)
    for taps in ((1, 1), (1, 3, 3, 1)):
        constant = torch.ones(1, 1, 8, 8)
        assert torch.allclose(resample_by_taps(constant, "down", taps)[..., 1:-1, 1:-1], torch.ones(1, 1, 2, 2))
        assert torch.allclose(resample_by_taps(constant, "up", taps)[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12))
    plain = F.conv2d(sample.flatten(0, 1)[:, None], torch.full((1, 1, 2, 2), 0.25), stride=2).reshape(2, 3, 4, 4)
    assert torch.allclose(resample_by_taps(sample, "down"), plain, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"sample_size": 9}, "sample_size must be a multiple of 2"),
        ({"channel_mult": ()}, r"channel_mult must be 1 or more, got \(\)"),
        ({"channel_mult_emb": 0}, "channel_mult_emb must be 1 or more, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"class_conditional": False, "class_dropout_prob": 0.1}, "class_dropout_prob 0.1 has no meaning without classes"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"residual_balance": 1.5}, r"residual_balance must be in \[0, 1\], got 1.5"),
        ({"clip_act": 0.0}, "clip_act must be above 0"),
        ({"resample_filter": (1, 2, 1)}, "even number of taps"),
        ({"channels_per_head": 5}, "16 channels does not divide into 3 heads"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        EDM2UNet(**(SMALL | options))


def test_forward_differentiation_passes_through_and_can_be_trained() -> None:
    model, (sample, timestep, labels) = make_unet().train(), inputs()
    step, tangents = 1e-2, (torch.ones_like(sample), torch.ones_like(timestep))

    def predict(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return model(sample, timestep, labels).prediction

    _, slope = torch.func.jvp(predict, (sample, timestep), tangents)
    model.eval()  # which writes into no weight
    with torch.no_grad():
        ends = [predict(*(at + sign * step for at in (sample, timestep))) for sign in (1, -1)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-2, atol=1e-2)
    slope.square().sum().backward()
    assert model.conv_in.weight.grad is not None and bool(model.conv_in.weight.grad.abs().sum() > 0)


def test_the_gradient_of_scaled_rows_has_a_gradient() -> None:
    weight, gain = torch.randn(3, 4, requires_grad=True), torch.tensor(0.7, requires_grad=True)

    def plain(weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return weight * row_scale(weight, gain)[0]

    second = []
    for function in (plain, lambda weight, gain: ScaledRows.apply(weight, gain, torch.float32)):
        first = torch.autograd.grad(function(weight, gain).pow(3).sum(), (weight, gain), create_graph=True)
        second.append(torch.autograd.grad(sum(each.square().sum() for each in first), (weight, gain)))
    torch.testing.assert_close(second[0], second[1])
