"""Options that the official networks of the VQGAN line share, and what their tensors tell of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from generative.convert.files.options import ConstructorOptions
from generative.core.errors import UserError

PUBLISHED_GROUPS = 32
"""Groups of every group norm of the published models; a checkpoint does not tell."""


class VQGANOptions(ConstructorOptions):
    """Arguments of a network of the line."""

    def take_sizes(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """Take a list of positive whole numbers.

        Raises:
            UserError: If it is none, or None because a checkpoint does not tell it.
        """
        value = self.take(name, default)
        if value is None:
            raise UserError(
                f'the checkpoint does not tell {name} of {self.repository}; give it in --config as {{"{name}": [...]}}'
            )
        is_list = isinstance(value, (list, tuple)) and len(value) > 0
        if not is_list or any(isinstance(item, bool) or not isinstance(item, int) or item < 1 for item in value):
            raise UserError(
                f"{self.owner} option {name} of {self.repository} must be a list of positive whole numbers, got {value!r}"
            )
        return tuple(value)

    def take_network(self) -> dict[str, Any]:
        """Take what is hard-coded upstream and a parity file or a checkpoint may have otherwise: width, blocks, groups.

        Raises:
            UserError: If one is of the wrong type, or the images are not in colour.
        """
        if self.options.get("norm_groups", PUBLISHED_GROUPS) is None:
            raise UserError(
                f"the checkpoint does not tell norm_groups of {self.repository}, and the published {PUBLISHED_GROUPS} do not fit "
                'its width; give it in --config as {"norm_groups": N}'
            )
        self.choose("in_channels", 3, (3,), ", images have three channels")
        short = self.take("nrb", 2, int)  # the name that some parity files give it
        return {
            "ch": self.take("ch", 128, int),
            "num_res_blocks": self.take("num_res_blocks", short, int),
            "norm_groups": self.take("norm_groups", PUBLISHED_GROUPS, int),
        }


def count_indices(keys: Collection[str], prefix: str) -> int:
    """How many numbers, from 0, follow a prefix in some keys."""
    found = [int(match[1]) for key in keys if (match := re.match(re.escape(prefix) + r"(\d+)\.", key))]
    return max(found, default=-1) + 1


def guess_groups(ch: int) -> int | None:
    """The published number of groups if it divides a width, else None."""
    return PUBLISHED_GROUPS if ch % PUBLISHED_GROUPS == 0 else None
