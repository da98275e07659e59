"""FreeU by the options of its official code: a transform of a U-Net's skips, which has no network and no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin

from generative.convert.arguments import LIST, NUMBER, POSITIVE, Argument, Constructor
from generative.convert.base import NetworkFreeSource
from generative.diffusion.free_u import FreeU
from generative.diffusion.options import FreeUVersion

if TYPE_CHECKING:
    pass

# The official signature's defaults; its widths are Stable Diffusion's, 1280 and half of it.
CONSTRUCTOR = Constructor(
    "FreeU",
    "ChenyangSi/FreeU",
    {
        "width1": Argument(None, 1280, POSITIVE),
        "b1": Argument(None, 1.2, NUMBER),
        "b2": Argument(None, 1.4, NUMBER),
        "s1": Argument(None, 0.9, NUMBER),
        "s2": Argument(None, 0.2, NUMBER),
        # Sizes of the maps that a recorded file was made with.
        "even": Argument(None, (), LIST),
        "odd": Argument(None, (), LIST),
        "skip_channels": Argument(None, 1, POSITIVE),
    },
)


def official_free_u(config: Mapping[str, Any], version: FreeUVersion) -> FreeU:
    """The official transform, whose second stage is half as wide as the first.

    Args:
        config: Official options by name.
        version: ``v1`` or ``v2``.

    Raises:
        UserError: If an option is unknown or not of its kind.
    """
    values = CONSTRUCTOR.values(config)
    widths = (values["width1"], values["width1"] // 2)
    return FreeU(widths=widths, b=(values["b1"], values["b2"]), s=(values["s1"], values["s2"]), version=version)


class FreeUSource(NetworkFreeSource):
    """FreeU: no file holds one, and it has no network."""

    name = "freeu"
    repository = "ChenyangSi/FreeU"
    owner = "FreeU"
    refusal = "FreeU is an option of sampling and makes no images itself; give --free-u to `generative sample`"

    def build(self, config: dict[str, Any]) -> dict[str, ModelMixin]:
        """Check the options; there is nothing to build.

        Raises:
            UserError: If an option is unknown or not of its kind.
        """
        official_free_u(config, "v2")
        return {}
