"""FoundationVision/LlamaGen as its training and sampling scripts run it, from a checkout."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from token_task import GUIDANCE, MAX_GRAD_NORM, TokenTask, adamw
from torch import Tensor, nn


class Rival:
    """Its network and AdamW.

    Args:
        task: The sizes, and the checkout.
    """

    def __init__(self, task: TokenTask) -> None:
        sys.path.insert(0, str(task.checkout))
        from autoregressive.models import generate, gpt

        # Chooses CUDA's attention kernels, and is gone from newer versions of torch.
        torch.backends.cuda.sdp_kernel = lambda **options: contextlib.nullcontext()  # type: ignore[attr-defined, assignment]
        self.generate = generate.generate
        self.network = gpt.Transformer(gpt.ModelArgs(**task.config["gpt"]))
        nn.init.normal_(self.network.output.weight, std=0.02)  # zero as it starts: every choice would be a tie
        self.batch = task.batch()
        self.optimizer = adamw(self.network.parameters())

    def state(self) -> dict[str, Any]:
        """Weights by official module and key."""
        return {"gpt": self.network.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Take weights."""
        self.network.load_state_dict(state["gpt"])

    def loss(self, is_check: bool = False) -> Tensor:
        """Cross-entropy of next tokens, as ``train_c2i.py`` asks for it; without dropout for the check."""
        if is_check:
            for module in self.network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            self.network.cls_embedding.dropout_prob = 0.0
        tokens = self.batch["tokens"]
        loss: Tensor = self.network(cond_idx=self.batch["class_labels"], idx=tokens[:, :-1], targets=tokens)[1]
        return loss

    def step(self) -> None:
        """One training step; caches of an earlier sampling are dropped."""
        self.network.train()
        for layer in self.network.layers:
            layer.attention.kv_cache = None
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def sample(self, is_greedy: bool = False) -> Tensor:
        """Ids (B, L), greedily for the check; the tokenizer that decodes them is not part of the contest."""
        self.network.eval()
        labels, length = self.batch["class_labels"], self.batch["tokens"].shape[1]
        options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": not is_greedy}
        tokens: Tensor = self.generate(self.network, labels, length, cfg_scale=GUIDANCE, **options)
        return tokens
