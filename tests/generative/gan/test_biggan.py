"""BigGAN networks: hierarchical noise, shared embedding, averages and statistics, options, errors, shipped configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.cli.config import build_config, parse_train_config
from generative.cli.config_files import find_config
from generative.core.ema import start_average, update_average
from generative.core.errors import UserError
from generative.gan.biggan import BigGANDiscriminator, BigGANGenerator
from generative.gan.sagan import SAGANDiscriminator, SAGANGenerator
from generative.layers.batch_norm import BatchNorm2d, recompute_statistics

LABELS = torch.tensor([0, 2, 1])


def tiny(resolution: int = 32, **options: Any) -> BigGANGenerator:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"channels": 4, "z_dim": 13, "num_classes": 3, "attention_resolutions": (16,)}
    return BigGANGenerator(resolution, shared_embedding_dim=5, **{**defaults, **options})


def stage_outputs(generator: BigGANGenerator, z: Tensor) -> list[Tensor]:
    """What each block puts out in eval mode."""
    outputs: list[Tensor] = []
    handles = [block.register_forward_hook(lambda module, inputs, output: outputs.append(output)) for block in generator.blocks]
    with torch.no_grad():
        generator.eval()(z, LABELS)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize(("resolution", "z_dim"), [(8, 12), (16, 12), (32, 12), (64, 10)])
def test_shapes_and_range(resolution: int, z_dim: int) -> None:
    generator = tiny(resolution, attention_resolutions=(8,))
    discriminator = BigGANDiscriminator(resolution, channels=4, num_classes=3, attention_resolutions=())
    assert generator.z_dim == z_dim == generator.chunk_dim * (len(generator.blocks) + 1)  # 13 rounded down
    images = generator(torch.randn(3, z_dim), LABELS)
    assert images.shape == (3, 3, resolution, resolution) and images.abs().max() <= 1
    assert discriminator(images, LABELS).shape == (3,)
    assert generator.image_size == discriminator.image_size == resolution


def test_a_chunk_of_noise_enters_at_its_block() -> None:
    """Chunk 0 feeds the linear layer, chunk i the norms of block i - 1: what comes before does not see it."""
    generator = tiny()
    z = torch.randn(3, generator.z_dim)
    before = stage_outputs(generator, z)
    for chunk in range(4):
        moved = z.clone()
        moved[:, chunk * generator.chunk_dim : (chunk + 1) * generator.chunk_dim] += 1
        after = stage_outputs(generator, moved)
        same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        first = max(chunk - 1, 0)
        assert same == [index < first for index in range(3)]


def test_the_condition_is_the_embedding_and_then_the_chunk() -> None:
    generator = tiny()
    z = torch.randn(3, generator.z_dim)
    seen: list[Tensor] = []
    for block in generator.blocks:
        block.norm2.gain.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    generator.eval()(z, LABELS)
    for index, condition in enumerate(seen):
        expected = torch.cat([generator.class_embedding.weight[LABELS], z[:, 3 * (index + 1) : 3 * (index + 2)]], dim=1)
        torch.testing.assert_close(condition, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shared_embedding_dim", [5, None])
def test_without_hierarchy_it_is_sagan(shared_embedding_dim: int | None) -> None:
    options: dict[str, Any] = {"channels": 4, "z_dim": 6, "num_classes": 3, "attention_resolutions": (8,)}
    options |= {"shared_embedding_dim": shared_embedding_dim, "spectral_norm_eps": 1e-6, "weight_init": "orthogonal"}
    torch.manual_seed(0)
    biggan = BigGANGenerator(16, hierarchical=False, **options)
    torch.manual_seed(0)
    sagan = SAGANGenerator(16, **options)
    assert biggan.z_dim == 6
    z = torch.randn(3, 6)
    torch.testing.assert_close(biggan(z, LABELS), sagan(z, LABELS), rtol=0, atol=0)


def test_the_discriminator_is_sagans_with_other_defaults() -> None:
    torch.manual_seed(0)
    ours = BigGANDiscriminator(32, channels=8, num_classes=3, attention_resolutions=(16,))
    torch.manual_seed(0)
    theirs = SAGANDiscriminator(
        32, 8, num_classes=3, attention_resolutions=(16,), spectral_norm_eps=1e-6, weight_init="orthogonal"
    )
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(ours(images, LABELS), theirs(images, LABELS), rtol=0, atol=0)


def test_mixtures_of_classes() -> None:
    generator = tiny().eval()
    z = torch.randn(3, generator.z_dim)
    certain = torch.nn.functional.one_hot(LABELS, 3).float()
    torch.testing.assert_close(generator(z, certain), generator(z, LABELS))
    halfway = generator(z, torch.full((3, 3), 1 / 3))
    assert not torch.allclose(halfway, generator(z, LABELS), atol=1e-3)


def test_every_parameter_gets_a_gradient() -> None:
    generator = tiny()
    for attention in generator.attentions.values():
        torch.nn.init.ones_(attention.gamma)
    discriminator = BigGANDiscriminator(32, channels=8, num_classes=3, attention_resolutions=(16,))
    images = generator(torch.randn(3, generator.z_dim), LABELS)
    discriminator(images, LABELS).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in generator.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "instance"},
        {"norm": "none"},
        {"moving_variance": "biased", "cross_replica": True},
        {"spectral_norm": False},
        {"num_singular_values": 2, "num_power_iterations": 2},
        {"bottom_width": 2},
        {"image_channels": 1},
    ],
)
def test_options_run_in_both_modes(options: dict[str, Any]) -> None:
    generator = tiny(16, **options)
    for mode in (True, False):
        images = generator.train(mode)(torch.randn(3, generator.z_dim), LABELS)
        assert images.shape == (3, 3, generator.image_size, generator.image_size) and images.isfinite().all()
    assert generator.image_size == (8 if "bottom_width" in options else 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 20}, "resolution must be one of .*, got 20"),
        ({"resolution": 32, "z_dim": 3}, "z_dim must be at least 4 for hierarchical noise at resolution 32 .*, got 3"),
        ({"resolution": 32, "z_dim": 0}, "z_dim must be at least 1, got 0"),
        ({"resolution": 32, "shared_embedding_dim": None}, "hierarchical noise needs a shared class embedding"),
        ({"resolution": 32, "shared_embedding_dim": 0}, "shared_embedding_dim must be at least 1, got 0"),
        ({"resolution": 32, "num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"resolution": 32, "attention_resolutions": (64,)}, "attention_resolutions names 64, but the blocks put out 8, 16, 32"),
        ({"resolution": 8, "norm": "layer"}, "norm must be one of batch, instance, none, got 'layer'"),
        ({"resolution": 8, "weight_init": "ortho"}, "weight_init must be one of xavier, orthogonal, normal, got 'ortho'"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BigGANGenerator(**{"channels": 4, "attention_resolutions": (), **options})


def test_saving_and_loading_is_bit_equal(tmp_path: Path) -> None:
    generator = tiny(16, attention_resolutions=(8,))
    z = torch.randn(3, generator.z_dim)
    generator(z, LABELS)  # moves the buffers away from their start
    generator.eval().save_pretrained(tmp_path)
    loaded = BigGANGenerator.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.config.z_dim == 13 and loaded.z_dim == 12 and loaded.config.hierarchical
    torch.testing.assert_close(loaded(z, LABELS), generator(z, LABELS), rtol=0, atol=0)


def train_a_little(generator: BigGANGenerator) -> None:
    """Two steps away from the start, weights and buffers."""
    generator.train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        generator(torch.randn(8, generator.z_dim), torch.arange(8) % 3).square().sum().backward()
        optimizer.step()


def test_an_average_takes_in_statistics_and_spectral_vectors() -> None:
    generator = tiny(16, attention_resolutions=(8,))
    average = start_average(generator)
    start = {name: value.clone() for name, value in generator.state_dict().items()}
    train_a_little(generator)
    update_average(average, generator, 0.75, "average")
    kinds = dict.fromkeys(("weight", "running_mean", "running_var", "spectral_norm.u", "gamma"), 0.0)
    for name, value in average.state_dict().items():
        now = generator.state_dict()[name]
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * now, rtol=1e-5, atol=1e-6)
        for kind in kinds:
            kinds[kind] += float((now - start[name]).abs().sum()) if name.endswith(kind) else 0.0
    assert all(moved > 0 for moved in kinds.values()), "the test is worth something only where tensors moved"
    assert average(torch.randn(3, average.z_dim), LABELS).isfinite().all()
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_standing_statistics_of_an_average_are_those_of_its_batches() -> None:
    generator = tiny(16, attention_resolutions=(8,), moving_variance="biased")
    train_a_little(generator)
    average = start_average(generator)
    z, labels = torch.randn(8, average.z_dim), torch.arange(8) % 3
    vectors = {name: value.clone() for name, value in average.state_dict().items() if name.endswith("spectral_norm.u")}
    before = average(z, labels)
    recompute_statistics(average, lambda: average(z, labels), num_batches=3)
    standing = average(z, labels)
    for module in average.modules():  # batch norm over the same batch
        if isinstance(module, BatchNorm2d):
            module.train()
    torch.testing.assert_close(standing, average(z, labels), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, standing, atol=1e-3)
    assert all(torch.equal(average.state_dict()[name], value) for name, value in vectors.items())


FULL_SIZE = [
    ("sagan_128", 128, 42_017_412, 39_448_258),
    ("biggan_128", 128, 70_433_988, 87_982_370),
    ("biggan_128 imagenet/sizes/biggan_256", 256, 82_097_604, 99_225_890),
    ("biggan_128 imagenet/sizes/biggan_512", 512, 82_296_804, 99_401_282),
]


@pytest.mark.parametrize(("name", "image_size", "generator_size", "discriminator_size"), FULL_SIZE)
def test_paper_scale_configurations_build(name: str, image_size: int, generator_size: int, discriminator_size: int) -> None:
    """On the meta device, which holds no numbers. The counts are the official networks' (D at 512, which they lack: ours)."""
    parser, config = parse_train_config([find_config(part) for part in f"imagenet/{name}".split()])
    assert config.data.init_args.image_size == image_size
    config.data = None  # not here
    with torch.device("meta"):
        objective = build_config(parser, config).objective
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in objective.networks.items()}
    assert sizes == {"generator": generator_size, "discriminator": discriminator_size}
    assert objective.image_size == image_size
    # As official: an average that copies before step S and decays from step S on.
    profile, spec = objective.ema["generator"].profile, objective.ema["generator"]
    first = {"sagan": 2_000, "biggan": 20_000}[name.partition("_")[0]]
    images_per_step = config.trainer.batch_size * objective.discriminator_steps
    assert profile.decay((first - 1) * images_per_step, images_per_step) == 0
    assert profile.decay(first * images_per_step, images_per_step) == 0.9999
    assert spec.buffers == "average"
