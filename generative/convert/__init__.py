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
        "pretrained-biggan": ("generative.convert.pretrained_biggan", "PretrainedBigGANSource"),
        "projected-gan": ("generative.convert.projected_gan", "ProjectedGANSource"),
        "projected-gan_256": ("generative.convert.projected_gan", "ProjectedGANSource"),
        "sagan": ("generative.convert.biggan_pytorch", "SAGANSource"),
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
