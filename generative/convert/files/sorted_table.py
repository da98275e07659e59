"""LevelDB's table format, as TensorFlow writes the index of a checkpoint: sorted keys and values in blocks with checksums."""

from __future__ import annotations

from collections.abc import Iterator

from generative.convert.files.crc32c import crc32c, masked

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
"""What a table ends with."""
FOOTER_BYTES = 48
TRAILER_BYTES = 5  # of a block: how it is compressed, and its checksum
MAX_VARINT_BYTES = 10
MAX_KEY_BYTES = 1024
MAX_ENTRIES = 1 << 17
"""More than any network has tensors: keys are stored as differences, so that a small file could hold long ones without end."""


class Cursor:
    """Reads a message from its beginning to its end.

    Args:
        data: The message.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    @property
    def is_left(self) -> bool:
        """Whether there is more."""
        return self.place < len(self.data)

    def take(self, num_bytes: int) -> bytes:
        """The next bytes.

        Raises:
            ValueError: If there are fewer.
        """
        part = self.data[self.place : self.place + num_bytes]
        if len(part) != num_bytes:
            raise ValueError("an entry goes on past its end")
        self.place += num_bytes
        return part

    def varint(self) -> int:
        """The next number, 7 bits a byte and the lowest first, of 64 bits.

        Raises:
            ValueError: If there is none.
        """
        value = 0
        for index in range(MAX_VARINT_BYTES):
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF
        raise ValueError("a number is longer than 64 bits")


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Read a table.

    Args:
        data: The file.

    Yields:
        Key and value, in the order of keys.

    Raises:
        ValueError: If it is no table, or damaged.
    """
    if len(data) < FOOTER_BYTES or not data.endswith(MAGIC):
        raise ValueError("it has no end")
    footer = Cursor(data[-FOOTER_BYTES:])
    for _ in read_block(data, footer):
        pass  # properties, of which TensorFlow writes none
    last, num_entries = b"", 0
    for _, handle in read_block(data, footer):
        for key, value in read_block(data, Cursor(handle)):
            if num_entries and key <= last:
                raise ValueError("its keys are not in order")
            last, num_entries = key, num_entries + 1
            if num_entries > MAX_ENTRIES:
                raise ValueError("it has more entries than networks have tensors")
            yield key, value


def read_block(data: bytes, handle: Cursor) -> Iterator[tuple[bytes, bytes]]:
    """Read one block.

    Args:
        data: The file.
        handle: Where it says where the block begins and how long it is.

    Yields:
        Key and value.

    Raises:
        ValueError: If it is damaged or compressed.
    """
    start, size = handle.varint(), handle.varint()
    block = Cursor(data[start : start + size + TRAILER_BYTES]).take(size + TRAILER_BYTES)
    if masked(crc32c(block[: size + 1])) != int.from_bytes(block[size + 1 :], "little"):
        raise ValueError("the checksum of a block is not that of its bytes")
    if block[size] != 0:
        raise ValueError("a block is compressed, which TensorFlow's are not")
    num_restarts = int.from_bytes(block[size - 4 : size], "little")
    end = size - 4 * (num_restarts + 1)
    if end < 0:
        raise ValueError("a block is shorter than it says")
    entries, key = Cursor(block[:end]), b""
    while entries.is_left:
        num_shared, num_own, num_value = entries.varint(), entries.varint(), entries.varint()
        if num_shared > len(key) or num_shared + num_own > MAX_KEY_BYTES:
            raise ValueError("a key is longer than names are")
        key = key[:num_shared] + entries.take(num_own)
        yield key, entries.take(num_value)
