"""A column of a parquet file as an Arrow file in the cache folder, mapped into memory: rows are read without loading others.

Parquet is stored in compressed pages, of which one row cannot be read alone; an Arrow file can be mapped as it is. This is what
the ``datasets`` library does with every file it loads.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from generative.core.errors import UserError
from generative.core.full_disk import explain_full
from generative.core.logging import progress_interval, whole_file
from generative.data.base import hash_files, hash_parts
from metrics.files.weights import cache_dir

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "parquet"
"""Below the cache folder ($TRIPTYCH_CACHE, else ~/.cache/triptych)."""
BATCH_ROWS = 256
"""Rows that are in memory while a file is unpacked."""


def map_column(path: Path, column: str) -> list[pa.Array]:
    """Map a column, unpacking it first if no process has done so.

    Args:
        path: A parquet file.
        column: Of bytes; ``image.bytes`` is a field of a column.

    Returns:
        Its values, in order, as arrays whose memory is the mapped file.

    Raises:
        UserError: If the file is damaged, or the cache folder cannot be written.
        RunError: If its disk is full.
    """
    import pyarrow as pa

    target = cache_dir() / FOLDER / f"{hash_parts(column, path.stat().st_mtime_ns, hash_files([path]))}.arrow"
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a job come here together: one unpacks, the others wait
                if not target.is_file():
                    _unpack(path, column, target)
        reader = pa.ipc.open_file(pa.memory_map(os.fspath(target)))
        return [reader.get_batch(number).column(0) for number in range(reader.num_record_batches)]
    except pa.ArrowException as error:
        detail = str(error).splitlines()[0]
        raise UserError(f"parquet file '{path}' cannot be unpacked to '{target}' ({detail}); remove or replace them") from error
    except OSError as error:
        elsewhere = f"it is where the images of '{path}' are unpacked, and TRIPTYCH_CACHE may name a folder of a larger disk"
        if (full := explain_full(error, target.parent, elsewhere)) is not None:
            raise full from error
        raise UserError(
            f"the images of '{path}' cannot be unpacked into the cache folder '{target.parent}' ({error.strerror or error}); set "
            "TRIPTYCH_CACHE to a folder that can be written"
        ) from error


def _unpack(path: Path, column: str, target: Path) -> None:
    """Write a column as an Arrow file, whole or not at all, a few rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tqdm.auto import tqdm

    with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file, whole_file(target) as partial:
        total = file.metadata.num_rows
        writer = None
        with tqdm(total=total, desc=f"unpacking {path.name} once", unit="img", mininterval=progress_interval()) as bar:
            with pa.OSFile(os.fspath(partial), "wb") as sink:
                for batch in file.iter_batches(BATCH_ROWS, columns=[column], use_threads=False):
                    values = batch.column(0)
                    while pa.types.is_struct(values.type):
                        values = values.flatten()[0]  # keeps a null struct as null bytes
                    schema = pa.schema([("values", values.type)])
                    writer = writer or pa.ipc.new_file(sink, schema)
                    writer.write_batch(pa.record_batch([values], schema=schema))
                    bar.update(len(values))
                if writer is not None:
                    writer.close()
