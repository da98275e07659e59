"""The KL autoencoder: its loss by hand, one stream of noise, loading by diffusers' own class, bad options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from generative.core.errors import UserError
from generative.tokenizers.kl import KLAutoencoder


def build(**options: Any) -> KLAutoencoder:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return KLAutoencoder(**{"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 8, **blocks, **options})


def images() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_divergence_is_torchs() -> None:
    network = build().eval()
    result = network(images(), torch.Generator().manual_seed(1))
    posterior = network.encode(images()).latent_dist
    distribution = torch.distributions.Normal(posterior.mean, posterior.std)
    divergence = torch.distributions.kl_divergence(distribution, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    assert result.losses["kl"].item() == pytest.approx(divergence.item() / (3 * 8 * 8), rel=1e-5)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(result.latents, posterior.mean + posterior.std * noise)
    torch.testing.assert_close(result.images, network.decode(result.latents).sample)
    assert result.codes == {} and not result.latents.requires_grad and network.last_layer is network.decoder.conv_out.weight


def test_bfloat16_keeps_the_loss_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        result = build()(images(), torch.Generator().manual_seed(1))
    assert result.losses["kl"].dtype == result.latents.dtype == torch.float32
    exact = build()(images(), torch.Generator().manual_seed(1))
    assert result.losses["kl"].item() == pytest.approx(exact.losses["kl"].item(), rel=0.05)


def test_diffusers_own_class_loads_it(tmp_path: Path) -> None:
    network = build(scaling_factor=0.5).eval()
    network.save_pretrained(tmp_path)
    ours, theirs = KLAutoencoder.from_pretrained(tmp_path), AutoencoderKL.from_pretrained(tmp_path)
    assert type(theirs) is AutoencoderKL and theirs.config.scaling_factor == ours.config.scaling_factor == 0.5
    mean = network.encode(images()).latent_dist.mean
    torch.testing.assert_close(theirs.encode(images()).latent_dist.mean, mean)
    torch.testing.assert_close(ours.encode(images()).latent_dist.mean, mean)
    assert ours.image_size == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"up_block_types": ("UpDecoderBlock2D",)}, "up_block_types must name 2 blocks"),
        ({"sample_size": 9}, "sample_size 9 does not divide by 2"),
        ({"norm_num_groups": 3}, "block_out_channels 8 does not divide by norm_num_groups 3"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**options)
