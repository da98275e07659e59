"""A parquet file of images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metrics.files.arrays import READ_ERRORS, brief
from metrics.files.images import ImageError
from metrics.sources.base import NoImagesError, fingerprint
from metrics.sources.encoded import EncodedImage, LoaderSource
from metrics.sources.labels import FoundLabels

if TYPE_CHECKING:
    import pyarrow

#: Names of the image column in Hugging Face's layout.
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMN = "label"
_ROWS_AT_ONCE = 256
_MAGIC = b"PAR1"
_FOOTER_BYTES = 8  # Length of the description, and the magic.


class ParquetSource(LoaderSource):
    """The images of a parquet file in Hugging Face's layout: a column ``image`` or ``img`` of {bytes, path} or of bytes.

    Labels are the column ``label`` of integers or text, if there is one; integers have the names of Hugging Face's ClassLabel.

    Raises:
        ValueError: If it is no parquet file, begins with another one, has no such column or no rows.
    """

    kind = "parquet of images"

    def __init__(self, path: Path, skip_corrupt: bool = False) -> None:
        super().__init__(path, skip_corrupt)
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise ValueError(f"reading {path} needs the package pyarrow: pip install pyarrow.") from error
        # What Arrow raises on damaged data, beside Python's own.
        self._errors = (*READ_ERRORS, pyarrow.ArrowException)
        try:
            # Opened again for reading: thousands of shards don't stay open.
            with parquet.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
            is_joined = is_joined_parquet(path, metadata)
        except self._errors as error:
            raise ValueError(f"{path} is not a parquet file, or is truncated: write it again.") from error
        if is_joined:
            raise ValueError(
                f"parquet file {path} holds another one before it, as files joined by cat do, of which it describes the last: "
                "give the parts as files in one folder."
            )
        column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
        if column is None:
            raise ValueError(f"{path} has the columns {', '.join(schema.names)}: expected an image column named image or img.")
        self._column = _bytes_column(schema, column, path)
        self._group_sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        if len(self) == 0:
            raise NoImagesError(f"parquet file {path} holds no rows.")
        self.set_labels(self._find_labels(schema))

    def __len__(self) -> int:
        return sum(self._group_sizes)

    def identity(self) -> str:
        """Return a fingerprint of the file's size and time of change, and of its row groups and labels."""
        status = os.stat(self.path)
        return fingerprint(["parquet", status.st_size, status.st_mtime_ns, *self._group_sizes, *(self.labels or [])])

    def items(self, start: int, stop: int) -> Iterator[EncodedImage]:
        """Yield one decoder per row; row groups outside the range are not read."""
        groups: list[int] = []
        row = first = 0
        for group, size in enumerate(self._group_sizes):
            if first < stop and first + size > start:
                if not groups:
                    row = first
                groups.append(group)
            first += size
        for values in self._read(groups, self._column):
            for value in values.flatten()[0] if self._column.endswith(".bytes") else values:
                if row >= stop:
                    return
                if row >= start:
                    name, data = f"row {row}", value.as_py()
                    held = len(data) if isinstance(data, bytes) else 0
                    yield EncodedImage(row, name, self.full_name(name), partial(_content, data, self.full_name(name)), held)
                row += 1
        if row < stop:
            raise ValueError(f"parquet file {self.path} is corrupt: it ends at row {row} of {len(self)}, write it again.")

    def _read(self, groups: list[int], column: str) -> Iterator[pyarrow.Array]:
        import pyarrow.parquet as parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[column]):
                    yield batch.column(0)
        except self._errors as error:
            raise ValueError(f"parquet file {self.path} is corrupt ({brief(error)}): write it again.") from error

    def _find_labels(self, schema: pyarrow.Schema) -> FoundLabels:
        """Return the label column, unless it holds something other than integers and text, and the names of the integers."""
        if _LABEL_COLUMN not in schema.names:
            return FoundLabels(
                missing=f"labels are read from a column named {_LABEL_COLUMN}, its columns are {', '.join(schema.names)}"
            )
        labels: list[Any] = []
        for values in self._read(list(range(len(self._group_sizes))), _LABEL_COLUMN):
            labels += values.to_pylist()
        if not all(isinstance(label, (int, str)) and not isinstance(label, bool) for label in labels):
            return FoundLabels(missing=f"its column {_LABEL_COLUMN} holds other than integers and text")
        if len(labels) != len(self):
            raise ValueError(f"parquet file {self.path} is corrupt: {len(labels)} labels for {len(self)} rows, write it again.")
        are_numbers = all(isinstance(label, int) for label in labels)
        names = _class_names(schema) if are_numbers else None
        if names is not None and min(labels) < 0:  # Hugging Face's -1: a test set whose labels are not published.
            return FoundLabels(missing=f"its column {_LABEL_COLUMN} holds negative numbers, for labels that are not published")
        return FoundLabels(stated=[str(label) for label in labels], are_numbers=are_numbers, class_names=names)


def is_joined_parquet(path: Path, metadata: pyarrow.FileMetaData) -> bool:
    """Return whether a file begins with another: its own data end well before its footer, and a second one begins between."""
    end = len(_MAGIC)
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            pages = (column.dictionary_page_offset, column.data_page_offset)
            end = max(end, min((page for page in pages if page), default=end) + column.total_compressed_size)
    with path.open("rb") as file:
        file.seek(-_FOOTER_BYTES, os.SEEK_END)
        footer = int.from_bytes(file.read(4), "little")
        # What another file before it adds to the offsets; page indexes of its own lie there, too, and are small.
        gap = os.stat(path).st_size - _FOOTER_BYTES - footer - end
        file.seek(0)
        return gap > 0 and 2 * _MAGIC in file.read(gap + len(_MAGIC))


def _class_names(schema: pyarrow.Schema) -> object:
    """Return the names that Hugging Face's ClassLabel keeps beside the table, None if there are none."""
    try:
        record = json.loads((schema.metadata or {})[b"huggingface"])
        return record["info"]["features"][_LABEL_COLUMN].get("names")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _bytes_column(schema: pyarrow.Schema, column: str, path: Path) -> str:
    """Return the name of the column that holds encoded images."""
    import pyarrow

    stored = schema.field(column).type
    name = column
    if pyarrow.types.is_struct(stored) and stored.get_field_index("bytes") >= 0:
        name, stored = f"{column}.bytes", stored.field("bytes").type
    if not (pyarrow.types.is_binary(stored) or pyarrow.types.is_large_binary(stored)):
        raise ValueError(f"column {column} of {path} has type {schema.field(column).type}: expected the bytes of image files.")
    return name


def _content(data: object, name: str) -> bytes:
    if not isinstance(data, bytes):
        raise ImageError(name, "holds no image bytes", "fill the row in or remove it")
    return data
