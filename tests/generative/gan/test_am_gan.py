"""AM-GAN: its losses against their formulas, targets, phases, penalties, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.seeding import keyed_generator
from generative.core.types import Batch, StepContext
from generative.gan.am_gan import (
    CLASS_LOSSES,
    AMGANObjective,
    d_ac_gan_star,
    d_ac_gan_star_plus,
    d_am_gan,
    dynamic_targets,
    g_ac_gan_star,
    g_am_gan,
    g_label_gan,
)
from generative.gan.dcgan import DCGANDiscriminator, DCGANGenerator
from generative.gan.penalties import R1, GradientPenalty
from generative.gan.sagan import SAGANDiscriminator

K = 3
# Two images, three real classes and "generated"; logs of probabilities, so that softmax gives the probabilities back.
REAL = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1]]).log()
FAKE = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.05, 0.05, 0.1, 0.8]]).log()
LABELS = torch.tensor([0, 2])


def mean_log(*probabilities: float) -> float:
    return -torch.tensor(probabilities).log().mean().item()


def sigmoid_loss(logits: Tensor) -> float:
    return -torch.log(1 / (1 + torch.exp(-logits))).mean().item()


def test_am_gan_is_cross_entropy_over_all_classes() -> None:
    assert d_am_gan(REAL, LABELS, FAKE).item() == pytest.approx(mean_log(0.5, 0.7) + mean_log(0.4, 0.8), rel=1e-5)
    assert g_am_gan(FAKE, torch.tensor([1, 0])).item() == pytest.approx(mean_log(0.3, 0.05), rel=1e-5)


def test_am_gan_is_real_against_generated_plus_the_class() -> None:
    """The authors' other code: a binary loss on (log-sum-exp of the real logits, 0), and cross-entropy over the real classes."""
    real, fake = torch.randn(5, K + 1), torch.randn(5, K + 1)
    labels = torch.tensor([0, 1, 2, 0, 1])
    odds = [logits[:, :-1].logsumexp(1) - logits[:, -1] for logits in (real, fake)]
    of_class = [torch.nn.functional.cross_entropy(logits[:, :-1], labels).item() for logits in (real, fake)]
    expected = sigmoid_loss(odds[0]) + sigmoid_loss(-odds[1]) + of_class[0]
    assert d_am_gan(real, labels, fake).item() == pytest.approx(expected, rel=1e-5)
    assert g_am_gan(fake, labels).item() == pytest.approx(sigmoid_loss(odds[1]) + of_class[1], rel=1e-5)


def test_label_gan_asks_for_any_real_class() -> None:
    assert g_label_gan(FAKE, torch.tensor([1, 0])).item() == pytest.approx(mean_log(0.6, 0.2), rel=1e-5)


def test_ac_gan_star_splits_realness_and_class() -> None:
    real, fake = torch.randn(4, K + 1), torch.randn(4, K + 1)
    labels = torch.tensor([0, 1, 2, 2])
    entropy = torch.nn.functional.cross_entropy
    adversarial = sigmoid_loss(-real[:, -1]) + sigmoid_loss(fake[:, -1])
    expected = adversarial + entropy(real[:, :-1], labels).item()
    assert d_ac_gan_star(real, labels, fake).item() == pytest.approx(expected, rel=1e-5)
    even = entropy(fake[:, :-1], torch.full((4, K), 1 / K)).item()
    assert d_ac_gan_star_plus(real, labels, fake).item() == pytest.approx(expected + even, rel=1e-5)
    wanted = sigmoid_loss(-fake[:, -1]) + entropy(fake[:, :-1], labels).item()
    assert g_ac_gan_star(fake, labels).item() == pytest.approx(wanted, rel=1e-5)


def test_dynamic_targets_are_real_classes() -> None:
    assert dynamic_targets(FAKE).tolist() == [1, 2]  # though "generated" is likelier than either
    assert dynamic_targets(torch.tensor([[0.0, 1.0, -1.0, 9.0]])).tolist() == [1]


@pytest.mark.parametrize("game", CLASS_LOSSES)
def test_the_logit_that_penalties_see_grows_with_realness(game: Any) -> None:
    logits = torch.zeros(2, K + 1)
    logits[1, -1] = 1.0  # more "generated"
    real_logit = CLASS_LOSSES[game].real_logit(logits)
    assert real_logit.shape == (2,) and real_logit[1] < real_logit[0]


def test_softmax_games_penalise_the_log_odds() -> None:
    probability = 0.6
    real_logit = CLASS_LOSSES["am_gan"].real_logit(FAKE)[0].item()
    assert real_logit == pytest.approx(torch.logit(torch.tensor(probability)).item(), rel=1e-5)


def make_discriminator(**options: Any) -> DCGANDiscriminator:
    arguments = {"widths": (8, 8), "last_width": 8, "conditioning": "none", "output_dim": K + 1, "batch_norm": False, **options}
    return DCGANDiscriminator(8, K, **arguments)


def make_objective(discriminator: Any = None, **options: Any) -> AMGANObjective:
    torch.manual_seed(0)
    return AMGANObjective(
        DCGANGenerator(6, K, (8, 8)),
        make_discriminator() if discriminator is None else discriminator,
        lambda groups: torch.optim.Adam(groups, lr=2e-3, betas=(0.5, 0.999)),
        lambda groups: torch.optim.Adam(groups, lr=2e-3, betas=(0.5, 0.999)),
        **options,
    )


def make_batch(batch_size: int = 6) -> Batch:
    generator = keyed_generator("batch")
    return {
        "images": torch.rand(batch_size, 3, 8, 8, generator=generator) * 2 - 1,
        "class_labels": torch.randint(K, (batch_size,), generator=generator),
    }


@pytest.mark.parametrize("game", CLASS_LOSSES)
@pytest.mark.parametrize("labelling", ["dynamic", "predefined"])
def test_gradients_reach_only_the_networks_of_the_phase(game: Any, labelling: Any) -> None:
    objective = make_objective(game=game, labelling=labelling, penalties=(GradientPenalty(), R1(1.0)))
    assert [phase.name for phase in objective.phases()] == ["discriminator", "r1", "generator"]
    for phase in objective.phases():
        for name, network in objective.networks.items():
            network.requires_grad_(name in phase.networks)
            network.zero_grad()
        losses = phase.loss_fn(objective.networks, make_batch(), StepContext(0, 0, keyed_generator(0)))
        assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
        losses["loss"].backward()
        for name, network in objective.networks.items():
            touched = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters())
            assert touched == (name in phase.networks)


class FixedLogits(torch.nn.Module):
    """A discriminator whose logits are the first K + 1 pixels of each image."""

    num_classes, image_size, output_dim = K, 8, K + 1

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        return images[:, 0, 0, : K + 1]


def test_labelling_chooses_the_target() -> None:
    """The generator's loss, recomputed from the images it made and the classes it was given."""
    for labelling in ("dynamic", "predefined"):
        objective = make_objective(FixedLogits(), labelling=labelling)
        z, labels = objective.draw_inputs(6, keyed_generator(0))
        logits = objective.networks["generator"](z, labels)[:, 0, 0, : K + 1]
        targets = logits[:, :K].argmax(1) if labelling == "dynamic" else labels
        losses = objective.generator_loss(objective.networks, make_batch(), StepContext(0, 0, keyed_generator(0)))
        assert losses["loss"].item() == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
        share = (logits[:, :K].argmax(1) == labels).float().mean().item()
        assert losses["given_class"].item() == pytest.approx(share)


def test_the_penalty_is_on_the_log_odds_of_being_real() -> None:
    """For logits that are pixels the gradient is known: softmax over the classes and -1 for "generated"."""
    objective = make_objective(FixedLogits(), penalties=(R1(2.0, interval=1),))
    batch = make_batch()
    losses = objective.discriminator_loss(objective.networks, batch, StepContext(0, 0, keyed_generator(0)))
    logits = batch["images"][:, 0, 0, : K + 1]
    expected = (logits[:, :K].softmax(1).square().sum(1) + 1).mean().item()
    assert losses["r1_penalty"].item() == pytest.approx(expected, rel=1e-5)


def test_both_networks_learn() -> None:
    """Classes that are brightnesses: the discriminator tells them, and the generator moves towards the one it is asked for."""
    objective = make_objective(labelling="predefined", separate_batches=True)
    optimizers = {name: make(objective.parameter_groups(name)) for name, make in objective.optimizers.items()}
    generator = keyed_generator("train")
    levels = torch.tensor([-0.8, 0.0, 0.8])
    accuracies = []
    for _ in range(100):
        labels = torch.randint(K, (16,), generator=generator)
        images = levels[labels].view(-1, 1, 1, 1) + 0.05 * torch.randn(16, 3, 8, 8, generator=generator)
        for phase in objective.phases():
            for name, network in objective.networks.items():
                network.requires_grad_(name in phase.networks)
            optimizers[phase.optimizer].zero_grad()
            losses = phase.loss_fn(objective.networks, {"images": images, "class_labels": labels}, StepContext(0, 0, generator))
            losses["loss"].backward()
            optimizers[phase.optimizer].step()
            if phase.name == "discriminator":
                accuracies.append(losses["real_accuracy"].item())
    assert sum(accuracies[-10:]) / 10 > 0.95
    labels = torch.tensor([0, 2]).repeat_interleave(20)
    with torch.no_grad():
        made = objective.networks["generator"](torch.randn(40, 6, generator=generator), labels).mean((1, 2, 3))
    dark, bright = made.view(2, 20).mean(1)
    assert bright - dark > 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "ac_gan"}, "game must be one of am_gan, label_gan, ac_gan_star, ac_gan_star_plus, got 'ac_gan'"),
        ({"labelling": "random"}, "labelling must be dynamic or predefined, got 'random'"),
        ({"discriminator": make_discriminator(output_dim=K)}, "needs output_dim 4, its num_classes \\+ 1, got 3"),
        ({"discriminator": make_discriminator(conditioning="projection")}, "must not see the class it is to find"),
        ({"discriminator": SAGANDiscriminator(8, 4, K, (), output_dim=K + 1)}, "must not see the class it is to find"),
        ({"discriminator_steps": 0}, "discriminator_steps must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(**options)
