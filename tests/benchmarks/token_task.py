"""What the contenders of ``token_training.py`` are to do: sizes, the batch, and who builds what."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from contest import Contender
from torch import Tensor

NUM_CLASSES = 10
#: AdamW of VAR, LlamaGen and MAR alike; the rate does not matter to time.
OPTIMIZER = MappingProxyType({"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.05})
MAX_GRAD_NORM = 1.0

_VAR_TOKENIZER = {"z_channels": 32, "ch": 32, "v_patch_nums": None, "share_quant_resi": 4}
_VAR = {"num_classes": NUM_CLASSES, "mlp_ratio": 4.0, "drop_path_rate": 0.0, "shared_aln": False, "attn_l2_norm": True}
_LLAMAGEN_TOKENIZER = {"codebook_embed_dim": 8, "codebook_l2_norm": True, "z_channels": 64}
_LLAMAGEN = {"num_classes": NUM_CLASSES, "multiple_of": 64, "token_dropout_p": 0.1, "resid_dropout_p": 0.1, "ffn_dropout_p": 0.1}
_MAR = {"vae_stride": 8, "patch_size": 1, "vae_embed_dim": 16, "class_num": NUM_CLASSES, "diffusion_batch_mul": 4}


def _var(depth: int, width: int, heads: int, codes: int, patch_nums: tuple[int, ...]) -> dict[str, Any]:
    tokenizer = _VAR_TOKENIZER | {"vocab_size": codes, "v_patch_nums": patch_nums}
    return {"vae": tokenizer, "var": _VAR | {"depth": depth, "embed_dim": width, "num_heads": heads, "patch_nums": patch_nums}}


def _llamagen(depth: int, width: int, heads: int, codes: int, grid: int) -> dict[str, Any]:
    gpt = {"dim": width, "n_layer": depth, "n_head": heads, "vocab_size": codes, "block_size": grid * grid}
    return {"gpt": _LLAMAGEN | gpt, "vq": _LLAMAGEN_TOKENIZER | {"codebook_size": codes}}


def _mar(depth: int, width: int, heads: int, grid: int, head_depth: int, head_width: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {"img_size": 8 * grid, "buffer_size": 8, "diffloss_d": head_depth, "diffloss_w": head_width}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_embed_dim": width, f"{part}_depth": depth, f"{part}_num_heads": heads}
    return _MAR | sizes | {"num_sampling_steps": "25"}


#: Official constructor arguments by model and size; batch of a training step, images sampled at a time.
SIZES: MappingProxyType[str, dict[str, tuple[dict[str, Any], int, int]]] = MappingProxyType(
    {
        "var": {
            "tiny": (_var(4, 256, 4, 1024, (1, 2, 3, 4, 6, 8)), 16, 16),
            "mid": (_var(8, 512, 8, 4096, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)), 4, 4),
        },
        "llamagen": {
            "tiny": (_llamagen(4, 256, 4, 1024, 8), 16, 16),
            "mid": (_llamagen(8, 512, 8, 16384, 16), 4, 4),
        },
        "mar": {
            "tiny": (_mar(4, 256, 4, 8, 3, 256), 16, 16),
            "mid": (_mar(6, 512, 8, 16, 3, 512), 4, 4),
        },
    }
)
GUIDANCE = 2.5  # our scale: u + s (c - u)
MAR_ITERATIONS = 8


@dataclass(frozen=True)
class TokenTask:
    """What all contenders of one table do.

    Attributes:
        model: ``var``, ``llamagen`` or ``mar``.
        size: ``tiny`` or ``mid``.
        threads: Of each process.
        checkout: Of the rival.
        folder: Holds ``state.pt``, the weights that all start from.
    """

    model: str
    size: str
    threads: int
    checkout: Path
    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """Official constructor arguments."""
        return SIZES[self.model][self.size][0]

    @property
    def batch_size(self) -> int:
        """Images of a step, and sampled at a time."""
        return SIZES[self.model][self.size][1]

    def batch(self) -> dict[str, Tensor]:
        """What a training step reads: random ``tokens`` or ``latents``, and ``class_labels``."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(NUM_CLASSES, (self.batch_size,), generator=generator)
        if self.model == "mar":
            side = self.config["img_size"] // self.config["vae_stride"]
            shape = (self.batch_size, self.config["vae_embed_dim"], side, side)
            return {"latents": torch.randn(shape, generator=generator), "class_labels": labels}
        if self.model == "var":
            length, codes = sum(n * n for n in self.config["var"]["patch_nums"]), self.config["vae"]["vocab_size"]
        else:
            length, codes = self.config["gpt"]["block_size"], self.config["gpt"]["vocab_size"]
        return {"tokens": torch.randint(codes, (self.batch_size, length), generator=generator), "class_labels": labels}

    def state(self) -> dict[str, Any]:
        """The weights that all start from, by official keys."""
        state: dict[str, Any] = torch.load(self.folder / "state.pt", weights_only=True)
        return state

    def rival(self) -> Any:
        """The official networks, from the checkout."""
        return import_module(f"rival_{self.model}").Rival(self)

    def ours(self, contender: Contender) -> Any:
        """Our networks in our trainer and pipeline, with the same weights."""
        return import_module("our_tokens").Ours(self, contender)

    def build(self, contender: Contender) -> Any:
        """Make what a process runs."""
        if contender.is_ours:
            return self.ours(contender)
        rival = self.rival()
        rival.load(self.state())
        return rival


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of the official scripts: AdamW, fused where the script asks for it (VAR and LlamaGen do)."""
    return partial(torch.optim.AdamW, **OPTIMIZER, fused=True)(parameters)
