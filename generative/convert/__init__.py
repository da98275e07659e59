"""Official checkpoints in: one file per source, a key map and a config map each."""

from __future__ import annotations

import importlib
from types import MappingProxyType

from generative.convert.base import OfficialSource, load_official
from generative.core.errors import UserError

# Source -> module and class; imported when asked for, since each brings its networks with it.
SOURCES = MappingProxyType(
    {
        "biggan": ("generative.convert.biggan_pytorch", "BigGANSource"),
        "biggan-deep": ("generative.convert.biggan_deep", "BigGANDeepSource"),
        "dit": ("generative.convert.dit", "DiTSource"),
        "emigm": ("generative.convert.emigm", "EMIGMSource"),
        "llamagen": ("generative.convert.llamagen", "LlamaGenSource"),
        "magvit2-ar": ("generative.convert.open_magvit2_ar", "OpenMAGVIT2ARSource"),
        "magvit2-tokenizer": ("generative.convert.open_magvit2_tokenizer", "OpenMAGVIT2TokenizerSource"),
        "mar": ("generative.convert.mar", "MARSource"),
        "mar-vae": ("generative.convert.mar_vae", "MARVAESource"),
        "pretrained-biggan": ("generative.convert.pretrained_biggan", "PretrainedBigGANSource"),
        "projected-gan": ("generative.convert.projected_gan", "ProjectedGANSource"),
        "projected-gan_256": ("generative.convert.projected_gan", "ProjectedGANSource"),
        "rvq": ("generative.convert.rvq", "RVQSource"),
        "sagan": ("generative.convert.biggan_pytorch", "SAGANSource"),
        "var": ("generative.convert.var", "VARSource"),
        "var-vqvae": ("generative.convert.var_vqvae", "VARVQVAESource"),
        "wgan-gp": ("generative.convert.studiogan", "StudioGANSource"),
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
