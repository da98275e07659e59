"""Checkpoints of MAR's authors' code (LTH14/mar), and the layout that eMIGM's shares with them."""

from __future__ import annotations

import abc
import math
import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin
from torch import Tensor

from generative.autoregressive.continuous.diffusion_head import NUM_TRAIN_TIMESTEPS
from generative.autoregressive.continuous.head_samplers import AncestralHeadSampler
from generative.autoregressive.continuous.mar import MAR
from generative.autoregressive.masking import TruncatedNormalMasking
from generative.convert.arguments import ANY, FLAG, NUMBER, POSITIVE, SHARE, WHOLE, Argument, Constructor
from generative.convert.base import OfficialSource
from generative.convert.keys import names_of, rename_by
from generative.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.mar import MARPipeline

# Heads of the published sizes by width, which a checkpoint does not tell: eMIGM's XS and S, then B, L and H of both.
HEADS = MappingProxyType({448: 8, 512: 8, 768: 12, 1024: 16, 1280: 16})
# Of the published models' layer norms; the constructors' own default is torch's 1e-5, which none of them has.
NORM_EPS = 1e-6
# Stride of the autoencoder by channels of its latents: MAR's KL-16, eMIGM's DC-AE f32c32.
STRIDES = MappingProxyType({16: 16, 32: 32})
# What the published FIDs were sampled with (README): iterations, steps of the head, guidance by width.
SAMPLING_ITERATIONS, SAMPLING_STEPS = 256, 100
FID_GUIDANCE = MappingProxyType({768: 2.9, 1024: 3.0, 1280: 3.2})
# Keys that every checkpoint of the layout has, and no other layout together.
OWN_KEYS = (
    "fake_latent",
    "mask_token",
    "z_proj.weight",
    "encoder_pos_embed_learned",
    "diffusion_pos_embed_learned",
    "diffloss.net.cond_embed.weight",
)
BLOCK = r"(encoder|decoder)_blocks\.(\d+)\."

# Official key -> ours, first match wins.
KEY_PATTERNS = (
    (r"^class_emb\.", "class_embedding."),
    (r"^fake_latent$", "null_embedding"),
    (r"^mask_token$", "mask_embedding"),
    (r"^z_proj\.", "token_projection."),
    (r"^z_proj_ln\.", "token_norm."),
    (r"^(encoder|decoder)_pos_embed_learned$", r"\1_positions"),
    (r"^diffusion_pos_embed_learned$", "head_positions"),
    (r"^(encoder|decoder)_norm\.", r"\1_norm."),
    (r"^decoder_embed\.", "decoder_projection."),
    (rf"^{BLOCK}(norm[12]|mlp\.fc[12])\.", r"\1_blocks.\2.\3."),
    (rf"^{BLOCK}attn\.qkv\.", r"\1_blocks.\2.attention.qkv."),
    (rf"^{BLOCK}attn\.proj\.", r"\1_blocks.\2.attention.out."),
    (r"^diffloss\.net\.time_embed\.mlp\.0\.", "head.timestep_embedder.linear_1."),
    (r"^diffloss\.net\.time_embed\.mlp\.2\.", "head.timestep_embedder.linear_2."),
    (r"^diffloss\.net\.cond_embed\.", "head.condition_projection."),
    (r"^diffloss\.net\.input_proj\.", "head.input_projection."),
    (r"^diffloss\.net\.res_blocks\.(\d+)\.in_ln\.", r"head.blocks.\1.norm."),
    (r"^diffloss\.net\.res_blocks\.(\d+)\.mlp\.0\.", r"head.blocks.\1.linear_1."),
    (r"^diffloss\.net\.res_blocks\.(\d+)\.mlp\.2\.", r"head.blocks.\1.linear_2."),
    (r"^diffloss\.net\.res_blocks\.(\d+)\.adaLN_modulation\.1\.", r"head.blocks.\1.modulation."),
    (r"^diffloss\.net\.final_layer\.adaLN_modulation\.1\.", "head.final_modulation."),
    (r"^diffloss\.net\.final_layer\.linear\.", "head.output."),
)


def rename_keys(owner: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict.

    Args:
        owner: Whose, for messages.
        state: Official tensors.

    Raises:
        UnknownKeysError: If a key is unknown.
    """
    names = names_of(owner, state, partial(rename_by, KEY_PATTERNS))
    return {name: state[key] for key, name in names.items()}


def chain_timesteps(text: Any) -> int | list[int]:
    """Steps of the official ``num_sampling_steps`` for the ddpm sampler.

    Args:
        text: A number; numbers for equal sections of the chain, by commas; or ``ddimN``, an integer stride that gives N steps.

    Returns:
        How many, where they are spread evenly over the chain; else the timesteps, ascending.

    Raises:
        UserError: If it is none of these, or cannot be met.
    """
    wrong = UserError(f"num_sampling_steps must be a number, numbers by commas or ddimN, each within the chain, got {text!r}")
    if not re.fullmatch(r"\d+(,\d+)*|ddim\d+", str(text)):
        raise wrong
    if str(text).startswith("ddim"):
        count = int(str(text)[4:])
        strides = (stride for stride in range(1, NUM_TRAIN_TIMESTEPS) if -(-NUM_TRAIN_TIMESTEPS // stride) == count)
        stride = next(strides, None)
        if stride is None:
            raise wrong
        return list(range(0, NUM_TRAIN_TIMESTEPS, stride))
    counts = [int(count) for count in str(text).split(",")]
    if len(counts) == 1:
        return counts[0]
    timesteps: list[int] = []
    size, extra = divmod(NUM_TRAIN_TIMESTEPS, len(counts))
    start = 0
    for index, count in enumerate(counts):
        length = size + (index < extra)
        if not 1 <= count <= length:
            raise wrong
        stride_within = 1.0 if count == 1 else (length - 1) / (count - 1)
        timesteps += [start + round(step * stride_within) for step in range(count)]
        start += length
    return timesteps


# Arguments that both constructors have; those without a name of ours size the latents, train or sample.
SHARED_ARGUMENTS = MappingProxyType(
    {
        "img_size": Argument(None, 256, WHOLE),
        "vae_stride": Argument(None, 16, POSITIVE),
        "patch_size": Argument("patch_size", 1, WHOLE),
        "vae_embed_dim": Argument("in_channels", 16, WHOLE),
        "class_num": Argument("num_classes", 1000, WHOLE),
        "mlp_ratio": Argument("mlp_ratio", 4.0, NUMBER),
        "buffer_size": Argument("buffer_size", 64, WHOLE),
        "attn_dropout": Argument("attention_dropout", 0.1, NUMBER),
        "proj_dropout": Argument("residual_dropout", 0.1, NUMBER),
        "diffloss_w": Argument("head_width", 1024, WHOLE),
        "diffloss_d": Argument("head_depth", 3, WHOLE),
        "norm_eps": Argument("norm_eps", NORM_EPS, NUMBER),
        "encoder_embed_dim": Argument("encoder_hidden_size", 1024, WHOLE),
        "encoder_depth": Argument("encoder_depth", 16, WHOLE),
        "encoder_num_heads": Argument("encoder_num_heads", 16, WHOLE, untold='{"encoder_num_heads": N}'),
        "decoder_embed_dim": Argument("decoder_hidden_size", 1024, WHOLE),
        "decoder_depth": Argument("decoder_depth", 16, WHOLE),
        "decoder_num_heads": Argument("decoder_num_heads", 16, WHOLE, untold='{"decoder_num_heads": N}'),
        "label_drop_prob": Argument(None, 0.1, SHARE),
        "diffusion_batch_mul": Argument(None, 4, POSITIVE),
        "num_sampling_steps": Argument(None, "100", ANY),  # see ``chain_timesteps``
        "grad_checkpointing": Argument(None, False, FLAG),
    }
)


class MaskedAutoencoderSource(OfficialSource):
    """What the sources of MAR and eMIGM share."""

    autoencoder_file = "kl16.ckpt"
    constructor: Constructor
    network: type[MAR]

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Build our network from official arguments.

        Args:
            config: Arguments of the official constructor (with ``norm_eps`` for its ``norm_layer``); those that only train or
                sample are checked.

        Returns:
            The network as ``model``.

        Raises:
            UserError: If an option is unknown, of the wrong kind or out of range.
        """
        values = self.constructor.values(config)
        stride, image_size = values["vae_stride"], values["img_size"]
        if image_size < stride:
            raise UserError(f"img_size of {self.repository} must be at least vae_stride {stride}, got {image_size}")
        self.check(values)
        network = self.network(sample_size=image_size // stride, **self.constructor.read(config))
        if values["grad_checkpointing"]:
            network.enable_gradient_checkpointing()
        return {"model": network}

    @abc.abstractmethod
    def check(self, values: Mapping[str, Any]) -> None:
        """Check the arguments that train or sample.

        Args:
            values: By official name, each of its kind.

        Raises:
            UserError: If one is out of range.
        """

    @abc.abstractmethod
    def is_own(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a checkpoint of the layout is of this code."""

    def recognise(self, state: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the official options off a checkpoint's names and shapes.

        Args:
            state: Official tensors by key.

        Returns:
            What ``build`` takes; heads None where the width is none of the published ones. Patches are taken to be of one latent,
            as the published ones are. None for another layout.
        """
        if any(key not in state for key in OWN_KEYS) or not self.is_own(state):
            return None
        encoder_dim, token_size = state["z_proj.weight"].shape
        decoder_dim = state["diffusion_pos_embed_learned"].shape[2]
        num_tokens = state["diffusion_pos_embed_learned"].shape[1]
        stride = STRIDES.get(token_size, 16)
        return {
            "img_size": math.isqrt(num_tokens) * stride,
            "vae_stride": stride,
            "patch_size": 1,
            "vae_embed_dim": token_size,
            "encoder_embed_dim": encoder_dim,
            "encoder_depth": _count(state, r"encoder_blocks\.(\d+)\."),
            "encoder_num_heads": HEADS.get(encoder_dim),
            "decoder_embed_dim": decoder_dim,
            "decoder_depth": _count(state, r"decoder_blocks\.(\d+)\."),
            "decoder_num_heads": HEADS.get(decoder_dim),
            "mlp_ratio": state["encoder_blocks.0.mlp.fc1.weight"].shape[0] / encoder_dim,
            "class_num": state["class_emb.weight"].shape[0],
            "buffer_size": state["encoder_pos_embed_learned"].shape[1] - num_tokens,
            "diffloss_d": _count(state, r"diffloss\.net\.res_blocks\.(\d+)\."),
            "diffloss_w": state["diffloss.net.cond_embed.weight"].shape[0],
        }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Number of numbered parts."""
    return 1 + max((int(match[1]) for match in (re.match(pattern, key) for key in state) if match), default=-1)


class MARSource(MaskedAutoencoderSource):
    """MAR as ``models/mar.py`` of LTH14/mar builds it; ``model_ema`` of ``checkpoint-last.pth`` is what its figures are from."""

    name = "mar"
    repository = "LTH14/mar"
    constructor = Constructor("MAR", repository, {**SHARED_ARGUMENTS, "mask_ratio_min": Argument(None, 0.7, NUMBER)})
    network = MAR

    def check(self, values: Mapping[str, Any]) -> None:
        """Check ``mask_ratio_min`` and ``num_sampling_steps``.

        Raises:
            UserError: If one is out of range.
        """
        TruncatedNormalMasking(values["mask_ratio_min"])
        AncestralHeadSampler(chain_timesteps(values["num_sampling_steps"]))

    def convert_state(self, module: str, state: dict[str, Tensor], network: ModelMixin) -> dict[str, Tensor]:
        """Rename an official state dict; see ``rename_keys``."""
        return rename_keys("MAR", state)

    def is_own(self, state: Mapping[str, Tensor]) -> bool:
        """A mask token of its own has three axes; eMIGM's published ones have two, the null embedding's."""
        return state["mask_token"].ndim == 3

    def pipeline(self, networks: Mapping[str, ModelMixin], config: Mapping[str, Any]) -> MARPipeline:
        """Pipeline with the published sampling; the autoencoder, which no checkpoint holds, is the caller's to add.

        Args:
            networks: From ``build``, loaded.
            config: What they were built from.
        """
        from pipelines.mar import MARPipeline

        network = networks["model"]
        defaults = {
            "num_inference_steps": min(SAMPLING_ITERATIONS, network.num_tokens),
            "num_diffusion_steps": chain_timesteps(config.get("num_sampling_steps", SAMPLING_STEPS)),
            "guidance_scale": FID_GUIDANCE.get(network.config.encoder_hidden_size, FID_GUIDANCE[1024]),
            "guidance_schedule": "linear",
        }
        return MARPipeline(network, sampling_defaults=defaults)
