"""The adversarial objective: phases, gradients, penalties, randomness, standing statistics, divergence, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.core import checkpoint as ckpt
from generative.core.ema import HalfLifeEMA
from generative.core.errors import UserError
from generative.core.objective import Phase
from generative.core.observer import DivergenceError
from generative.core.runtime import build_accelerator
from generative.core.seeding import keyed_generator
from generative.core.trainer import Trainer
from generative.core.trainer_config import TrainerConfig
from generative.core.types import Batch, StepContext
from generative.data.digits import DigitsDataset
from generative.gan.consistency import Consistency
from generative.gan.fastgan import FastGANGenerator
from generative.gan.losses import ADVERSARIAL_LOSSES
from generative.gan.objective import GANObjective
from generative.gan.options import GANOptions
from generative.gan.orthogonal import orthogonal_gradient
from generative.gan.penalties import R1, R2, GradientPenalty
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
    losses = phase.loss_fn(objective.networks, make_batch(), StepContext(0, 0, keyed_generator(seed)))
    losses["loss"].backward()
    return losses


ALL_PENALTIES = (
    R1(1.0),
    R2(1.0, interval=1),
    GradientPenalty(),
    Consistency(fake_weight=1.0, latent_weight=1.0, diversity_weight=0.1),
)


@pytest.mark.parametrize("loss", list(ADVERSARIAL_LOSSES))
@pytest.mark.parametrize("separate_batches", [False, True])
def test_gradients_reach_only_the_networks_of_the_phase(loss: str, separate_batches: bool) -> None:
    objective = make_objective(
        loss=loss, penalties=ALL_PENALTIES, separate_batches=separate_batches, augmentation=("color", "translation", "cutout")
    )
    for phase in objective.phases():
        losses = run_phase(objective, phase)
        assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
        for name, network in objective.networks.items():
            touched = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()]
            assert any(touched) == (name in phase.networks), (phase.name, name)


def test_phases_and_their_frequencies() -> None:
    assert [phase.name for phase in make_objective().phases()] == ["discriminator", "generator"]
    options: dict[str, Any] = {"penalties": (R1(1.0, interval=4), R2(1.0, interval=1), GradientPenalty(0.0))}
    phases = {phase.name: phase for phase in make_objective(discriminator_steps=2, **options).phases()}
    assert list(phases) == ["discriminator", "r1", "generator"]
    assert (phases["discriminator"].repeats, phases["r1"].repeats, phases["r1"].interval, phases["generator"].repeats) == (
        2,
        2,
        4,
        1,
    )
    assert phases["r1"].optimizer == "discriminator"
    first = make_objective(generator_first=True, **options).phases()
    assert [phase.name for phase in first] == ["generator", "discriminator", "r1"]
    groups = make_objective().parameter_groups("discriminator")
    assert {id(p) for p in groups[0]["params"]} != set()


@pytest.mark.parametrize("separate_batches", [False, True])
def test_discriminator_loss_equals_two_separate_forwards(separate_batches: bool) -> None:
    objective = make_objective(separate_batches=separate_batches)
    generator, discriminator = objective.networks["generator"].eval(), objective.networks["discriminator"].eval()
    batch = make_batch()
    losses = objective.discriminator_loss(objective.networks, batch, StepContext(0, 0, keyed_generator(7)))
    z, labels = objective.draw_inputs(6, keyed_generator(7))
    real, fake = discriminator(batch["images"], batch["class_labels"]), discriminator(generator(z, labels), labels)
    expected = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["real_logits"], real.mean())


class BatchNormDiscriminator(nn.Module):
    """Batch norm in the discriminator: what else is in the batch shows in its logits. Two logits per image."""

    num_classes, image_size = NUM_CLASSES, 8

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor, class_labels: Tensor) -> Tensor:
        return self.norm(images)[:, :2, 0, 0]  # (B, 2)


def test_batch_norm_in_the_discriminator_sees_what_the_option_says() -> None:
    logits = {}
    for separate in (False, True):
        objective = make_objective(separate_batches=separate)
        networks = {**objective.networks, "discriminator": BatchNormDiscriminator()}
        batch, fake = make_batch(), 0.1 * torch.randn(6, 3, 8, 8, generator=keyed_generator("fake"))
        logits[separate] = objective.discriminate_both(networks, batch, fake, batch["class_labels"], keyed_generator(0))
    norm = nn.BatchNorm2d(3)
    images = make_batch()["images"]
    torch.testing.assert_close(logits[True][0], norm(images)[:, :2, 0, 0])
    torch.testing.assert_close(logits[True][1], norm(fake)[:, :2, 0, 0])
    torch.testing.assert_close(torch.cat(logits[False]), norm(torch.cat([images, fake]))[:, :2, 0, 0])
    assert logits[True][0].shape == logits[False][1].shape == (6, 2)


def test_relativistic_games_pair_images_of_one_class() -> None:
    objective, batch = make_objective(loss="relativistic"), make_batch()
    plain = make_objective()
    assert torch.equal(objective.draw_fake_inputs(batch, keyed_generator(0))[1], batch["class_labels"])
    assert not torch.equal(plain.draw_fake_inputs(batch, keyed_generator(0))[1], batch["class_labels"])
    assert torch.equal(
        objective.draw_fake_inputs(batch, keyed_generator(0))[0], plain.draw_fake_inputs(batch, keyed_generator(0))[0]
    )


def test_r1_equals_finite_differences_along_the_gradient() -> None:
    objective = make_objective(penalties=(R1(3.0, interval=5),))
    objective.networks["discriminator"].eval()
    phase = next(phase for phase in objective.phases() if phase.name == "r1")
    batch = make_batch(1)
    losses = phase.loss_fn(objective.networks, batch, StepContext(0, 0, keyed_generator(0)))
    torch.testing.assert_close(losses["loss"], losses["penalty"] * 0.5 * 3.0 * 5)
    images = batch["images"].double().requires_grad_(True)
    network = objective.networks["discriminator"].double()
    (gradient,) = torch.autograd.grad(network(images, batch["class_labels"]).sum(), images)
    step = 1e-5 * gradient
    rise = network(images + step, batch["class_labels"]) - network(images - step, batch["class_labels"])
    assert losses["penalty"].item() == pytest.approx(rise.item() / 2e-5, rel=1e-3)


def test_a_lazy_penalty_is_as_strong_as_one_at_every_step() -> None:
    """Over 4 steps the gradients of the penalty, taken once and scaled or taken each time, sum to the same."""
    gradients = {}
    for interval in (1, 4):
        objective = make_objective(penalties=(R1(2.0, interval),))
        for network in objective.networks.values():
            network.eval()  # the spectral vectors stand still, so that every step is the same
        for step in range(4):
            for phase in objective.phases():
                if "discriminator" in phase.networks and step % phase.interval == 0:
                    phase.loss_fn(objective.networks, make_batch(), StepContext(0, 0, keyed_generator(0)))["loss"].backward()
        gradients[interval] = gradient_of(objective.networks["discriminator"])
    torch.testing.assert_close(gradients[1], gradients[4], rtol=1e-4, atol=1e-5)
    objective = make_objective()
    for network in objective.networks.values():
        network.eval()
    for _ in range(4):
        objective.discriminator_loss(objective.networks, make_batch(), StepContext(0, 0, keyed_generator(0)))["loss"].backward()
    assert (gradient_of(objective.networks["discriminator"]) - gradients[1]).abs().max() > 1e-2


def gradient_of(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_penalties_of_every_step_are_added_and_logged() -> None:
    batch = make_batch()
    plain = make_objective().discriminator_loss(make_objective().networks, batch, StepContext(0, 0, keyed_generator(0)))
    objective = make_objective(penalties=(R1(2.0, interval=1),))
    losses = objective.discriminator_loss(objective.networks, batch, StepContext(0, 0, keyed_generator(0)))
    assert set(losses) - set(plain) == {"r1_penalty"}
    torch.testing.assert_close(losses["loss"], plain["loss"] + losses["r1_penalty"])


def test_orthogonal_regularisation_of_all_matrices_but_the_class_embedding() -> None:
    objective = make_objective(generator_orthogonal_weight=0.1, discriminator_orthogonal_weight=0.2)
    generator = objective.networks["generator"]
    generator.class_embedding = nn.Embedding(NUM_CLASSES, 4)
    phases = {phase.name: phase for phase in objective.phases()}
    for name, strength in (("generator", 0.1), ("discriminator", 0.2)):
        network = objective.networks[name]
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        phases[name].before_step(objective.networks, 0)
        touched = {key for key, p in network.named_parameters() if p.grad.abs().max() > 0}
        matrices = {key for key, p in network.named_parameters() if p.ndim >= 2 and orthogonal_gradient(p).abs().max() > 0}
        assert touched == matrices - ({"class_embedding.weight"} if name == "generator" else set())
        key = max(touched)
        parameter = network.get_parameter(key)
        torch.testing.assert_close(parameter.grad, strength * orthogonal_gradient(parameter))
    assert all(phase.before_step is None for phase in make_objective().phases())


def test_extractors_inside_the_discriminator_are_named() -> None:
    assert make_objective().loss_extractors == frozenset()
    discriminator = Constant()
    discriminator.feature_extractors = ("efficientnet-lite0",)
    objective = GANObjective(Constant(), discriminator, torch.optim.Adam, torch.optim.Adam)
    assert objective.loss_extractors == {"efficientnet-lite0"}


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
    objective = make_objective(ema=HalfLifeEMA(1000), ema_buffers="copy", sampling=GANOptions(truncation=0.8))
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
        ({"penalties": (R1(1.0), R1(2.0, interval=1))}, "penalties has 'r1' twice"),
        ({"penalties": (0.5,)}, "penalties must be classes such as .*R1, got 0.5"),
        ({"generator_orthogonal_weight": -1.0}, "generator_orthogonal_weight must be at least 0, got -1.0"),
        ({"discriminator_orthogonal_weight": float("nan")}, "discriminator_orthogonal_weight must be at least 0, got nan"),
        ({"sampling": GANOptions(truncation=-1.0)}, "truncation must be a positive threshold"),
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
            phase.loss_fn(objective.networks, batch, StepContext(0, 0, keyed_generator(step, phase.name)))["loss"].backward()
            optimizer.step()
    z, _ = objective.draw_inputs(32, keyed_generator("check"))
    with torch.no_grad():
        brightness = objective.networks["generator"](z, labels).mean((1, 2, 3))
    assert brightness[labels == 1].mean() - brightness[labels == 0].mean() > 0.5


def train_on_digits(objective: GANObjective, folder: Path, **settings: Any) -> Trainer:
    """Four steps of 10 images, a checkpoint at each second one."""
    defaults = {"total_images": 40, "batch_size": 10, "log_interval_steps": 1, "checkpoint_interval_steps": 2, "progress": False}
    config = TrainerConfig(output_dir=folder, **{**defaults, **settings})
    trainer = Trainer(objective, DigitsDataset("train", image_size=8), config, build_accelerator("no"))
    objective.trainer = trainer  # type: ignore[attr-defined]
    return trainer


def digits_objective(**options: Any) -> GANObjective:
    torch.manual_seed(0)
    return GANObjective(
        SAGANGenerator(8, channels=4, z_dim=6, num_classes=10, attention_resolutions=()),
        SAGANDiscriminator(8, channels=4, num_classes=10, attention_resolutions=()),
        lambda groups: torch.optim.Adam(groups, lr=2e-3, betas=(0.0, 0.9)),
        lambda groups: torch.optim.Adam(groups, lr=2e-3, betas=(0.0, 0.9)),
        ema=HalfLifeEMA(100),
        **options,
    )


@pytest.mark.parametrize("side", ["discriminator", "generator"])
@pytest.mark.parametrize("log_interval_steps", [1, 100])
def test_nan_stops_and_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, log_interval_steps: int
) -> None:
    """The loss is NaN in the fourth step: step 2's checkpoint stays, none of step 4 is written, and no weight in it is NaN."""
    pair = ADVERSARIAL_LOSSES["hinge"]
    objective = digits_objective()

    def spoiled(*logits: Tensor) -> Tensor:
        loss = getattr(pair, side)(*logits)
        return loss * float("nan") if objective.trainer.step == 3 else loss  # type: ignore[attr-defined]

    objective.loss = pair._replace(**{side: spoiled})
    trainer = train_on_digits(objective, tmp_path, log_interval_steps=log_interval_steps)
    with pytest.raises(
        DivergenceError, match=f"{side}/loss became nan at step 3; the last good checkpoint is .*checkpoint-00000002'"
    ):
        trainer.fit()
    assert [path.name for path in ckpt.list_checkpoints(tmp_path)] == ["checkpoint-00000002"]
    again = train_on_digits(digits_objective(), tmp_path)
    again.load_checkpoint(ckpt.resolve_checkpoint(tmp_path, "latest"))
    assert again.step == 2
    assert all(p.isfinite().all() for network in objective.networks.values() for p in network.parameters()) is False
    assert all(p.isfinite().all() for network in again.objective.networks.values() for p in network.state_dict().values())


def test_only_the_generator_is_copied_to_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[nn.Module] = []
    trainer = train_on_digits(digits_objective(), tmp_path)

    def share_weights(network: nn.Module) -> nn.Module:
        copied.append(network)
        return network

    monkeypatch.setattr("generative.core.trainer.share_weights", share_weights)
    trainer.sampling_pipeline()
    assert copied == [trainer.averages["generator"]]


def test_every_penalty_and_regularisation_trains_on_the_real_trainer(tmp_path: Path) -> None:
    objective = digits_objective(
        loss="relativistic",
        penalties=(R1(0.1, interval=2), R2(0.1, interval=2), GradientPenalty(0.1), Consistency(0.1)),
        generator_orthogonal_weight=1e-4,
        discriminator_orthogonal_weight=1e-4,
        generator_first=True,
        separate_batches=True,
    )
    train_on_digits(objective, tmp_path).fit()
    assert [path.name for path in ckpt.list_checkpoints(tmp_path)] == ["checkpoint-00000002", "checkpoint-00000004"]


def test_pairs_of_singular_vectors_are_not_averaged() -> None:
    generator = FastGANGenerator(image_size=8, z_dim=4, num_classes=NUM_CLASSES, channels=2)
    networks = (generator, SAGANDiscriminator(8, channels=4, num_classes=NUM_CLASSES, attention_resolutions=()))
    with pytest.raises(UserError, match="set ema_buffers to copy"):
        GANObjective(*networks, torch.optim.Adam, torch.optim.Adam, ema=HalfLifeEMA(1000))
    GANObjective(*networks, torch.optim.Adam, torch.optim.Adam, ema=HalfLifeEMA(1000), ema_buffers="copy")


def test_networks_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match="Linear is no generator of this project: it has no attribute num_classes"):
        GANObjective(nn.Linear(1, 1), nn.Linear(1, 1), torch.optim.Adam, torch.optim.Adam)
    with pytest.raises(UserError, match="ema_buffers must be copy or average, got 'averages'"):
        make_objective(ema_buffers="averages")
