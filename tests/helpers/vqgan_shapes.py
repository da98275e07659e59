"""Shapes of official VQGANs' parts by name, as tests build their state dicts."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def conv(name: str, width_in: int, width_out: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (width_out, width_in, size, size), f"{name}.bias": (width_out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block(name: str, width_in: int, width_out: int) -> Shapes:
    inner = norm(f"{name}.norm1", width_in) | conv(f"{name}.conv1", width_in, width_out)
    inner |= norm(f"{name}.norm2", width_out) | conv(f"{name}.conv2", width_out, width_out)
    return inner | (conv(f"{name}.nin_shortcut", width_in, width_out, 1) if width_in != width_out else {})
