"""NVlabs/edm2 as its training loop and sampler run it, from a checkout; in float32, as it does on a CPU."""

from __future__ import annotations

import sys

import torch
from diffusion_task import LEARNING_RATE, STEPS, DiffusionTask, RivalTraining, fill_zeros
from torch import Tensor
from torch.nn.functional import one_hot


class Rival(RivalTraining):
    """Its preconditioned U-Net, Adam and average.

    Args:
        task: The sizes, and the checkout.
    """

    def __init__(self, task: DiffusionTask) -> None:
        sys.path.insert(0, str(task.checkout))
        from generate_images import edm_sampler
        from training.networks_edm2 import Precond
        from training.training_loop import EDM2Loss

        network = Precond(**{key: value for key, value in task.config.items() if key != "sampler"})
        fill_zeros(network)
        super().__init__(network, torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99)))
        self.batch = task.batch()
        self.labels = one_hot(self.batch["class_labels"], task.num_classes).float()
        self.objective, self.sampler = EDM2Loss(), edm_sampler

    def loss(self) -> Tensor:
        """As ``training_loop.py`` computes it."""
        images = self.batch["images"]
        loss: Tensor = self.objective(self.network, images, self.labels).sum().mul(1 / len(images))
        return loss

    @torch.no_grad()
    def predict(self, sample: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Data predicted."""
        output: Tensor = self.network.eval()(sample, times, one_hot(labels, self.labels.shape[1]).float())
        return output

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Latents, as ``generate_images.py`` draws them without guidance."""
        samples: Tensor = self.sampler(self.network.eval(), torch.randn_like(self.batch["images"]), self.labels, num_steps=STEPS)
        return samples
