"""Outputs of mage_class parity files; see ``mage_outputs``."""

from __future__ import annotations

from mage_outputs import outputs_of as outputs

__all__ = ["SOURCE", "outputs"]

SOURCE = "mage_class"
