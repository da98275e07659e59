"""LTH14/mar as its training and sampling scripts run it, from a checkout; its calls of ``.cuda()`` do nothing here."""

from __future__ import annotations

import copy
import sys
from functools import partial
from typing import Any

import torch
from token_task import GUIDANCE, MAR_ITERATIONS, MAX_GRAD_NORM, TokenTask, adamw
from torch import Tensor, nn

EMA_DECAY = 0.9999


class Rival:
    """Its network, AdamW and average.

    Args:
        task: The sizes, and the checkout.
    """

    def __init__(self, task: TokenTask) -> None:
        sys.path.insert(0, str(task.checkout))
        torch.Tensor.cuda = lambda self, *args, **options: self  # type: ignore[method-assign, assignment]
        from models.mar import MAR

        self.network = MAR(**task.config, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        for module in (self.network.diffloss.net.final_layer.linear, *self.adaptive()):
            nn.init.normal_(module.weight, std=0.02)  # zero as they start: nothing behind them would be compared
        self.batch = task.batch()
        self.optimizer = adamw(self.network.parameters())
        self.average = [copy.deepcopy(p.detach()) for p in self.network.parameters()]

    def adaptive(self) -> list[nn.Linear]:
        """The modulations of the head, which start at zero."""
        net = self.network.diffloss.net
        return [block.adaLN_modulation[-1] for block in (*net.res_blocks, net.final_layer)]

    def state(self) -> dict[str, Any]:
        """Weights by official key."""
        return self.network.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Take weights."""
        self.network.load_state_dict(state)

    @torch.no_grad()
    def conditions(self, mask: Tensor) -> Tensor:
        """What the head is conditioned on (B, L, D), for a mask (B, L) of ones where masked."""
        self.network.eval()
        tokens = self.network.patchify(self.batch["latents"])
        encoded = self.network.forward_mae_encoder(tokens, mask, self.network.class_emb(self.batch["class_labels"]))
        conditions: Tensor = self.network.forward_mae_decoder(encoded, mask)
        return conditions

    def step(self) -> None:
        """One training step as in ``engine_mar.py``, the average included."""
        self.network.train()
        self.network(self.batch["latents"], self.batch["class_labels"]).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for average, parameter in zip(self.average, self.network.parameters(), strict=True):
            average.mul_(EMA_DECAY).add_(parameter.detach(), alpha=1 - EMA_DECAY)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Latents (B, C, h, w); which autoencoder decodes them is not part of the contest."""
        self.network.eval()
        labels = self.batch["class_labels"]
        options = {"num_iter": MAR_ITERATIONS, "cfg": GUIDANCE, "cfg_schedule": "linear", "temperature": 1.0}
        latents: Tensor = self.network.sample_tokens(bsz=len(labels), labels=labels, **options)
        return latents
