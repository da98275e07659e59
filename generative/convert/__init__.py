"""Official checkpoints in: one file per source, with a table of keys and one of arguments."""

from __future__ import annotations

import importlib
from types import MappingProxyType

from generative.convert.base import OfficialSource, load_official
from generative.core.errors import UserError

# Source -> module and class; imported when asked for, since each brings its networks with it.
SOURCES = MappingProxyType(
    {
        "adm": ("generative.convert.diffusion.adm", "ADMSource"),
        "adm_classifier": ("generative.convert.diffusion.adm_classifier", "ADMClassifierSource"),
        "adm_diffusion": ("generative.convert.diffusion.adm_diffusion", "ADMDiffusionSource"),
        "adm_upsampler": ("generative.convert.diffusion.adm", "ADMUpsamplerSource"),
        "biggan": ("generative.convert.gan.biggan_pytorch", "BigGANSource"),
        "biggan-deep": ("generative.convert.gan.biggan_deep", "BigGANDeepSource"),
        "dit-pipeline": ("generative.convert.diffusion.dit_pipeline", "DiTPipelineSource"),
        "dit": ("generative.convert.diffusion.dit", "DiTSource"),
        "dimr": ("generative.convert.diffusion.dimr", "DiMRSource"),
        "edm": ("generative.convert.diffusion.edm", "EDMSource"),
        "edm2": ("generative.convert.diffusion.edm2", "EDM2Source"),
        "edm2_ema": ("generative.convert.diffusion.edm2_ema", "EDM2EMASource"),
        "emigm": ("generative.convert.autoregressive.emigm", "EMIGMSource"),
        "fitv2": ("generative.convert.diffusion.fit", "FiTSource"),
        "freeu": ("generative.convert.diffusion.free_u", "FreeUSource"),
        "llamagen": ("generative.convert.autoregressive.llamagen", "LlamaGenSource"),
        "mage": ("generative.convert.autoregressive.mage", "MAGESource"),
        "mage_class": ("generative.convert.autoregressive.mage", "MAGESource"),
        "magvit2-ar": ("generative.convert.autoregressive.open_magvit2_ar", "OpenMAGVIT2ARSource"),
        "magvit2-tokenizer": ("generative.convert.tokenizers.open_magvit2_tokenizer", "OpenMAGVIT2TokenizerSource"),
        "mar": ("generative.convert.autoregressive.mar", "MARSource"),
        "mar-vae": ("generative.convert.tokenizers.mar_vae", "MARVAESource"),
        "pretrained-biggan": ("generative.convert.gan.pretrained_biggan", "PretrainedBigGANSource"),
        "projected-gan": ("generative.convert.gan.projected_gan", "ProjectedGANSource"),
        "projected-gan_256": ("generative.convert.gan.projected_gan", "ProjectedGANSource"),
        "rcg": ("generative.convert.diffusion.rcg", "RCGSource"),
        "rin": ("generative.convert.diffusion.rin", "RINSource"),
        "rvq": ("generative.convert.tokenizers.rvq", "RVQSource"),
        "sagan": ("generative.convert.gan.biggan_pytorch", "SAGANSource"),
        "sid": ("generative.convert.diffusion.sid", "SiDSource"),
        "sit": ("generative.convert.diffusion.sit", "SiTSource"),
        "u-vit": ("generative.convert.diffusion.u_vit", "UViTSource"),
        "var": ("generative.convert.autoregressive.var", "VARSource"),
        "var-vqvae": ("generative.convert.tokenizers.var_vqvae", "VARVQVAESource"),
        "wgan-gp": ("generative.convert.gan.studiogan", "StudioGANSource"),
    }
)

__all__ = ["SOURCES", "OfficialSource", "get_source", "load_official"]


def get_source(name: str) -> OfficialSource:
    """Find a source by name.

    Args:
        name: One of ``SOURCES``.

    Raises:
        UserError: If there is no such source.
    """
    if name not in SOURCES:
        raise UserError(f"there is no source of official checkpoints named {name!r}; known: {', '.join(sorted(SOURCES))}")
    module, class_name = SOURCES[name]
    source: OfficialSource = getattr(importlib.import_module(module), class_name)()
    return source
