"""PatchGAN: the official layout, patch counts, receptive field, initialisation, normalisation."""

from __future__ import annotations

import pytest
import torch
from checkpointed import after_backward, assert_equal
from torch import Tensor

from generative.core.errors import UserError
from generative.tokenizers.patch_discriminator import PatchDiscriminator


def test_the_official_layout() -> None:
    """Shapes and count of taming-transformers' NLayerDiscriminator(3, 64, 3): 2,765,633 parameters."""
    network = PatchDiscriminator()
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if p.dim() == 4]
    widths = [(64, 3), (128, 64), (256, 128), (512, 256), (1, 512)]
    assert shapes == [(*width, 4, 4) for width in widths]
    assert sum(p.numel() for p in network.parameters()) == 2_765_633
    assert network.layers[2].bias is None and network.layers[0].bias is not None
    assert network(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    wide = network.layers[5].weight
    assert wide.std().item() == pytest.approx(0.02, rel=0.02) and abs(wide.mean().item()) < 1e-3


@pytest.mark.parametrize(("image_size", "num_layers"), [(32, 3), (33, 3), (64, 3), (16, 2), (8, 1), (256, 4), (24, 3)])
def test_patches_of_an_image(image_size: int, num_layers: int) -> None:
    network = PatchDiscriminator(2, num_layers)
    size = network.grid_size(image_size)
    assert network(torch.zeros(1, 3, image_size, image_size)).shape == (1, 1, size, size)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="images of 16 pixels are too small .* num_layers=3"):
        PatchDiscriminator(2, 3).grid_size(16)


def test_a_patch_is_70_pixels_wide() -> None:
    network = PatchDiscriminator(2, 3, "spectral").eval()
    images = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0), requires_grad=True)
    network(images)[0, 0, 15, 15].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_spectral_norm_makes_logits_independent_of_the_batch() -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for normalisation, is_independent in (("spectral", True), ("batch", False)):
        torch.manual_seed(0)
        network = PatchDiscriminator(4, 3, normalisation).train()
        network(images)
        alone, together = network.eval()(images[:1]), network(images)[:1]
        torch.testing.assert_close(alone, together)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        alone = network.train()(images[:1])
        network.load_state_dict(state)
        assert torch.allclose(alone, network(images)[:1], atol=1e-6) == is_independent


@pytest.mark.parametrize("normalisation", ["spectral", "batch"])
def test_gradient_checkpointing_moves_state_once(normalisation: str) -> None:
    """Also where two batches are seen before the backward pass, between which moving averages and spectral vectors move."""
    real, fake = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ends = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        network = PatchDiscriminator(4, 3, normalisation)
        if is_checkpointed:
            network.enable_gradient_checkpointing()

        def loss(network: PatchDiscriminator = network) -> Tensor:
            return network(real).square().mean() - network(fake).sin().mean()

        ends.append(after_backward(network, loss))
    assert_equal(ends[0][0], ends[1][0])
    assert ends[1][1] < 0.7 * ends[0][1]


@pytest.mark.parametrize("options", [{"channels": 0}, {"num_layers": 0}, {"normalisation": "layer"}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        PatchDiscriminator(**options)
