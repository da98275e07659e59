"""BigGAN-deep networks: how noise and class enter, blocks, statistics by truncation, errors, shipped configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.cli.config import build_config, parse_train_config
from generative.cli.config_files import find_config
from generative.core.errors import UserError
from generative.gan.biggan_deep import BigGANDeepDiscriminator, BigGANDeepGenerator, discriminator_stages, generator_blocks
from generative.layers.batch_norm import recompute_statistics
from generative.layers.deep_blocks import DeepDiscriminatorBlock, DeepGeneratorBlock, TruncationBatchNorm2d
from generative.layers.gan_blocks import plain_conv
from generative.layers.spectral_norm import SpectralNorm

LABELS = torch.tensor([0, 2, 1])


class NoNorm(torch.nn.Module):
    """Passes the sample on."""

    def forward(self, sample: Tensor, *modulation: Tensor | float) -> Tensor:
        """The sample."""
        return sample


def tiny(resolution: int = 16, **options: Any) -> BigGANDeepGenerator:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"channels": 4, "z_dim": 6, "num_classes": 3, "shared_embedding_dim": 5}
    return BigGANDeepGenerator(resolution, attention_resolutions=(8,), **{**defaults, **options})


@pytest.mark.parametrize("resolution", [8, 16, 32, 64])
def test_shapes_and_range(resolution: int) -> None:
    generator = tiny(resolution)
    discriminator = BigGANDeepDiscriminator(resolution, channels=4, num_classes=3, attention_resolutions=())
    images = generator(torch.randn(3, 6), LABELS)
    assert images.shape == (3, 3, resolution, resolution) and images.abs().max() <= 1
    assert discriminator(images, LABELS).shape == (3,)
    assert generator.image_size == discriminator.image_size == resolution
    assert generator.num_statistics == 1


def test_layouts_are_the_papers() -> None:
    assert generator_blocks(128, 2)[-4:] == ((False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1))
    assert [len(generator_blocks(resolution, 2)) for resolution in (128, 256, 512)] == [10, 12, 14]
    assert discriminator_stages(512) == [256, 128, 64, 32, 16, 8, 4]
    assert discriminator_stages(32) == [16, 8, 8]


def test_a_generator_block_upsamples_its_first_channels() -> None:
    block = DeepGeneratorBlock(8, 4, plain_conv, lambda channels: NoNorm(), upsample=True)
    torch.nn.init.zeros_(block.conv4.weight)
    torch.nn.init.zeros_(block.conv4.bias)
    sample = torch.randn(2, 8, 3, 3)
    expected = sample[:, :4].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(block(sample, torch.zeros(2, 1)), expected, rtol=0, atol=0)


def test_a_discriminator_block_keeps_its_channels_and_makes_the_rest() -> None:
    block = DeepDiscriminatorBlock(4, 8, plain_conv)
    torch.nn.init.zeros_(block.conv4.weight)
    torch.nn.init.zeros_(block.conv4.bias)
    sample = torch.randn(2, 4, 4, 4)
    pooled = sample.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    output = block(sample)
    torch.testing.assert_close(output[:, :4], pooled)
    torch.testing.assert_close(output[:, 4:], block.shortcut(pooled))
    assert DeepDiscriminatorBlock(8, 8, plain_conv, downsample=False).shortcut is None


def test_class_and_all_of_the_noise_enter_every_norm() -> None:
    generator = tiny()
    inputs: list[Tensor] = []
    for block in generator.blocks:
        block.norm4.gain.register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0]))
    z = torch.randn(3, 6)
    generator(z, LABELS)
    expected = torch.cat([generator.class_embedding.weight[LABELS], z], dim=1)
    assert len(inputs) == 4 and all(torch.equal(value, expected) for value in inputs)


def test_mixtures_of_classes() -> None:
    generator = tiny().eval()
    z = torch.randn(3, 6)
    torch.testing.assert_close(generator(z, torch.eye(3)[LABELS]), generator(z, LABELS), rtol=0, atol=1e-6)
    assert generator(z, torch.full((3, 3), 1 / 3)).isfinite().all()


def test_attention_follows_the_last_block_of_its_stage() -> None:
    assert list(tiny(16).attentions) == ["1"]
    assert list(tiny(16, depth=3).attentions) == ["2"]
    discriminator = BigGANDeepDiscriminator(64, channels=4, num_classes=3, attention_resolutions=(32, 4))
    assert list(discriminator.attentions) == ["0", "3"]


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1},
        {"depth": 3},
        {"bottom_width": 3},
        {"norm": "instance"},
        {"norm": "none"},
        {"moving_variance": "biased"},
        {"cross_replica": True},
        {"spectral_norm": False},
        {"num_singular_values": 2, "num_power_iterations": 2},
        {"right_vectors": True},
        {"image_channels": 1},
        {"output_channels": 7},
        {"num_statistics": 5},
        {"block_widths": ((True, 4, 4), (False, 4, 2)), "attention_after": (-1, 0)},
    ],
)
def test_options_of_the_generator_run_in_both_modes(options: dict[str, Any]) -> None:
    generator = tiny(**options)
    for mode in (True, False):
        images = generator.train(mode)(torch.randn(3, 6), LABELS)
        assert images.shape == (3, 3, generator.image_size, generator.image_size) and images.isfinite().all()
    assert generator.image_size == {"bottom_width": 12, "block_widths": 8}.get(next(iter(options)), 16)


def test_statistics_between_rows() -> None:
    norm = TruncationBatchNorm2d(1, num_statistics=5)
    norm.running_mean.copy_(torch.tensor([[0.0], [10.0], [20.0], [30.0], [40.0]]))
    norm.running_var.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]]))
    # The released code weighs the lower row by the fraction: 0.3 is a fifth of the way from 0.25 to 0.5.
    for truncation, mean, variance in ((0.25, 10.0, 2.0), (0.3, 18.0, 2.8), (0.5, 20.0, 3.0), (1.0, 40.0, 5.0)):
        found = norm.statistics(truncation)
        torch.testing.assert_close(torch.cat(found), torch.tensor([mean, variance]))
    # 1 / (1 / 49) is a little more than 49: the last row all the same.
    assert TruncationBatchNorm2d(1, num_statistics=50).statistics(1.0)[0].shape == (1,)


def test_truncation_chooses_the_statistics() -> None:
    generator = tiny(num_statistics=3).eval()
    for module in generator.modules():
        if isinstance(module, TruncationBatchNorm2d):
            module.running_mean[1] = 1.0
    z = torch.randn(3, 6)
    torch.testing.assert_close(generator(z, LABELS), generator(z, LABELS, 1.0), rtol=0, atol=0)
    assert not torch.allclose(generator(z, LABELS, 0.5), generator(z, LABELS, 1.0))
    for truncation in (0.0, 1.01, -0.5):
        with pytest.raises(UserError, match=r"truncation must be in \(0, 1\]"):
            generator(z, LABELS, truncation)
    with pytest.raises(UserError, match="one set of batch-norm statistics"):
        tiny()(z, LABELS, 0.5)


def test_right_vectors_are_kept_and_do_not_move_in_eval() -> None:
    generator = tiny(right_vectors=True)
    norms = [module for module in generator.modules() if isinstance(module, SpectralNorm)]
    assert norms and all(norm.v is not None for norm in norms)
    z = torch.randn(3, 6)
    generator.eval()(z, LABELS)
    before = generator.conv_out.spectral_norm.v.clone()
    assert torch.equal(generator.conv_out.spectral_norm.v, before)
    generator.train()(z, LABELS)
    assert not torch.equal(generator.conv_out.spectral_norm.v, before)


def test_standing_statistics_reach_every_norm() -> None:
    generator = tiny()
    recompute_statistics(generator, lambda: generator(torch.randn(8, 6), torch.randint(3, (8,))), 2)
    for name, value in generator.named_buffers():
        if name.endswith("running_mean"):
            assert value.abs().max() > 0, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 20}, "resolution must be one of .*, got 20"),
        ({"z_dim": 0}, "z_dim must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"norm": "layer"}, "norm must be one of batch, instance, none, got 'layer'"),
        ({"weight_init": "ortho"}, "weight_init must be one of xavier, orthogonal, normal, got 'ortho'"),
        ({"channels": 1, "block_widths": ((True, 2, 1),)}, "needs at least 4 channels, got 2; raise channels"),
        ({"attention_resolutions": (64,)}, "attention_resolutions names 64, but the blocks put out 8, 16"),
        ({"num_statistics": 3, "norm": "none"}, "num_statistics 3 are those of norm 'batch', got norm 'none'"),
        ({"output_channels": 2}, "output_channels must be at least image_channels 3, got 2"),
        ({"block_widths": ()}, "block_widths must name at least one block"),
        ({"block_widths": ((True, 4, 2), (True, 4, 2))}, "block 0 puts out width 2 but block 1 takes 4"),
        ({"block_widths": ((True, 2, 4),)}, "cannot widen, got 8 channels in and 16 out"),
        ({"block_widths": ((True, 4, 4),), "attention_after": (1,)}, "attention_after must number blocks from -1 to 0, got 1"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"resolution": 16, "channels": 4, "num_classes": 3, "attention_resolutions": (8,)}
    with pytest.raises(UserError, match=message):
        BigGANDeepGenerator(**{**arguments, **options})


@pytest.mark.parametrize(
    "options", [{}, {"block_widths": ((True, 4, 4), (False, 4, 2)), "num_statistics": 3, "right_vectors": True}]
)
def test_saving_and_loading_is_bit_equal(options: dict[str, Any], tmp_path: Path) -> None:
    generator = tiny(**options)
    inputs = (torch.randn(3, 6), LABELS)
    generator(*inputs)  # moves the buffers away from their start
    generator.eval().save_pretrained(tmp_path)
    loaded: Any = BigGANDeepGenerator.from_pretrained(tmp_path, use_safetensors=True)
    torch.testing.assert_close(loaded(*inputs), generator(*inputs), rtol=0, atol=0)


# Parameters of the official constructors at these options; the discriminator at 512, which has none, is ours.
FULL_SIZE = [(128, 50_244_484, 34_590_210), (256, 55_736_708, 38_247_426), (512, 56_019_780, 38_301_122)]


@pytest.mark.parametrize(("resolution", "generator_size", "discriminator_size"), FULL_SIZE)
def test_paper_scale_configurations_build(resolution: int, generator_size: int, discriminator_size: int) -> None:
    size = [f"imagenet/sizes/biggan_deep_{resolution}"] if resolution > 128 else []
    parser, config = parse_train_config([find_config(name) for name in ("imagenet/biggan_deep_128", *size)])
    assert config.data.init_args.image_size == resolution
    config.data = None  # not here
    with torch.device("meta"):
        objective = build_config(parser, config).objective
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in objective.networks.items()}
    assert sizes == {"generator": generator_size, "discriminator": discriminator_size}
    profile = objective.ema["generator"].profile
    images_per_step = config.trainer.batch_size * objective.discriminator_steps
    assert profile.decay(19_999 * images_per_step, images_per_step) == 0
    assert profile.decay(20_000 * images_per_step, images_per_step) == 0.9999
