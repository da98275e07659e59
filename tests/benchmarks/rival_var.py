"""FoundationVision/VAR as its trainer and its sampler run it, from a checkout."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import torch
import torch.nn.functional as F
from token_task import GUIDANCE, MAX_GRAD_NORM, TokenTask, adamw
from torch import Tensor


class Rival:
    """Its networks and AdamW.

    Args:
        task: The sizes, and the checkout.
    """

    def __init__(self, task: TokenTask) -> None:
        sys.path.insert(0, str(task.checkout))
        with contextlib.redirect_stdout(io.StringIO()):
            from models import VAR, VQVAE

            self.tokenizer = VQVAE(**task.config["vae"], test_mode=True)
            self.network = VAR(self.tokenizer, **task.config["var"])
            self.network.init_weights(init_adaln=0.5, init_adaln_gamma=1e-3, init_head=1.0, init_std=-1)
        self.tokenizer.quantize.eini(-0.5)
        self.batch = task.batch()
        self.optimizer = adamw(self.network.parameters())

    def state(self) -> dict[str, Any]:
        """Weights by official module and key."""
        return {"vae": self.tokenizer.state_dict(), "var": self.network.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take weights."""
        self.tokenizer.load_state_dict(state["vae"])
        self.network.load_state_dict(state["var"])

    def loss(self, is_check: bool = False) -> Tensor:
        """Cross-entropy over all scales, as ``trainer.py`` computes it; without label dropout for the check."""
        tokens, labels = self.batch["tokens"], self.batch["class_labels"]
        scales = list(tokens.split([n * n for n in self.network.patch_nums], dim=1))
        inputs = self.tokenizer.quantize.idxBl_to_var_input(scales)
        rate = self.network.cond_drop_rate
        self.network.cond_drop_rate = 0.0 if is_check else rate
        logits = self.network(labels, inputs)
        self.network.cond_drop_rate = rate
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    def step(self) -> None:
        """One training step."""
        self.network.train()
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def sample(self, is_greedy: bool = False) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]; greedily for the check."""
        self.network.eval()
        labels = self.batch["class_labels"]
        options = {"top_k": 1} if is_greedy else {"top_k": 0, "top_p": 0.0}
        images: Tensor = self.network.autoregressive_infer_cfg(len(labels), labels, cfg=GUIDANCE - 1, **options)
        return images
