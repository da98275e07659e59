"""Archives are read whole or refused: what lies before, behind or between is not passed over."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from seeded import png

from generative.core.errors import UserError
from generative.data.parquet import ParquetDataset
from metrics.sources import TarSource, open_source


def _tar(first: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for index in range(first, first + 3):
            info = tarfile.TarInfo(f"{index}.png")
            info.size = len(png(index))
            archive.addfile(info, io.BytesIO(png(index)))
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["plain", "whole", "parts"])
def test_joined_tars_are_refused(tmp_path: Path, how: str) -> None:
    joined = {"plain": _tar(0) + _tar(3), "whole": gzip.compress(_tar(0) + _tar(3)), "parts": gzip.compress(_tar(0)) * 2}[how]
    path = tmp_path / ("x.tar" if how == "plain" else "x.tar.gz")
    path.write_bytes(joined)
    with pytest.raises(ValueError, match=r"x\.tar.* holds more behind its end mark \(byte [\d,]+\).*: give the parts as files"):
        open_source(path)


def test_only_zeros_may_follow_the_end(tmp_path: Path) -> None:
    for content in (_tar(0) + bytes(3 << 20), gzip.compress(_tar(0) + bytes(7)), gzip.compress(_tar(0)) + bytes(100)):
        (tmp_path / "x.tar").write_bytes(content)
        assert len(TarSource(tmp_path / "x.tar")) == 3
    for content in (_tar(0) + bytes(3 << 20) + b"x", gzip.compress(_tar(0)) + b"junk"):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.tar (holds more behind its end mark|is not a tar file)"):
            TarSource(tmp_path / "x.tar")


@pytest.mark.parametrize(("compress", "name"), [(bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_other_compressions_are_named(tmp_path: Path, compress: object, name: str) -> None:
    (tmp_path / "x.tar").write_bytes(compress(_tar(0)))  # type: ignore[operator]
    with pytest.raises(
        ValueError, match=rf"x\.tar is compressed with {name}, which is not read: unpack it, or compress it by gzip"
    ):
        open_source(tmp_path / "x.tar")


def _zip(first: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for index in range(first, first + 3):
            archive.writestr(f"{index}.png", png(index))
        archive.comment = b"of three"
    return buffer.getvalue()


def test_what_shares_a_file_with_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    for content in (_zip(0), _zip(0) + bytes(99), b"PK\x07\x08" + _zip(0)):
        path.write_bytes(content)
        assert len(open_source(path)) == 3
    for content, words in (
        (_zip(0) + _zip(3), r"holds [\d,]+ bytes before its first member, as archives joined by cat do.*: unpack"),
        (b"#!/bin/sh\n" + _zip(0), "holds 10 bytes before its first member"),
        (_zip(0) + b"junk", "holds 4 bytes behind its end, which would not be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^zip file .*x\.zip {words}"):
            open_source(path)


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("a.png", png(0))
    with pytest.raises(ValueError, match=r"x\.zip holds a\.png twice: keep one of them"):
        open_source(tmp_path / "x.zip")


def test_joined_npz_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.zeros((3, 4, 4, 3), np.uint8))
    content = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(content + content)
    with pytest.raises(ValueError, match=r"^npz file .*x\.npz holds [\d,]+ bytes before its first member"):
        open_source(tmp_path / "x.npz")


@pytest.mark.parametrize(("first", "second"), [(4, 4), (2, 9), (9, 2)])
@pytest.mark.parametrize("write_page_index", [False, True])
def test_joined_parquet_files_are_refused(tmp_path: Path, first: int, second: int, write_page_index: bool) -> None:
    """Their offsets are those of the last, so that its description reads the bytes of the first."""
    contents = []
    for start, count in ((0, first), (50, second)):
        table = pyarrow.table({"image": [png(index) for index in range(start, start + count)], "label": list(range(count))})
        parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3, write_page_index=write_page_index)
        assert len(open_source(tmp_path / "x.parquet")) == count
        contents.append((tmp_path / "x.parquet").read_bytes())
    (tmp_path / "x.parquet").write_bytes(b"".join(contents))
    with pytest.raises(ValueError, match=r"parquet file .*x\.parquet holds another one before it"):
        open_source(tmp_path / "x.parquet")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_to_images_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    """They would be left out: ``tar`` writes the second name of a file as a link."""
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            if name == "a.png":
                info.size = len(png(0))
            else:
                info.type, info.linkname = kind, "a.png"
            archive.addfile(info, io.BytesIO(png(0)))
    with pytest.raises(ValueError, match=r"x\.tar holds b\.png as a link or sparse file, which is not read: write it again"):
        TarSource(tmp_path / "x.tar")


def test_joined_parquet_files_are_no_training_data(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"image": [png(0), png(1)], "label": [0, 1]}), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes() * 2)
    with pytest.raises(UserError, match="holds another one before it"):
        ParquetDataset(tmp_path / "x.parquet", image_size=4)
