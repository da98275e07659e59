"""What a training will take: counts of papers, arithmetic by hand, and measurements of real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from generative.core.ema import ConstantEMA, PowerEMA
from generative.core.footprint import count_step_flops, measure_footprint, measure_phases, optimizer_bytes
from generative.core.metering import hollow_out
from generative.core.step import checkpoint_activations
from generative.core.types import Batch
from generative.diffusion.formulations.gaussian import GaussianDiffusion
from generative.diffusion.networks.dit import DiT
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.gan.biggan import BigGANDiscriminator, BigGANGenerator
from generative.gan.objective import GANObjective

SMALL = {"sample_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 2, "num_heads": 4, "num_classes": 10}


def objective(device: str = "meta", optimizer: Any = torch.optim.AdamW, ema: Any = None, **arguments: Any) -> DiffusionObjective:
    with torch.device(device):
        network = DiT(**(SMALL | arguments))
    return DiffusionObjective(network, GaussianDiffusion(), lambda parameters: optimizer(parameters, lr=1e-3), ema=ema)


def make_batch(size: int) -> Batch:
    return {"images": torch.zeros(size, 4, 16, 16), "class_labels": torch.zeros(size, dtype=torch.int64)}


def test_operations_of_the_paper() -> None:
    """DiT-S/2 at 256 pixels: 6.06 G multiply-adds (arXiv 2212.09748, table 4)."""
    small = objective(sample_size=32, hidden_size=384, depth=12, num_heads=6, num_classes=1000)
    footprint = measure_footprint(
        small, lambda size: {"images": torch.zeros(size, 4, 32, 32), "class_labels": torch.zeros(size, dtype=torch.int64)}
    )
    assert footprint.forward_flops / 2 == pytest.approx(6.06e9, rel=0.02)
    # Backward costs twice as much, attention's a little more.
    assert 3 <= footprint.step_flops / footprint.forward_flops < 3.1


def test_operations_by_hand() -> None:
    width, tokens = 64, 64
    footprint = measure_footprint(objective(), make_batch)
    block = tokens * 12 * width**2 + 2 * tokens**2 * width + 6 * width**2
    rest = tokens * (16 * width + 2 * 16 * width) + 256 * width + width**2 + 2 * width**2
    assert footprint.forward_flops == pytest.approx(2 * (2 * block + rest), rel=0.05)


def test_memory_by_part() -> None:
    both = [PowerEMA(std=0.05), PowerEMA(std=0.1)]
    footprint = measure_footprint(objective(ema=both), make_batch)
    (parameters,) = footprint.parameters.values()
    assert parameters == sum(parameter.numel() for parameter in DiT(**SMALL).parameters())
    assert footprint.weights == footprint.gradients == 4 * parameters and footprint.optimizer == 8 * parameters
    assert len(footprint.averages) == 2 and all(size >= 4 * parameters for size in footprint.averages.values())
    assert footprint.frozen == 0 and footprint.frozen_parameters == {}


@pytest.mark.parametrize(
    ("optimizer", "states"), [(torch.optim.Adam, 2), (torch.optim.SGD, 0), (torch.optim.RMSprop, 1), (torch.optim.Adagrad, 1)]
)
def test_states_of_optimizers(optimizer: Any, states: int) -> None:
    built = objective(optimizer=optimizer)
    assert optimizer_bytes(built) == states * 4 * sum(parameter.numel() for parameter in DiT(**SMALL).parameters())


def test_activations_grow_with_the_batch_and_fall_with_checkpointing_and_precision() -> None:
    plain = measure_footprint(objective(depth=6), make_batch)
    assert plain.checkpointed is not None
    assert plain.checkpointed.per_image < 0.5 * plain.activations.per_image
    assert plain.activations.of(32) == pytest.approx(32 * plain.activations.per_image, rel=0.1)
    half = measure_footprint(objective(depth=6), make_batch, "bf16")
    assert 0.4 < half.activations.per_image / plain.activations.per_image < 0.85
    assert half.forward_flops == plain.forward_flops and half.step_flops == pytest.approx(plain.step_flops, rel=0.05)


def test_checkpointed_activations_of_a_gan_are_told_of_more_images_than_were_measured() -> None:
    """Of few images, those of wide layers at low resolution and their normalised weights outweigh those of the large maps."""

    def gan() -> GANObjective:
        with torch.device("meta"):
            generator = BigGANGenerator(64, channels=48, num_classes=10, attention_resolutions=(8,))
            discriminator = BigGANDiscriminator(64, channels=48, num_classes=10, attention_resolutions=(8,))
        return GANObjective(generator, discriminator, torch.optim.Adam, torch.optim.Adam)

    def images(size: int) -> Batch:
        return {"images": torch.zeros(size, 3, 64, 64), "class_labels": torch.zeros(size, dtype=torch.int64)}

    footprint = measure_footprint(gan(), images)
    assert footprint.checkpointed is not None
    other = gan()
    hollow_out(other.networks.values())
    checkpoint_activations(other.networks)
    measured, _ = measure_phases(other, other.phases(), images(64), "no")
    assert footprint.checkpointed.of(64) == pytest.approx(measured, rel=0.02)
    assert measured < 0.7 * footprint.activations.of(64)


def test_activations_are_those_of_a_real_step() -> None:
    from torch.profiler import ProfilerActivity, profile

    from generative.core.types import StepContext

    images = 16
    predicted = measure_footprint(objective(), make_batch).activations.of(images)
    real = objective("cpu")
    batch = make_batch(images)

    def step() -> None:
        real.loss(real.networks, batch, StepContext(0, 0, torch.Generator().manual_seed(0)))["loss"].backward()
        real.networks["denoiser"].zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    alive = measured = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            measured = max(measured, alive)
    assert predicted == pytest.approx(measured, rel=0.15)


def test_a_hollow_twin_counts_and_leaves_the_objective_as_it_was() -> None:
    real = objective("cpu", ema=ConstantEMA())
    network = real.networks["denoiser"]
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    flops = count_step_flops(real, make_batch, seconds=60.0)
    assert flops == measure_footprint(objective(), make_batch).step_flops
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert all(
        type(parameter) is nn.Parameter and parameter.requires_grad for parameter in network.parameters() if parameter.dim()
    )
    assert count_step_flops(real, make_batch, seconds=0.0) is None
    assert count_step_flops(real, lambda size: {}, seconds=60.0) is None
