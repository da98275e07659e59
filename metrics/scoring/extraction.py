"""Run a set of images through every network of a run: decoded once, cached by tile, shared over processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metrics.distributed import Processes
from metrics.extraction import check_finite, map_on_cores, microbatch_size, num_cores
from metrics.files.feature_cache import TILE_IMAGES, FeatureCache, Tile, tile_content
from metrics.metric import Metric, side_name
from metrics.scoring.pieces import Piece, Stored, TileContents, split_batches, work_bytes
from metrics.scoring.shares import Share, joined_sha256, neighbours, tiles_of_process
from metrics.software import software_fingerprint
from metrics.sources import ImageBatch, ImageSource
from metrics.sources.base import pixel_digest
from metrics.suite import MetricSuite

_COSTLY_TILE_IMAGES = 32  # What a generator samples may take seconds an image: lose less of it.
_PIECE_BYTES = 40 << 20  # Pixels that a core is given at once: of large images few, and one at least.
_MOST_PIECES = 8  # Of that size, that all cores are given at once.


@dataclass(frozen=True)
class Consumer:
    """A suite and those of its metrics that want this side's images (the others have it from a file)."""

    suite: MetricSuite
    metrics: Sequence[Metric]


@dataclass
class Extracted:
    """What is known of an image set once it has been run.

    Args:
        num_images: Images that could be read, over all processes.
        num_skipped: Images that could not.
        skipped: Names of those met in this run (a cached tile does not know them).
        pixels_sha256: Fingerprint of the pixels, whatever file they came in.
    """

    num_images: int
    num_skipped: int
    skipped: list[str]
    pixels_sha256: str


@dataclass
class Extraction:
    """How images are read and run.

    Args:
        batch_size: Images per forward pass on a GPU.
        num_workers: Threads that decode.
        processes: Who else works on it.
        cache: Where features are kept; None to keep none.
        same_size_for: Name of the protocol that needs images of one size, or None.
        progress: Whether to show a bar; None shows it on a terminal only.
        keep_bar: Whether the bar stays when all is done.
    """

    batch_size: int
    num_workers: int
    processes: Processes = field(default_factory=Processes)
    cache: FeatureCache | None = None
    same_size_for: str | None = None
    progress: bool | None = None
    keep_bar: bool = True

    def run(self, consumers: Sequence[Consumer], source: ImageSource, real: bool) -> Extracted:
        """Run every image of ``source`` through the networks and give the features to the metrics, on all processes.

        Raises:
            ValueError: If an image can't be read, has a size that the protocol forbids, or makes a feature infinite; on
                every process if on one.
        """
        share = Share()
        run: _Run | None = None
        error: Exception | None = None
        try:
            run = self._plan(consumers, source, real)
        except (ValueError, TypeError, OSError) as caught:
            error = caught
        self.processes.agree(error)
        assert run is not None
        done = self._done(run)
        try:
            self._run_share(run, done, share)
        except (ValueError, TypeError, OSError) as caught:
            error = caught
        self.processes.agree(error)
        everyone = self.processes.gather(share)
        sizes = [pair for part in everyone for pair in part.sizes.items()]
        self._check_sizes(dict(reversed(sizes)), source)
        if self.processes.count > 1:
            for consumer in consumers:
                consumer.suite.gather_side(real, self.processes.gather, consumer.metrics)
        for consumer in consumers:
            for metric in consumer.metrics:
                for part in everyone:
                    metric.class_names.update(part.class_names)
        return Extracted(
            num_images=sum(part.num_read for part in everyone),
            num_skipped=sum(part.num_expected - part.num_read for part in everyone),
            skipped=[name for part in everyone for name in part.skipped],
            pixels_sha256=joined_sha256(everyone),
        )

    def _plan(self, consumers: Sequence[Consumer], source: ImageSource, real: bool) -> _Run:
        most = _COSTLY_TILE_IMAGES if source.is_costly else TILE_IMAGES
        tile_images = max(1, min(most, -(-len(source) // self.processes.count)))
        return _Run(self, consumers, source, tile_images, real)

    def _done(self, run: _Run) -> set[int]:
        """Return the tiles that all processes take for cached, of a source whose other tiles are to be shared by themselves.

        Else a run of an interrupted one's processes, or of more, would leave some with nothing to do and others with it all.
        """
        if self.cache is None or not run.source.is_costly or self.processes.count == 1:
            return set()
        return set(self.processes.gather(run.complete())[0])

    def _run_share(self, run: _Run, done: set[int], share: Share) -> None:
        """Run this process's share of the images, and note in ``share`` what was met."""
        consumers, source, tile_images = run.consumers, run.source, run.tile_images
        mine = tiles_of_process(self.processes, -(-len(source) // tile_images), done)
        share.num_expected = sum(len(run.places(number)) for number in mine)
        is_hidden = _is_hidden(self.progress, self.processes)
        total, name = share.num_expected, str(source.path)
        with tqdm(total=total, desc=name, unit="img", disable=is_hidden, leave=self.keep_bar) as bar:
            for number, tiles in (pair for part in neighbours(mine) for pair in run.tiles(part)):
                for consumer, tile in zip(consumers, tiles, strict=True):
                    places = torch.tensor(tile.indices, dtype=torch.int64)
                    names = None if tile.labels is None else source.named(tile.labels)
                    consumer.suite.add(tile.features, run.real, places, share.class_numbers(names), consumer.metrics)
                share.num_read += len(tiles[0].indices)
                share.digests[number] = bytes.fromhex("".join(tiles[0].digests))
                share.sizes = {**tiles[0].sizes, **share.sizes}
                self._check_sizes(share.sizes, source)
                bar.update(len(run.places(number)))
        share.skipped = source.skipped

    def _check_sizes(self, sizes: Mapping[str, int], source: ImageSource) -> None:
        """Raise if the protocol needs images of one size and there are others; ``sizes`` is size -> first place."""
        if self.same_size_for is None or len(sizes) < 2:
            return
        (first, _), (other, place) = sorted(sizes.items(), key=lambda pair: pair[1])[:2]
        raise ValueError(
            f"protocol {self.same_size_for} scores images of one size, and image {place} of {source.path} is {other} where the "
            f"first is {first}: crop and resize them first, or choose --protocol clean."
        )


class _Run:
    """One pass over one image set: tiles that are cached are read, the others computed and written."""

    def __init__(
        self, extraction: Extraction, consumers: Sequence[Consumer], source: ImageSource, tile_images: int, real: bool
    ) -> None:
        self.extraction = extraction
        self.consumers = consumers
        self.source = source
        self.tile_images = tile_images
        self.real = real
        self.folders: list[dict[str, Path]] = []
        self.kept: list[set[int]] = []  # Tiles that each consumer may find, if the images are still those.
        self.contents = TileContents(source, tile_images, extraction.num_workers)
        if extraction.cache is not None:
            identity = source.identity()
            for consumer in consumers:
                keys = {name: _cache_key(consumer.suite, name) for name in _features(consumer)}
                folders = {name: extraction.cache.folder(identity, key, tile_images) for name, key in keys.items()}
                self.folders.append(folders)
                self.kept.append(extraction.cache.tiles(folders))

    def complete(self) -> list[int]:
        """Return the tiles that the cache may have for every consumer."""
        return sorted(set.intersection(*self.kept)) if self.kept else []

    def tiles(self, mine: range) -> Iterator[tuple[int, list[Tile]]]:
        """Yield this process's tiles in order, one ``Tile`` per consumer."""
        number = mine.start
        with closing(self.contents):
            while number < mine.stop:
                stored = self._read(number)
                if stored.is_complete:
                    yield number, [tile for tile in stored.tiles if tile is not None]
                    number += 1
                    continue
                # Neighbours that lack something are read in one go: decoding need not stop at every tile.
                stop = number + 1
                while stop < mine.stop and not self._may_be_complete(stop):
                    stop += 1
                yield from self._compute(range(number, stop), stored)
                number = stop

    def _read(self, number: int) -> Stored:
        """Read what the cache has of a tile, for which the images' bytes are read but not decoded."""
        cache = self.extraction.cache
        if cache is None or not any(number in kept for kept in self.kept):
            return Stored([None] * len(self.consumers))
        content = self.contents.of(number)
        tiles = [cache.read(folders, number, content) for folders in self.folders]
        if not self.source.skip_corrupt:
            # A run that skipped damaged images left gaps; this one has to meet them and say so.
            whole = len(self.places(number))
            tiles = [tile if tile is not None and len(tile.indices) == whole else None for tile in tiles]
        return Stored(tiles, content)

    def places(self, number: int) -> range:
        """Return the places of a tile's images."""
        return range(number * self.tile_images, min((number + 1) * self.tile_images, len(self.source)))

    def _may_be_complete(self, number: int) -> bool:
        return bool(self.kept) and all(number in kept for kept in self.kept)

    def _compute(self, numbers: range, first: Stored) -> Iterator[tuple[int, list[Tile]]]:
        """Run the images of consecutive tiles through every network that lacks them."""
        extractors = [consumer.suite.extractor for consumer in self.consumers]
        stored = {numbers.start: first}
        size = microbatch_size(extractors, self.extraction.batch_size)
        limit = _PIECE_BYTES if all(extractor.device.type == "cpu" for extractor in extractors) else None
        stop = min(numbers.stop * self.tile_images, len(self.source))
        at_once = self.extraction.batch_size // size * size  # Whole pieces: a remainder would cost as much as a piece.
        batches = self.source.batches(at_once, self.extraction.num_workers, numbers.start * self.tile_images, stop)

        def pieces() -> Iterator[tuple[ImageBatch, list[Tile | None]]]:
            for piece in split_batches(batches, self.tile_images, size, limit):
                number = piece.indices[0] // self.tile_images
                if number not in stored:
                    stored[number] = self._read(number)
                yield piece, stored[number].tiles

        number, done = numbers.start, list[Piece]()
        cores = num_cores(extractors)
        in_flight = _PIECE_BYTES * min(cores + 1, _MOST_PIECES)
        for piece in map_on_cores(self._extract, pieces(), cores, work_bytes, in_flight):
            while piece.indices[0] // self.tile_images > number:
                yield number, self._finish(number, done, stored.pop(number, None))
                number, done = number + 1, []
            done.append(piece)
        for rest in range(number, numbers.stop):  # The last, and those behind it of which no image could be read.
            yield rest, self._finish(rest, done if rest == number else [], stored.pop(rest, None))

    def _extract(self, work: tuple[ImageBatch, list[Tile | None]]) -> Piece:
        batch, stored = work
        features: list[dict[str, Tensor] | None] = []
        for consumer, tile in zip(self.consumers, stored, strict=True):
            if tile is not None:
                features.append(None)
                continue
            found = consumer.suite.extraction(batch.images, _features(consumer))
            check_finite(found, batch.indices, side_name(self.real), consumer.suite.extractor)
            features.append(found)
        sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in batch.images]
        digests = [pixel_digest(image).hex() for image in batch.images]
        return Piece(batch.indices, batch.labels, self.source.contents_of(batch), features, digests, sizes)

    def _finish(self, number: int, pieces: Sequence[Piece], stored: Stored | None) -> list[Tile]:
        """Join the pieces of a tile and keep it."""
        indices = [index for piece in pieces for index in piece.indices]
        labels = [name for piece in pieces for name in piece.labels or []] if self.source.has_labels else None
        digests = [digest for piece in pieces for digest in piece.digests]
        sizes: dict[str, int] = {}
        for piece in pieces:
            for index, size in zip(piece.indices, piece.sizes, strict=True):
                sizes.setdefault(size, index)
        content = self._content(number, pieces)
        if stored is not None and any(tile is not None for tile in stored.tiles) and stored.content != content:
            raise ValueError(f"images of {self.source.path} changed while they were read: run the same command again.")
        tiles = []
        for position, consumer in enumerate(self.consumers):
            tile = stored.tiles[position] if stored is not None else None
            if tile is None:
                dims = consumer.suite.extractor.feature_dims
                parts = [found for piece in pieces if (found := piece.features[position]) is not None]
                features = {
                    name: torch.cat([part[name] for part in parts]) if parts else torch.empty(0, dims[name])
                    for name in _features(consumer)
                }
                tile = Tile(indices, features, labels, digests, sizes)
                if self.extraction.cache is not None:
                    self.extraction.cache.write(self.folders[position], number, content, tile)
            tiles.append(tile)
        return tiles

    def _content(self, number: int, pieces: Sequence[Piece]) -> str:
        """Return the digest of all that a tile was decoded from, with what could not be."""
        skipped = self.source.skipped_contents
        read = [pair for piece in pieces for pair in zip(piece.indices, piece.contents, strict=True)]
        return tile_content(read + [(place, skipped[place]) for place in self.places(number) if place in skipped])


def _cache_key(suite: MetricSuite, feature: str) -> dict[str, Any]:
    """Return what decides a feature's values; the weights' sha256 says nothing of an edit in the file of one's own network."""
    key = {**suite.extraction.protocol(feature), "software": software_fingerprint()}
    return key if suite.extractor.code_sha256 is None else {**key, "code_sha256": suite.extractor.code_sha256}


def _features(consumer: Consumer) -> list[str]:
    return sorted({str(metric.feature) for metric in consumer.metrics})


def _is_hidden(progress: bool | None, processes: Processes) -> bool | None:
    """Return tqdm's ``disable``: None lets it show on a terminal only."""
    if not processes.is_main:
        return True
    return None if progress is None else not progress
