"""Options that the official networks of the VQGAN line share, and what their tensors tell of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from generative.convert.arguments import WHOLE, Argument, one_of

PUBLISHED_GROUPS = 32
"""Groups of every group norm of the published models; a checkpoint does not tell."""


# What is hard-coded upstream and a parity file or a checkpoint may have otherwise: width, blocks, groups.
NETWORK_ARGUMENTS = MappingProxyType(
    {
        "in_channels": Argument(None, 3, one_of((3,), ", images have three channels")),
        "ch": Argument("ch", 128, WHOLE),
        "num_res_blocks": Argument("num_res_blocks", 2, WHOLE),
        "norm_groups": Argument("norm_groups", PUBLISHED_GROUPS, WHOLE, untold='{"norm_groups": N}'),
    }
)


def spell_out(config: Any) -> Any:
    """Options with ``num_res_blocks`` for ``nrb``, as some parity files call it; the full name wins."""
    if not isinstance(config, Mapping) or "nrb" not in config:
        return config
    return {"num_res_blocks": config["nrb"]} | {name: value for name, value in config.items() if name != "nrb"}


def count_indices(keys: Collection[str], prefix: str) -> int:
    """How many numbers, from 0, follow a prefix in some keys."""
    found = [int(match[1]) for key in keys if (match := re.match(re.escape(prefix) + r"(\d+)\.", key))]
    return max(found, default=-1) + 1


def guess_groups(ch: int) -> int | None:
    """The published number of groups if it divides a width, else None."""
    return PUBLISHED_GROUPS if ch % PUBLISHED_GROUPS == 0 else None
