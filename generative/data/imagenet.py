"""ImageNet's 1,000 classes: their WordNet ids and names, the devkit's truth of the validation images."""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from torch import Tensor

from generative.core.class_names import list_names
from generative.core.errors import UserError
from generative.data.base import ImageDataset, hash_image_files, hash_parts
from generative.data.decode import image_to_tensor, read_content, verify_image
from generative.data.transforms import center_crop
from metrics.sources.listing import list_images

WNID = re.compile(r"n\d{8}")
META_FILE, TRUTH_FILE = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
MAX_KIT_BYTES = 2**26
"""No file of the kit that is read is larger."""
VALIDATION_NUMBER = re.compile(r"_val_(\d{8})\.")


def are_wnids(names: Sequence[str]) -> bool:
    """Whether all names are WordNet ids, as the folders of ImageNet's training images are called."""
    return bool(names) and all(WNID.fullmatch(name) for name in names)


def class_words(wnids: Sequence[str]) -> list[str]:
    """A name for each WordNet id: the first of its synonyms, with the class's number where two classes share it (cranes).

    Args:
        wnids: In the order of the labels.

    Returns:
        As many names, no two alike; an id that WordNet's list lacks stays itself.
    """
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True)
    assert isinstance(known, dict)
    words = [known.get(wnid, wnid).split(",")[0].replace("_", " ").strip() for wnid in wnids]
    return [f"{word} ({label})" if words.count(word) > 1 else word for label, word in enumerate(words)]


def imagenet_wnids() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes in the order of their labels, which is the sorted one."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def name_classes(images: ImageDataset, names: str | None) -> None:
    """Give the classes of images other names, in place.

    Args:
        images: Changed.
        names: ``imagenet``, the words for its 1,000 classes; ``source`` leaves what the source has; else a text file of one name
            a line in the order of the labels. None names classes by words where they are called by WordNet ids.

    Raises:
        UserError: If the file cannot be read, or there are not as many names as classes.
    """
    if names == "source" or (names is None and not are_wnids(images.class_names)):
        return
    if names is None:
        words = class_words(images.class_names)
        missing = [wnid for wnid in imagenet_wnids() if wnid not in images.class_names]
        if missing and len(images.class_names) + len(missing) == len(imagenet_wnids()):
            images.notices.append(
                f"{len(words)} of ImageNet's 1,000 classes are there, without {list_names(missing)}: labels are places among "
                "those; --num-classes 1000 would refuse them"
            )
    elif names == "imagenet":
        words = class_words(imagenet_wnids())
    else:
        try:
            words = [line.strip() for line in Path(names).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(
                f"class names '{names}' must be imagenet, source or a text file of one name a line ({error})"
            ) from error
    if len(words) != images.num_classes:
        raise UserError(f"the images have {images.num_classes} classes, and there are {len(words)} names for them ('{names}')")
    images.renumber_classes(range(len(words)), words)


@dataclass(frozen=True)
class Devkit:
    """What ILSVRC's development kit says.

    Attributes:
        wnids: WordNet ids of the classes, sorted: their places are the labels that everybody uses.
        label_of: Label of each of the kit's own class numbers, which begin at 1: entry 0 is -1.
        validation: (N,) int64, labels of the validation images in the order of their numbers.
    """

    wnids: list[str]
    label_of: np.ndarray
    validation: np.ndarray


def read_devkit(folder: Path) -> Devkit:
    """Read ``meta.mat`` and the validation ground truth of ILSVRC2012's development kit; nothing in them is run.

    Args:
        folder: The kit (``ILSVRC2012_devkit_t12``), its folder ``data``, or the .tar.gz that it is published as.

    Raises:
        UserError: If a file is missing, or not what it should be.
    """
    from scipy.io import loadmat

    meta, numbers = _kit_files(folder)
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
        truth = np.array([int(line) for line in numbers.decode().split()], dtype=np.int64)
        wnids = sorted(leaves.values())
        label_of = np.full(len(leaves) + 1, -1, dtype=np.int64)
        for number, wnid in leaves.items():
            label_of[number] = wnids.index(wnid)
        if not are_wnids(wnids) or (label_of[1:] < 0).any() or not len(truth) or truth.min() < 1 or truth.max() > len(leaves):
            raise ValueError(f"{len(leaves)} classes, and numbers up to {truth.max() if len(truth) else 0}")
    except Exception as error:  # whatever SciPy's reader meets in a file that is no such kit
        raise UserError(
            f"the development kit '{folder}' cannot be read ({' '.join(str(error).split())}); unpack it again"
        ) from error
    return Devkit(wnids, label_of, label_of[truth])


def _kit_files(kit: Path) -> tuple[bytes, bytes]:
    """Content of the two files of a development kit, from its folder or archive.

    Raises:
        UserError: If they are not there, or the archive is damaged.
    """
    found: dict[str, bytes] = {}
    try:
        if kit.is_file():
            with tarfile.open(kit) as archive:
                for info in archive:
                    name = Path(info.name).name
                    if name in (META_FILE, TRUTH_FILE) and info.isreg() and info.size <= MAX_KIT_BYTES:
                        found[name] = cast("IO[bytes]", archive.extractfile(info)).read()
        else:
            place = next((each for each in (kit, kit / "data") if (each / META_FILE).is_file()), kit)
            found = {name: (place / name).read_bytes() for name in (META_FILE, TRUTH_FILE) if (place / name).is_file()}
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"the development kit '{kit}' cannot be read ({' '.join(str(error).split())}); fetch it again") from error
    if len(found) < 2:  # noqa: PLR2004
        raise UserError(f"'{kit}' is no development kit of ImageNet; expected data/{META_FILE} and data/{TRUTH_FILE} in it")
    return found[META_FILE], found[TRUTH_FILE]


def order_validation(place: Path, names: Sequence[str], count: int) -> list[str]:
    """Names of the validation images in the order of their numbers.

    Args:
        place: The folder or archive that holds them, for messages.
        names: Of all images there.
        count: How many the development kit knows.

    Raises:
        UserError: If images are missing, there twice or called otherwise.
    """
    found: dict[int, str] = {}
    for name in names:
        match = VALIDATION_NUMBER.search(name)
        if match is None or not 1 <= int(match[1]) <= count:
            raise UserError(
                f"'{place / name}' is no validation image of ImageNet: expected ILSVRC2012_val_00000001.JPEG to "
                f"ILSVRC2012_val_{count:08d}.JPEG"
            )
        number = int(match[1])
        if number in found:
            raise UserError(f"'{place}' holds validation image {number} twice, '{found[number]}' and '{name}'; keep one of them")
        found[number] = name
    missing = next((number for number in range(1, count + 1) if number not in found), None)
    if missing is not None:
        raise UserError(
            f"'{place}' holds {len(found)} of the {count} validation images; the first that is missing is "
            f"ILSVRC2012_val_{missing:08d}.JPEG"
        )
    return [found[number] for number in sorted(found)]


class ImageNetValidationDataset(ImageDataset):
    """ImageNet's validation images as they are published, one flat folder, with the development kit's ground truth.

    Args:
        root: The folder of ``ILSVRC2012_val_00000001.JPEG`` and so on, all of them.
        devkit: The development kit: its folder, or the .tar.gz that it is published as.
        image_size: Side of the square images in pixels, by ADM's resize and centre crop.
        cache: Decode all images at start and keep them in memory.
        verify: Read every image at start; None means below 20,000 images.

    Raises:
        UserError: If images are missing, there twice or called otherwise, the kit is damaged, or (if verified) an image is
            corrupt.
    """

    usual_classes = 1000

    def __init__(
        self, root: str | Path, devkit: str | Path, image_size: int, cache: bool = False, verify: bool | None = None
    ) -> None:
        self.root = self.image_path = Path(root).expanduser()
        kit = read_devkit(Path(devkit).expanduser())
        try:
            listing = list_images(self.root)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(str(error).rstrip(".")) from error
        self.wnids = kit.wnids
        self._names = order_validation(self.root, listing.names, len(kit.validation))
        paths = [self.root / name for name in self._names]
        super().__init__(
            labels=torch.from_numpy(kit.validation),
            num_classes=len(kit.wnids),
            image_size=image_size,
            fingerprint=hash_parts(
                "imagenet validation",
                image_size,
                kit.validation.tobytes(),
                hash_image_files(paths, [path.stat().st_size for path in paths]),
            ),
            class_names=kit.wnids,
        )
        self.left_out = dict(listing.left_out)
        self.prepare(cache=cache, verify=verify)

    def load_image(self, index: int) -> Tensor:
        """Read, resize and crop one image, (3, H, W) uint8."""
        return image_to_tensor(center_crop(self.load_picture(index), self.image_size))

    def read_encoded(self, index: int) -> bytes:
        """The content of an image's file."""
        return read_content(self.source_name(index))

    def verify_image(self, index: int) -> bool:
        """Whether EXIF turns an image; raises ``UserError`` if its file cannot be read to its end."""
        path = self.source_name(index)
        return verify_image(path, path)

    def source_name(self, index: int) -> str:
        """Path of an image."""
        return str(self.root / self._names[index])
