"""MAR: masked autoregression over continuous tokens with a diffusion loss (Li et al., arXiv 2406.11838)."""

from __future__ import annotations

from types import MappingProxyType

from diffusers import ModelMixin
from diffusers.configuration_utils import register_to_config

from generative.autoregressive.continuous.masked_autoencoder import MaskedAutoencoder


def _sizes(hidden_size: int, depth: int, num_heads: int, head_depth: int, head_width: int) -> MappingProxyType[str, int]:
    sizes = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("hidden_size", hidden_size), ("depth", depth), ("num_heads", num_heads))
    }
    return MappingProxyType(sizes | {"head_depth": head_depth, "head_width": head_width})


# Constructor arguments of the published sizes with their published heads (the official README).
MAR_SIZES = MappingProxyType(
    {"B": _sizes(768, 12, 12, 6, 1024), "L": _sizes(1024, 16, 16, 8, 1280), "H": _sizes(1280, 20, 16, 12, 1536)}
)


# ModelMixin is named again because diffusers looks for it in the module of a component, not among the bases, when it loads one.
class MAR(MaskedAutoencoder, ModelMixin):
    """Class-conditional MAR; the defaults with ``MAR_SIZES["L"]`` are the published MAR-L at 256 pixels, of 16x16 KL latents.

    Arguments and methods as in ``MaskedAutoencoder``.
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
    ) -> None:
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
        )
