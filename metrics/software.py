"""What software computes a feature, as one fingerprint: a cache made by other code or other libraries is not read."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Packages that decode, resize and compute.
_LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "triptych")


@cache
def software_fingerprint() -> str:
    """Return a sha256 over this package's source files and the versions of the libraries it computes with."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for name in _LIBRARIES:
        digest.update(f"{name} {_version(name)}\n".encode())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a copy of the sources
        return "unknown"
