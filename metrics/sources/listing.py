"""Which files are images, by their names alone: one rule for folders, archives and training data.

Which names count: pytorch-fid's and clean-fid's bmp, jpg, jpeg, pgm, png, ppm, tif, tiff, webp, in any case (they miss
``.PNG``; torch-fidelity takes png, jpg and jpeg), and JPEG's other two names, jpe and jfif. ``.gif`` does not count, as with
all three: beside samples it is a preview, not one of them. Files of it and of other image formats are counted, so that
a set that loses some says so.

What never counts, nor as a class: what is hidden, that is a file whose name, or a folder on its way, begins with a dot
(``.ipynb_checkpoints``, ``.thumbnails``, ``.Trash-1000``, macOS's ``._x.png`` beside ``x.png``), and what file systems and tools
keep for themselves (``__MACOSX``, ``@eaDir``, ``lost+found``, ``$RECYCLE.BIN``, ``System Volume Information``, ``Thumbs.db``).
The folder or archive that is named by the user is not asked how it is called.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: Lower-case extensions that count as images; the case in the file name does not matter.
IMAGE_EXTENSIONS = frozenset({".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
#: Those of image formats that are left out.
_OTHER_FORMATS = frozenset(
    ".apng .arw .avif .avifs .cr2 .cr3 .dcm .dds .dib .dng .emf .eps .exr .fits .gif .hdr .heic .heics .heif .heifs .icns .ico "
    ".j2c .j2k .jls .jp2 .jpc .jpf .jpx .jxl .jxr .nef .orf .pbm .pcx .pfm .pnm .psd .qoi .raf .raw .rw2 .sgi .svg .svgz .tga "
    ".wmf .xbm .xcf .xpm".split()
)
#: Containers of images: beside loose images they are left out.
_CONTAINERS = frozenset({".npy", ".npz", ".parquet", ".tar", ".tgz", ".zip"})
#: Folders and files that tools and file systems make, in lower case.
_TOOL_NAMES = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@__thumb",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@tmp",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "lost+found",
        "recycler",
        "system volume information",
        "thumbs.db",
    }
)


@dataclass
class Listing:
    """The images of a folder.

    Args:
        names: Paths relative to the folder, with forward slashes, sorted as text.
        left_out: Extension -> number of files of formats that are not read.
    """

    names: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def is_hidden(name: str) -> bool:
    """Return whether a relative path is hidden or a tool's own, in any of its parts."""
    parts = (part for part in name.split("/") if part not in ("", ".", ".."))
    return any(part.startswith(".") or part.lower() in _TOOL_NAMES for part in parts)


def is_image_name(name: str) -> bool:
    """Return whether a relative path has an image's extension and is not hidden."""
    return _extension(name) in IMAGE_EXTENSIONS and not is_hidden(name)


def _extension(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def count_left_out(names: Iterable[str]) -> Counter[str]:
    """Return the number of files, by extension, that are images of formats not read, or containers of images."""
    extensions = ((_extension(name), name) for name in names)
    return Counter(
        extension
        for extension, name in extensions
        if (extension in _OTHER_FORMATS or extension in _CONTAINERS) and not is_hidden(name)
    )


def count_folders(names: Iterable[str]) -> Counter[str]:
    """Return the number of files in each folder, by relative path."""
    return Counter(name.rpartition("/")[0] for name in names)


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Return what was left out as a phrase ("3 files of formats that are not read here (2 .gif, 1 .avif)"), or ""."""
    if not left_out:
        return ""
    total = sum(left_out.values())
    most_first = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{count} {extension}" for extension, count in most_first)
    return f"{total} {'file' if total == 1 else 'files'} of formats that are not read here ({kinds})"


def list_images(folder: Path) -> Listing:
    """List the images of a folder and its subfolders; a link back up the tree ends there.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a subfolder can't be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist.")

    def refuse(error: OSError) -> None:
        raise ValueError(f"folder {error.filename} can't be read: {error.strerror}.") from error

    found = Listing()
    visited: set[str] = set()
    for root, subfolders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:  # A link back up the tree: its images are listed already.
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = [name for name in subfolders if not is_hidden(name)]
        below = Path(root).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found.names += [prefix + name for name in names if is_image_name(name)]
        found.left_out += count_left_out(names)
    found.names.sort()
    return found


def no_images_message(what: str, left_out: Mapping[str, int]) -> str:
    """Return the sentence for a folder or archive without images.

    Args:
        what: "folder x" or "zip file x".
        left_out: What it holds instead, as in ``Listing``.
    """
    extensions = ", ".join(sorted(extension[1:] for extension in IMAGE_EXTENSIONS))
    instead = f"; it holds {describe_left_out(left_out)}: convert images, name archives by themselves" if left_out else ""
    return f"{what} holds no images (looked for {extensions} in it and below, hidden folders apart){instead}."
