"""qihao067/DiMR as its training and sampling scripts run it, from a checkout; it needs einops and timm."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import rival_u_vit
import torch
from diffusion_task import LEARNING_RATE, DiffusionTask, RivalTraining, fill_zeros
from torch import Tensor

COEFFICIENTS = (0.25, 1.0)


class Rival(rival_u_vit.Rival):
    """Its network, AdamW and average; the chain and the sampler are U-ViT's, whose scripts it took over.

    Args:
        task: The sizes, and the checkout.
    """

    def __init__(self, task: DiffusionTask) -> None:
        sys.path.insert(0, str(task.checkout))
        from dpm_solver import DPM_Solver, NoiseScheduleVP
        from libs.core.blocks import ConvNeXtBlock, MRModel, TransformerBlock
        from sde import multi_scale_targets

        # Without its gradient checkpointing, which counting of operations does not bear and which would cost it a third.
        for block in (TransformerBlock, ConvNeXtBlock):
            block.forward = block._forward
        options = {name: value for name, value in task.config.items() if name not in ("loss_coeffs", "guidance_scale")}
        stages = [SimpleNamespace(**stage) for stage in options.pop("stage_configs")]
        network = MRModel(SimpleNamespace(**options, stage_configs=stages))
        fill_zeros(network)
        RivalTraining.__init__(self, network, torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0))
        self.batch, self.num_classes, self.targets = task.batch(), task.num_classes, multi_scale_targets
        betas = rival_u_vit.stable_diffusion_betas()
        self.kept = torch.cat([torch.ones(1), (1 - betas).cumprod(0).float()])
        self.solver, self.schedule = DPM_Solver, NoiseScheduleVP(schedule="discrete", betas=betas.float())

    def run_all(self, sample: Tensor, steps: Tensor, labels: Tensor) -> list[Tensor]:
        """Noise predicted at every resolution."""
        levels: list[Tensor] = self.network(sample, log_snr=steps.float() / 1000 * 8 - 4, y=labels)
        return levels

    def run(self, sample: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        """Noise predicted at the sample's own."""
        return self.run_all(sample, steps.reshape(-1).expand(len(sample)), labels)[-1]

    def loss(self) -> Tensor:
        """As ``LSimple`` computes it."""
        images, labels = self.batch["images"], self.batch["class_labels"]
        steps, noise = torch.randint(1, rival_u_vit.NUM_STEPS + 1, (len(images),)), torch.randn_like(images)
        kept = self.kept[steps].reshape(-1, 1, 1, 1)
        levels = self.run_all(kept.sqrt() * images + (1 - kept).sqrt() * noise, steps, labels)
        targets = self.targets(noise, levels=len(levels), scale_correction=True)
        errors = [(level - targets[level.shape[-1]]).square().flatten(1).mean(1) for level in levels]
        return sum(weight * error for weight, error in zip(COEFFICIENTS, errors, strict=True)).mean()  # type: ignore[union-attr]
