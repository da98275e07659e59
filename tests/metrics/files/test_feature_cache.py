"""Features on disk: nothing is run twice, nothing stale is used, and no disk trouble costs a score."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import own_extractors
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from metrics import registry
from metrics.cli import main
from metrics.files import feature_cache
from metrics.files.feature_cache import FeatureCache, Tile
from metrics.scoring import extraction, plan
from metrics.sources import FolderSource, NpzSource, ParquetSource, TarSource, ZipSource

_ROOT = Path(__file__).parents[3]
_TILE = 8
_REAL, _FAKE = 30, 25  # 4 tiles and 4 tiles, the last of each not full.
_CONTENT = "c" * 64

Scored = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "TILE_IMAGES", _TILE)


@pytest.fixture
def folders(tmp_path: Path, smooth_images: Any, write_folder: Any) -> tuple[Path, Path]:
    real = write_folder(tmp_path / "real", smooth_images(_REAL, 10, 14, seed=0))
    return real, write_folder(tmp_path / "fake", smooth_images(_FAKE, 9, 9, seed=1, contrast=90.0))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def scored(folders: tuple[Path, Path], cache: Path, tiny_options: list[str], capsys) -> Scored:
    """The function (options, paths=the two folders) -> the printed record."""

    def run(*options: str, paths: tuple[Path, ...] = folders) -> dict[str, Any]:
        arguments = [*map(str, paths), *tiny_options, "--cache-root", str(cache), *options, "--json"]
        code = main(arguments)
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return run


def _tiles(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def test_a_second_run_does_not_call_the_network(scored: Scored, cache: Path, images_run: list[int]) -> None:
    first = scored("--metrics", "fid,kid")
    assert sum(images_run) == _REAL + _FAKE and len(_tiles(cache)) == 8
    images_run.clear()
    assert scored("--metrics", "fid,kid") == first and images_run == []
    assert scored("--metrics", "fid,prc")["scores"]["frechet_distance"] == first["scores"]["frechet_distance"]
    assert images_run == [], "other metrics of the same feature"
    scored("--metrics", "fid,is")
    assert sum(images_run) == _FAKE, "a feature that is not there yet, of the one side that needs it"


def test_without_a_cache(scored: Scored, cache: Path, images_run: list[int]) -> None:
    first = scored("--no-cache")
    assert not cache.exists()
    assert scored("--no-cache") == first and sum(images_run) == 2 * (_REAL + _FAKE)


def test_a_folder_that_moved_is_known(scored: Scored, folders, images_run: list[int], tmp_path: Path) -> None:
    first = scored()
    moved = folders[0].rename(tmp_path / "elsewhere")
    images_run.clear()
    assert scored(paths=(moved, folders[1]))["scores"] == first["scores"] and images_run == []


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_tiles_do_not_depend_on_the_batch_size(scored: Scored, batch_size: int, images_run: list[int]) -> None:
    first = scored()
    images_run.clear()
    assert scored("--batch-size", str(batch_size))["scores"] == first["scores"] and images_run == []


# An interrupted run


def test_an_interrupted_run_goes_on(
    scored: Scored, folders, cache: Path, images_run, tiny_options, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored("--no-cache")
    images_run.clear()
    written: list[int] = []
    write = FeatureCache.write

    def write_three(self: FeatureCache, places: Any, number: int, content: str, tile: Tile) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        write(self, places, number, content, tile)
        written.append(len(tile.indices))

    with monkeypatch.context() as patch:
        patch.setattr(FeatureCache, "write", write_three)
        assert main([*map(str, folders), *tiny_options, "--cache-root", str(cache)]) == 130
    assert "goes on from the features kept so far" in capsys.readouterr().err
    assert len(_tiles(cache)) == 3
    images_run.clear()
    resumed = scored()
    assert sum(images_run) == _REAL + _FAKE - sum(written), "the missing tiles and no other"
    assert resumed["scores"] == pytest.approx(expected["scores"], rel=1e-5)


_SLOW_RUN = """
import sys, time
import torch
torch.set_num_threads(1)
from metrics.scoring import extraction
from metrics.files.feature_cache import FeatureCache
extraction.TILE_IMAGES = {tile}
write = FeatureCache.write

def slow_write(self, *rest):
    write(self, *rest)
    print("written", flush=True)
    time.sleep({pause})

FeatureCache.write = slow_write
from metrics.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _start(arguments: list[str], pause: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    code = _SLOW_RUN.format(tile=_TILE, pause=pause)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_a_killed_run_goes_on(folders, cache: Path, capsys, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(own_extractors.MEANS)
    arguments = [*map(str, folders), "--extractor", f"{tmp_path / 'own.py'}:Own", "--device", "cpu", "--quiet"]
    arguments += ["--cache-root", str(cache), "--json"]
    process = _start(arguments, pause=60.0)
    try:
        assert process.stdout is not None and process.stdout.readline() == "written\n", "the first tile is on disk"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    (kept,) = _tiles(cache)
    assert len(load_file(kept)["indices"]) == _TILE
    seen = tmp_path / "seen"
    seen.unlink()
    assert main(arguments) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert sum(map(int, seen.read_text().split())) == _REAL + _FAKE - _TILE and len(_tiles(cache)) == 8
    assert main([*arguments, "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(resumed["scores"], rel=1e-5)


@pytest.mark.slow
def test_runs_on_one_cache_at_once(folders, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(own_extractors.MEANS)
    arguments = [*map(str, folders), "--extractor", f"{tmp_path / 'own.py'}:Own", "--device", "cpu", "--quiet"]
    arguments += ["--cache-root", str(cache), "--json"]
    processes = [_start(arguments, pause=0.02) for _ in range(2)]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    records = []
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
        records.append(json.loads(out.replace("written\n", "")))
    assert records[0] == records[1]
    assert len(_tiles(cache)) == 8 and not list(cache.rglob("*.part"))


# Nothing stale


def test_a_changed_image_is_run_again(scored: Scored, folders, images_run: list[int], smooth_images, write_folder) -> None:
    first = scored()
    images_run.clear()
    time.sleep(0.01)  # Longer than the file system's clock ticks.
    write_folder(folders[1], smooth_images(1, 9, 9, seed=7))
    changed = scored()
    assert changed["scores"] != first["scores"] and sum(images_run) == _FAKE
    assert changed["scores"] == pytest.approx(scored("--no-cache")["scores"], rel=1e-5)


_TIME = 1_000_000_000  # Seconds: reproducible archives and copies that keep times.


def _pack(kind: str, root: Path, images: Tensor) -> Path:
    """Write images so that nothing but their pixels tells two sets of one kind apart: names, sizes and times are equal."""
    contents = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "BMP")
        contents.append(buffer.getvalue())
    names = [f"{index:02d}.bmp" for index in range(len(contents))]
    root.mkdir(parents=True)
    path = root / ("set" if kind == "folder" else f"set.{kind}")
    if kind == "folder":
        path.mkdir()
        for name, content in zip(names, contents, strict=True):
            (path / name).write_bytes(content)
            os.utime(path / name, (_TIME, _TIME))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in zip(names, contents, strict=True):
                archive.writestr(zipfile.ZipInfo(name), content)
    elif kind == "parquet":
        table = pyarrow.table({"image": [{"bytes": content} for content in contents]})
        parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    elif kind == "npz":
        np.savez(path, images.permute(0, 2, 3, 1).numpy())
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name, content in zip(names, contents, strict=True):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    os.utime(path, (_TIME, _TIME))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "parquet", "npz"])
def test_equal_names_sizes_and_times_are_not_equal_images(
    scored: Scored, kind: str, tmp_path: Path, smooth_images, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever a source says of itself, its images decide: as if even names, sizes and check sums were the same.
    for cls in (FolderSource, ZipSource, TarSource, ParquetSource, NpzSource):
        monkeypatch.setattr(cls, "identity", lambda source: "the same for all")
    sets = [_pack(kind, tmp_path / str(seed), smooth_images(20, 9, 9, seed=seed)) for seed in (1, 2)]
    expected = scored("--no-cache", paths=(sets[0], sets[1]))["scores"]
    assert scored(paths=(sets[0], sets[0]))["scores"]["frechet_distance"] == pytest.approx(0.0, abs=1e-4)
    for _ in range(2):
        assert scored(paths=(sets[0], sets[1]))["scores"] == pytest.approx(expected, rel=1e-5)


def test_a_file_swapped_in_place_with_its_time_kept(scored: Scored, tmp_path: Path, images_run: list[int], smooth_images) -> None:
    real = _pack("folder", tmp_path / "one", smooth_images(20, 9, 9, seed=1))
    fake = _pack("folder", tmp_path / "two", smooth_images(20, 9, 9, seed=2))
    first = scored(paths=(real, fake))
    (fake / "13.bmp").write_bytes((real / "13.bmp").read_bytes())
    os.utime(fake / "13.bmp", (_TIME, _TIME))
    images_run.clear()
    changed = scored(paths=(real, fake))
    assert changed["scores"] != first["scores"] and sum(images_run) == _TILE, "its tile alone"
    assert changed["scores"] == pytest.approx(scored("--no-cache", paths=(real, fake))["scores"], rel=1e-5)
    (fake / "13.bmp").write_bytes((real / "12.bmp").read_bytes())
    images_run.clear()
    scored(paths=(real, fake))
    assert sum(images_run) == 20, "another time is looked up elsewhere"


def test_an_image_that_was_skipped_and_is_mended(scored: Scored, tmp_path: Path, smooth_images) -> None:
    real = _pack("folder", tmp_path / "one", smooth_images(20, 9, 9, seed=1))
    fake = _pack("folder", tmp_path / "two", smooth_images(20, 9, 9, seed=2))
    whole = (fake / "13.bmp").read_bytes()
    (fake / "13.bmp").write_bytes(bytes(len(whole)))
    os.utime(fake / "13.bmp", (_TIME, _TIME))
    assert scored("--skip-corrupt", paths=(real, fake))["protocols"][0]["num_fake"] == 19
    (fake / "13.bmp").write_bytes(whole)
    os.utime(fake / "13.bmp", (_TIME, _TIME))
    assert scored("--skip-corrupt", paths=(real, fake))["protocols"][0]["num_fake"] == 20


def test_images_that_change_while_they_are_read(
    scored: Scored, tiny_options, folders, cache: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One network's features of a tile from the cache and another's anew must be of the same images."""
    monkeypatch.setitem(registry.SCORES, "other", dataclasses.replace(registry.SCORES["fid"], resizer="tensorflow"))
    scored("--metrics", "fid")
    monkeypatch.setattr(extraction.TileContents, "of", _changing(extraction.TileContents.of, folders[1] / "0003.png"))
    arguments = [*map(str, folders), *tiny_options, "--cache-root", str(cache), "--metrics", "fid,other"]
    assert main(arguments) == 2
    assert "changed while they were read" in capsys.readouterr().err


def _changing(of: Callable[..., str], victim: Path) -> Callable[..., str]:
    def then_change(contents: Any, number: int) -> str:
        found = of(contents, number)
        if contents.source.path == victim.parent:
            victim.write_bytes(victim.with_name("0004.png").read_bytes())
        return found

    return then_change


def test_other_software_is_other_features(scored: Scored, images_run: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    scored()
    monkeypatch.setattr(extraction, "software_fingerprint", lambda: "decodes otherwise")
    images_run.clear()
    scored()
    assert sum(images_run) == _REAL + _FAKE


def test_an_image_more_or_less_is_another_set(scored: Scored, folders, images_run: list[int]) -> None:
    scored()
    images_run.clear()
    (folders[1] / "0003.png").unlink()
    assert scored()["protocols"][0]["num_fake"] == _FAKE - 1 and sum(images_run) == _FAKE - 1


def test_other_weights_resizer_precision_and_feature_are_others(
    scored: Scored, tiny_extractor, images_run: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored()
    for options in (["--protocol", "tensorflow"], ["--precision", "bfloat16"]):
        images_run.clear()
        assert scored(*options)["scores"] != first["scores"]
        assert sum(images_run) >= _REAL + _FAKE
    images_run.clear()
    monkeypatch.setattr(type(tiny_extractor), "weights_sha256", "2" * 64)
    scored()
    assert sum(images_run) == _REAL + _FAKE
    images_run.clear()
    assert scored()["protocols"][0]["weights_sha256"] == "2" * 64 and images_run == []


def test_another_input_size_is_another(scored: Scored, tiny_extractor, images_run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scored()
    build = plan.build_extractor

    def coarse(*args: Any, **kwargs: Any) -> Any:
        network = build(*args, **kwargs)
        network.input_size = 4
        network.projection.data = network.projection.data[:48]
        return network

    monkeypatch.setattr(plan, "build_extractor", coarse)
    images_run.clear()
    assert scored()["scores"] != first["scores"] and sum(images_run) == _REAL + _FAKE


@pytest.mark.parametrize("damage", ["cut", "emptied", "garbage", "foreign", "lost", "flipped"])
def test_a_damaged_tile_is_computed_again(scored: Scored, cache: Path, images_run: list[int], damage: str) -> None:
    first = scored()
    victim = _tiles(cache)[2]
    count = len(load_file(victim)["indices"])
    whole = victim.read_bytes()
    if damage == "flipped":
        victim.write_bytes(whole[:-5] + bytes([whole[-5] ^ 64]) + whole[-4:])
    elif damage == "lost":
        victim.unlink()
    else:
        foreign = b'{"a":1}'
        content = {"cut": whole[: len(whole) // 2], "emptied": b"", "garbage": bytes(len(whole)), "foreign": foreign}
        victim.write_bytes(content[damage])
    images_run.clear()
    assert scored()["scores"] == pytest.approx(first["scores"], rel=1e-5)
    assert sum(images_run) == count and len(load_file(victim)["indices"]) == count
    images_run.clear()
    scored()
    assert images_run == []


def test_gaps_of_a_run_that_skipped_are_not_taken_for_whole(scored: Scored, folders, tiny_options, cache: Path, capsys) -> None:
    (folders[1] / "0012.png").write_bytes(b"no image")
    assert scored("--skip-corrupt")["protocols"][0]["num_fake"] == _FAKE - 1
    assert main([*map(str, folders), *tiny_options, "--cache-root", str(cache)]) == 2
    assert "0012.png" in capsys.readouterr().err


def test_sizes_are_compared_where_the_protocol_needs_it(scored: Scored, folders, tiny_options, cache: Path, capsys) -> None:
    (folders[1] / "0024.png").write_bytes((folders[0] / "0000.png").read_bytes())  # 10 x 14 among 9 x 9.
    assert main([*map(str, folders), *tiny_options, "--cache-root", str(cache), "--protocol", "edm"]) == 2
    assert "scores images of one size" in capsys.readouterr().err


def test_sizes_are_compared_in_cached_tiles(scored: Scored, folders, tiny_options, cache: Path, capsys) -> None:
    (folders[1] / "0024.png").write_bytes((folders[0] / "0000.png").read_bytes())
    scored("--protocol", "tensorflow")  # The same resizer, so the same features.
    assert main([*map(str, folders), *tiny_options, "--cache-root", str(cache), "--protocol", "edm"]) == 2


# Disks that refuse


@pytest.mark.parametrize("fault", ["no folder can be made", "full"])
def test_a_disk_that_refuses_costs_the_cache_and_not_the_score(
    scored: Scored, cache: Path, images_run: list[int], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scored("--no-cache")
    if fault == "full":

        def full(path: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(feature_cache, "whole_file", full)
    else:
        cache.write_text("a file where the folder should be")
    images_run.clear()
    record = scored()
    assert record["scores"] == pytest.approx(expected["scores"], rel=1e-5) and sum(images_run) == _REAL + _FAKE
    (note,) = [note for note in record["notes"] if "could not be cached" in note]
    assert str(cache) in note and "the score is not affected" in note
    assert ("No space left on device" in note) == (fault == "full")


def test_a_cache_of_another_user_is_read(scored: Scored, images_run: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of folders are for their owner to set, and nothing can be written or deleted: the features are still there."""
    first = scored()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(feature_cache, "whole_file", refuse)
    images_run.clear()
    assert scored() == first and images_run == []


def test_a_cache_that_may_not_even_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path / "cache")
    cache.write({"f": cache.folder("set", {}, 8)}, 0, _CONTENT, _tile(8))

    def refuse(*args: Any) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    monkeypatch.setattr(Path, "glob", refuse)
    cache.prune()
    assert cache.tiles({"f": cache.folder("set", {}, 8)}) == set()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache(scored: Scored, cache: Path) -> None:
    cache.mkdir(mode=0o500)
    assert any("could not be cached" in note for note in scored()["notes"])


# The class itself


def _tile(count: int, dim: int = 4, first: int = 0) -> Tile:
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(first))
    return Tile(
        list(range(first, first + count)), {"f": values}, [str(i) for i in range(count)], ["0" * 64] * count, {"8x8": first}
    )


def test_a_tile_comes_back_as_it_was(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    places = {"f": cache.folder("set", {"resizer": "clean"}, _TILE)}
    assert cache.read(places, 0, _CONTENT) is None and cache.tiles(places) == set()
    tile = _tile(5, first=3)
    cache.write(places, 0, _CONTENT, tile)
    found = cache.read(places, 0, _CONTENT)
    assert cache.tiles(places) == {0} and found is not None
    assert (found.indices, found.labels, found.digests) == (tile.indices, tile.labels, tile.digests)
    assert torch.equal(found.features["f"], tile.features["f"])
    assert cache.read(places, 1, _CONTENT) is None and cache.read(places, 0, "d" * 64) is None, "other images"


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    keys = [
        cache.folder("set", {"resizer": "clean"}, 8),
        cache.folder("other", {"resizer": "clean"}, 8),
        cache.folder("set", {"resizer": "tensorflow"}, 8),
        cache.folder("set", {"resizer": "clean"}, 16),
    ]
    assert len(set(keys)) == 4
    assert cache.folder("set", {"a": 1, "b": 2}, 8) == cache.folder("set", {"b": 2, "a": 1}, 8)


def test_prune_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    folders = [cache.folder(str(number), {}, 8) for number in range(4)]
    for age, folder in enumerate(folders):
        cache.write({"f": folder}, 0, _CONTENT, _tile(8, dim=256))
        os.utime(folder, (1000 + age, 1000 + age))
    (size,) = {sum(path.stat().st_size for path in folder.iterdir()) for folder in folders}
    cache.prune()
    assert all(folder.exists() for folder in folders), "20 GB are not reached"
    assert cache.read({"f": folders[0]}, 0, _CONTENT) is not None  # The oldest is used again.
    FeatureCache(tmp_path / "cache", limit_bytes=2 * size).prune()
    assert [folder.exists() for folder in folders] == [True, False, False, True]
    FeatureCache(tmp_path / "cache", limit_bytes=0).prune()
    assert not any(folder.exists() for folder in folders)
    FeatureCache(tmp_path / "absent").prune()


def test_prune_beside_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of a run prunes at its end: what another deleted in between is no error."""
    cache = FeatureCache(tmp_path / "cache", limit_bytes=0)
    cache.write({"f": cache.folder("set", {}, 8)}, 0, _CONTENT, _tile(8))
    listing = Path.glob

    def lose_after_listing(folder: Path, pattern: str) -> list[Path]:
        found = list(listing(folder, pattern))
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(Path, "glob", lose_after_listing)
    cache.prune()


def test_threads_writing_one_tile_leave_it_whole(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    places = {"f": cache.folder("set", {}, _TILE)}
    tile = _tile(8, dim=512)
    seen: list[Tensor] = []

    def write_and_read() -> None:
        for _ in range(20):
            cache.write(places, 0, _CONTENT, tile)
            found = cache.read(places, 0, _CONTENT)
            if found is not None:
                seen.append(found.features["f"])

    threads = [threading.Thread(target=write_and_read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80 and all(torch.equal(values, tile.features["f"]) for values in seen)
    assert cache.failure is None and not list(tmp_path.rglob("*.part"))
