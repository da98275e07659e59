"""The parser of every subcommand: an error is one sentence, as everywhere in this project."""

from __future__ import annotations

import argparse
from typing import NoReturn

from generative.core.errors import UserError


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

    def error(self, message: str) -> NoReturn:
        """Raise the message, with where to read more."""
        raise UserError(f"{message}; `{self.prog} --help` explains the command")
