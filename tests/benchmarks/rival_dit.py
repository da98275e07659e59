"""facebookresearch/DiT as its training and sampling scripts run it, from a checkout."""

from __future__ import annotations

import sys

import torch
from diffusion_task import GUIDANCE, LEARNING_RATE, STEPS, DiffusionTask, RivalTraining, fill_zeros
from torch import Tensor


class Rival(RivalTraining):
    """Its network, AdamW and average.

    Args:
        task: The sizes, and the checkout.
    """

    def __init__(self, task: DiffusionTask) -> None:
        sys.path.insert(0, str(task.checkout))
        from diffusion import create_diffusion
        from models import DiT

        network = DiT(**task.config)
        fill_zeros(network)
        super().__init__(network, torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0))
        self.batch, self.num_classes = task.batch(), task.num_classes
        self.training, self.sampling = create_diffusion(timestep_respacing=""), create_diffusion(str(STEPS))

    def loss(self) -> Tensor:
        """As ``train.py`` computes it."""
        images, labels = self.batch["images"], self.batch["class_labels"]
        times = torch.randint(0, self.training.num_timesteps, (len(images),))
        loss: Tensor = self.training.training_losses(self.network, images, times, {"y": labels})["loss"].mean()
        return loss

    @torch.no_grad()
    def predict(self, sample: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Noise predicted."""
        output: Tensor = self.network.eval()(sample, times, labels)
        return output[:, : sample.shape[1]]

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Guided latents, as ``sample.py`` draws them."""
        self.network.eval()
        labels = self.batch["class_labels"]
        noise = torch.randn_like(self.batch["images"]).repeat(2, 1, 1, 1)
        arguments = {"y": torch.cat([labels, torch.full_like(labels, self.num_classes)]), "cfg_scale": GUIDANCE}
        samples: Tensor = self.sampling.p_sample_loop(
            self.network.forward_with_cfg, noise.shape, noise, clip_denoised=False, model_kwargs=arguments, device="cpu"
        )
        return samples.chunk(2)[0]
