"""Masked autoencoder over continuous tokens with a diffusion head: what MAR and eMIGM share (arXiv 2406.11838, 2503.07197).

An encoder sees the tokens that are known, behind buffer slots that hold the class; a decoder sees the whole grid, with a mask
embedding where a token is not known, and gives every position a vector; a small diffusion network turns the vector of a position
into its token (``generative.autoregressive.continuous.diffusion_head``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor, nn

from generative.autoregressive.continuous.diffusion_head import DiffusionHead
from generative.core.errors import UserError
from generative.layers.encoder_block import EncoderBlock

EMBEDDING_INIT_STD = 0.02  # of all embeddings and positions, official implementations
INPUT_NORM_EPS = 1e-6  # of the norm of the embedded tokens, whatever the other norms have


def visible_tokens(masked: Tensor) -> tuple[Tensor, Tensor | None]:
    """Where the known tokens of each image are.

    Args:
        masked: (B, L) bool, True where a token is not known.

    Returns:
        (B, S) int64 positions in order, S the most that an image of the batch knows; and (B, S) bool, False where an image knows
        fewer and the position is but padding, None if no image does.
    """
    counts = (~masked).sum(dim=1)  # (B,)
    fewest, most = int(counts.min()), int(counts.max())
    positions = masked.to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # (B, S)
    if fewest == most:
        return positions, None
    return positions, torch.arange(most, device=masked.device) < counts[:, None]


class MaskedAutoencoder(ModelMixin, ConfigMixin):
    """Encoder, decoder and diffusion head over the patches of latents; ``MAR`` and ``EMIGM`` are its two layouts.

    Args:
        sample_size: Height and width of the latents (or of the images, where pixels are the latents).
        patch_size: Height and width of a patch, which is a token; divides ``sample_size``.
        in_channels: Channels of the latents.
        num_classes: Number of classes; the label ``num_classes`` is the null condition.
        encoder_hidden_size: Width of the encoder.
        encoder_depth: Its blocks.
        encoder_num_heads: Its heads; divides its width.
        decoder_hidden_size: Width D of the decoder and of what the head is conditioned on.
        decoder_depth: Its blocks.
        decoder_num_heads: Its heads; divides its width.
        mlp_ratio: Width of the blocks' MLPs over the width of the block.
        buffer_size: Slots in front of the tokens that hold the class.
        attention_dropout: Share of attention weights dropped in training.
        residual_dropout: Share of the features of attention and MLP dropped in training.
        head_width: Width of the diffusion head.
        head_depth: Its residual blocks.
        norm_eps: Epsilon of the blocks' and final layer norms.
        drop_masked: The encoder sees known tokens only (MAE); else it sees the mask embedding in their place.
        tie_mask_embedding: The mask embedding is the null condition's; needs encoder and decoder of one width.

    Raises:
        UserError: If sizes are below 1 or do not divide one another.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock"]

    def __init__(
        self,
        sample_size: int,
        patch_size: int,
        in_channels: int,
        num_classes: int,
        encoder_hidden_size: int,
        encoder_depth: int,
        encoder_num_heads: int,
        decoder_hidden_size: int,
        decoder_depth: int,
        decoder_num_heads: int,
        mlp_ratio: float,
        buffer_size: int,
        attention_dropout: float,
        residual_dropout: float,
        head_width: int,
        head_depth: int,
        norm_eps: float,
        drop_masked: bool = True,
        tie_mask_embedding: bool = False,
    ) -> None:
        super().__init__()
        sizes = {name: value for name, value in locals().items() if isinstance(value, int) and not isinstance(value, bool)}
        _check_sizes(sizes, tie_mask_embedding or not drop_masked)
        self.num_classes = num_classes
        self.num_buffers = buffer_size
        self.grid_size = sample_size // patch_size
        self.num_tokens = self.grid_size**2
        self.token_size = in_channels * patch_size**2
        self.drop_masked = drop_masked
        self.gradient_checkpointing = False
        slots = self.num_tokens + buffer_size

        def blocks(dim: int, depth: int, num_heads: int) -> nn.ModuleList:
            options = (mlp_ratio, attention_dropout, residual_dropout, norm_eps)
            return nn.ModuleList([EncoderBlock(dim, num_heads, *options) for _ in range(depth)])

        self.class_embedding = nn.Embedding(num_classes, encoder_hidden_size)
        self.null_embedding = nn.Parameter(torch.empty(1, encoder_hidden_size))
        self.token_projection = nn.Linear(self.token_size, encoder_hidden_size)
        self.token_norm = nn.LayerNorm(encoder_hidden_size, eps=INPUT_NORM_EPS)
        self.encoder_positions = nn.Parameter(torch.empty(1, slots, encoder_hidden_size))
        self.encoder_blocks = blocks(encoder_hidden_size, encoder_depth, encoder_num_heads)
        self.encoder_norm = nn.LayerNorm(encoder_hidden_size, eps=norm_eps)
        self.decoder_projection = nn.Linear(encoder_hidden_size, decoder_hidden_size)
        self.mask_embedding = None if tie_mask_embedding else nn.Parameter(torch.empty(1, 1, decoder_hidden_size))
        self.decoder_positions = nn.Parameter(torch.empty(1, slots, decoder_hidden_size))
        self.decoder_blocks = blocks(decoder_hidden_size, decoder_depth, decoder_num_heads)
        self.decoder_norm = nn.LayerNorm(decoder_hidden_size, eps=norm_eps)
        self.head_positions = nn.Parameter(torch.empty(1, self.num_tokens, decoder_hidden_size))
        self._initialize()
        self.head = DiffusionHead(self.token_size, decoder_hidden_size, head_width, head_depth)

    def _initialize(self) -> None:
        """Initialise as the official implementations: Xavier-uniform maps, embeddings of std 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        embeddings = (self.class_embedding.weight, self.null_embedding, self.mask_embedding)
        for weight in (*embeddings, self.encoder_positions, self.decoder_positions, self.head_positions):
            if weight is not None:
                nn.init.normal_(weight, std=EMBEDDING_INIT_STD)

    def patchify(self, latents: Tensor) -> Tensor:
        """Cut latents (B, C, h, w) into tokens (B, L, C p p), the channel varying slowest within a token."""
        size, patch = self.grid_size, self.config.patch_size
        if latents.shape[1:] != (self.config.in_channels, size * patch, size * patch):
            raise UserError(
                f"this network takes latents (B, {self.config.in_channels}, {size * patch}, {size * patch}), "
                f"got {tuple(latents.shape)}; change its sample_size or in_channels, or the autoencoder"
            )
        patches = latents.unflatten(3, (size, patch)).unflatten(2, (size, patch))  # (B, C, rows, p, columns, q)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, L, C p q)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """Put tokens (B, L, C p p) together as latents (B, C, h, w)."""
        size, patch, channels = self.grid_size, self.config.patch_size, self.config.in_channels
        patches = tokens.unflatten(2, (channels, patch, patch)).unflatten(1, (size, size))  # (B, rows, columns, C, p, q)
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)  # (B, C, h, w)

    def embed_labels(self, class_labels: Tensor) -> Tensor:
        """Embed labels (B,) in [0, num_classes] as (B, D of the encoder); ``num_classes`` is the null condition."""
        embedded = self.class_embedding(class_labels.clamp(max=self.num_classes - 1))
        return torch.where((class_labels == self.num_classes)[:, None], self.null_embedding, embedded)

    def encode(self, tokens: Tensor, masked: Tensor, class_labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode the buffer slots and the known tokens.

        Args:
            tokens: (B, L, C) tokens; those that are masked are not read.
            masked: (B, L) bool.
            class_labels: (B,) int64 in [0, num_classes].

        Returns:
            (B, buffer + S, D of the encoder), and where the S tokens belong, (B, S) int64: positions of known tokens, and L where
            an image knows fewer than S. None if S is L, every position in order.
        """
        positions = self.encoder_positions.expand(len(tokens), -1, -1)
        buffer = self.embed_labels(class_labels)[:, None] + positions[:, : self.num_buffers]
        buffer = self.token_norm(buffer)  # (B, buffer, D)
        place: Tensor | None = None
        key_mask: Tensor | None = None
        if self.drop_masked:
            place, is_known = visible_tokens(masked)  # (B, S)
            tokens = tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[2]))  # (B, S, C)
            offset = place[..., None].expand(-1, -1, positions.shape[2]) + self.num_buffers
            known = self.token_norm(self.token_projection(tokens) + positions.gather(1, offset))  # (B, S, D)
            if is_known is not None:
                key_mask = F.pad(is_known, (self.num_buffers, 0), value=True)[:, None, None]  # (B, 1, 1, buffer + S)
                place = place.masked_fill(~is_known, self.num_tokens)
        else:
            known = self.token_norm(self.token_projection(tokens) + positions[:, self.num_buffers :])  # (B, L, D)
            # As officially, a masked token loses its position too; the decoder gives it one.
            known = torch.where(masked[..., None], self._mask_vector(), known)
        encoded = self._run(self.encoder_blocks, torch.cat([buffer, known], dim=1), key_mask)
        return self.encoder_norm(encoded), place

    def decode(self, encoded: Tensor, place: Tensor | None, chosen: Tensor | None = None) -> Tensor:
        """Vectors that the head is conditioned on.

        Args:
            encoded: (B, buffer + S, D of the encoder).
            place: (B, S) from ``encode``.
            chosen: (B, L) bool, tokens whose vectors are wanted; None for all.

        Returns:
            (B, L, D), or (N, D) of the N chosen tokens, image by image.
        """
        x = self.decoder_projection(encoded)  # (B, buffer + S, D)
        if place is not None:
            # One slot more, which takes the padding.
            grid = self._mask_vector().to(x.dtype).expand(len(x), self.num_tokens + 1, -1)
            index = place[..., None].expand(-1, -1, x.shape[2])
            grid = grid.scatter(1, index, x[:, self.num_buffers :])[:, : self.num_tokens]  # (B, L, D)
            x = torch.cat([x[:, : self.num_buffers], grid], dim=1)  # (B, buffer + L, D)
        x = self._run(self.decoder_blocks[:-1], x + self.decoder_positions)
        if chosen is None:
            x = self._run(self.decoder_blocks[-1:], x)[:, self.num_buffers :]  # (B, L, D)
            return self.decoder_norm(x) + self.head_positions
        # The last block's outputs are wanted for the chosen tokens only.
        rows, is_chosen = visible_tokens(~chosen)  # (B, M)
        x = self.decoder_norm(self._run(self.decoder_blocks[-1:], x, rows=rows + self.num_buffers))  # (B, M, D)
        x = x + self.head_positions[0][rows]
        return x.flatten(0, 1) if is_chosen is None else x[is_chosen]  # (N, D)

    def forward(
        self,
        tokens: Tensor,
        masked: Tensor,
        class_labels: Tensor,
        noised: Tensor | None = None,
        timesteps: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Vectors of all or of some positions; or, given noised tokens, the head's prediction for the masked ones.

        Args:
            tokens: (B, L, C) tokens; those that are masked are not read.
            masked: (B, L) bool.
            class_labels: (B,) int64 in [0, num_classes]; ``num_classes`` is the null condition.
            noised: (R, N, C), R noised copies of the N masked tokens of the batch, image by image.
            timesteps: (R, N) int64 or float, their timesteps.
            chosen: (B, L) bool, tokens whose vectors are wanted, which costs less than all; not used with ``noised``.

        Returns:
            (B, L, D); or (N, D) of the chosen tokens, image by image; or (R, N, 2 C): the noise, then where the log variance lies
            between its bounds.
        """
        encoded, place = self.encode(tokens, masked, class_labels)
        if noised is None or timesteps is None:
            return self.decode(encoded, place, chosen)
        return self.head(noised, timesteps, self.decode(encoded, place, masked))  # (R, N, 2 C)

    def _mask_vector(self) -> Tensor:
        """(1, 1, D)."""
        return self.null_embedding[None] if self.mask_embedding is None else self.mask_embedding

    def _run(self, blocks: nn.ModuleList, x: Tensor, key_mask: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Apply blocks in order; arguments as in ``EncoderBlock``."""
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, key_mask, rows)
            else:
                x = block(x, key_mask, rows)
        return x


def _check_sizes(sizes: dict[str, int], needs_one_width: bool) -> None:
    """Refuse sizes that cannot be built, naming the argument."""
    for name, value in sizes.items():
        if value < 1 and name not in ("encoder_depth", "head_depth"):
            raise UserError(f"{name} must be at least 1, got {value}")
    if sizes["sample_size"] % sizes["patch_size"]:
        raise UserError(f"patch_size must divide sample_size {sizes['sample_size']}, got {sizes['patch_size']}")
    for part in ("encoder", "decoder"):
        width, heads = sizes[f"{part}_hidden_size"], sizes[f"{part}_num_heads"]
        if width % heads:
            raise UserError(f"{part}_num_heads must divide {part}_hidden_size {width}, got {heads}")
    if needs_one_width and sizes["encoder_hidden_size"] != sizes["decoder_hidden_size"]:
        raise UserError(
            "a tied mask embedding, or one that the encoder sees, needs encoder and decoder of one width, "
            f"got {sizes['encoder_hidden_size']} and {sizes['decoder_hidden_size']}"
        )
