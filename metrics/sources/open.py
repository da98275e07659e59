"""Open a set of images by what its path is."""

from __future__ import annotations

import importlib.metadata
import posixpath
import re
from pathlib import Path
from typing import cast

from metrics.files.shards import read_description
from metrics.sources.base import ImageSource, NoImagesError
from metrics.sources.encoded import LoaderSource, ShardSource
from metrics.sources.folder import FolderSource
from metrics.sources.listing import is_hidden
from metrics.sources.npz import NpySource, NpzSource
from metrics.sources.parquet import ParquetSource
from metrics.sources.prepared import open_prepared
from metrics.sources.splits import describe_splits, group_by_split, mixed_splits
from metrics.sources.tar import TarSource
from metrics.sources.zip import ZipSource

#: Entry-point group of providers: callables ``(path, num_samples, seed, batch_size, device) -> ImageSource | None``, which take
#: ``precision`` as well where another than float32 is asked for.
SOURCE_ENTRY_POINTS = "triptych.image_sources"
#: A directory with one of these files is a saved generator, to be opened by a provider rather than searched for images.
_GENERATOR_MARKERS = ("model_index.json", "pipeline/model_index.json")
_SHARDS: dict[str, type[LoaderSource]] = {
    ".parquet": ParquetSource,
    ".tar": TarSource,
    ".tar.gz": TarSource,
    ".tgz": TarSource,
    ".zip": ZipSource,
}
_FILES: dict[str, type[ImageSource]] = {".npz": NpzSource, ".npy": NpySource, **_SHARDS}


#: What no path is, and a provider may know all the same: "user/repo" of a hub, or "hf://user/repo@revision" (a path keeps but
#: one slash of two).
_REMOTE = re.compile(r"(hf:/{1,2})?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.+)?", re.ASCII)
_MAX_NAMED = 3
#: A part of a set by Hugging Face's names: "train-00000-of-00002.parquet".
_PART_OF = re.compile(r"(\d+)-of-(\d+)(?!\d)")


def is_generator(path: Path) -> bool:
    """Return whether a path is a saved pipeline or a run that holds one, or may name one elsewhere."""
    return any((path / marker).is_file() for marker in _GENERATOR_MARKERS) or is_remote(path)


def is_remote(path: Path) -> bool:
    """Return whether a path may be the name of a hub's repository: it is written so, and no folder or its parent is called so."""
    found = _REMOTE.fullmatch(path.as_posix())
    if found is None or found[1] is not None:
        return found is not None
    return _extension(path.name, _FILES) is None and not (path.exists() or Path(path.parts[0]).exists())


def open_source(
    path: Path,
    num_samples: int | None = None,
    seed: int | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    skip_corrupt: bool = False,
    precision: str | None = None,
) -> ImageSource:
    """Open a set of images by what the path is.

    Args:
        path: An image folder, .npz (``arr_0``), .npy, .zip, .tar (.tar.gz, .tgz), .parquet, a folder of such zip, tar or parquet
            shards or of ``generative data prepare``, or a saved generator, or its name on a hub, if an installed package provides
            it.
        num_samples: How many images to draw from a generator; refused for anything else.
        seed: Seed of that draw; refused for anything else.
        batch_size: Batch size of that draw.
        device: Device of that draw.
        skip_corrupt: Leave images out that can't be read, and name them in ``ImageSource.skipped``, instead of refusing
            the whole set.
        precision: Of the networks that draw, ``float32`` (None too), ``bfloat16`` or ``float16``; refused for anything else.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If it holds no images, is of no known kind, is damaged or can't be read.
    """
    try:
        if is_generator(path):
            return _open_generator(path, num_samples, seed, batch_size, device, precision)
        if not path.exists():
            raise FileNotFoundError(f"path {path} does not exist.")
        if num_samples is not None or seed is not None or precision is not None:
            raise ValueError(f"num_samples, seed and precision apply to saved pipelines only, and {path} is none.")
        if path.is_dir():
            return _open_folder(path, skip_corrupt)
        kind = _extension(path.name, _FILES)
        if kind is None:
            raise ValueError(f"{path} is neither a folder nor a file of a known kind ({', '.join(_FILES)}).")
        return _FILES[kind](path, skip_corrupt)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.errno is None:
            raise
        raise ValueError(f"{error.filename or path} can't be read: {error.strerror or error}.") from error


def _extension(name: str, kinds: dict[str, type[ImageSource]] | dict[str, type[LoaderSource]]) -> str | None:
    lower = name.lower()
    return None if lower.startswith(".") else next((extension for extension in kinds if lower.endswith(extension)), None)


def _open_folder(path: Path, skip_corrupt: bool) -> ImageSource:
    if read_description(path) is not None:
        return open_prepared(path, skip_corrupt)
    try:
        return FolderSource(path, skip_corrupt)
    except NoImagesError as error:
        # Hugging Face's and WebDataset's folders: shards, and perhaps a README.
        found = _find_shards(path)
        if not found:
            raise
        kinds = {kind for _, kind in found}
        if len(kinds) > 1:
            mixed = ", ".join(sorted(kind.kind for kind in kinds))
            raise ValueError(f"folder {path} mixes shards of several kinds ({mixed}): keep one kind in it.") from error
        names = [file.relative_to(path).as_posix() for file, _ in found]
        _refuse_mixed_splits(path, names)
        source = _join_shards(path, found, skip_corrupt)
        source.notes += _note_parts(path, names)
        return source


def _join_shards(path: Path, files: list[tuple[Path, type[LoaderSource]]], skip_corrupt: bool) -> ShardSource:
    """Open shards; some may hold no images, and are noted."""
    sources: list[LoaderSource] = []
    empty: list[NoImagesError] = []
    for file, kind in files:
        try:
            sources.append(kind(file, skip_corrupt))
        except NoImagesError as error:
            empty.append(error)
    if not sources:
        raise empty[0]
    joined = ShardSource(path, sources, skip_corrupt)
    if empty:
        more = f" (and {len(empty) - 1} more like it)" if len(empty) > 1 else ""
        joined.notes.append(f"{str(empty[0]).rstrip('.')}{more}: passed over.")
    return joined


def _find_shards(folder: Path) -> list[tuple[Path, type[LoaderSource]]]:
    """Return the shards in a folder and below, sorted by path, and what reads each."""
    files = [file for file in sorted(folder.rglob("*")) if not is_hidden(file.relative_to(folder).as_posix()) and file.is_file()]
    kinds = [(file, _extension(file.name, _SHARDS)) for file in files]
    return [(file, _SHARDS[extension]) for file, extension in kinds if extension is not None]


def _refuse_mixed_splits(path: Path, names: list[str]) -> None:
    """Raise if shards are of several splits of a data set: one score must not mix them by accident."""
    splits = mixed_splits(names)
    if splits is not None:
        raise ValueError(
            f"folder {path} mixes the splits {' and '.join(splits)}: name one of them ({describe_splits(splits, path)}; files of "
            "one split go into a folder of their own)."
        )


def _note_parts(path: Path, names: list[str]) -> list[str]:
    """Return what the names of shards say of a set that is not whole, or is more than one split."""
    notes = []
    groups = group_by_split(names)
    if len(groups) == 2 and "" in groups:
        split = next(split for split in groups if split)
        notes.append(f"of {path}, {len(groups[split])} files name the split {split} and {len(groups[''])} none: all are scored.")
    folders = sorted({posixpath.dirname(name) for name in names})
    if len(folders) > 1:
        named = ", ".join(folder or "." for folder in folders[:_MAX_NAMED]) + (", ..." if len(folders) > _MAX_NAMED else "")
        notes.append(f"of {path}, files of {len(folders)} folders are scored together: {named}.")
    announced: dict[tuple[str, str], set[str]] = {}
    for name in names:
        match = _PART_OF.search(name)
        if match is not None:
            announced.setdefault((name[: match.start()], match[2]), set()).add(match[1])
    for (_, count), parts in announced.items():
        if len(parts) != int(count):
            notes.append(f"{path} holds {len(parts)} of the {int(count)} files that their names announce.")
    return notes


def _open_generator(
    path: Path, num_samples: int | None, seed: int | None, batch_size: int, device: str, precision: str | None
) -> ImageSource:
    draw = {"num_samples": num_samples, "seed": seed, "batch_size": batch_size, "device": device}
    if precision is not None and precision != "float32":
        draw["precision"] = precision
    for entry_point in importlib.metadata.entry_points(group=SOURCE_ENTRY_POINTS):
        source = entry_point.load()(path, **draw)
        if source is not None:
            return cast(ImageSource, source)
    if not path.exists():
        raise FileNotFoundError(f"path {path} does not exist.")
    raise ValueError(f"{path} is a saved pipeline that no installed package can sample: install the one that wrote it.")
