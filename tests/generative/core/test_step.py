"""Phases: accumulation, clipping, hooks, modes, intervals, repeats."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generative.core.objective import Phase
from generative.core.trainer import Trainer
from generative.core.types import Batch, StepContext


def parameters(trainer: Trainer) -> dict[str, Tensor]:
    return {f"{n}.{k}": p.detach().clone() for n, net in trainer.objective.networks.items() for k, p in net.named_parameters()}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def train(toy: ModuleType, objective: Any, folder: Path, **settings: Any) -> Trainer:
    trainer = toy.build_trainer(objective, folder, **settings)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("micro_batches", [2, 4])
@pytest.mark.parametrize("kind", ["gan", "masked"])
def test_micro_batches_equal_one_big_batch(toy: ModuleType, tmp_path: Path, kind: str, micro_batches: int) -> None:
    make = getattr(toy, kind)
    before = parameters(toy.build_trainer(make(), tmp_path))
    whole = train(toy, make(), tmp_path / "whole", max_grad_norm=0.5)
    split = train(toy, make(), tmp_path / "split", max_grad_norm=0.5, gradient_accumulation_steps=micro_batches)
    assert_close(parameters(whole), parameters(split))
    assert all(not torch.equal(before[name], value) for name, value in parameters(whole).items())


def test_masked_mean_is_over_all_tokens_and_not_a_mean_of_means(toy: ModuleType, tmp_path: Path) -> None:
    """The gradient of one step by hand, with micro-batches that have very different numbers of masked tokens."""
    objective = toy.masked()
    trainer = toy.build_trainer(objective, tmp_path, batch_size=8, gradient_accumulation_steps=4)
    images = toy.ToyImages(num_images=8).images(range(8)).float() / 127.5 - 1
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    batch: Batch = {"images": images, "class_labels": labels}

    expected = toy.masked()
    result = expected.loss(expected.networks, batch, StepContext(0, 0, torch.Generator()))
    (result["loss"] / result["denominator"]).backward()
    mean_of_means = toy.masked()
    micro: list[Batch] = [{"images": images[i : i + 2], "class_labels": labels[i : i + 2]} for i in range(0, 8, 2)]
    for part in micro:
        losses = mean_of_means.loss(mean_of_means.networks, part, StepContext(0, 0, torch.Generator()))
        (losses["loss"] / losses["denominator"] / 4).backward()

    start = parameters(trainer)
    trainer.train_step([micro])
    for name, parameter in expected.networks["net"].named_parameters():
        step = start[f"net.{name}"] - dict(objective.networks["net"].named_parameters())[name].detach()
        torch.testing.assert_close(step, 0.1 * parameter.grad, rtol=1e-4, atol=1e-7)
    ours = expected.networks["net"].last.bias.grad
    assert not torch.allclose(ours, mean_of_means.networks["net"].last.bias.grad, rtol=1e-2)


def test_a_batch_without_masked_tokens_changes_nothing(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(toy.masked(empty=True), tmp_path)
    before = parameters(trainer)
    trainer.fit()
    assert_close(before, parameters(trainer))


def test_noise_is_keyed_by_step_phase_and_slot(toy: ModuleType, tmp_path: Path) -> None:
    seen: dict[tuple[int, int], Tensor] = {}
    objective = toy.gan(random_noise=True)
    original = objective.fake

    def record(networks: Any, batch: Batch, generator: torch.Generator) -> Tensor:
        state = generator.get_state()
        seen[(trainer.step, len(seen))] = torch.randn(4, generator=generator)
        generator.set_state(state)
        return original(networks, batch, generator)

    objective.fake = record
    trainer = toy.build_trainer(objective, tmp_path, gradient_accumulation_steps=2, total_images=16)
    trainer.fit()
    draws = list(seen.values())
    assert len(draws) == 2 * 2 * 2
    assert len({tuple(draw.tolist()) for draw in draws}) == len(draws)


def one_batch(toy: ModuleType, count: int = 8) -> Batch:
    images = toy.ToyImages(num_images=count).images(range(count)).float() / 127.5 - 1
    return {"images": images, "class_labels": torch.arange(count) % 3}


def test_gradient_clipping(toy: ModuleType, tmp_path: Path) -> None:
    """Plain descent moves by lr * min(norm, limit)."""
    moves = {}
    for limit in (None, 1e-2):
        trainer = toy.build_trainer(toy.masked(), tmp_path, max_grad_norm=limit)
        before = parameters(trainer)
        trainer.train_step([[one_batch(toy)]])
        moves[limit] = torch.cat([(before[k] - v).flatten() for k, v in parameters(trainer).items()]).norm().item()
        norm = trainer.observer._pending[0][2]["grad_norm"].item()
    assert moves[None] == pytest.approx(0.1 * norm, rel=1e-4)
    assert moves[1e-2] == pytest.approx(0.1 * 1e-2, rel=1e-3)
    assert norm > 1e-2  # measured before clipping


def test_hooks_edit_gradients_before_clipping_and_weights_after_the_step(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.masked()
    order = []

    def before_step(networks: Any, step: int) -> None:
        order.append(f"before {step}")
        for parameter in networks["net"].parameters():
            parameter.grad.zero_()
        networks["net"].last.bias.grad.fill_(3.0)

    def after_step(networks: Any, step: int) -> None:
        order.append(f"after {step}")
        networks["net"].first.weight.fill_(7.0)

    phase = Phase(
        name="masked",
        networks=("net",),
        loss_fn=objective.loss,
        optimizer="net",
        before_step=before_step,
        after_step=after_step,
    )
    objective.phases = lambda: [phase]
    trainer = toy.build_trainer(objective, tmp_path, max_grad_norm=1.0)
    bias = objective.networks["net"].last.bias.detach().clone()
    trainer.train_step([[one_batch(toy)]])
    assert order == ["before 0", "after 0"]
    net = objective.networks["net"]
    assert (net.first.weight == 7).all()
    # 48 gradients of 3 are clipped to norm 1; lr is 0.1.
    torch.testing.assert_close(bias - net.last.bias.detach(), torch.full((48,), 0.1 / 48**0.5), rtol=1e-4, atol=1e-6)


def test_networks_outside_the_phase_get_no_gradient(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.gan()
    flags: dict[str, dict[str, bool]] = {}
    for name in ("discriminator_loss", "generator_loss"):
        original = getattr(objective, name)

        def record(networks: Any, *rest: Any, original: Any = original, name: str = name) -> Any:
            flags[name] = {n: all(p.requires_grad for p in net.parameters()) for n, net in networks.items()}
            return original(networks, *rest)

        setattr(objective, name, record)
    trainer = toy.build_trainer(objective, tmp_path)
    trainer.train_step([[one_batch(toy)]])
    assert flags["discriminator_loss"] == {"generator": False, "discriminator": True}
    assert flags["generator_loss"] == {"generator": True, "discriminator": False}

    before = parameters(trainer)
    trainer.phases = trainer.phases[:1]
    trainer.train_step([[one_batch(toy)]])
    after = parameters(trainer)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("generator"), name


def test_what_the_objective_froze_stays_frozen(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.masked()
    objective.networks["net"].first.requires_grad_(False)
    trainer = toy.build_trainer(objective, tmp_path)
    weight = objective.networks["net"].first.weight.detach().clone()
    trainer.train_step([[one_batch(toy)]])
    assert torch.equal(weight, objective.networks["net"].first.weight)
    assert not objective.networks["net"].first.weight.requires_grad


def test_modes_of_networks_in_a_phase(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.gan()
    modes: list[tuple[str, bool, bool]] = []

    def loss(name: str) -> Any:
        def compute(networks: Any, batch: Batch, context: StepContext) -> Any:
            modes.append((name, networks["generator"].training, networks["discriminator"].training))
            return objective.generator_loss(networks, batch, context)

        return compute

    phases = [
        Phase(name="a", networks=("generator",), loss_fn=loss("a"), optimizer="generator", eval_networks=("discriminator",)),
        Phase(name="b", networks=("generator",), loss_fn=loss("b"), optimizer="generator", eval_networks=("generator",)),
    ]
    objective.phases = lambda: phases
    toy.build_trainer(objective, tmp_path).train_step([[one_batch(toy)]])
    assert modes == [("a", True, False), ("b", False, True)]


def test_intervals_repeats_and_caches(toy: ModuleType, tmp_path: Path) -> None:
    """A lazy phase shares the optimizer of another; repeats see fresh data; a cache lives for one micro-batch of one step."""
    objective = toy.gan()
    calls: list[tuple[int, str, float]] = []
    caches: dict[str, list[Any]] = {"d": [], "g": []}

    def loss(name: str, original: Any) -> Any:
        def compute(networks: Any, batch: Batch, context: StepContext) -> Any:
            calls.append((trainer.step, name, batch["images"].sum().item()))
            caches.setdefault(name, []).append(context.cache)
            return original(networks, batch, context)

        return compute

    phases = [
        Phase(
            name="d",
            networks=("discriminator",),
            loss_fn=loss("d", objective.discriminator_loss),
            optimizer="discriminator",
            repeats=2,
        ),
        Phase(
            name="r1",
            networks=("discriminator",),
            loss_fn=loss("r1", objective.discriminator_loss),
            optimizer="discriminator",
            interval=3,
        ),
        Phase(name="g", networks=("generator",), loss_fn=loss("g", objective.generator_loss), optimizer="generator"),
    ]
    objective.phases = lambda: phases
    trainer = toy.build_trainer(objective, tmp_path, total_images=64, batch_size=8, log_interval_steps=100)
    trainer.fit()
    assert trainer.total_steps == 4  # 16 images a step
    assert [name for step, name, _ in calls if step == 0] == ["d", "d", "r1", "g"]
    assert [name for step, name, _ in calls if step == 1] == ["d", "d", "g"]
    assert [step for step, name, _ in calls if name == "r1"] == [0, 3]
    d = [total for _, name, total in calls if name == "d"]
    assert len(set(d[:6])) == 6  # 24 images: three batches of 8 an epoch, each another
    assert [total for _, name, total in calls if name == "g"] == d[::2]
    assert caches["g"][0] is caches["d"][0] and caches["d"][1] is not caches["d"][0]
    assert len(trainer.optimizers) == 2
    assert trainer.images_seen == 64


@pytest.mark.parametrize("field", ["interval", "repeats"])
def test_phase_refuses_nonsense(toy: ModuleType, field: str) -> None:
    objective = toy.gan()
    with pytest.raises(ValueError, match=f"{field} must be at least 1, got 0"):
        Phase(name="x", networks=("generator",), loss_fn=objective.generator_loss, optimizer="generator", **{field: 0})


def test_random_state_of_the_process_does_not_matter(toy: ModuleType, tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        objective = toy.denoiser()
        torch.manual_seed(seed)
        results.append(toy.snapshot(train(toy, objective, tmp_path / str(seed))))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_another_seed_gives_another_run(toy: ModuleType, tmp_path: Path) -> None:
    results = [toy.snapshot(train(toy, toy.denoiser(), tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    assert not torch.equal(results[0]["net.last.weight"], results[1]["net.last.weight"])


def test_bf16_runs_in_bf16(toy: ModuleType, tmp_path: Path) -> None:
    objective = toy.denoiser()
    dtypes = []
    objective.networks["net"].last.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    trainer = toy.build_trainer(objective, tmp_path, mixed_precision="bf16", total_images=8)
    trainer.train_step([[one_batch(toy)]])
    assert dtypes == [torch.bfloat16]
    assert all(p.dtype == torch.float32 for p in objective.networks["net"].parameters())
    assert isinstance(objective.networks["net"], nn.Module)
