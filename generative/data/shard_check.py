"""Whether a folder of shards is what its index says: every byte, and with ``decode`` every image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from generative.core.errors import UserError
from generative.data.decode import decode_image
from metrics.files.shards import ARRAYS_FILE, ENCODINGS, ShardIndex, ShardReader
from metrics.files.weights import sha256_of

TAR_BLOCK_BYTES = 512
CLASS_EXTENSION = ".cls"


def check_shards(folder: Path, index: ShardIndex, decode: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Read all shards.

    Args:
        folder: Folder of the shards, whose files are there in their sizes (``read_index``).
        index: What they should hold.
        decode: Decode every image as well.

    Yields:
        Bytes of a shard, and what is wrong with it, each the beginning of a sentence.
    """
    reader = ShardReader(folder, index)
    if sha256_of(folder / ARRAYS_FILE) != index.arrays_sha256:
        yield 0, [f"'{folder / ARRAYS_FILE}' was altered (its sha256 is not the one in the index)"]
    first = 0
    for shard in index.shards:
        images = range(first, first + shard.images)
        first = images.stop
        faults = []
        if (found := sha256_of(folder / shard.file)) != shard.sha256:
            faults.append(
                f"shard '{folder / shard.file}' was altered (its sha256 begins with {found[:12]}, the index says "
                f"{shard.sha256[:12]})"
            )
        for image in images:
            fault = _check_class(reader, image) or (_check_pixels(reader, image) if decode else None)
            if fault is not None:
                faults.append(f"{reader.name(image)} {fault}")
        yield shard.bytes, faults


def _check_class(reader: ShardReader, image: int) -> str | None:
    """What is wrong with the class that a tar states behind an image: other readers go by it."""
    index = reader.index
    if ENCODINGS[index.encoding][0] != ".tar":
        return None
    behind = int(index.offsets[image]) + -(-int(index.lengths[image]) // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
    try:
        block = reader.read_at(image, behind, 2 * TAR_BLOCK_BYTES)
    except ValueError:  # of an index that was altered: the shard ends there
        return "has no class behind it"
    name, _, _ = block[:100].partition(b"\0")
    text, _, _ = block[TAR_BLOCK_BYTES:].partition(b"\0")
    if not name.endswith(CLASS_EXTENSION.encode()):
        return "has no class behind it"
    stated, label = text.decode("ascii", "replace"), str(index.labels[image])
    return None if stated == label else f"is of class {stated!r} in the tar and {label} in the index"


def _check_pixels(reader: ShardReader, image: int) -> str | None:
    """What is wrong with an image file."""
    if reader.index.encoding == "raw":
        return None
    try:
        picture = decode_image(reader.read(image), "it")
    except (UserError, ValueError) as error:
        return f"cannot be decoded ({error})"
    side = reader.index.image_size
    if side is not None and picture.size != (side, side):
        return f"has {picture.width}x{picture.height} pixels instead of {side}x{side}"
    return None
