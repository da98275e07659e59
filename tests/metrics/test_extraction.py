"""From images to features: order, errors and threads of the pool, and what decides a feature."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metrics.extraction import Extraction, check_finite, map_on_cores, microbatch_size, num_cores


@pytest.fixture
def images(smooth_images: Any) -> Tensor:
    return smooth_images(6, 10, 14, seed=0)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_come_in_order(workers: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item % 4 == 0 else 0.0)
        return item * item

    assert list(map_on_cores(slow_first, range(25), workers)) == [item * item for item in range(25)]
    assert list(map_on_cores(slow_first, [], workers)) == []


def test_items_are_read_no_further_ahead_than_the_workers_need() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            read.append(item)
            yield item

    results = map_on_cores(lambda item: item, items(), 2)
    assert next(results) == 0
    assert len(read) <= 7, "two workers, two batches waiting for each, one handed out"
    results.close()
    assert len(read) <= 7, "closing reads no more"


@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_of_a_worker_comes_out_in_its_place(workers: int) -> None:
    def fail_at_five(item: int) -> int:
        if item == 5:
            raise ValueError("image five")
        return item

    found = []
    with pytest.raises(ValueError, match="image five"):
        for result in map_on_cores(fail_at_five, range(100), workers):
            found.append(result)
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_exception_of_the_items_comes_out(workers: int) -> None:
    def items() -> Iterator[int]:
        yield from range(4)
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        list(map_on_cores(lambda item: item, items(), workers))


@pytest.mark.parametrize("end", ["exhausted", "closed", "worker fails", "items fail"])
def test_threads_end_and_torchs_count_is_restored(end: str) -> None:
    before = torch.get_num_threads()
    counts: list[int] = []

    def work(item: int) -> int:
        counts.append(torch.get_num_threads())
        if end == "worker fails" and item == 9:
            raise ValueError("no")
        return item

    def items() -> Iterator[int]:
        yield from range(12)
        if end == "items fail":
            raise ValueError("no")

    results = map_on_cores(work, items(), 2)
    if end == "closed":
        next(results)
        results.close()
    elif end == "exhausted":
        list(results)
    else:
        with pytest.raises(ValueError, match="no"):
            list(results)
    assert set(counts) == {1}, "each worker has one thread of torch's"
    assert torch.get_num_threads() == before
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("extract")]


def test_one_worker_is_this_thread_with_all_of_torchs() -> None:
    before, here = torch.get_num_threads(), threading.get_ident()
    found = list(map_on_cores(lambda item: (threading.get_ident(), torch.get_num_threads()), range(3), 1))
    assert found == [(here, before)] * 3


def test_workers_run_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=20.0)
    assert list(map_on_cores(lambda item: meeting.wait() >= 0, range(3), 3)) == [True] * 3


# Extraction


def test_features_do_not_depend_on_how_images_are_batched(tiny_extractor, images: Tensor) -> None:
    extraction = Extraction(tiny_extractor)
    together = extraction(images, ["projection", "logits"])
    assert set(together) == {"projection", "logits"} and together["projection"].shape == (6, 12)
    for size in (1, 2, 4):
        parts = [extraction(images[start : start + size], ["projection"])["projection"] for start in range(0, 6, size)]
        torch.testing.assert_close(torch.cat(parts), together["projection"], rtol=1e-5, atol=1e-6)
    listed = extraction(list(images), ["projection"])
    assert set(listed) == {"projection"}
    torch.testing.assert_close(listed["projection"], together["projection"])


def test_features_are_plain_tensors(tiny_extractor, images: Tensor) -> None:
    found = Extraction(tiny_extractor, precision="bfloat16")(images, ["projection"])["projection"]
    assert found.dtype == torch.float32 and found.device.type == "cpu" and not found.requires_grad
    assert not found.is_inference()
    found.add_(1.0)


def test_lower_precision_is_lower(tiny_extractor, images: Tensor) -> None:
    exact = Extraction(tiny_extractor)(images, ["projection"])["projection"]
    lower = Extraction(tiny_extractor, precision="bfloat16")(images, ["projection"])["projection"]
    error = float((lower - exact).abs().max() / exact.abs().max())
    assert 1e-5 < error < 0.02


def test_the_protocol_names_all_that_decides(tiny_extractor) -> None:
    from metrics.files.statistics import PROTOCOL_FIELDS

    protocol = Extraction(tiny_extractor, "tensorflow", "bfloat16").protocol("logits")
    assert set(protocol) == set(PROTOCOL_FIELDS)
    assert (protocol["extractor"], protocol["feature"], protocol["resizer"], protocol["precision"]) == (
        "tiny",
        "logits",
        "tensorflow",
        "bfloat16",
    )
    assert Extraction(tiny_extractor).protocol("logits")["resizer"] == tiny_extractor.default_resizer


def test_settings_that_cannot_be_are_refused(tiny_extractor) -> None:
    with pytest.raises(ValueError, match="precision 'int8' is not known"):
        Extraction(tiny_extractor, precision="int8")
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        Extraction(tiny_extractor, precision="float16")
    with pytest.raises(ValueError, match="resizer 'nearest' is not known"):
        Extraction(tiny_extractor, "nearest")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers_name_the_image(tiny_extractor, value: float) -> None:
    features = {"projection": torch.zeros(4, 12)}
    check_finite(features, [10, 11, 12, 13], "fake", tiny_extractor)
    features["projection"][2, 5] = value
    with pytest.raises(ValueError, match="projection of fake image 12 is NaN or infinite"):
        check_finite(features, [10, 11, 12, 13], "fake", tiny_extractor)


def test_batches_on_a_cpu_are_no_larger_than_a_network_wants(tiny_extractor) -> None:
    assert microbatch_size([tiny_extractor], 50) == tiny_extractor.microbatch
    assert microbatch_size([tiny_extractor], 2) == 2
    assert num_cores([tiny_extractor]) == torch.get_num_threads()
