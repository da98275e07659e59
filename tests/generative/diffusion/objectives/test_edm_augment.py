"""EDM's augmentation: compared by hand with the official pipeline under equal draws, here by what it must leave as it is."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from generative.core.errors import UserError
from generative.core.types import StepContext
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.networks.dit import DiT
from generative.diffusion.networks.song_unet import SongUNet
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.objectives.edm_augment import EDMAugment, Transforms, transform

OPTIMIZER = partial(torch.optim.Adam, lr=1e-3)


def make_images(height: int = 16, width: int = 16) -> Tensor:
    """Smooth random images."""
    coarse = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic")


def make_transforms(**values: float) -> Transforms:
    """The same transform for four images; what is not named is not done."""
    names = ("flip_x", "flip_y", "scale", "angle", "anisotropy", "axis", "shift_x", "shift_y")
    return Transforms(**{name: torch.full((4,), values.get(name, 0.0)) for name in names})


def test_without_probability_images_stay_to_the_bit() -> None:
    images = make_images()
    augmented, labels = EDMAugment(0.0)(images, torch.Generator().manual_seed(0))
    assert torch.equal(augmented, images) and not labels.any()


def test_flips_are_exact() -> None:
    images = make_images()
    assert torch.equal(transform(images, make_transforms(flip_x=1)), images.flip(3))
    assert torch.equal(transform(images, make_transforms(flip_y=1)), images.flip(2))


def test_right_angles_turn_pixels() -> None:
    images = make_images(32, 32)
    for angle, expected in ((math.pi, images.flip(2, 3)), (math.pi / 2, images.rot90(1, (2, 3)))):
        turned = transform(images, make_transforms(angle=angle))
        # The wavelet's filter is symmetric up to a few percent only.
        assert (turned - expected).norm() < 0.1 * expected.norm() < 0.2 * (turned - images).norm()


def test_shifts_of_whole_pixels_reflect_at_the_border() -> None:
    images = make_images(16, 24)
    moved = transform(images, make_transforms(shift_x=1.0, shift_y=-0.5))  # 24 / 8 pixels to the right, 1 pixel up
    expected = F.pad(images, (3, 0, 0, 1), mode="reflect")[:, :, 1:, :24]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


def test_scales_and_stretches_are_undone_by_their_opposites() -> None:
    images = make_images(32, 32)
    for there, back in (
        ({"scale": 1.5}, {"scale": -1.5}),
        ({"anisotropy": 1.0, "axis": 0.7}, {"anisotropy": -1.0, "axis": 0.7}),
        ({"angle": 0.3}, {"angle": -0.3}),
    ):
        moved = transform(images, make_transforms(**there))
        assert (moved - images).abs().max() > 0.1
        again = transform(moved, make_transforms(**back))[:, :, 10:-10, 10:-10]
        torch.testing.assert_close(again, images[:, :, 10:-10, 10:-10], rtol=0, atol=0.05)


def test_labels_tell_the_transform() -> None:
    labels = make_transforms(flip_x=1, scale=-1.2, angle=math.pi / 2, anisotropy=2, axis=math.pi, shift_y=0.3).labels()
    torch.testing.assert_close(labels[0], torch.tensor([1, 0, -1.2, -1, 1, -2, 0, 0, 0.3]), rtol=0, atol=1e-6)


def test_draws_are_as_often_as_asked_and_follow_the_generator() -> None:
    augment = EDMAugment(0.25)
    drawn = augment.draw(4000, torch.Generator().manual_seed(0))
    shares = {name: (value != 0).float().mean().item() for name, value in vars(drawn).items()}
    expected = {"flip_x": 0.5, "flip_y": 0.125, "axis": 0.5} | dict.fromkeys(("scale", "angle", "anisotropy"), 0.25)
    assert shares == pytest.approx(expected | dict.fromkeys(("shift_x", "shift_y"), 0.25), abs=0.03)
    assert torch.equal(drawn.shift_x != 0, drawn.shift_y != 0)
    again = augment.draw(4000, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(drawn).items())


def make_objective(denoiser: Any = None, **options: Any) -> DiffusionObjective:
    """Training of a tiny SongUNet."""
    torch.manual_seed(0)
    small = {"sample_size": 8, "model_channels": 8, "channel_mult": (1, 1), "num_blocks": 1, "attn_resolutions": ()}
    denoiser = denoiser or SongUNet(**small, num_classes=3, augment_dim=9)
    return DiffusionObjective(denoiser, EDM(), OPTIMIZER, **options)


def test_training_tells_the_denoiser_and_sampling_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make_objective(augment=EDMAugment(0.5))
    network, given = objective.networks["denoiser"], []
    forward = SongUNet.forward

    def watch(self: SongUNet, *args: Any, **kwargs: Any) -> Any:
        given.append(kwargs.get("augment_labels"))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SongUNet, "forward", watch)
    batch = {"images": make_images(8, 8), "class_labels": torch.tensor([0, 1, 2, 0])}
    context = StepContext(0, 0, torch.Generator().manual_seed(0), {})
    loss = objective.phases()[0].loss_fn({"denoiser": network}, batch, context)["loss"]
    loss.backward()
    assert given[0] is not None and given[0].shape == (4, 9) and given[0].any()
    assert network.augment_embedding.weight.grad.any()
    pipeline = objective.pipeline({"denoiser": network.eval()})
    images = pipeline([0, 1], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert len(images) == 2 and all(labels is None for labels in given[1:]) and len(given) == 4


def test_denoisers_that_cannot_be_told_are_refused() -> None:
    dit = DiT(sample_size=8, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    with pytest.raises(UserError, match="augment needs a denoiser with augment_dim 9, .* this one has 0"):
        make_objective(dit, augment=EDMAugment())
    autoencoder = AutoencoderKL(block_out_channels=(4,), latent_channels=3, norm_num_groups=2)
    with pytest.raises(UserError, match="works on latents; leave augment out"):
        make_objective(augment=EDMAugment(), autoencoder=autoencoder)
    with pytest.raises(UserError, match=r"probability of augmentation must be in \[0, 1\], got 1.2"):
        EDMAugment(1.2)
