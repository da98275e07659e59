"""EDM2's forced weight normalisation within the trainer: resumed, accumulated and compiled runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from generative.core import checkpoint as ckpt
from generative.core.ema import PowerEMA
from generative.diffusion.formulations.edm import EDM
from generative.diffusion.networks.edm2 import EDM2UNet
from generative.diffusion.networks.edm2_blocks import EDM2Block
from generative.diffusion.objectives.denoising import DiffusionObjective
from generative.diffusion.options import DiffusionOptions
from generative.layers.magnitude_preserving import MPLayer

IMAGES = 48
"""Six steps of eight images."""


def objective() -> DiffusionObjective:
    torch.manual_seed(0)
    denoiser = EDM2UNet(
        sample_size=4,
        in_channels=3,
        num_classes=3,
        class_dropout_prob=0.1,
        model_channels=4,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_resolutions=(2,),
        channels_per_head=4,
        logvar_channels=4,
        dropout=0.2,
    )
    optimizer = partial(torch.optim.Adam, lr=0.01, betas=(0.9, 0.99), eps=1e-9)
    sampling = DiffusionOptions(num_inference_steps=2)
    return DiffusionObjective(denoiser, EDM(), optimizer, ema=PowerEMA(std=0.1), sampling=sampling)


def trained(toy: ModuleType, run: Path, **settings: object) -> dict[str, torch.Tensor]:
    """What a run of six steps ends with."""
    trainer = toy.build_trainer(objective(), run, **{"total_images": IMAGES} | settings)
    trainer.fit()
    state: dict[str, torch.Tensor] = toy.snapshot(trainer)
    return state


def test_a_resumed_run_is_bit_equal(toy: ModuleType, tmp_path: Path) -> None:
    whole = trained(toy, tmp_path / "whole")
    trained(toy, tmp_path / "parts", total_images=IMAGES // 2)
    trainer = toy.build_trainer(objective(), tmp_path / "parts", total_images=IMAGES)
    trainer.fit(ckpt.resolve_checkpoint(tmp_path / "parts", "latest"))
    parts = toy.snapshot(trainer)
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)


def test_checkpointed_activations_change_nothing(toy: ModuleType, tmp_path: Path) -> None:
    calls: list[bool] = []
    forward = EDM2Block.forward

    def counted(self: EDM2Block, *arguments: torch.Tensor) -> torch.Tensor:
        calls.append(True)
        return forward(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EDM2Block, "forward", counted)
        whole, once = trained(toy, tmp_path / "whole"), len(calls)
        checkpointed = trained(toy, tmp_path / "checkpointed", gradient_checkpointing=True)
    assert len(calls) > 2 * once  # blocks ran again
    assert all(torch.equal(checkpointed[name], whole[name]) for name in whole)


def test_weights_stay_near_unit_magnitude(toy: ModuleType, tmp_path: Path) -> None:
    trainer = toy.build_trainer(objective(), tmp_path, total_images=IMAGES)
    trainer.fit()
    for layer in trainer.objective.networks["denoiser"].modules():
        if isinstance(layer, MPLayer):  # the last step's update lies on top of the last normalisation
            magnitude = layer.weight.detach().flatten(1).square().mean(1).sqrt()
            assert float(magnitude.max()) < 1.05 and float(magnitude.min()) > 0.95


@pytest.mark.slow
def test_compiled_training_is_like_eager_training(toy: ModuleType, tmp_path: Path) -> None:
    eager, compiled = trained(toy, tmp_path / "eager"), trained(toy, tmp_path / "compiled", compile=True)
    assert eager.keys() == compiled.keys()
    for name in eager:  # dropout draws otherwise within a compiled graph
        if name.startswith("denoiser"):
            assert torch.isfinite(compiled[name]).all()
