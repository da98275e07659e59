"""Open-MAGVIT2's networks: layout of depth to space, adaptive norm by hand, sizes. Values are compared in tests/parity."""

from __future__ import annotations

import pytest
import torch

from generative.core.errors import UserError
from generative.tokenizers.magvit2_network import AdaptiveGroupNorm, Decoder, Encoder, depth_to_space

SIZES = {"ch": 4, "ch_mult": (1, 2, 2), "num_res_blocks": 2, "z_channels": 5, "norm_groups": 2}


def test_depth_to_space_puts_channels_where_the_official_code_does() -> None:
    channels, height, width = 3, 2, 2
    x = torch.arange(4 * channels * height * width).float().reshape(1, 4 * channels, height, width)
    out = depth_to_space(x)
    assert out.shape == (1, channels, 2 * height, 2 * width)
    for i in range(2):
        for j in range(2):
            for c in range(channels):
                assert torch.equal(out[0, c, i::2, j::2], x[0, (i * 2 + j) * channels + c])
    assert not torch.equal(out, torch.nn.functional.pixel_shuffle(x, 2))


def test_the_adaptive_norm_is_an_affine_map_of_the_style() -> None:
    norm = AdaptiveGroupNorm(4, 3, norm_groups=2)
    generator = torch.Generator().manual_seed(0)
    x, spread, mean = (torch.randn(shape, generator=generator) for shape in ((2, 4, 3, 3), (2, 3), (2, 3)))
    scale = spread @ norm.scale.weight.T + norm.scale.bias
    bias = mean @ norm.bias.weight.T + norm.bias.bias
    groups = x.reshape(2, 2, -1)
    normalised = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    expected = scale[..., None, None] * normalised.reshape(x.shape) + bias[..., None, None]
    torch.testing.assert_close(norm(x, spread, mean), expected)


def test_the_decoder_uses_the_unbiased_variance() -> None:
    """Four latents: their variance over three, not over four, plus epsilon."""
    seen = []
    decoder = Decoder(**SIZES)
    decoder.levels[0].adaptive_norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    latents = torch.randn(1, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    decoder(latents)
    deviations = latents.flatten(2) - latents.flatten(2).mean(2, keepdim=True)
    torch.testing.assert_close(seen[0][1], (deviations.square().sum(2) / 3 + 1e-6).sqrt())
    torch.testing.assert_close(seen[0][2], latents.mean((2, 3)))


def test_sizes_and_biases() -> None:
    encoder, decoder = Encoder(**SIZES), Decoder(**SIZES)
    images = torch.randn(2, 3, 8, 12)
    assert encoder(images).shape == (2, 5, 2, 3)
    assert decoder(encoder(images)).shape == images.shape
    without_bias = {name for name, module in encoder.named_modules() if getattr(module, "bias", 0) is None}
    assert "conv_in" in without_bias and "levels.1.blocks.0.shortcut" in without_bias and "middle.0.conv2" in without_bias
    assert "conv_out" not in without_bias and "levels.0.downsample" not in without_bias
    assert len(encoder.middle) == 2 and len(encoder.levels[2].blocks) == 2 and not list(encoder.levels[2].downsample.parameters())


@pytest.mark.parametrize("network", [Encoder, Decoder])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_groups": 3}, "norm_groups must divide every width of the network, got 3"),
        ({"norm_groups": 0}, "norm_groups must divide"),
        ({"ch_mult": ()}, "ch_mult must hold"),
        ({"ch_mult": (1, 0)}, "ch_mult must hold"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"ch": 0}, "ch must be at least 1"),
    ],
)
def test_impossible_sizes_are_refused(network: type, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        network(**SIZES | change)
