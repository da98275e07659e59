"""The inputs of a run: images, a statistics file, or a file that holds both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metrics.files.statistics import ReferenceStatistics, holds_images, is_statistics, load_statistics
from metrics.options import ScoreOptions
from metrics.sources import ImageSource, is_generator, open_source


@dataclass
class ImageSet:
    """One of the inputs.

    Args:
        path: What the user named.
        images: Its images, if it has any.
        statistics: Its stored statistics, if it has any (ADM's reference files have both).
        num_skipped: Images left out as unreadable.
    """

    path: Path
    images: ImageSource | None = None
    statistics: ReferenceStatistics | None = None
    num_skipped: int = 0

    def describe(self) -> str:
        """Return a line for the table."""
        images = None if self.images is None else f"{len(self.images) - self.num_skipped} images"
        if self.statistics is None:
            return f"{self.path} ({self.images.kind}, {images})" if self.images is not None else str(self.path)
        count = "an unknown number of" if self.statistics.num_images is None else self.statistics.num_images
        if images is not None:
            return f"{self.path} (moments of {count} images; {images} stored for precision and recall)"
        return f"{self.path} (statistics of {count} images)"


@dataclass(frozen=True)
class OpenOptions:
    """How sides are opened.

    Args:
        num_samples: Images to draw from a saved pipeline; None takes its default.
        seed: Seed of that draw.
        batch_size: Batch size of that draw.
        device: Device of that draw.
        skip_corrupt: Whether unreadable images are left out instead of ending the run.
        precision: Of the networks that draw; None for float32.
    """

    num_samples: int | None = None
    seed: int | None = None
    batch_size: int = 50
    device: str = "cpu"
    skip_corrupt: bool = False
    precision: str | None = None

    @classmethod
    def of(cls, options: ScoreOptions) -> OpenOptions:
        """Return what a run's options say of it."""
        return cls(
            options.num_samples, options.seed, options.batch_size, options.device, options.skip_corrupt, options.sample_precision
        )


def open_image_set(path: Path, options: OpenOptions) -> ImageSet:
    """Open a path as what it is.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it holds neither images nor statistics.
    """
    if os.path.isfile(path) and is_statistics(path):  # Unlike Path.is_file it is silent where a parent is unreadable.
        images = open_source(path, skip_corrupt=options.skip_corrupt) if holds_images(path) else None
        return ImageSet(path, images, load_statistics(path))
    return ImageSet(path, open_images(path, options))


def check_draw(paths: Sequence[Path], options: ScoreOptions) -> None:
    """Raise ``ValueError`` if the options say how to draw samples and no path is a saved pipeline."""
    given = [options.num_samples, options.seed, options.sample_precision]
    if any(value is not None for value in given) and not any(is_generator(path) for path in paths):
        raise ValueError("--num-samples, --seed and --sample-precision apply to saved pipelines only, and no path is one.")


def open_images(path: Path, options: OpenOptions) -> ImageSource:
    """Open a path as images; the options of a draw apply to saved pipelines only."""
    if is_generator(path):
        return open_source(
            path, options.num_samples, options.seed, options.batch_size, options.device, precision=options.precision
        )
    return open_source(path, skip_corrupt=options.skip_corrupt)
