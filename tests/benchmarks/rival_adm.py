"""openai/guided-diffusion as its training and sampling scripts run it, from a checkout; without MPI and without guidance."""

from __future__ import annotations

import sys

import torch
from diffusion_task import LEARNING_RATE, STEPS, DiffusionTask, RivalTraining, fill_zeros
from torch import Tensor

SAMPLING_OPTIONS = ("ancestral_respacing",)


class Rival(RivalTraining):
    """Its U-Net, AdamW and average.

    Args:
        task: The sizes, and the checkout.
    """

    def __init__(self, task: DiffusionTask) -> None:
        sys.path.insert(0, str(task.checkout))
        from guided_diffusion import unet
        from guided_diffusion.script_util import create_gaussian_diffusion

        # Attention is computed anew in the backward pass whatever the flag says: spared it here, so that operations are counted.
        unet.checkpoint = lambda function, inputs, parameters, flag: function(*inputs)
        network = unet.UNetModel(**{key: value for key, value in task.config.items() if key not in SAMPLING_OPTIONS})
        fill_zeros(network)
        super().__init__(network, torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0))
        self.batch = task.batch()
        self.training = create_gaussian_diffusion(learn_sigma=True)
        self.sampling = create_gaussian_diffusion(learn_sigma=True, timestep_respacing=str(STEPS))

    def loss(self) -> Tensor:
        """As ``train_util.py`` computes it, with uniform timesteps."""
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
        """Images, as ``image_sample.py`` draws them."""
        self.network.eval()
        shape, labels = self.batch["images"].shape, self.batch["class_labels"]
        samples: Tensor = self.sampling.p_sample_loop(
            self.network, shape, clip_denoised=True, model_kwargs={"y": labels}, device="cpu"
        )
        return samples
