"""Equal files are kept once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from generative.core.links import have_equal_bytes, link_duplicates, link_folder


@pytest.fixture(params=[True, False])
def has_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """On a file system with hard links, and on one without."""

    def refuse(source: object, target: object) -> None:
        raise OSError(1, "Operation not permitted")

    if not request.param:
        monkeypatch.setattr(os, "link", refuse)
    return bool(request.param)


def test_a_folder_under_another_name(tmp_path: Path, has_links: bool) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "a" / "inner" / "x").write_text("1")
    for place in ("a", "a/inner"):
        (tmp_path / place / "manifest.json").write_text("2")
    link_folder(tmp_path / "a", tmp_path / "b", leave_out=["manifest.json"])
    names = [p.relative_to(tmp_path / "b").as_posix() for p in sorted((tmp_path / "b").rglob("*"))]
    assert names == ["inner", "inner/manifest.json", "inner/x"]
    assert (tmp_path / "b" / "inner" / "x").read_text() == "1"
    assert (tmp_path / "b" / "inner" / "x").samefile(tmp_path / "a" / "inner" / "x") == has_links


def test_only_equal_files_are_linked(tmp_path: Path, has_links: bool) -> None:
    contents = {"old": b"same", "new": b"same", "other": b"diff", "long": b"same" * 2**19}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / "new", tmp_path / "other", tmp_path / "long"]
    link_duplicates(files, [tmp_path / "missing", tmp_path / "old"])
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents
    assert [path.samefile(tmp_path / "old") for path in files] == [has_links, False, False]
    assert not have_equal_bytes(tmp_path / "long", tmp_path / "old")
