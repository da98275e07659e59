"""Parts of a pass over an image set: the pieces that a network is given, and what becomes of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from metrics.files.feature_cache import Tile, tile_content
from metrics.sources import ImageBatch, ImageSource


@dataclass(frozen=True)
class Stored:
    """What the cache has of a tile for each consumer, and the digest of the images that it was read by."""

    tiles: list[Tile | None]
    content: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every consumer's tile is there."""
        return all(tile is not None for tile in self.tiles)


@dataclass(frozen=True)
class Piece:
    """A few images of one tile after every network that needed them, without the images: a tile of them may be gigabytes."""

    indices: list[int]
    labels: list[str] | None
    contents: list[bytes]
    features: list[dict[str, Tensor] | None]
    digests: list[str]
    sizes: list[str]


class TileContents:
    """Digests of the tiles' images as they are now; a stream is read on, not begun again, from one tile to the next."""

    def __init__(self, source: ImageSource, tile_images: int, num_workers: int) -> None:
        self.source = source
        self.tile_images = tile_images
        self.num_workers = num_workers
        self._stream: Iterator[tuple[int, bytes]] = iter(())
        self._next = -1

    def of(self, number: int) -> str:
        """Return the digest of a tile."""
        start = number * self.tile_images
        if self._next != start:
            self.close()
            self._stream = self.source.contents(start, len(self.source), self.num_workers)
        self._next = min(start + self.tile_images, len(self.source))
        return tile_content(list(islice(self._stream, self._next - start)))

    def close(self) -> None:
        """End the threads that read."""
        if isinstance(self._stream, Generator):
            self._stream.close()
        self._next = -1


def split_batches(batches: Iterator[ImageBatch], tile_images: int, size: int, limit: int | None) -> Iterator[ImageBatch]:
    """Cut batches into pieces that lie in one tile.

    Args:
        batches: Of one source, in order.
        tile_images: Images of a tile.
        size: Most images in a piece.
        limit: Most bytes of pixels in a piece of more than one image; None for any.
    """
    for batch in batches:
        start = 0
        while start < len(batch):
            tile = batch.indices[start] // tile_images
            stop, num_bytes = start + 1, batch.images[start].numel()
            while stop < min(start + size, len(batch)) and batch.indices[stop] // tile_images == tile:
                num_bytes += batch.images[stop].numel()
                if limit is not None and num_bytes > limit:
                    break
                stop += 1
            labels = None if batch.labels is None else batch.labels[start:stop]
            contents = None if batch.contents is None else batch.contents[start:stop]
            yield ImageBatch(batch.indices[start:stop], batch.images[start:stop], labels, contents)
            start = stop


def work_bytes(work: tuple[ImageBatch, list[Tile | None]]) -> int:
    """Return the bytes of a piece's pixels."""
    return sum(image.numel() for image in work[0].images)
