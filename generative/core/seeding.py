"""Randomness keyed by what it is for, so that results do not depend on batch size, order, processes or interruptions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(*key: int | str) -> int:
    """Hash a key to a 63-bit seed, the same on every platform.

    Args:
        key: Integers and strings that name the draw, for example ``(seed, step, "discriminator", slot)``.

    Returns:
        An integer in [0, 2**63).
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a generator whose stream is a function of the key alone."""
    return torch.Generator(device=device).manual_seed(derive_seed(*key))


def sample_generators(seed: int, class_labels: Sequence[int], indices: Sequence[int]) -> list[torch.Generator]:
    """One generator per image of a sampling run.

    Args:
        seed: Seed of the run.
        class_labels: Class of each image.
        indices: Number of each image within its class (0 for a class's first image, and so on).

    Returns:
        CPU generators keyed by (seed, class, index in class): the image is the same whatever else is asked for beside it.
    """
    return [keyed_generator(seed, "sample", label, index) for label, index in zip(class_labels, indices, strict=True)]


class ImageNoise:
    """One independent stream of random numbers per image of a batch.

    Draws are made on the CPU and moved, so that a seed gives the same image on any device.

    Args:
        generators: One CPU generator per image.
        device: Where the drawn tensors go.
    """

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device | str = "cpu") -> None:
        self.generators = list(generators)
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.generators)

    def randn(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape) float32, row i from image i's own stream."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.device)

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (B, *shape) float32, row i from image i's own stream."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)
