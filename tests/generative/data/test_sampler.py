"""The data order: permutations, the split over processes, resuming, and independence of how batches are put together."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.data import (
    EpochOrder,
    ImageDataset,
    PositionDataset,
    StepBatchSampler,
    build_loader,
    epoch_index,
    epoch_permutation,
    flip_mask,
)


class NumberedImages(ImageDataset):
    """Image i is constant i, but for its first column, which is 255 - so that a flip shows."""

    def __init__(self, num_images: int = 10, cache: bool = False) -> None:
        super().__init__(torch.arange(num_images) % 3, num_classes=3, image_size=4, fingerprint="numbers")
        self.prepare(cache=cache, verify=False)

    def load_image(self, index: int) -> Tensor:
        image = torch.full((3, 4, 4), index, dtype=torch.uint8)
        image[..., 0] = 255
        return image

    def source_name(self, index: int) -> str:
        return f"number {index}"


def test_each_epoch_is_another_permutation() -> None:
    epochs = [epoch_permutation(50, seed=1, epoch=epoch) for epoch in range(3)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(50))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], epoch_permutation(50, seed=2, epoch=0))
    assert not np.array_equal(epochs[0], np.arange(50))


def test_the_order_is_pinned() -> None:
    """A change of these numbers breaks the resuming of every stored run."""
    assert epoch_permutation(10, seed=0, epoch=0).tolist() == [7, 0, 5, 2, 1, 8, 3, 9, 4, 6]
    assert flip_mask(range(16), seed=0).astype(int).tolist() == [0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0]


def test_many_positions_agree_with_one_at_a_time() -> None:
    positions = [0, 9, 10, 35, 3, 19, 20, 1]  # several epochs, out of order, more than are kept
    assert EpochOrder(10, seed=4).indices(positions).tolist() == [epoch_index(position, 10, 4) for position in positions]


def test_flips_are_fair_and_differ_by_seed() -> None:
    flips = flip_mask(np.arange(20_000), seed=0)
    assert abs(flips.mean() - 0.5) < 0.02  # 5 standard deviations are 0.018
    assert abs((flips[1:] == flips[:-1]).mean() - 0.5) < 0.02
    assert abs((flips == flip_mask(np.arange(20_000), seed=1)).mean() - 0.5) < 0.02
    assert flip_mask([2**62], seed=0).shape == (1,)


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_and_micro_batches_cover_the_same_slots(repeats: int) -> None:
    num_steps, slots, batch_size = 3, 4, 12

    def taken(world_size: int) -> dict[tuple[int, int, int], list[int]]:
        found = {}
        micro_batches = slots // world_size
        for rank in range(world_size):
            sampler = StepBatchSampler(batch_size=batch_size, num_slots=slots, rank=rank, world_size=world_size, repeats=repeats)
            for number, positions in enumerate(islice(sampler, num_steps * repeats * micro_batches)):
                step, rest = divmod(number, repeats * micro_batches)
                repeat, micro_batch = divmod(rest, micro_batches)
                found[step, repeat, micro_batch * world_size + rank] = positions
        return found

    alone = taken(1)
    assert alone == taken(2) == taken(4)
    assert [position for key in sorted(alone) for position in alone[key]] == list(range(num_steps * repeats * batch_size))


def test_resuming_continues_the_sequence() -> None:
    arguments = {"batch_size": 8, "num_slots": 4, "rank": 1, "world_size": 2, "repeats": 2}
    whole = list(islice(StepBatchSampler(**arguments), 5 * 2 * 2))
    tail = list(islice(StepBatchSampler(**arguments, start_step=3), 2 * 2 * 2))
    assert tail == whole[3 * 2 * 2 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10}, "batch_size 10 does not divide into 4"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_slots": 3}, "multiple of world_size"),
        ({"rank": 2}, "rank must be in"),
        ({"start_step": -1}, "start_step"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_impossible_splits_are_refused(change: dict[str, int], message: str) -> None:
    arguments = {"batch_size": 8, "num_slots": 4, "rank": 0, "world_size": 2} | change
    with pytest.raises(UserError, match=message):
        StepBatchSampler(**arguments)


@pytest.mark.parametrize("cache", [False, True])
def test_an_example_depends_on_its_position_only(cache: bool) -> None:
    examples = PositionDataset(NumberedImages(cache=cache), seed=5, horizontal_flip=True)
    batch = examples.__getitems__(list(range(25)))
    assert batch["images"].shape == (25, 3, 4, 4) and batch["images"].dtype == torch.float32
    assert batch["class_labels"].shape == (25,) and batch["class_labels"].dtype == torch.int64
    flips = flip_mask(range(25), seed=5)
    assert flips.any() and not flips.all()
    for position in reversed(range(25)):
        example = examples[position]
        assert torch.equal(example["images"], batch["images"][position])
        assert example["class_labels"] == batch["class_labels"][position]
        index = epoch_index(position, 10, seed=5)
        bright, plain = (3, 1) if flips[position] else (0, 1)
        assert (example["images"][..., bright] == 1).all()
        assert torch.allclose(example["images"][..., plain], torch.tensor(index / 127.5 - 1))
        assert example["class_labels"] == index % 3


def test_without_flip_no_image_is_mirrored() -> None:
    batch = PositionDataset(NumberedImages(), seed=5).__getitems__(list(range(20)))
    assert (batch["images"][..., 0] == 1).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_resumes_splits_and_leaves_global_randomness_alone(num_workers: int) -> None:
    def batches(world_size: int, rank: int, start_step: int, count: int) -> list[dict[str, Tensor]]:
        loader = build_loader(
            NumberedImages(),
            seed=7,
            batch_size=8,
            num_slots=2,
            rank=rank,
            world_size=world_size,
            start_step=start_step,
            horizontal_flip=True,
            num_workers=num_workers,
        )
        return list(islice(loader, count))

    state = torch.get_rng_state()
    whole = batches(1, 0, 0, 8)
    assert torch.equal(torch.get_rng_state(), state)
    tail = batches(1, 0, 2, 4)
    for before, after in zip(whole[4:], tail, strict=True):
        assert torch.equal(before["images"], after["images"])
        assert torch.equal(before["class_labels"], after["class_labels"])
    second = batches(2, 1, 0, 4)  # process 1 of 2 has the odd slots
    for alone, split in zip(whole[1::2], second, strict=True):
        assert torch.equal(alone["images"], split["images"])
    assert whole[0]["images"].shape == (4, 3, 4, 4)


def test_negative_workers_are_refused() -> None:
    with pytest.raises(UserError, match="num_workers"):
        build_loader(NumberedImages(), seed=0, batch_size=2, num_slots=1, rank=0, world_size=1, num_workers=-1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_corrupt_image_is_one_sentence_from_a_worker_too(num_workers: int) -> None:
    class Corrupt(NumberedImages):
        def load_image(self, index: int) -> Tensor:
            raise UserError(f"image '{index}.png' is truncated")

    loader = build_loader(Corrupt(1), seed=0, batch_size=1, num_slots=1, rank=0, world_size=1, num_workers=num_workers)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    assert str(caught.value) == "image '0.png' is truncated"
