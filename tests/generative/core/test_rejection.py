"""Rejection sampling: which candidates are kept, that batches and processes do not matter, the classifier, wrong input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.generation import SampleRequest
from generative.core.rejection import ClassifierJudge, choose_best, generate_best_images, num_candidates
from metrics.extractors.resnet9 import ResNet9Network, save_resnet9


class NoisePipeline:
    """An image is one random grey, keyed by its generator."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def __call__(self, class_labels: Sequence[int], generator: list[torch.Generator], output_type: str) -> Any:
        self.calls.append(len(class_labels))
        grey = torch.stack([torch.randint(256, (), generator=g) for g in generator])
        return SimpleNamespace(images=grey.to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2))


class BrightnessJudge:
    """Likes bright images of even classes and dark ones of odd classes."""

    def log_probabilities(self, images: Tensor, class_labels: Sequence[int]) -> Tensor:
        signs = 1 - 2 * (torch.tensor(class_labels) % 2)
        return signs * images[:, 0, 0, 0].float()


REQUESTS = [SampleRequest(label, index) for label in (0, 1, 4) for index in range(3)]


def best(requests: list[SampleRequest] = REQUESTS, batch_size: int = 4, **options: Any) -> dict[int, int]:
    """Grey by position."""
    found: dict[int, int] = {}
    arguments = {"num_images_per_class": 3, "keep": 0.25, "seed": 7, "options": {}, **options}
    for positions, images in generate_best_images(
        NoisePipeline(), requests, BrightnessJudge(), batch_size=batch_size, **arguments
    ):
        found.update(zip(positions, images[:, 0, 0, 0].tolist(), strict=True))
    return found


def candidates(label: int) -> list[int]:
    """Greys of the 12 candidates of a class, which are plain sampling's images."""
    from generative.core.seeding import sample_generators

    return [int(torch.randint(256, (), generator=g)) for g in sample_generators(7, [label] * 12, range(12))]


def test_the_best_of_each_class_are_kept_in_their_order() -> None:
    found = best()
    assert sorted(found) == list(range(9))
    for number, label in enumerate((0, 1, 4)):
        greys = candidates(label)
        chosen = sorted(range(12), key=lambda i: greys[i] if label % 2 else -greys[i])[:3]
        assert [found[3 * number + rank] for rank in range(3)] == [greys[i] for i in sorted(chosen)]


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_batches_do_not_matter(batch_size: int) -> None:
    assert best(batch_size=batch_size) == best()


def test_missing_images_alone_are_made_and_are_the_same() -> None:
    everything = best()
    some = [REQUESTS[1], REQUESTS[8]]
    assert best(some) == {0: everything[1], 1: everything[8]}
    assert best([]) == {}


@pytest.mark.parametrize("num_processes", [2, 5])
def test_processes_share_the_work(num_processes: int) -> None:
    """Processes meet at each block, as threads at a barrier do."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier, boards = Barrier(num_processes, timeout=20), [[] for _ in range(num_processes)]

    def run(rank: int) -> dict[int, int]:
        def gather(mine: list[tuple[int, float]]) -> list[tuple[int, float]]:
            boards[rank] = list(mine)
            barrier.wait()
            joined = [entry for board in boards for entry in board]
            barrier.wait()
            return joined

        return best(process_index=rank, num_processes=num_processes, gather=gather)

    with ThreadPoolExecutor(num_processes) as pool:
        parts = list(pool.map(run, range(num_processes)))
    assert sum(len(part) for part in parts) == 9, "an image is written by one process"
    assert {position: grey for part in parts for position, grey in part.items()} == best()
    assert all(len(part) < 9 for part in parts)


def test_keeping_all_is_plain_sampling() -> None:
    assert [best(keep=1.0)[i] for i in range(3)] == candidates(0)[:3]


def test_counts() -> None:
    assert [num_candidates(n, keep) for n, keep in ((10, 0.25), (3, 0.3), (1, 0.5), (7, 1.0), (5, 0.9))] == [40, 10, 2, 7, 6]
    for keep in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"must be in \(0, 1\]"):
            num_candidates(3, keep)
    assert choose_best([0.1, 0.5, 0.5, 0.3], 2) == [1, 2] and choose_best([0.5, 0.5, 0.5], 2) == [0, 1]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "judge.safetensors"
    save_resnet9(path, ResNet9Network(3, width=4), {"input_size": 16})
    return path


def test_a_classifier_of_the_metrics_package(weights: Path) -> None:
    classifier = ClassifierJudge("resnet9", weights, 3)
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    columns = torch.stack([classifier.log_probabilities(images, [label] * 6) for label in range(3)], dim=1)
    torch.testing.assert_close(columns.exp().sum(1), torch.ones(6))
    mixed = classifier.log_probabilities(images, [0, 1, 2, 2, 1, 0])
    torch.testing.assert_close(mixed, columns[torch.arange(6), torch.tensor([0, 1, 2, 2, 1, 0])], rtol=1e-4, atol=1e-5)
    assert classifier.description["extractor"] == "resnet9" and len(classifier.description["weights_sha256"]) == 64


def test_classifiers_that_cannot_score_are_refused(weights: Path) -> None:
    for arguments, message in (
        (("resnet9", weights, 10), "the classifier 'resnet9' has 3 classes but the pipeline has 10; train one"),
        (("resnet9", None, 3), "rejection: resnet9 has no weights of its own"),
        (("resnet9", weights.with_name("none"), 3), "rejection: weights file .* does not exist"),
        (("resnet8", weights, 3), "rejection: extractor 'resnet8' is not known"),
    ):
        with pytest.raises(UserError, match=message):
            ClassifierJudge(*arguments)
