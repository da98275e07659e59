"""baofff/U-ViT as its latent training and sampling scripts run it, from a checkout; it needs einops."""

from __future__ import annotations

import sys

import torch
from diffusion_task import GUIDANCE, LEARNING_RATE, STEPS, DiffusionTask, RivalTraining, fill_zeros
from torch import Tensor

BETA_START, BETA_END, NUM_STEPS = 0.00085, 0.012, 1000


def stable_diffusion_betas() -> Tensor:
    """(1000,) float64, as the scripts make them."""
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_STEPS, dtype=torch.float64) ** 2


class Rival(RivalTraining):
    """Its network, AdamW and average; ``train_ldm_discrete.py`` itself needs wandb and accelerate, and its loss is two lines.

    Args:
        task: The sizes, and the checkout.
    """

    def __init__(self, task: DiffusionTask) -> None:
        sys.path.insert(0, str(task.checkout))
        from dpm_solver_pp import DPM_Solver, NoiseScheduleVP
        from libs.uvit import UViT

        network = UViT(**task.network_config)
        fill_zeros(network)
        super().__init__(network, torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0))
        self.batch, self.num_classes = task.batch(), task.num_classes
        betas = stable_diffusion_betas()
        self.kept = torch.cat([torch.ones(1), (1 - betas).cumprod(0).float()])
        self.solver, self.schedule = DPM_Solver, NoiseScheduleVP(schedule="discrete", betas=betas.float())

    def run(self, sample: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
        """Noise predicted at steps from 1 to 1000."""
        noise: Tensor = self.network(sample, steps, labels)
        return noise

    def loss(self) -> Tensor:
        """As ``LSimple`` computes it."""
        images, labels = self.batch["images"], self.batch["class_labels"]
        steps, noise = torch.randint(1, NUM_STEPS + 1, (len(images),)), torch.randn_like(images)
        kept = self.kept[steps].reshape(-1, 1, 1, 1)
        predicted = self.run(kept.sqrt() * images + (1 - kept).sqrt() * noise, steps, labels)
        return (noise - predicted).square().flatten(1).mean(1).mean()

    @torch.no_grad()
    def predict(self, sample: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Noise predicted at steps that our chain counts from 0."""
        self.network.eval()
        return self.run(sample, times + 1, labels)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Guided latents by DPM-Solver, as ``eval_ldm_discrete.py`` draws them: each branch by itself."""
        self.network.eval()
        labels = self.batch["class_labels"]
        null = torch.full_like(labels, self.num_classes)

        def guided(x: Tensor, time: Tensor) -> Tensor:
            conditional = self.run(x, time * NUM_STEPS, labels)
            return conditional + (GUIDANCE - 1) * (conditional - self.run(x, time * NUM_STEPS, null))

        solver = self.solver(guided, self.schedule, predict_x0=True, thresholding=False)
        samples: Tensor = solver.sample(torch.randn_like(self.batch["images"]), steps=STEPS, eps=1 / NUM_STEPS, T=1.0)
        return samples
