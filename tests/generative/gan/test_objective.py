"""The adversarial objective: phases, gradients, randomness, standing statistics, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from generative.core.ema import HalfLifeEMA
from generative.core.errors import UserError
from generative.core.objective import Phase
from generative.core.seeding import keyed_generator
from generative.core.types import Batch
from generative.gan.objective import GANObjective
from generative.gan.sagan import SAGANDiscriminator, SAGANGenerator
from generative.layers.batch_norm import BatchNorm2d

NUM_CLASSES = 3


def make_objective(**options: Any) -> GANObjective:
    torch.manual_seed(0)
    return GANObjective(
        SAGANGenerator(8, channels=4, z_dim=6, num_classes=NUM_CLASSES, attention_resolutions=(8,)),
        SAGANDiscriminator(8, channels=4, num_classes=NUM_CLASSES, attention_resolutions=(4,)),
        lambda groups: torch.optim.Adam(groups, lr=2e-3, betas=(0.0, 0.9)),
        lambda groups: torch.optim.Adam(groups, lr=2e-3, betas=(0.0, 0.9)),
        **options,
    )


def make_batch(batch_size: int = 6) -> Batch:
    generator = keyed_generator("batch")
    return {
        "images": torch.rand(batch_size, 3, 8, 8, generator=generator) * 2 - 1,
        "class_labels": torch.randint(NUM_CLASSES, (batch_size,), generator=generator),
    }


def run_phase(objective: GANObjective, phase: Phase, seed: int = 0) -> dict[str, torch.Tensor]:
    """Freeze as the trainer does, and differentiate."""
    for name, network in objective.networks.items():
        network.train(name not in phase.eval_networks)
        network.requires_grad_(name in phase.networks)
        network.zero_grad()
    losses = phase.loss_fn(objective.networks, make_batch(), keyed_generator(seed), {})
    losses["loss"].backward()
    return losses


@pytest.mark.parametrize("loss", ["hinge", "non_saturating", "wasserstein", "least_squares"])
def test_gradients_reach_only_the_networks_of_the_phase(loss: str) -> None:
    objective = make_objective(loss=loss, r1_weight=1.0, augmentation=("color", "translation", "cutout"))
    for phase in objective.phases():
        losses = run_phase(objective, phase)
        assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
        for name, network in objective.networks.items():
            touched = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()]
            assert any(touched) == (name in phase.networks), (phase.name, name)


def test_phases_and_their_frequencies() -> None:
    assert [phase.name for phase in make_objective().phases()] == ["discriminator", "generator"]
    phases = {phase.name: phase for phase in make_objective(r1_weight=1.0, r1_interval=4, discriminator_steps=2).phases()}
    assert list(phases) == ["discriminator", "r1", "generator"]
    assert (phases["discriminator"].repeats, phases["r1"].interval, phases["generator"].repeats) == (2, 4, 1)
    assert phases["r1"].optimizer == "discriminator"
    groups = make_objective().parameter_groups("discriminator")
    assert {id(p) for p in groups[0]["params"]} != set()


def test_discriminator_loss_equals_two_separate_forwards() -> None:
    objective = make_objective()
    generator, discriminator = objective.networks["generator"].eval(), objective.networks["discriminator"].eval()
    batch = make_batch()
    losses = objective.discriminator_loss(objective.networks, batch, keyed_generator(7), {})
    z, labels = objective.draw_inputs(6, keyed_generator(7))
    real, fake = discriminator(batch["images"], batch["class_labels"]), discriminator(generator(z, labels), labels)
    expected = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["real_logits"], real.mean())


def test_r1_equals_finite_differences_along_the_gradient() -> None:
    objective = make_objective(r1_weight=3.0, r1_interval=5)
    objective.networks["discriminator"].eval()
    batch = make_batch(1)
    losses = objective.r1_loss(objective.networks, batch, keyed_generator(0), {})
    torch.testing.assert_close(losses["loss"], losses["penalty"] * 0.5 * 3.0 * 5)
    images = batch["images"].double().requires_grad_(True)
    network = objective.networks["discriminator"].double()
    (gradient,) = torch.autograd.grad(network(images, batch["class_labels"]).sum(), images)
    step = 1e-5 * gradient
    rise = network(images + step, batch["class_labels"]) - network(images - step, batch["class_labels"])
    assert losses["penalty"].item() == pytest.approx(rise.item() / 2e-5, rel=1e-3)


def test_losses_are_functions_of_the_generator_handed_in() -> None:
    objective = make_objective(augmentation=("translation",))
    for phase in objective.phases():
        values = []
        for seed in (0, 0, 1):
            objective_copy = make_objective(augmentation=("translation",))
            same = next(p for p in objective_copy.phases() if p.name == phase.name)
            values.append(run_phase(objective_copy, same, seed)["loss"].item())
        assert values[0] == values[1] != values[2]


def test_batch_statistics_move_in_both_phases() -> None:
    objective = make_objective()
    norm = next(m for m in objective.networks["generator"].modules() if isinstance(m, BatchNorm2d))
    for phase in objective.phases():
        before = norm.running_mean.clone()
        run_phase(objective, phase)
        assert not torch.equal(norm.running_mean, before), phase.name


def test_standing_statistics_replace_the_moving_ones_only_if_asked_for() -> None:
    for batches, changed in ((0, False), (3, True)):
        objective = make_objective(standing_statistics_batches=batches, standing_statistics_batch_size=16)
        network = objective.networks["generator"].eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        objective.prepare_for_sampling(objective.networks, keyed_generator(0))
        moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
        assert bool(moved) == changed
        assert all("running_" in name for name in moved)
        assert not network.training


def test_average_and_pipeline() -> None:
    objective = make_objective(ema=HalfLifeEMA(1000), ema_buffers="copy", truncation=0.8)
    assert objective.ema["generator"].buffers == "copy"
    assert make_objective().ema == {}
    assert objective.sampling_defaults() == {"truncation": 0.8}
    pipeline = objective.pipeline(objective.networks)
    assert (pipeline.num_classes, pipeline.image_size) == (NUM_CLASSES, 8)


class Constant(nn.Module):
    """Something with the attributes of a network."""

    def __init__(self, num_classes: int = NUM_CLASSES, image_size: int = 8) -> None:
        super().__init__()
        self.num_classes, self.image_size, self.z_dim = num_classes, image_size, 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator": Constant(num_classes=5)}, "num_classes is 3 but the discriminator's is 5"),
        ({"discriminator": Constant(image_size=16)}, "image_size is 8 but the discriminator's is 16"),
        ({"loss": "hinged"}, "loss must be one of .*'hinged'"),
        ({"augmentation": ("flip",)}, "augmentation must name some of .*'flip'"),
        ({"discriminator_steps": 0}, "discriminator_steps must be at least 1, got 0"),
        ({"r1_weight": -1.0}, "r1_weight must be at least 0"),
        ({"truncation": -1.0}, "truncation must be a positive threshold"),
    ],
)
def test_wrong_arguments_are_told(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"generator": Constant(), "discriminator": Constant(), **options}
    with pytest.raises(UserError, match=message):
        GANObjective(generator_optimizer=torch.optim.Adam, discriminator_optimizer=torch.optim.Adam, **arguments)


def test_a_few_steps_teach_the_class() -> None:
    """Two classes of constant images, dark and light: after some steps the generator's brightness follows the label."""
    objective = make_objective()
    optimizers = {name: factory(objective.networks[name].parameters()) for name, factory in objective.optimizers.items()}
    labels = torch.arange(32) % 2
    batch: Batch = {"images": (labels * 1.2 - 0.6)[:, None, None, None].expand(32, 3, 8, 8), "class_labels": labels}
    objective.num_classes = 2
    for step in range(40):
        for phase in objective.phases():
            for name, network in objective.networks.items():
                network.requires_grad_(name in phase.networks)
            optimizer = optimizers[phase.optimizer]
            optimizer.zero_grad()
            phase.loss_fn(objective.networks, batch, keyed_generator(step, phase.name), {})["loss"].backward()
            optimizer.step()
    z, _ = objective.draw_inputs(32, keyed_generator("check"))
    with torch.no_grad():
        brightness = objective.networks["generator"](z, labels).mean((1, 2, 3))
    assert brightness[labels == 1].mean() - brightness[labels == 0].mean() > 0.5
