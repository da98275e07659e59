"""diffusers' ``DiTPipeline`` without its autoencoder; its transformer trained on the noise, for which diffusers has no script."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusion_task import GUIDANCE, LEARNING_RATE, STEPS, DiffusionTask, RivalTraining, fill_zeros
from torch import Tensor


class Rival(RivalTraining):
    """Its transformer, AdamW and average.

    Args:
        task: The sizes.
    """

    def __init__(self, task: DiffusionTask) -> None:
        network = DiTTransformer2DModel(**task.config)
        fill_zeros(network)
        for block in network.transformer_blocks[1:]:  # copies, as in the published folders
            block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
        super().__init__(network, torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0))
        self.batch = task.batch()
        self.scheduler = DDIMScheduler(beta_start=0.0001, beta_end=0.02, clip_sample=False)
        vae = AutoencoderKL(latent_channels=3, block_out_channels=(8,), norm_num_groups=4)
        vae.decode = lambda latents: SimpleNamespace(sample=latents)  # type: ignore[method-assign]
        self.pipeline = DiTPipeline(network, vae, self.scheduler)
        self.pipeline.set_progress_bar_config(disable=True)

    def loss(self) -> Tensor:
        """Mean squared error of the noise."""
        images, noise = self.batch["images"], torch.randn_like(self.batch["images"])
        times = torch.randint(0, 1000, (len(images),))
        noised = self.scheduler.add_noise(images, noise, times)
        return F.mse_loss(self.network(noised, times, self.batch["class_labels"]).sample, noise)

    @torch.no_grad()
    def predict(self, sample: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Noise predicted."""
        output: Tensor = self.network.eval()(sample, times, labels).sample
        return output

    def sample(self) -> None:
        """Guided latents."""
        self.network.eval()
        self.pipeline(self.batch["class_labels"].tolist(), GUIDANCE, num_inference_steps=STEPS, output_type="np")
