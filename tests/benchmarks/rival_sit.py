"""willisma/SiT as its training and sampling scripts run it, from a checkout; only its ODE needs torchdiffeq."""

from __future__ import annotations

import sys
from types import ModuleType

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
        absent = ModuleType("torchdiffeq")
        absent.odeint = None  # type: ignore[attr-defined]
        sys.modules.setdefault("torchdiffeq", absent)
        from models import SiT
        from transport import Sampler, create_transport

        network = SiT(**{key: value for key, value in task.config.items() if key != "sde"})
        fill_zeros(network)
        super().__init__(network, torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0))
        self.batch, self.num_classes = task.batch(), task.num_classes
        self.transport = create_transport()
        self.sampler = Sampler(self.transport).sample_sde(diffusion_form="sigma", num_steps=STEPS)

    def loss(self) -> Tensor:
        """As ``train.py`` computes it."""
        arguments = {"y": self.batch["class_labels"]}
        loss: Tensor = self.transport.training_losses(self.network, self.batch["images"], arguments)["loss"].mean()
        return loss

    @torch.no_grad()
    def predict(self, sample: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """Velocity predicted."""
        output: Tensor = self.network.eval()(sample, times, labels)
        return output

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Guided latents by the SDE, as ``sample.py`` draws them."""
        self.network.eval()
        labels = self.batch["class_labels"]
        noise = torch.randn_like(self.batch["images"]).repeat(2, 1, 1, 1)
        arguments = {"y": torch.cat([labels, torch.full_like(labels, self.num_classes)]), "cfg_scale": GUIDANCE}
        samples: Tensor = self.sampler(noise, self.network.forward_with_cfg, **arguments)[-1]
        return samples.chunk(2)[0]
