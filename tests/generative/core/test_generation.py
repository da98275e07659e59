"""Who samples what: the same images for any batch size, order and number of processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.generation import SampleRequest, balanced_requests, gather_in_rounds, generate_images
from generative.core.outputs import in_order

REQUESTS = [SampleRequest(label, index) for label in range(3) for index in range(5)]


@pytest.fixture
def pipeline(toy: ModuleType) -> object:
    torch.manual_seed(0)
    return toy.ToyPipeline(toy.ToyNet().eval())


def sample(pipeline: object, requests: list[SampleRequest], batch_size: int, processes: int = 1, seed: int = 0) -> Tensor:
    """All processes' images in the order of the requests."""
    images = torch.empty(len(requests), 3, 4, 4, dtype=torch.uint8)
    seen: list[int] = []
    for rank in range(processes):
        for positions, batch in generate_images(
            pipeline,  # type: ignore[arg-type]
            requests,
            seed=seed,
            batch_size=batch_size,
            options={},
            process_index=rank,
            num_processes=processes,
        ):
            assert len(positions) <= batch_size
            images[positions] = batch
            seen += positions
    assert sorted(seen) == list(range(len(requests)))
    return images


def within_one_level(one: Tensor, other: Tensor) -> bool:
    return bool(((one.int() - other.int()).abs() <= 1).all())


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (4, 1), (100, 1), (4, 2), (1, 3), (8, 20)])
def test_the_split_does_not_matter(pipeline: object, batch_size: int, processes: int) -> None:
    assert within_one_level(sample(pipeline, REQUESTS, batch_size, processes), sample(pipeline, REQUESTS, 5))


def test_the_order_does_not_matter(pipeline: object) -> None:
    reference = sample(pipeline, REQUESTS, 5)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1)).tolist()
    assert within_one_level(sample(pipeline, [REQUESTS[i] for i in order], 4), reference[order])
    assert within_one_level(sample(pipeline, REQUESTS[7:9], 2), reference[7:9])


def test_images_differ_by_seed_class_and_index(pipeline: object) -> None:
    images = sample(pipeline, REQUESTS, 5)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 15
    assert not within_one_level(images, sample(pipeline, REQUESTS, 5, seed=1))


def test_balanced_requests() -> None:
    assert balanced_requests(7, 3) == [SampleRequest(c, i) for c, n in ((0, 3), (1, 2), (2, 2)) for i in range(n)]
    assert balanced_requests(2, 3) == [SampleRequest(0, 0), SampleRequest(1, 0)]


def test_a_wrong_class_is_refused(pipeline: object) -> None:
    with pytest.raises(UserError, match=r"class label 3 is outside 0\.\.2"):
        sample(pipeline, [SampleRequest(3, 0)], 1)


def test_rounds_bring_every_batch_to_every_process_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, played by threads, that share 20 images in batches of 3: the last has fewer."""
    processes, barrier, posted = 3, threading.Barrier(3), {}

    def gather(part: list[Any]) -> list[Any]:
        posted[threading.current_thread().name] = part
        barrier.wait(10)
        everyone = [item for name in sorted(posted) for item in posted[name]]
        barrier.wait(10)
        return everyone

    def batches(rank: int) -> Iterator[tuple[list[int], Tensor]]:
        mine = list(range(rank, 20, processes))
        for start in range(0, len(mine), 3):
            positions = mine[start : start + 3]
            yield positions, torch.tensor(positions, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    def read(rank: int) -> list[int]:
        threading.current_thread().name = str(rank)
        return [int(image[0, 0, 0]) for image in in_order(gather_in_rounds(batches(rank), processes))]

    monkeypatch.setattr("generative.core.generation.gather_object", gather)
    with ThreadPoolExecutor(processes) as pool:
        assert list(pool.map(read, range(processes))) == [list(range(20))] * processes
