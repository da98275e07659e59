"""Sources of encoded image files: decoded in threads, ahead of the consumer, damaged ones reported by name."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from metrics.files.images import ImageError, decode_image, printable
from metrics.sources.ahead import Admit, work_ahead
from metrics.sources.base import ImageBatch, ImageSource, check_range, checked_class_names, fingerprint, normalize_label
from metrics.sources.labels import FoundLabels, join_labels
from metrics.sources.listing import describe_left_out
from metrics.sources.splits import describe_split_folders

#: How long the rest of a set is searched for further damaged images once one is met, in seconds.
SEARCH_SECONDS = 20.0
#: Damaged images named in one message.
_MAX_NAMED = 10
#: Images decoded ahead beyond one batch, per thread: no thread waits while a batch is handed over.
_AHEAD_PER_WORKER = 2
#: Decoded images in one batch: one of large images is smaller than was asked for. 43 images of 512 x 512, one of 4000 x 3000.
_BATCH_BYTES = 32 << 20
#: Memory that decoding takes, for a byte of the result: Pillow's copy has four bytes a pixel, its planes go one by one.
_DECODING_FACTOR = 3
#: Stands for the bytes of a file that can't be read.
_UNREADABLE = bytes(32)


@dataclass(frozen=True)
class EncodedImage:
    """An image not yet read.

    Args:
        index: Its place in the source.
        name: What to call it, within the source.
        title: What to call it in a message of its own.
        read: Returns the content of its file, in any thread; raises ``ImageError``.
        held_bytes: What it holds before it is read.
    """

    index: int
    name: str
    title: str
    read: Callable[[], bytes]
    held_bytes: int = 0


@dataclass(frozen=True)
class _Decoded:
    """What became of an encoded image: its bytes' sha256, and uint8 (3, H, W), what is wrong with it, or None undecoded."""

    content: bytes
    image: Tensor | ImageError | None = None

    @property
    def num_bytes(self) -> int:
        return self.image.numel() if isinstance(self.image, Tensor) else 0


class LoaderSource(ImageSource):
    """A source whose images are decoded one by one, in threads."""

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        #: Extension -> number of files of image formats that are not read.
        self.left_out: Counter[str] = Counter()
        #: What is known of the classes, whether or not it makes labels of this source alone.
        self.found_labels = FoundLabels()
        #: Folder in the source -> number of images in it.
        self.folders: Counter[str] = Counter()
        self._known_bad: dict[int, str] = {}  # Place -> name; names need not be unique in an archive.

    @abstractmethod
    def items(self, start: int, stop: int) -> Iterator[EncodedImage]:
        """Yield the images of places ``start`` to ``stop`` in order."""

    def full_name(self, name: str) -> str:
        """Return what to call an image in a message of its own."""
        return f"{name} in {self.path}"

    def set_left_out(self, left_out: Counter[str]) -> None:
        """Take the number of files of formats that are not read, by extension, and note it."""
        self.left_out = left_out
        if left_out:
            self.notes.append(f"of {self.path}, {describe_left_out(left_out)} were left out.")

    def set_labels(self, found: FoundLabels) -> None:
        """Take what is known of the images' classes.

        Raises:
            ValueError: If names of classes are no texts, or a label has none.
        """
        self.found_labels = found
        self.labels = None if found.labels is None else [normalize_label(label) for label in found.labels]
        self.has_labels = self.labels is not None
        self.has_class_numbers = self.labels is not None and found.are_numbers
        self.label_hint = found.missing
        if self.labels is not None and found.class_names is not None:
            self.class_names = checked_class_names(found.class_names, self.labels, self.path)

    def set_folders(self, folders: Counter[str]) -> None:
        """Take the number of images in each folder, and note folders that are named as splits of a data set."""
        self.folders = folders
        note = describe_split_folders(folders)
        if note is not None:
            self.notes.append(f"of {self.path}, {note}")

    def report_listed(self, listed: Sequence[tuple[int, str, str]]) -> None:
        """Skip or refuse images that are bad at first sight, given as (place, name, fault).

        Raises:
            ValueError: If there are any and ``skip_corrupt`` is off.
        """
        bad = [(name, fault) for _, name, fault in listed]
        if self.skip_corrupt:
            for index, name, _ in listed:
                self._skip(index, name, _UNREADABLE)
        elif len(bad) == 1:
            raise ValueError(one_bad_message(self.full_name(bad[0][0]), bad[0][1], "remove it or write it again"))
        elif bad:
            raise ValueError(many_bad_message(bad, f"{len(bad)} of {len(self)}", self.path))

    def batches(self, batch_size: int, num_workers: int = 1, start: int = 0, stop: int | None = None) -> Iterator[ImageBatch]:
        """Yield the images of places ``start`` to ``stop``; see ``ImageSource.batches``."""
        end = check_range(len(self), batch_size, num_workers, start, stop)
        batch: list[tuple[int, _Decoded]] = []
        num_read = num_bytes = 0
        with closing(_ahead(self.items(start, end), _attempt, num_workers, batch_size)) as decoded:
            for item, outcome in decoded:
                if isinstance(outcome.image, ImageError):
                    if not self.skip_corrupt:
                        raise self._search_rest(item.name, outcome.image, decoded) from outcome.image
                    self._skip(item.index, item.name, outcome.content)
                    continue
                batch.append((item.index, outcome))
                num_read += 1
                num_bytes += outcome.num_bytes
                if len(batch) == batch_size or num_bytes >= _BATCH_BYTES:
                    yield self._batch(batch)
                    batch, num_bytes = [], 0
        if batch:
            yield self._batch(batch)
        if num_read == 0 and end - start == len(self):
            raise ValueError(f"none of the {len(self)} images in {self.path} can be read: they are empty or corrupt.")

    def contents(self, start: int, stop: int, num_workers: int = 1) -> Iterator[tuple[int, bytes]]:
        """Yield place and sha256 of each image's encoded bytes, of those that can't be decoded, too."""
        with closing(_ahead(self.items(start, stop), _digest, num_workers, num_workers)) as digested:
            for item, outcome in digested:
                yield item.index, outcome.content

    def _skip(self, index: int, name: str, content: bytes) -> None:
        """Note an image as left out; a source that is read twice names it once."""
        self.skipped_contents[index] = content
        if index not in self._known_bad:
            self._known_bad[index] = name
            self.skipped.append(name)

    def _batch(self, images: list[tuple[int, _Decoded]]) -> ImageBatch:
        labels = None if self.labels is None else [self.labels[index] for index, _ in images]
        pixels = [decoded.image for _, decoded in images if isinstance(decoded.image, Tensor)]
        return ImageBatch([index for index, _ in images], pixels, labels, [decoded.content for _, decoded in images])

    def _search_rest(self, name: str, error: ImageError, decoded: Iterator[tuple[EncodedImage, _Decoded]]) -> ValueError:
        """Return the error for one damaged image and those after it: one run then names all that must be mended."""
        bad = [(name, error.fault)]
        deadline = time.monotonic() + SEARCH_SECONDS
        is_whole = True
        try:
            for item, outcome in decoded:
                if isinstance(outcome.image, ImageError):
                    bad.append((item.name, outcome.image.fault))
                if time.monotonic() > deadline:
                    is_whole = False
                    break
        except ValueError:  # The container itself is damaged further on; the images before are still to be named.
            is_whole = False
        if len(bad) == 1:
            return ValueError(one_bad_message(error.name, error.fault, error.advice))
        return ValueError(many_bad_message(bad, f"{'' if is_whole else 'at least '}{len(bad)} of {len(self)}", self.path))


def one_bad_message(name: str, fault: str, advice: str) -> str:
    """Return the sentence for a single image that can't be read."""
    return f"image {printable(name)} {fault}: {advice}, or pass --skip-corrupt to leave it out."


def many_bad_message(bad: Sequence[tuple[str, str]], count: str, where: Path) -> str:
    """Return the sentence that lists images that can't be read, given as (name, fault)."""
    named = ", ".join(f"{printable(name)} {fault}" for name, fault in bad[:_MAX_NAMED])
    more = f", and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
    return (
        f"{count} images in {where} can't be read: {named}{more}: remove or rewrite them, "
        "or pass --skip-corrupt to leave them out."
    )


def _attempt(item: EncodedImage, admit: Admit) -> _Decoded:
    """Read and decode; the digest is of the very bytes that are decoded."""
    content = _UNREADABLE
    try:
        data = item.read()
        content = hashlib.sha256(data).digest()
        return _Decoded(content, decode_image(data, item.title, lambda num_bytes: admit(_DECODING_FACTOR * num_bytes)))
    except ImageError as error:
        return _Decoded(content, error)


def _digest(item: EncodedImage, admit: Admit) -> _Decoded:
    """Read without decoding."""
    try:
        return _Decoded(hashlib.sha256(item.read()).digest())
    except ImageError:
        return _Decoded(_UNREADABLE)


def _ahead(
    items: Iterator[EncodedImage], work: Callable[[EncodedImage, Admit], _Decoded], num_workers: int, batch_size: int
) -> Generator[tuple[EncodedImage, _Decoded], None, None]:
    """Work in order; while a batch is being used, the next one is worked on, and no more is kept."""
    window = batch_size + _AHEAD_PER_WORKER * num_workers
    return work_ahead(items, work, lambda done: done.num_bytes, lambda item: item.held_bytes, num_workers, window)


class ShardSource(LoaderSource):
    """Several sources of one kind, one after the other.

    Args:
        path: The folder that holds them.
        sources: The shards, in order.
    """

    def __init__(self, path: Path, sources: Sequence[LoaderSource], skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        self.kind = f"{len(sources)} files, each a {sources[0].kind}"
        self.sources = list(sources)
        self.set_left_out(sum((source.left_out for source in sources), Counter()))
        first = 0
        for source in sources:
            for index, name in source._known_bad.items():
                self._skip(first + index, self._name(name, source), source.skipped_contents[index])
            first += len(source)
        self.set_labels(join_labels([source.found_labels for source in sources]))
        stated = [source.class_names for source in sources]
        if self.has_labels and any(names != stated[0] for names in stated):
            raise ValueError(f"files in {path} name their classes differently: write them again, or score them one by one.")
        self.class_names = stated[0] if self.has_labels else None
        self.set_folders(sum((source.folders for source in sources), Counter()))

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def identity(self) -> str:
        """Return a fingerprint of all shards' fingerprints, in order."""
        return fingerprint(["shards", *(source.identity() for source in self.sources)])

    def items(self, start: int, stop: int) -> Iterator[EncodedImage]:
        """Yield images shard by shard; shards outside the range are not touched."""
        first = 0
        for source in self.sources:
            low, high = max(start - first, 0), min(stop - first, len(source))
            if low < high:
                for item in source.items(low, high):
                    yield replace(item, index=first + item.index, name=self._name(item.name, source))
            first += len(source)

    @staticmethod
    def _name(name: str, source: LoaderSource) -> str:
        return f"{name} in {source.path.name}"
