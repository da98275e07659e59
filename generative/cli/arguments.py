"""The parser of every subcommand: an error is one sentence, as everywhere in this project."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from generative.core.errors import UserError
from generative.core.seed_range import check_seed

LIMITS = {
    "num_images": 10_000_000,
    "num_images_per_class": 10_000_000,
    "num_samples": 10_000_000,
    "samples": 10_000_000,
    "frames": 10_000,
    "batch_size": 1_000_000,
    "image_size": 65_536,
}
"""Most of what may be asked for at once: more is a slip of the keyboard, and would fill the memory before anything is said."""


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that takes whole flag names only, and whose errors are ``UserError``s without usage lines."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with the arguments that several commands share checked.

        Raises:
            UserError: If a seed or a device cannot be used, or a count is beyond what memory or patience hold.
        """
        parsed, rest = super().parse_known_args(args, namespace)
        given = vars(parsed)
        if given.get("seed") is not None:
            check_seed("--seed", given["seed"])
        if str(given.get("device")).partition(":")[0] == "meta":
            raise UserError(f"--device '{given['device']}' computes nothing, its tensors have no content; choose cpu or cuda")
        for name, limit in LIMITS.items():
            if isinstance(given.get(name), int) and given[name] > limit:
                raise UserError(f"--{name.replace('_', '-')} must be at most {limit:,}, got {given[name]}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Raise the message, with where to read more."""
        raise UserError(f"{message}; `{self.prog} --help` explains the command")
