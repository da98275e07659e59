"""``fid-score B --dataset NAME``: statistics that clean-fid publishes or made, from its own cache, an archive or its server."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import IO, cast

from metrics.files.named_datasets import CUSTOM_SPLIT, MODES, NamedReference, published, resolve_reference
from metrics.files.statistics import FeatureEntry, ReferenceStatistics, load_statistics
from metrics.files.weights import download, failure_reason
from metrics.options import DEFAULT_PROTOCOL, ScoreOptions
from metrics.scores.frechet import FrechetDistance
from metrics.scores.frechet_infinity import FrechetInfinity
from metrics.scoring.image_sets import ImageSet
from metrics.scoring.plan import extractor_of, plan_metric

#: Network -> clean-fid's name of the model, and the feature that its files hold.
_MODELS = {"inception-v3": ("inception_v3", "pool3"), "clip-vit-b-32": ("clip_vit_b_32", "embedding")}
_SHOWN_NAMES = 10
_ZIP_MAGIC = b"PK\x03\x04"
_ARCHIVE_ERRORS = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, RuntimeError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class _CleanFidFile:
    """A file as clean-fid names it: in which folder of its own it keeps it, and where it publishes it."""

    folder: Path
    url: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


class _AskedError(Exception):
    """Carries out of clean-fid the file that it was about to fetch."""


def open_named(names: Sequence[str], options: ScoreOptions) -> ImageSet:
    """Return the reference that --dataset names, with what the scores need of it.

    Args:
        names: From ``score_names``.
        options: What is asked for.

    Raises:
        FileNotFoundError: If a file is neither here nor to be had.
        ValueError: If no such data set is known, a score needs what clean-fid does not store, or a file is damaged.
    """
    assert options.dataset is not None
    reference = resolve_reference(options.dataset, options.dataset_split, options.dataset_res)
    mode = _mode(options)
    entries: list[FeatureEntry] = []
    paths: list[str] = []
    for network, kinds in _wanted(names, options).items():
        model, feature = _MODELS[network]
        entry = FeatureEntry(network, feature)
        for kind in kinds:
            file = _ask_clean_fid(reference, mode, model, kind)
            shown, found = _load(file, reference, options.dataset_root)
            entry = _add(entry, found, kind, shown)
            paths.append(shown)
        entries.append(entry)
    count = next((entry.num_images for entry in entries if entry.num_images is not None), None)
    size = "" if reference.split == CUSTOM_SPLIT else f" at {reference.resolution} px"
    source = f"clean-fid's statistics of {reference.name}, split {reference.split}{size}, mode {mode}"
    return ImageSet(Path(paths[0]), statistics=ReferenceStatistics(paths[0], tuple(entries), count, source))


def _mode(options: ScoreOptions) -> str:
    chosen = options.protocol or DEFAULT_PROTOCOL
    mode = next((mode for mode, protocol in MODES.items() if protocol == chosen), None)
    if mode is None:
        raise ValueError(
            f"--dataset has references under the protocols {', '.join(MODES.values())} ({', '.join(MODES)}), got --protocol "
            f"{chosen}: give that protocol's own reference file."
        )
    return mode


def _wanted(names: Sequence[str], options: ScoreOptions) -> dict[str, list[str]]:
    """Return network -> kinds of files ("FID": moments, "KID": features) that the scores read."""
    wanted: dict[str, list[str]] = {}
    for name in names:
        metric, network = plan_metric(name, options), extractor_of(name, options)
        if not metric.needs_real:
            continue
        if metric.needs_labels or network not in _MODELS or metric.feature not in (None, _MODELS[network][1]):
            raise ValueError(
                f"metric {name} needs more than clean-fid stores (2048-d features of inception-v3, clip-fid's of clip-vit-b-32): "
                "give reference images instead of --dataset."
            )
        kind = "FID" if isinstance(metric, FrechetDistance | FrechetInfinity) else "KID"
        if kind not in wanted.setdefault(network, []):
            wanted[network].append(kind)
    if not wanted:
        raise ValueError(f"--dataset names a reference, and {', '.join(names)} needs none: leave it out, or score fid.")
    return wanted


def _ask_clean_fid(reference: NamedReference, mode: str, model: str, kind: str) -> _CleanFidFile:
    """Let clean-fid name its file; its own reader would keep what a broken download left, and wait for a server for ever."""
    try:
        from cleanfid import features
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--dataset needs clean-fid: pip install clean-fid.") from error

    def asked(local_folder: str, url: str) -> str:
        raise _AskedError(local_folder, url)

    original = features.check_download_url
    features.check_download_url = asked
    try:
        features.get_reference_statistics(
            reference.name, reference.resolution, mode=mode, model_name=model, split=reference.split, metric=kind
        )
    except _AskedError as question:
        folder, url = question.args
        return _CleanFidFile(Path(folder), url.replace("stats//", "stats/"))
    finally:
        features.check_download_url = original
    raise ValueError("this version of clean-fid names no file for --dataset: install clean-fid 0.1.35.")


def _load(file: _CleanFidFile, reference: NamedReference, root: str | None) -> tuple[str, ReferenceStatistics]:
    """Return what to call a file, and its content."""
    if root is not None:
        with _in_root(Path(root), file) as (path, shown):
            try:
                return shown, load_statistics(path)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), shown)) from error
    path = _case_insensitive(file.folder, file.name) or file.folder / file.name
    if not path.is_file():
        _fetch(file, path, reference)
    return str(path), load_statistics(path)


def _fetch(file: _CleanFidFile, path: Path, reference: NamedReference) -> None:
    """Download a published file into clean-fid's own cache, whole or not at all."""
    if not reference.is_published:
        made = sorted(found.name for found in path.parent.glob(f"*_{CUSTOM_SPLIT}_*.npz")) if path.parent.is_dir() else []
        raise FileNotFoundError(
            f"no statistics {file.name} in {path.parent} (custom ones there: {', '.join(made[:_SHOWN_NAMES]) or 'none'}), and "
            f"clean-fid publishes {published(reference.name)}: make them by cleanfid.fid.make_custom_stats, or name a folder or "
            "archive that has them with --dataset-root."
        )
    try:
        download(file.url, path)
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"clean-fid's statistics {file.name} are not here and the download failed ({failure_reason(error)}): get them from "
            f"{file.url} and put them at {path}, or name a folder or archive that has them with --dataset-root."
        ) from error
    try:
        load_statistics(path)
    except ValueError:
        path.unlink(missing_ok=True)  # A server's page about an error, for example: it must not be found next time.
        raise


def _case_insensitive(folder: Path, name: str) -> Path | None:
    """Find a file whose name may be spelt in capitals, as custom ones of earlier versions are."""
    if not folder.is_dir():
        return None
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == name and path.is_file()), None)


@contextmanager
def _in_root(root: Path, file: _CleanFidFile) -> Iterator[tuple[Path, str]]:
    """Give the file of a folder or archive as a path, and what to call it."""
    if not root.exists():
        raise FileNotFoundError(f"--dataset-root {root} does not exist.")
    if root.is_dir():
        found = next((path for path in sorted(root.rglob("*.[nN][pP][zZ]")) if path.name.lower() == file.name), None)
        if found is None:
            raise _missing(root, file, [path.name for path in sorted(root.rglob("*.npz"))])
        yield found, str(found)
        return
    with tempfile.TemporaryDirectory(prefix="statistics-") as folder:
        path = Path(folder) / file.name
        try:
            member = _extract(root, file, path)
        except _ARCHIVE_ERRORS as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(
                f"--dataset-root {root} must be a folder, zip or tar of statistics and can't be read: {error}."
            ) from error
        yield path, f"{root}/{member}"


def _extract(root: Path, file: _CleanFidFile, path: Path) -> str:
    """Write the member of an archive that has the file's name to ``path``; return the member's name."""
    with root.open("rb") as stream:
        is_zip = stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC  # zipfile.is_zipfile says yes to a tar that ends with an .npz.
    if is_zip:
        with zipfile.ZipFile(root) as archive:
            member = _member(root, file, archive.namelist())
            with archive.open(member) as content:
                _write(content, path)
    else:
        with tarfile.open(root, "r:*") as tar:
            member = _member(root, file, [info.name for info in tar if info.isreg()])
            _write(cast(IO[bytes], tar.extractfile(member)), path)
    return member


def _write(stream: IO[bytes], path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(stream, target)


def _member(root: Path, file: _CleanFidFile, names: Sequence[str]) -> str:
    found = next((name for name in sorted(names) if name.rsplit("/", 1)[-1].lower() == file.name), None)
    if found is None:
        raise _missing(root, file, [name.rsplit("/", 1)[-1] for name in sorted(names) if name.lower().endswith(".npz")])
    return found


def _missing(root: Path, file: _CleanFidFile, held: Sequence[str]) -> FileNotFoundError:
    more = f" and {len(held) - _SHOWN_NAMES} more" if len(held) > _SHOWN_NAMES else ""
    return FileNotFoundError(
        f"--dataset-root {root} has no {file.name}, the file that clean-fid publishes at {file.url}: it has "
        f"{', '.join(held[:_SHOWN_NAMES]) or 'no .npz file'}{more}."
    )


def _add(entry: FeatureEntry, found: ReferenceStatistics, kind: str, shown: str) -> FeatureEntry:
    """Take the moments or the features of a file into an entry."""
    wanted = next((one for one in found.entries if (one.mu if kind == "FID" else one.features) is not None), None)
    if wanted is None:
        raise ValueError(f"{shown} holds {found.describe()}: expected {'mu and sigma' if kind == 'FID' else 'feats'}.")
    if kind == "FID":
        return replace(entry, mu=wanted.mu, sigma=wanted.sigma)
    return replace(entry, features=wanted.features, num_images=wanted.num_images)
