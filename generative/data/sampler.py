"""The data order as a function of position, so that resuming needs no state and nothing depends on processes or workers.

Training consumes positions 0, 1, 2, ... Position p is image ``permutation(seed, p // N)[p % N]``. Optimizer step s, repeat r
(of a phase that asks for several fresh batches per step) takes the ``batch_size`` positions from ``(s * repeats + r) *
batch_size``, and slot ``micro_batch * world_size + rank`` takes its share of them. So k micro-batches on one process and one
on each of k processes see the same images, and a run resumed at step s continues as if never stopped.

All randomness is integer arithmetic, equal on every platform: seeds come from ``derive_seed`` (BLAKE2b), permutations from
sorting raw PCG64 words, flips from the SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014) of the position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from generative.core.errors import UserError
from generative.core.seeding import derive_seed
from generative.core.types import Batch
from generative.data.base import ImageDataset
from generative.data.finish import finish_batch

SPLITMIX_GAMMA = np.uint64(0x9E3779B97F4A7C15)
SPLITMIX_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Constants of SplitMix64 as in java.util.SplittableRandom (the multipliers are Stafford's variant 13)."""

CACHED_EPOCHS = 2
"""A batch can straddle two epochs; older permutations are dropped."""


def epoch_permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch.

    Args:
        num_images: N.
        seed: Seed of the run.
        epoch: 0, 1, 2, ...

    Returns:
        (N,) int64, a permutation of 0..N-1.
    """
    # Raw words are sorted instead of calling permutation(): NumPy guarantees the bit stream for ever, not what permutation
    # makes of it.
    words = np.random.PCG64(derive_seed(seed, "data order", epoch)).random_raw(num_images)
    return np.argsort(words, kind="stable")


def epoch_index(position: int, num_images: int, seed: int) -> int:
    """The image at one position of the endless order.

    Args:
        position: 0, 1, 2, ...
        num_images: N.
        seed: Seed of the run.

    Returns:
        An index in [0, N). Each epoch, ``position // N``, visits every image once.
    """
    epoch, offset = divmod(position, num_images)
    return int(epoch_permutation(num_images, seed, epoch)[offset])


class EpochOrder:
    """``epoch_index`` for many positions at once, with the latest permutations kept.

    Args:
        num_images: N.
        seed: Seed of the run.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images = num_images
        self.seed = seed
        self._permutations: dict[int, np.ndarray] = {}

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            while len(self._permutations) >= CACHED_EPOCHS:
                del self._permutations[min(self._permutations)]
            self._permutations[epoch] = epoch_permutation(self.num_images, self.seed, epoch)
        return self._permutations[epoch]

    def indices(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Image indices, (B,) int64, of B positions."""
        epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), self.num_images)
        result = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = self._permutation(int(epoch))[offsets[chosen]]
        return result


@lru_cache(maxsize=8)
def _flip_key(seed: int) -> np.uint64:
    return np.uint64(derive_seed(seed, "horizontal flip"))


def position_words(positions: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """One random word per position: SplitMix64 at (key of the seed) + position.

    Args:
        positions: B positions.
        seed: Seed of the run.

    Returns:
        (B,) uint64.
    """
    state = _flip_key(seed) + np.asarray(positions, dtype=np.uint64) * SPLITMIX_GAMMA  # unsigned arithmetic wraps, as it should
    state = (state ^ (state >> np.uint64(30))) * SPLITMIX_MULTIPLIERS[0]
    state = (state ^ (state >> np.uint64(27))) * SPLITMIX_MULTIPLIERS[1]
    return state ^ (state >> np.uint64(31))


def flip_mask(positions: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """Which positions are mirrored, (B,) bool: those whose word has its top bit set, half of all."""
    return (position_words(positions, seed) >> np.uint64(63)).astype(bool)


class StepBatchSampler(Sampler[list[int]]):
    """Endless lists of positions for one process, in the order step, repeat, micro-batch.

    Args:
        batch_size: Images per optimizer step and repeat, over all processes.
        num_slots: Micro-batches per process times processes.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        repeats: Batches of fresh data per step.
        start_step: First step; a resumed run passes the number of steps already taken.

    Raises:
        UserError: If ``batch_size`` is not divisible by ``num_slots``, ``num_slots`` not by ``world_size``, or a number is
            out of range.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        num_slots: int,
        rank: int,
        world_size: int,
        repeats: int = 1,
        start_step: int = 0,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("num_slots", num_slots),
            ("world_size", world_size),
            ("repeats", repeats),
        ):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if not 0 <= rank < world_size:
            raise UserError(f"rank must be in [0, {world_size}), got {rank}")
        if start_step < 0:
            raise UserError(f"start_step must not be negative, got {start_step}")
        if num_slots % world_size:
            raise UserError(f"num_slots ({num_slots}) must be a multiple of world_size ({world_size})")
        if batch_size % num_slots:
            raise UserError(
                f"batch_size {batch_size} does not divide into {num_slots} equal parts (micro-batches x processes); "
                f"use a multiple of {num_slots}"
            )
        self.batch_size = batch_size
        self.num_slots = num_slots
        self.rank = rank
        self.world_size = world_size
        self.repeats = repeats
        self.start_step = start_step

    def positions(self, step: int, repeat: int, micro_batch: int) -> range:
        """Positions of one micro-batch of this process.

        Args:
            step: Optimizer step, from 0.
            repeat: In [0, repeats).
            micro_batch: In [0, num_slots / world_size).
        """
        micro_batch_size = self.batch_size // self.num_slots
        slot = micro_batch * self.world_size + self.rank
        start = (step * self.repeats + repeat) * self.batch_size + slot * micro_batch_size
        return range(start, start + micro_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            for repeat in range(self.repeats):
                for micro_batch in range(self.num_slots // self.world_size):
                    yield list(self.positions(step, repeat, micro_batch))
            step += 1


class PositionDataset(Dataset[Batch]):
    """Training examples by position: order and flip are functions of (seed, position) and of nothing else.

    Args:
        dataset: The images.
        seed: Seed of the run.
        horizontal_flip: Mirror each image with probability 1/2.
        finish: Give images as objectives take them; False leaves that, ``finish_batch``, to the training device.
    """

    def __init__(self, dataset: ImageDataset, seed: int, horizontal_flip: bool = False, finish: bool = True) -> None:
        self.dataset = dataset
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.finish = finish
        self._order = EpochOrder(len(dataset), seed)

    def __getitem__(self, position: int) -> Batch:
        """One example, without the batch dimension."""
        batch = self.__getitems__([position])
        return {name: value[0] for name, value in batch.items()}  # type: ignore[return-value, index]

    def __getitems__(self, positions: list[int]) -> Batch:
        """A ready batch, which PyTorch's loader asks for where this method exists.

        Args:
            positions: B positions.

        Returns:
            See ``ImageDataset.examples``, and ``finish_batch``.
        """
        indices = torch.from_numpy(self._order.indices(positions))  # (B,)
        batch = self.dataset.examples(indices, position_words(positions, self.seed), self.horizontal_flip)
        return finish_batch(batch) if self.finish else batch


class _SafePositionDataset(PositionDataset):
    """A ``PositionDataset`` that hands a user's error on as its batch.

    PyTorch would raise it in the main process with the worker's traceback for a message.
    """

    def __getitems__(self, positions: list[int]) -> Any:
        try:
            return super().__getitems__(positions)
        except UserError as error:
            return error


class _BatchLoader(DataLoader[Batch]):
    """A loader of a ``_SafePositionDataset``, which raises the error where the batch is asked for."""

    def __iter__(self) -> Any:
        return map(_pass_batch, super().__iter__())


def _pass_batch(batch: Any) -> Batch:
    """The batch; raises ``UserError`` if that is what a loader worker made instead."""
    if isinstance(batch, UserError):
        raise batch
    return batch


def _no_collation(batch: Any) -> Any:
    """Collate function for a dataset whose ``__getitems__`` returns ready batches."""
    return batch


def build_loader(
    dataset: ImageDataset,
    *,
    seed: int,
    batch_size: int,
    num_slots: int,
    rank: int,
    world_size: int,
    repeats: int = 1,
    start_step: int = 0,
    horizontal_flip: bool = False,
    num_workers: int = 0,
    pin_memory: bool = False,
    finish: bool = True,
) -> DataLoader[Batch]:
    """An endless loader of this process's micro-batches.

    It is already split over processes, so Accelerate must not split it again.

    Args:
        dataset: The images.
        seed: Seed of the run; keys the order and the flips.
        batch_size: Images per optimizer step and repeat, over all processes.
        num_slots: Micro-batches per process times processes.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        repeats: Batches of fresh data per step.
        start_step: First step.
        horizontal_flip: Mirror each image with probability 1/2.
        num_workers: Loader processes; 0 loads in this one. The batches do not depend on it.
        pin_memory: Copy batches to page-locked memory, for faster transfer to a GPU.
        finish: Give images as objectives take them. False leaves that to the caller, on the training device: a loader then
            moves a quarter of the bytes and does half the work.

    Returns:
        A loader of ``Batch`` dicts: ``images`` (b, 3, H, W) float32 in [-1, 1] and ``class_labels`` (b,) int64, with
        b = batch_size / num_slots. Without ``finish`` they are what ``finish_batch`` takes.

    Raises:
        UserError: As ``StepBatchSampler``, or if ``num_workers`` is negative.
    """
    if num_workers < 0:
        raise UserError(f"num_workers must not be negative, got {num_workers}")
    sampler = StepBatchSampler(
        batch_size=batch_size, num_slots=num_slots, rank=rank, world_size=world_size, repeats=repeats, start_step=start_step
    )
    return _BatchLoader(
        _SafePositionDataset(dataset, seed, horizontal_flip, finish),
        batch_sampler=sampler,
        collate_fn=_no_collation,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Its own generator, because a loader draws a seed for its workers when iterated, by default from the global one.
        generator=torch.Generator().manual_seed(derive_seed(seed, "loader workers")),
    )
