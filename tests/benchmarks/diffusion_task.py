"""What the contenders of ``diffusion_training.py`` are to do: sizes, the batch, and who builds what."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from contest import Contender
from torch import Tensor, nn

EMA_DECAY = 0.9999
STEPS = 10
"""Of sampling: of the chain, of the SDE, of EDM's sampler."""
GUIDANCE = 1.5
LEARNING_RATE = 1e-4

_DIT = {"patch_size": 2, "in_channels": 3, "num_classes": 10}
_SDE = {"sde": {"num_steps": STEPS}}
_ADM = {"in_channels": 3, "out_channels": 6, "num_res_blocks": 1, "num_classes": 10, "num_head_channels": 32}
_ADM |= {"use_scale_shift_norm": True, "resblock_updown": True, "ancestral_respacing": str(STEPS)}
_EDM2 = {"img_channels": 3, "label_dim": 10, "use_fp16": False, "num_blocks": 1, "sampler": {"num_steps": STEPS}}
_PIPELINE = {"patch_size": 2, "in_channels": 3, "out_channels": 3, "num_embeds_ada_norm": 1000}
_UVIT = {"patch_size": 2, "in_chans": 3, "num_classes": 11}
_UVIT_REST = {"null_label": 10, "guidance_s": GUIDANCE - 1}
_SMALL = {"input_size": 16, "hidden_size": 192, "depth": 6, "num_heads": 3}
_MID = {"input_size": 32, "hidden_size": 384, "depth": 12, "num_heads": 6}


_RIN = {
    "num_classes": 10, "image_channels": 3, "latent_mlp_ratio": 4, "rw_num_heads": 4, "drop_units": 0.0, "time_scaling": 1000.0,
    "conv_kernel_size": 0, "conv_drop_units": 0.0, "drop_path": 0.0, "drop_att": 0.0, "cond_dim": 0, "cond_proj": True,
    "latent_pos_encoding": "learned", "tape_pos_encoding": "learned", "cond_decoupled_read": False, "xattn_enc_ln": False,
    "time_on_latent": True, "cond_on_latent": True, "cond_tape_writable": False, "tape_mlp_ratio": 2, "conditional": "class",
    "self_cond": "latent", "self_cond_rate": 0.9, "self_cond_by_masking": True, "train_schedule": "simple_linear",
    "infer_schedule": "cosine", "pred_type": "eps", "loss_type": "eps", "x0_clip": "auto", "b_scale": 1.0, "sampler_name": "ddpm",
    "normalize_noisy_input": False, "guidance": 0.0, "td": 0.0,
}  # fmt: skip


def dimr_config(size: int, width: int, depths: tuple[int, int], heads: int) -> dict[str, Any]:
    """Transformers at half the size and ConvNeXt of half the width, as DiMR's published models."""
    shared = {"image_input_ratio": 1, "final_kernel_size": 3, "dropout_prob": 0}
    low, high = {"max_height": size // 2, "max_width": size // 2}, {"max_height": size, "max_width": size}
    transformer = {"block_type": "TransformerBlock", "dim": width, "hidden_dim": 2 * width, "num_attention_heads": heads}
    convnext = {"block_type": "ConvNeXtBlock", "dim": width // 2, "hidden_dim": width, "kernel_size": 7}
    stages = [
        shared | transformer | low | {"num_blocks": depths[0], "input_feature_ratio": 2},
        shared | convnext | high | {"num_blocks": depths[1], "input_feature_ratio": 1},
    ]
    rest = {"channels": 3, "num_classes": 11, "block_grad_to_lowres": False, "norm_type": "TDRMSN", "loss_coeffs": [0.25, 1]}
    return {**rest, "guidance_scale": GUIDANCE - 1, "stage_configs": stages}


#: Official constructor arguments by model and size; batch of a training step and of sampling.
SIZES: MappingProxyType[str, dict[str, tuple[dict[str, Any], int]]] = MappingProxyType(
    {
        "dit": {"tiny": (_DIT | _SMALL, 16), "mid": (_DIT | _MID, 4)},
        "sit": {"tiny": (_DIT | _SMALL | _SDE, 16), "mid": (_DIT | _MID | _SDE, 4)},
        "adm": {
            "tiny": (
                _ADM | {"image_size": 32, "model_channels": 32, "channel_mult": (1, 2, 4), "attention_resolutions": (4,)},
                16,
            ),
            "mid": (
                _ADM | {"image_size": 64, "model_channels": 64, "channel_mult": (1, 2, 3, 4), "attention_resolutions": (4, 8)},
                4,
            ),
        },
        "edm2": {
            "tiny": (
                _EDM2 | {"img_resolution": 16, "model_channels": 32, "channel_mult": [1, 2, 4], "attn_resolutions": [8]},
                16,
            ),
            "mid": (
                _EDM2 | {"img_resolution": 32, "model_channels": 64, "channel_mult": [1, 2, 3, 4], "attn_resolutions": [16, 8]},
                4,
            ),
        },
        "u-vit": {
            "tiny": ({"nnet": _UVIT | {"img_size": 16, "embed_dim": 192, "depth": 6, "num_heads": 3}, **_UVIT_REST}, 16),
            "mid": ({"nnet": _UVIT | {"img_size": 32, "embed_dim": 384, "depth": 12, "num_heads": 6}, **_UVIT_REST}, 4),
        },
        "dimr": {
            "tiny": (dimr_config(16, 192, (6, 3), 3), 16),
            "mid": (dimr_config(32, 384, (12, 6), 6), 4),
        },
        "rin": {
            "tiny": (
                _RIN
                | {"image_height": 32, "image_width": 32, "patch_size": 4, "num_layers": "2,2", "latent_slots": 32}
                | {"latent_dim": 192, "latent_num_heads": 3, "tape_dim": 128},
                16,
            ),
            "mid": (
                _RIN
                | {"image_height": 64, "image_width": 64, "patch_size": 4, "num_layers": "4,4,4", "latent_slots": 64}
                | {"latent_dim": 384, "latent_num_heads": 6, "tape_dim": 256},
                4,
            ),
        },
        "dit-pipeline": {
            "tiny": (_PIPELINE | {"sample_size": 16, "num_attention_heads": 3, "attention_head_dim": 64, "num_layers": 6}, 16),
            "mid": (_PIPELINE | {"sample_size": 32, "num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12}, 4),
        },
    }
)


@dataclass(frozen=True)
class DiffusionTask:
    """One model at one size.

    Attributes:
        model: Of ``SIZES``, the name of its source in ``generative.convert``.
        size: ``tiny`` or ``mid``.
        threads: Of each process.
        checkout: Of the official repository; diffusers is installed.
        folder: For the weights that all start from.
    """

    model: str
    size: str
    threads: int
    checkout: Path | None
    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """Official constructor arguments."""
        return SIZES[self.model][self.size][0]

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return SIZES[self.model][self.size][1]

    @property
    def network_config(self) -> dict[str, Any]:
        """Those of the network, where they stand apart."""
        config: dict[str, Any] = self.config.get("nnet", self.config)
        return config

    @property
    def num_classes(self) -> int:
        """Classes, the null class not among them."""
        names = ("num_classes", "label_dim", "num_embeds_ada_norm")
        counts_null = self.model in ("u-vit", "dimr")
        return int(next(self.network_config[name] for name in names if name in self.network_config)) - counts_null

    def batch(self) -> dict[str, Tensor]:
        """Images (B, 3, H, W) and labels."""
        generator = torch.Generator().manual_seed(0)
        config = self.network_config
        sides = ("input_size", "image_size", "img_resolution", "sample_size", "img_size", "image_height")
        stages = config.get("stage_configs")
        size = stages[-1]["max_height"] if stages else next(config[name] for name in sides if name in config)
        kinds = ("in_channels", "img_channels", "in_chans", "channels", "image_channels")
        channels = next(config[name] for name in kinds if name in config)
        samples = torch.randn(self.batch_size, channels, size, size, generator=generator)
        labels = torch.randint(self.num_classes, (self.batch_size,), generator=generator)
        return {"images": samples, "class_labels": labels}

    def state(self) -> dict[str, Tensor]:
        """The weights that all start from, by official keys."""
        state: dict[str, Tensor] = torch.load(self.folder / "state.pt", weights_only=True)
        return state

    def rival(self) -> Any:
        """The official network, from the checkout."""
        return import_module(f"rival_{self.model.replace('-', '_')}").Rival(self)

    def ours(self, contender: Contender) -> Any:
        """Our network in our trainer and pipeline, with the same weights."""
        return import_module("our_diffusion").Ours(self, contender)

    def build(self, contender: Contender) -> Any:
        """Make what a process runs."""
        if contender.is_ours:
            return self.ours(contender)
        rival = self.rival()
        rival.network.load_state_dict(self.state())
        return rival


class RivalTraining:
    """What the training loops of the official codes have in common: AdamW, and an average that follows.

    Args:
        network: The official one.
        optimizer: Over its parameters.
    """

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        self.average = [parameter.detach().clone() for parameter in network.parameters()]

    def loss(self) -> Tensor:
        """Of the batch."""
        raise AssertionError("each rival has its own")

    def step(self) -> None:
        """One training step."""
        self.network.train()
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        with torch.no_grad():
            for mean, value in zip(self.average, self.network.parameters(), strict=True):
                mean.mul_(EMA_DECAY).add_(value.detach(), alpha=1 - EMA_DECAY)


def fill_zeros(network: nn.Module) -> None:
    """Give values to what starts at zero: nothing behind it would be compared."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() and not parameter.any():
                parameter.normal_(std=0.02)
