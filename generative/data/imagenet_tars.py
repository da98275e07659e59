"""ImageNet's two archives as they are published: a tar of one tar for each training class, and one of all validation images."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import torch

from generative.core.errors import UserError
from generative.data.imagenet import VALIDATION_NUMBER, WNID, order_validation, read_devkit
from generative.data.tar_members import Member, TarMembersDataset, list_members
from metrics.sources.listing import count_left_out, describe_left_out, is_hidden, is_image_name


class ImageNetTrainTarDataset(TarMembersDataset):
    """``ILSVRC2012_img_train.tar``: one tar file for each class, called by its WordNet id, read without unpacking.

    Classes are numbered in the order of the sorted ids, as folders of them are.

    Args:
        path: The tar file.
        image_size: Side of the square images in pixels, by ADM's resize and centre crop.
        num_classes: Refuse another number of classes; None takes as many as there are.
        cache: Decode all images at start and keep them in memory.
        verify: Read every image at start; None means below 20,000 images.

    Raises:
        UserError: If it is truncated, a class is there twice or without images, or (if verified) an image is corrupt.
    """

    def __init__(
        self, path: str | Path, image_size: int, num_classes: int | None = None, cache: bool = False, verify: bool | None = None
    ) -> None:
        path = Path(path).expanduser()
        classes: dict[str, Member] = {}
        left_out: Counter[str] = Counter()
        for member in list_members(path):
            name = Path(member.name)
            if is_hidden(member.name) or name.suffix != ".tar" or WNID.fullmatch(name.stem) is None:
                left_out += count_left_out([member.name])
                continue
            if name.stem in classes:
                raise UserError(f"'{path}' holds class {name.stem} twice; fetch it again")
            classes[name.stem] = member
        if num_classes is not None and len(classes) != num_classes:
            raise UserError(
                f"'{path}' has {len(classes)} classes, and num_classes of the data is {num_classes}; leave num_classes out to "
                "take as many as there are"
            )
        images: list[Member] = []
        labels: list[int] = []
        for label, wnid in enumerate(sorted(classes)):
            found = _images(path, classes[wnid], left_out)
            images += sorted(found)
            labels += [label] * len(found)
        super().__init__(
            path,
            images,
            torch.tensor(labels, dtype=torch.int64),
            sorted(classes),
            "imagenet train tar",
            image_size,
            cache,
            verify,
        )
        self.left_out = dict(left_out)


def _images(path: Path, archive: Member, left_out: Counter[str]) -> list[Member]:
    """The images of a class; counts of what is left out are added."""
    found: list[Member] = []
    here: Counter[str] = Counter()
    for member in list_members(path, archive):
        if not is_image_name(member.name):
            here += count_left_out([member.name])
        elif member.size == 0:
            raise UserError(f"image '{member.name}' of '{archive.name}' in '{path}' is empty (0 bytes); fetch the archive again")
        else:
            found.append(member)
    if not found:
        instead = f" (it has {describe_left_out(here)})" if here else ""
        raise UserError(f"'{archive.name}' in '{path}' has no images{instead}; fetch the archive again")
    left_out += here
    return found


class ImageNetValidationTarDataset(TarMembersDataset):
    """``ILSVRC2012_img_val.tar``: the flat archive of the validation images, with the development kit's ground truth.

    Args:
        path: The tar file.
        devkit: The development kit: its folder, or ``ILSVRC2012_devkit_t12.tar.gz`` as it is published.
        image_size: Side of the square images in pixels, by ADM's resize and centre crop.
        cache: Decode all images at start and keep them in memory.
        verify: Read every image at start; None means below 20,000 images.

    Raises:
        UserError: If images are missing, there twice or called otherwise, the kit is damaged, or (if verified) an image is
            corrupt.
    """

    def __init__(
        self, path: str | Path, devkit: str | Path, image_size: int, cache: bool = False, verify: bool | None = None
    ) -> None:
        path = Path(path).expanduser()
        kit = read_devkit(Path(devkit).expanduser())
        members: dict[str, Member] = {}
        left_out: Counter[str] = Counter()
        for member in list_members(path):
            if is_image_name(member.name):
                members[member.name] = member
            else:
                left_out += count_left_out([member.name])
        ordered = [members[name] for name in order_validation(path, list(members), len(kit.validation))]
        self.wnids = kit.wnids
        super().__init__(
            path,
            ordered,
            torch.from_numpy(kit.validation),
            kit.wnids,
            "imagenet validation tar",
            image_size,
            cache,
            verify,
        )
        self.left_out = dict(left_out)


def is_train_tar(path: Path) -> bool:
    """Whether a file is a tar file of tar files called by WordNet ids."""
    name = Path(_first_name(path))
    return name.suffix == ".tar" and WNID.fullmatch(name.stem) is not None


def is_validation_tar(path: Path) -> bool:
    """Whether a file is a tar file of ImageNet's validation images, by the first of them."""
    return VALIDATION_NUMBER.search(_first_name(path)) is not None


def _first_name(path: Path) -> str:
    """Name of the first regular file in a tar file that is not compressed; nothing where it is none."""
    if path.suffix.lower() != ".tar" or not path.is_file():
        return ""
    try:
        with tarfile.open(path, "r:") as archive:
            return next((info.name for info in archive if info.isreg() and not is_hidden(info.name)), "")
    except (OSError, tarfile.TarError):
        return ""
