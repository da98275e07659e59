"""Recurrent interface network (RIN): Jabri et al., "Scalable Adaptive Computation for Iterative Generation" (arXiv 2212.11972).

The image's patches are the interface (the official code's tape); a few latents read from it, are processed by self-attention, and
write back to it, block by block. From step to step of sampling the latents carry over (latent self-conditioning, section 2.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from generative.core.errors import UserError
from generative.diffusion.denoiser import DenoiserOutput
from generative.diffusion.networks.arguments import check_arguments
from generative.diffusion.networks.rin_blocks import (
    DepthwiseBlock,
    Exchange,
    FeedForward,
    PositionKind,
    Positions,
    ProcessLayer,
    ScalarEmbedder,
    glorot_by_heads,
    layer_norm,
)
from generative.layers.checkpointing import run_block
from generative.layers.conditioned_network import ConditionedNetwork
from generative.layers.cross_attention import CrossAttention

SelfConditioned = Literal["none", "latent", "tape", "latent+tape"]


class RINBlock(nn.Module):
    """Read, process, write; a block without processing layers reads only.

    Args:
        read: Reads the interface.
        read_condition: Reads the conditioning tokens before; None reads both at once.
        process: Transformer layers over the latents.
        write: Writes to the interface; None for none.
        convolution: Over the interface, at the end; None for none.
    """

    def __init__(
        self,
        read: nn.Module,
        read_condition: nn.Module | None,
        process: Sequence[nn.Module],
        write: nn.Module | None,
        convolution: nn.Module | None,
    ) -> None:
        super().__init__()
        self.read_condition, self.read = read_condition, read
        self.process: Iterable[nn.Module] = nn.ModuleList(process)
        self.write, self.convolution = write, convolution


class RIN(ModelMixin, ConfigMixin, ConditionedNetwork):
    """Read / process / write network over patches and latents, with every option of the official image denoiser.

    Time and class are tokens: among the latents or among what the latents read. It is trained to be told gamma
    (``ContinuousDiffusion(network_time="gamma", time_scale=1000)``). The published sizes are those of ``configs/imagenet``.

    Attributes:
        carries_memory: Whether it reads back latents or interface of the step before.

    Args:
        sample_size: Height and width of the samples.
        patch_size: Height and width of a patch; divides ``sample_size``.
        in_channels: Channels C of the samples.
        num_layers: Transformer layers over the latents, by block; 0 makes a block that reads only.
        latent_slots: Number of latents, the tokens of time and class among them where they are latents.
        latent_dim: Their width; a multiple of 4 where the time is one of them.
        latent_mlp_ratio: Of their feed-forward networks.
        latent_num_heads: Heads of their self-attention.
        tape_dim: Width of the interface.
        tape_mlp_ratio: Of its feed-forward networks; 0 leaves them out.
        rw_num_heads: Heads of reading and writing.
        conv_kernel_size: Of a depthwise convolution over the interface after each writing; 0 for none.
        conv_drop_units: Dropout within it.
        latent_pos_encoding: Places of the latents, see ``Positions``.
        tape_pos_encoding: Places of the patches.
        position_extent: Coordinates of fixed places run from 0 to this (the official ``time_scaling``).
        drop_path: Stochastic depth of the processing layers.
        drop_units: Dropout in their feed-forward networks.
        drop_att: Dropout of their attention.
        self_cond: What is read back at the next step: ``latent`` (the paper), ``tape``, both or ``none``.
        time_on_latent: The time is a latent; else it is read.
        cond_on_latent: The class is a latent; else it is read.
        cond_tape_writable: What is read of time and class is written to, as the interface is.
        cond_dim: Width of the tokens of time and class where they are read; 0 for ``tape_dim``.
        cond_proj: Project the class; else the one-hot vector itself is the token, or the representation in its place.
        cond_decoupled_read: Latents read time and class by an attention of its own, before the interface.
        xattn_enc_ln: Normalise what is read and what is written.
        num_classes: Number of classes K; the label K is the null condition, whose one-hot vector is zero.
        class_conditional: Whether the class has an effect; else labels are ignored.
        class_dropout_prob: Share of the labels that training replaces by the null condition; 0, as officially, is a network
            without one. The network itself drops nothing: the training objective does.
        representation_dim: Numbers D of representations, whose token takes the place of the class's (RCG, arXiv 2312.03701);
            None for classes. Labels then only tell where the null representation, zeros, stands, which is the label K.

    Raises:
        UserError: If numbers are out of range or do not fit one another.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["RINBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        patch_size: int = 8,
        in_channels: int = 3,
        num_layers: Sequence[int] = (4, 4, 4, 4),
        latent_slots: int = 128,
        latent_dim: int = 768,
        latent_mlp_ratio: int = 4,
        latent_num_heads: int = 16,
        tape_dim: int = 512,
        tape_mlp_ratio: int = 4,
        rw_num_heads: int = 16,
        conv_kernel_size: int = 0,
        conv_drop_units: float = 0.0,
        latent_pos_encoding: PositionKind = "learned",
        tape_pos_encoding: PositionKind = "learned",
        position_extent: float = 1000.0,
        drop_path: float = 0.0,
        drop_units: float = 0.0,
        drop_att: float = 0.0,
        self_cond: SelfConditioned = "latent",
        time_on_latent: bool = True,
        cond_on_latent: bool = True,
        cond_tape_writable: bool = False,
        cond_dim: int = 0,
        cond_proj: bool = True,
        cond_decoupled_read: bool = False,
        xattn_enc_ln: bool = False,
        num_classes: int = 1000,
        class_conditional: bool = True,
        class_dropout_prob: float = 0.0,
        representation_dim: int | None = None,
    ) -> None:
        super().__init__()
        self._check()
        config = self.config
        self.gradient_checkpointing = False
        self.grid_size = sample_size // patch_size
        self.num_tokens = self.grid_size**2
        cond_dim = cond_dim or tape_dim
        self.stem = nn.Conv2d(in_channels, tape_dim, kernel_size=patch_size, stride=patch_size)
        self.stem_norm = layer_norm(tape_dim)
        self.time_embedder = ScalarEmbedder(latent_dim if time_on_latent else cond_dim)
        self.class_projection: nn.Module = nn.Identity()
        class_dim = latent_dim if cond_on_latent else cond_dim
        if cond_proj and self.takes_classes:
            self.class_projection = nn.Linear(num_classes, class_dim)
        make_linear = nn.Linear if cond_proj else nn.Identity
        self.vector_embedding = self.make_vector_embedding(class_dim, zero_null=True, make_linear=make_linear)
        learned = latent_slots - time_on_latent - (cond_on_latent and self.is_conditioned)
        self.latent_positions = Positions(latent_pos_encoding, learned, 1, latent_dim, position_extent)
        self.tape_positions = Positions(tape_pos_encoding, self.grid_size, self.grid_size, tape_dim, position_extent)
        self.latent_memory = self._memory("latent", latent_dim, latent_mlp_ratio)
        self.tape_memory = self._memory("tape", tape_dim, tape_mlp_ratio)
        self.blocks = nn.ModuleList([self._block(count, cond_dim) for count in config.num_layers])
        self.norm_out = layer_norm(tape_dim)
        self.linear_out = nn.Linear(tape_dim, patch_size**2 * in_channels)
        self._initialize()

    def _check(self) -> None:
        """Refuse what no such network can be."""
        config = self.config
        names = ("sample_size", "patch_size", "in_channels", "latent_slots", "latent_dim", "latent_mlp_ratio", "latent_num_heads")
        sizes = {name: config[name] for name in (*names, "tape_dim", "rw_num_heads", "num_classes")}
        shares = {name: config[name] for name in ("conv_drop_units", "drop_path", "drop_units", "drop_att", "class_dropout_prob")}
        check_arguments("RIN", sizes, shares, config.class_conditional)
        narrow = min(config.tape_dim, config.latent_dim)
        token_dim = config.cond_dim or config.tape_dim
        time_dim = config.latent_dim if config.time_on_latent else token_dim
        class_dim = config.latent_dim if config.cond_on_latent else token_dim
        is_class_read = self.is_conditioned and not config.cond_on_latent
        told = "num_classes" if config.representation_dim is None else "representation_dim"
        is_anything_read = is_class_read or not config.time_on_latent
        has_own_read = config.cond_decoupled_read and not config.cond_tape_writable
        extra = config.time_on_latent + (config.cond_on_latent and self.is_conditioned)
        problems = {
            f"patch_size must divide sample_size {config.sample_size}, got {config.patch_size}": (
                config.sample_size % config.patch_size
            ),
            f"num_layers must be counts of 0 or more, of one block at least, got {list(config.num_layers)}": (
                not config.num_layers or min(config.num_layers) < 0
            ),
            f"rw_num_heads must be at most {narrow}, the narrower of latent_dim and tape_dim, got {config.rw_num_heads}": (
                config.rw_num_heads > narrow
            ),
            f"latent_num_heads must be at most latent_dim {config.latent_dim}, got {config.latent_num_heads}": (
                config.latent_num_heads > config.latent_dim
            ),
            f"latent_slots must be more than the {extra} that time and class take, got {config.latent_slots}": (
                config.latent_slots <= extra
            ),
            f"tape_mlp_ratio must be 0 or more, with self_cond of the tape at least 1, got {config.tape_mlp_ratio}": (
                config.tape_mlp_ratio < ("tape" in config.self_cond)
            ),
            f"self_cond must be one of {', '.join(get_args(SelfConditioned))}, got {config.self_cond!r}": (
                config.self_cond not in get_args(SelfConditioned)
            ),
            f"conv_kernel_size must be 0 or more, got {config.conv_kernel_size}": config.conv_kernel_size < 0,
            f"the width of the time's token must be a multiple of 4 and at least 8, got {time_dim}": time_dim % 4 or time_dim < 8,
            f"without cond_proj the class's token has {told} {config[told]} values and must have {class_dim}": (
                self.is_conditioned and not config.cond_proj and config[told] != class_dim
            ),
            f"cond_dim {config.cond_dim} other than tape_dim {config.tape_dim} needs cond_decoupled_read (and no "
            "cond_tape_writable): both are read at once": is_anything_read and token_dim != config.tape_dim and not has_own_read,
            "cond_decoupled_read needs something to read: put time or class off the latents, and leave cond_tape_writable": (
                config.cond_decoupled_read and not (is_anything_read and has_own_read)
            ),
        }
        for problem, is_one in problems.items():
            if is_one:
                raise UserError(f"RIN: {problem}")

    def _memory(self, kind: str, dim: int, mlp_ratio: int) -> nn.Module | None:
        """What a memory passes before it is added: MLP and a layer norm whose scale starts at zero; None where none is read."""
        if kind not in self.config.self_cond:
            return None
        norm = layer_norm(dim)
        nn.init.zeros_(norm.weight)
        return nn.Sequential(FeedForward(dim, mlp_ratio), norm)

    def _block(self, num_layers: int, cond_dim: int) -> RINBlock:
        """A block."""
        config = self.config
        latent, tape, norm = config.latent_dim, config.tape_dim, config.xattn_enc_ln
        heads, ratio = config.rw_num_heads, config.latent_mlp_ratio
        options = (config.drop_units, config.drop_att, config.drop_path)
        has_convolution = num_layers > 0 and config.conv_kernel_size > 0
        return RINBlock(
            read=Exchange(latent, tape, heads, ratio, norm),
            read_condition=Exchange(latent, cond_dim, heads, ratio, norm) if config.cond_decoupled_read else None,
            process=[ProcessLayer(latent, config.latent_num_heads, ratio, *options) for _ in range(num_layers)],
            write=Exchange(tape, latent, heads, config.tape_mlp_ratio, norm) if num_layers else None,
            convolution=DepthwiseBlock(tape, self.grid_size, config.conv_kernel_size, config.conv_drop_units)
            if has_convolution
            else None,
        )

    def _initialize(self) -> None:
        """Initialise as the official implementation does: Glorot-uniform maps, zero biases, small projections of attention."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, CrossAttention):
                glorot_by_heads(module)
            if isinstance(module, DepthwiseBlock):
                nn.init.zeros_(module.pointwise.weight)  # officially 1e-5 of Glorot's

    @property
    def carries_memory(self) -> bool:
        """See the class."""
        return self.config.self_cond != "none"

    def embed_condition(
        self, timestep: Tensor, class_labels: Tensor | None, batch_size: int, vector: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens of time and class, each (B, 1, D): those that are latents, and those that are read."""
        latents: list[Tensor] = []
        read: list[Tensor] = []
        time = self.time_embedder(timestep.reshape(-1).expand(batch_size))[:, None]
        (latents if self.config.time_on_latent else read).append(time)
        embedded = self.embed_labels(class_labels, batch_size, vector)
        if embedded is not None:
            (latents if self.config.cond_on_latent else read).append(embedded[:, None].to(time.dtype))
        return latents, read

    def embed_classes(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Projected one-hot vectors, that of the null condition being zeros; see the base class."""
        num_classes = self.config.num_classes
        weight = self.stem.weight
        if class_labels is None:
            class_labels = torch.full((batch_size,), num_classes, device=weight.device)
        projected: Tensor = self.class_projection(F.one_hot(class_labels, num_classes + 1)[:, :-1].to(weight.dtype))
        return projected

    def interface(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        memory: Sequence[Tensor] = (),
        vector: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Latents (B, S, D) and interface (B, L, D') after the last block; arguments as ``forward``'s."""
        time_and_class, read = self.embed_condition(timestep, class_labels, len(sample), vector)
        patches = self.stem_norm(self.stem(sample).flatten(2).transpose(1, 2)) + self.tape_positions()
        positions = self.latent_positions()
        latents = torch.cat([positions.to(patches.dtype).expand(len(sample), -1, -1), *time_and_class], dim=1)
        before = iter(memory)
        if self.latent_memory is not None:
            latents = latents + self.latent_memory(next(before, torch.zeros_like(latents)).to(latents.dtype))
        if self.tape_memory is not None:
            patches = patches + self.tape_memory(next(before, torch.zeros_like(patches)).to(patches.dtype))
        tape, beside = (torch.cat([patches, *read], dim=1), []) if self.config.cond_tape_writable else (patches, read)
        for block in self.blocks:
            assert isinstance(block, RINBlock)
            seen = tape
            if block.read_condition is not None:
                latents = run_block(self, block.read_condition, latents, torch.cat(beside, dim=1))
            elif beside:
                seen = torch.cat([tape, *beside], dim=1)
            latents = run_block(self, block.read, latents, seen)
            for layer in block.process:
                latents = run_block(self, layer, latents)
            if block.write is not None:
                tape = run_block(self, block.write, tape, latents)
            if block.convolution is not None:
                tape = run_block(self, block.convolution, tape)
        return latents, tape[:, : self.num_tokens]

    def assemble_patches(self, tape: Tensor) -> Tensor:
        """Image (B, C, H, W) of an interface (B, L, D); channels vary fastest within a patch."""
        grid, patch = self.grid_size, self.config.patch_size
        values = self.linear_out(self.norm_out(tape)).reshape(-1, grid, grid, patch, patch, self.config.in_channels)
        return values.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.config.in_channels, grid * patch, grid * patch)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        memory: Sequence[Tensor] = (),
        vector: Tensor | None = None,
    ) -> DenoiserOutput:
        """Predict what the formulation of training asks for.

        Args:
            sample: (B, C, H, W) float, noised samples.
            timestep: (B,) or scalar: the formulation's ``network_time``.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` or None is the null condition. Ignored where the network
                is not class-conditional.
            memory: ``DenoiserOutput.memory`` of the step before, as ``self_cond`` says: latents (B, S, D), interface
                (B, L, D') or both in this order; none, as at the first step, is zeros.
            vector: (B, D) representations, of a network that has a ``representation_dim``.

        Returns:
            Predictions (B, C, H, W), and the memory for the next step.
        """
        latents, tape = self.interface(sample, timestep, class_labels, memory, vector)
        kinds = (("latent", latents), ("tape", tape))
        kept = tuple(values for kind, values in kinds if kind in self.config.self_cond)
        return DenoiserOutput(self.assemble_patches(tape), memory=kept)
