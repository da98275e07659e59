"""eMIGM: masked image generation over continuous tokens as a discrete diffusion (You et al., arXiv 2503.07197)."""

from __future__ import annotations

from types import MappingProxyType

from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config

from generative.autoregressive.continuous.masked_autoencoder import MaskedAutoencoder
from generative.autoregressive.masking import mask_schedule


def _sizes(hidden_size: int, depth: int, num_heads: int) -> MappingProxyType[str, int]:
    sizes = (("hidden_size", hidden_size), ("depth", depth), ("num_heads", num_heads))
    return MappingProxyType({f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in sizes})


# Arguments of the published transformers, and (depth, width) of their heads at 256 and at 512 pixels (official scripts).
EMIGM_SIZES = MappingProxyType(
    {
        "XS": _sizes(448, 10, 8),
        "S": _sizes(512, 12, 8),
        "B": _sizes(768, 12, 12),
        "L": _sizes(1024, 16, 16),
        "H": _sizes(1280, 20, 16),
    }
)
EMIGM_HEADS = MappingProxyType(
    {
        256: MappingProxyType({"XS": (3, 1024), "S": (3, 1024), "B": (6, 1024), "L": (8, 1280), "H": (12, 1536)}),
        512: MappingProxyType({"XS": (6, 1280), "S": (6, 1280), "B": (8, 1280), "L": (8, 1280)}),
    }
)


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class EMIGM(MaskedAutoencoder, ModelMixin):
    """Class-conditional eMIGM.

    Arguments and methods as in ``MaskedAutoencoder``, and:

    Args:
        mask_strategy: Schedule it is trained with, which its sampler follows: see ``masking.mask_schedule``.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 16,
        num_classes: int = 1000,
        encoder_hidden_size: int = 1024,
        encoder_depth: int = 16,
        encoder_num_heads: int = 16,
        decoder_hidden_size: int = 1024,
        decoder_depth: int = 16,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        buffer_size: int = 64,
        attention_dropout: float = 0.1,
        residual_dropout: float = 0.1,
        head_width: int = 1024,
        head_depth: int = 3,
        norm_eps: float = 1e-6,
        drop_masked: bool = True,
        tie_mask_embedding: bool = True,
        mask_strategy: str = "exp",
    ) -> None:
        mask_schedule(mask_strategy)  # refuses an unknown one now
        super().__init__(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_classes=num_classes,
            encoder_hidden_size=encoder_hidden_size,
            encoder_depth=encoder_depth,
            encoder_num_heads=encoder_num_heads,
            decoder_hidden_size=decoder_hidden_size,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_num_heads,
            mlp_ratio=mlp_ratio,
            buffer_size=buffer_size,
            attention_dropout=attention_dropout,
            residual_dropout=residual_dropout,
            head_width=head_width,
            head_depth=head_depth,
            norm_eps=norm_eps,
            drop_masked=drop_masked,
            tie_mask_embedding=tie_mask_embedding,
        )
