"""DCGAN networks: sizes, class conditions, spectral norm as torch's own, second derivatives, errors, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from generative.core.errors import UserError
from generative.gan.dcgan import DCGANDiscriminator, DCGANGenerator
from generative.gan.dcgan_layers import SPECTRAL_NORM_EPS, DCGANLayers
from generative.gan.penalties import interpolated_gradient_penalty


def make_generator(**options: Any) -> DCGANGenerator:
    torch.manual_seed(0)
    return DCGANGenerator(**{"z_dim": 6, "num_classes": 3, "widths": (16, 8), **options})


def make_discriminator(**options: Any) -> DCGANDiscriminator:
    torch.manual_seed(0)
    return DCGANDiscriminator(**{"image_size": 8, "num_classes": 3, "widths": (8, 16), "last_width": 8, **options})


@pytest.mark.parametrize(("widths", "size"), [((16, 8), 8), ((16, 8, 8), 16), ((16, 8, 8, 8), 32), ((8, 8, 8, 8, 8), 64)])
def test_widths_set_the_size(widths: tuple[int, ...], size: int) -> None:
    generator, discriminator = make_generator(widths=widths), make_discriminator(image_size=size)
    labels = torch.tensor([0, 2])
    images = generator(torch.randn(2, 6), labels)
    assert images.shape == (2, 3, size, size) and generator.image_size == discriminator.image_size == size
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (2,)
    assert discriminator.features(images).shape == (2, 8)


def test_the_class_changes_the_image_and_the_logit() -> None:
    generator, discriminator = make_generator().eval(), make_discriminator().eval()
    z, labels = torch.randn(1, 6).expand(2, 6), torch.tensor([0, 1])
    images = generator(z, labels)
    assert not torch.allclose(images[0], images[1])
    logits = discriminator(images[:1].expand(2, -1, -1, -1), labels)
    assert not torch.allclose(logits[0], logits[1])


def test_without_conditions_labels_are_ignored() -> None:
    generator, discriminator = make_generator(class_conditional=False).eval(), make_discriminator(conditioning="none").eval()
    z = torch.randn(2, 6)
    images = generator(z, torch.tensor([0, 1]))
    torch.testing.assert_close(generator(z, torch.tensor([2, 0])), images)
    assert torch.equal(discriminator(images, torch.tensor([0, 1])), discriminator(images, torch.tensor([2, 2])))


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_mixture_of_one_class_is_that_class(spectral_norm: bool) -> None:
    generator = make_generator(spectral_norm=spectral_norm).eval()
    z, labels = torch.randn(3, 6), torch.tensor([0, 2, 1])
    one_hot = nn.functional.one_hot(labels, 3).float()
    torch.testing.assert_close(generator(z, one_hot), generator(z, labels))
    half = generator(z, torch.full((3, 3), 1 / 3))
    assert not torch.allclose(half, generator(z, labels), atol=1e-4)


def test_one_output_per_class_takes_the_label_s() -> None:
    discriminator = make_discriminator(conditioning="class_output").eval()
    images, labels = torch.randn(3, 3, 8, 8), torch.tensor([2, 0, 1])
    every = discriminator.linear(discriminator.features(images))
    assert torch.equal(discriminator(images, labels), every[[0, 1, 2], labels])


def test_features_are_sums_over_positions() -> None:
    discriminator = make_discriminator(batch_norm=False, conditioning="none").eval()
    halves: list[torch.Tensor] = []
    discriminator.last.register_forward_hook(lambda module, inputs, output: halves.append(output))
    features = discriminator.features(torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(features, halves[0][:, :, 0, 0] + halves[0][:, :, 0, 1] + halves[0][:, :, 1].sum(-1))


def test_several_outputs_share_the_projection() -> None:
    discriminator = make_discriminator(output_dim=2).eval()
    images = torch.randn(2, 3, 8, 8)
    change = discriminator(images, torch.tensor([0, 1])) - discriminator(images, torch.tensor([2, 2]))
    assert change.shape == (2, 2)
    torch.testing.assert_close(change[:, 0], change[:, 1])


LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 5, 4, 2, 1), lambda: DCGANLayers(True).conv(3, 5, 4, stride=2), torch.randn(2, 3, 8, 8)),
    "up_conv": (lambda: nn.ConvTranspose2d(3, 5, 4, 2, 1), lambda: DCGANLayers(True).up_conv(3, 5), torch.randn(2, 3, 4, 4)),
    "linear": (lambda: nn.Linear(4, 5), lambda: DCGANLayers(True).linear(4, 5), torch.randn(2, 4)),
    "embedding": (lambda: nn.Embedding(4, 5), lambda: DCGANLayers(True).embedding(4, 5), torch.tensor([3, 0])),
    "class table": (lambda: nn.Linear(4, 5, bias=False), lambda: DCGANLayers(True).class_embedding(4, 5), torch.tensor([3, 0])),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_spectral_norm_is_torch_s(kind: str) -> None:
    """Two training steps and one in eval mode, against ``torch.nn.utils.spectral_norm``."""
    make_theirs, make_ours, inputs = LAYERS[kind]
    theirs, ours = torch.nn.utils.spectral_norm(make_theirs(), eps=SPECTRAL_NORM_EPS), make_ours()
    assert ours.spectral_norm.eps == SPECTRAL_NORM_EPS
    is_table = kind == "class table"
    with torch.no_grad():
        ours.weight.copy_(theirs.weight_orig.T if is_table else theirs.weight_orig)
        if getattr(ours, "bias", None) is not None:
            ours.bias.copy_(theirs.bias)
        ours.spectral_norm.u.copy_(theirs.weight_u[None])
        ours.spectral_norm.v.copy_(theirs.weight_v[None])
    their_inputs = nn.functional.one_hot(inputs, 4).float() if is_table else inputs
    for train in (False, True, True, False):
        expected = theirs.train(train)(their_inputs)
        torch.testing.assert_close(ours.train(train)(inputs), expected)
    ours.train()(inputs).square().sum().backward()
    theirs.train()(their_inputs).square().sum().backward()
    gradient = theirs.weight_orig.grad
    torch.testing.assert_close(ours.weight.grad, gradient.T if is_table else gradient)


@pytest.mark.parametrize("train", [False, True])
def test_the_gradient_penalty_can_be_differentiated(train: bool) -> None:
    """Against finite differences in float64, through batch norm, attention and the projection."""
    discriminator = make_discriminator(attention_resolutions=(4,), activation="elu").double().train(train)
    with torch.no_grad():
        discriminator.attentions["0"].gamma.fill_(0.5)
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 3, 3, 8, 8, generator=generator, dtype=torch.float64)
    alpha, labels = torch.rand(3, 1, generator=generator, dtype=torch.float64), torch.tensor([0, 2, 1])

    def penalty() -> torch.Tensor:
        return interpolated_gradient_penalty(lambda images: discriminator(images, labels), real, fake, alpha).mean()

    penalty().backward()
    for parameter in (discriminator.blocks[0][0].weight, discriminator.blocks[1][4].gain, discriminator.class_embedding.weight):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        derivative = (parameter.grad * direction).sum().item()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter += step * direction
            values.append(penalty().item())
            with torch.no_grad():
                parameter -= step * direction
        assert derivative == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("init", ["orthogonal", "xavier", "normal", None])
def test_initial_weights(init: Any) -> None:
    generator = make_generator(weight_init=init, widths=(64, 32))
    biases = [module.bias for module in (generator.linear, generator.convs[0], generator.conv_out)]
    assert all(bool((bias == 0).all()) == (init is not None) for bias in biases)
    weight = generator.convs[0].weight.flatten(1)
    if init == "orthogonal":
        torch.testing.assert_close(weight @ weight.T, torch.eye(64), atol=1e-5, rtol=0)
    if init == "normal":
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_batch_statistics_are_ours_and_move() -> None:
    generator = make_generator()
    before = generator.norms[0].norm.running_var.clone()
    generator(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    assert not torch.equal(generator.norms[0].norm.running_var, before)
    discriminator = make_discriminator(batch_norm=False)
    assert not any("running" in name for name in discriminator.state_dict())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (make_generator, {"widths": (8,)}, "widths needs two numbers at least"),
        (make_generator, {"widths": (8, 0)}, r"widths\[1\] must be at least 1, got 0"),
        (make_generator, {"z_dim": 0}, "z_dim must be at least 1"),
        (make_generator, {"activation": "swish"}, "activation must be one of relu, leaky_relu, elu, gelu, got 'swish'"),
        (make_generator, {"weight_init": "zeros"}, "weight_init must be one of xavier, orthogonal, normal or null, got 'zeros'"),
        (make_generator, {"attention_resolutions": (16,)}, "attention_resolutions names 16, but the blocks put out 8"),
        (make_generator, {"image_channels": 2}, "image_channels must be 1 or 3, got 2"),
        (make_discriminator, {"image_size": 2}, r"image_size must be at least 2\^\(number of widths\), got 2 with 2 widths"),
        (make_discriminator, {"widths": ()}, r"image_size must be at least 2\^\(number of widths\), got 8 with 0 widths"),
        (make_discriminator, {"conditioning": "concat"}, "conditioning must be none, projection or class_output, got 'concat'"),
        (make_discriminator, {"conditioning": "class_output", "output_dim": 4}, "leave output_dim at 1, got 4"),
        (make_discriminator, {"image_size": 4, "attention_resolutions": (1,)}, "attention_resolutions names 1"),
    ],
)
def test_wrong_options_are_told(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_saving_and_loading_is_bit_equal(tmp_path: Path) -> None:
    labels, images = torch.tensor([0, 1]), torch.randn(2, 3, 8, 8)
    generator = make_generator(spectral_norm=True, attention_resolutions=(8,))
    discriminator = make_discriminator(spectral_norm=True, batch_norm=False, attention_resolutions=(4,))
    z = torch.randn(2, 6)
    generator(z, labels), discriminator(images, labels)  # move vectors and statistics away from where they start
    generator.save_pretrained(tmp_path / "g")
    discriminator.save_pretrained(tmp_path / "d")
    again, other = DCGANGenerator.from_pretrained(tmp_path / "g"), DCGANDiscriminator.from_pretrained(tmp_path / "d")
    assert torch.equal(again.eval()(z, labels), generator.eval()(z, labels))
    assert torch.equal(other.eval()(images, labels), discriminator.eval()(images, labels))


def test_one_image_channel_makes_grey_images() -> None:
    images = make_generator(image_channels=1)(torch.randn(2, 6), torch.tensor([0, 1]))
    assert images.shape == (2, 3, 8, 8) and torch.equal(images[:, 0], images[:, 2])
