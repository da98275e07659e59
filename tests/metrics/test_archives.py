"""Archives are read whole or refused: what lies before, behind or between is not passed over."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metrics.sources import TarSource, open_source


def _png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, (6, 9, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _tar(first: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for index in range(first, first + 3):
            info = tarfile.TarInfo(f"{index}.png")
            info.size = len(_png(index))
            archive.addfile(info, io.BytesIO(_png(index)))
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
