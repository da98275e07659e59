"""Weight files: find them, download them once and verified, read them without running anything they hold."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from metrics.files.whole import whole_file
from metrics.terminal import temporary_home

#: torch.hub's convention: the file name ends with the first 8 hex digits of the content's sha256.
_HASH_SUFFIX = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
#: What the readers of torch files and safetensors raise on damaged content (a torch unpickler on garbage: nearly anything).
_READER_ERRORS = (
    SafetensorError,
    UnpicklingError,
    BadZipFile,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class WeightsFile:
    """A published weight file.

    Args:
        filename: Name in the cache.
        url: Official address.
        sha256: Hex digits that the content's sha256 starts with (all 64, or the prefix its publisher gives). Empty
            where the publisher gives none: then the sha256 of the first complete download is written beside the file,
            and the file must keep it.
        megabytes: Size, for messages.
    """

    filename: str
    url: str
    sha256: str
    megabytes: int


def cache_dir() -> Path:
    """Return the folder of downloaded weights: ``$TRIPTYCH_CACHE``, or ``~/.cache/triptych``; without a home, below the temporary
    folder."""
    if chosen := os.environ.get("TRIPTYCH_CACHE"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:  # The system does not know this user.
        home = Path(temporary_home())
    return home / ".cache" / "triptych"


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def resolve_weights(file: WeightsFile, weights: Path | None) -> tuple[Path, str]:
    """Return a verified local weight file and its sha256.

    Args:
        file: The published file, used when ``weights`` is None: taken from the cache or downloaded into it.
        weights: A file the user names. If its name carries a hash (``...-6726825d.pth``), the content must
            match.

    Raises:
        FileNotFoundError: If ``weights`` does not exist, or the published file can't be had here.
        ValueError: If the content is not what the name or the publisher says.
    """
    if weights is None:
        return _cached_or_downloaded(file)
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist.")
    digest = sha256_of(path)
    suffix = _HASH_SUFFIX.search(path.name)
    if suffix and not digest.startswith(suffix.group(1)):
        raise ValueError(
            f"weights file {path} is corrupt: its name promises a sha256 that starts with {suffix.group(1)}, "
            "its content "
            f"has {digest[:8]}; download it again."
        )
    return path, digest


def _cached_or_downloaded(file: WeightsFile) -> tuple[Path, str]:
    path = cache_dir() / file.filename
    if path.is_file():
        digest, expected = sha256_of(path), _expected_sha256(file, path)
        if not digest.startswith(expected):
            raise ValueError(
                f"cached weights {path} are corrupt (sha256 {digest[:8]}..., expected {expected[:8]}...): delete the file "
                "and run again."
            )
        return path, digest
    try:
        return path, _download(file, path)
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"no weights for this extractor here and the download failed ({failure_reason(error)}): get "
            f"{file.filename} "
            f"({file.megabytes} MB) from {file.url} and put it at {path}, or name it with --weights PATH."
        ) from error


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _expected_sha256(file: WeightsFile, path: Path) -> str:
    """Return the digits a cached file's sha256 must start with: the publisher's, else those of its download, else none."""
    if file.sha256:
        return file.sha256
    record = _record_path(path)
    return record.read_text(encoding="ascii", errors="replace").strip() if record.is_file() else ""


def failure_reason(error: OSError | HTTPException) -> str:
    """Return in a few words why a download failed."""
    reason = getattr(error, "reason", error)  # urllib wraps the system's error.
    return str(getattr(reason, "strerror", None) or reason)


def _download(file: WeightsFile, path: Path) -> str:
    """Download and verify; return the content's sha256."""
    digest = download(file.url, path, file.sha256)
    if not file.sha256:
        _record_path(path).write_text(f"{digest}\n", encoding="ascii")
    return digest


def download(url: str, path: Path, sha256: str = "") -> str:
    """Download to a temporary name, verify, rename: a half-written file never gets the real name.

    Args:
        url: Where from.
        path: The file to write.
        sha256: Hex digits that the content's sha256 must start with.

    Returns:
        The content's sha256.

    Raises:
        OSError: If the server or the disk refuses, or the connection breaks.
        ValueError: If the content is not what it should be.
    """
    with whole_file(path) as target:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as source:
            digest, num_bytes = _copy_hashed(source, target)
            promised_bytes = source.headers.get("Content-Length")
        if promised_bytes is not None and num_bytes != int(promised_bytes):
            raise OSError(f"the connection broke after {num_bytes} of {promised_bytes} bytes")
        if not digest.startswith(sha256):
            raise ValueError(f"download of {url} is corrupt (sha256 {digest[:8]}..., expected {sha256[:8]}...): try again.")
    return digest


def _copy_hashed(source: BinaryIO, target: BinaryIO) -> tuple[str, int]:
    """Copy to the end; return the sha256 of what was copied and its number of bytes."""
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
        num_bytes += len(chunk)
    return digest.hexdigest(), num_bytes


def load_tensors(path: Path, within: str = "") -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or a torch file (``weights_only=True``, so nothing in it
    runs).

    Args:
        path: The file.
        within: Entry of a training checkpoint that holds the state dict, where the file is one.

    Raises:
        ValueError: If the file is truncated, corrupt, or holds something other than named tensors, or a value that is not finite.
    """
    state: Any
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except _READER_ERRORS as error:
        raise ValueError(
            f"weights file {path} can't be read: it is corrupt, truncated or not a torch / safetensors file."
        ) from error
    if within and isinstance(state, Mapping) and isinstance(state.get(within), Mapping):
        state = state[within]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights file {path} does not hold a state dict of tensors: give the file of the network's weights.")
    for name, value in state.items():
        # Told here, since features need not show it: oneDNN's fused ReLU makes 0 of NaN.
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError(f"weights file {path} holds NaN or infinity in {name}: it is damaged, get it again.")
    return dict(state)


def _load_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
