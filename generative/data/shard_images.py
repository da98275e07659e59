"""One image on its way into a shard: cropped, and encoded as a file or as pixels."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, features

from generative.core.errors import UserError
from generative.core.seeding import keyed_generator
from generative.data.base import ImageDataset
from generative.data.decode import TURNS, decode_image, orientation
from generative.data.transforms import center_crop, limit_short_side, random_resized_crop, short_side_crop
from metrics.files.images import open_image

Crop = Literal["adm", "center", "random-resized", "none"]
Encoding = Literal["jpeg", "webp-lossless", "raw"]

MAX_JPEG_QUALITY = 100
FULL_COLOUR = 0
"""Pillow's ``subsampling`` 4:4:4: photographs that were made smaller have as much detail in colour as in brightness."""
MAX_SIDE = {"jpeg": 65_500, "webp-lossless": 16_383}
"""Longest side in pixels that libjpeg and libwebp write."""
WEBP_EFFORT = 4
"""libwebp's ``method``, 0 to 6: more takes longer and saves a few per cent."""


@dataclass(frozen=True)
class ShardSettings:
    """How images are made: equal settings make equal shards of equal images.

    Attributes:
        resolution: Side of the square images in pixels; of ``none`` the longest short side, or None for the images as they are.
        crop: ``adm`` ADM's resize and centre crop, ``center`` torchvision's, ``random-resized`` one of Inception's crops for each
            image, ``none`` the whole picture.
        encode: ``jpeg``, ``webp-lossless``, or ``raw`` pixels.
        quality: Of JPEG files; a JPEG file that needs no change is kept byte by byte.
        seed: Of random crops.
        shard_images: Images of the source to a shard: what a kill costs at most.

    Raises:
        UserError: If a value is out of range, or they contradict one another.
    """

    resolution: int | None
    crop: Crop = "adm"
    encode: Encoding = "jpeg"
    quality: int = 95
    seed: int = 0
    shard_images: int = 4096

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise UserError(f"crop must be one of {', '.join(get_args(Crop))}, got {self.crop!r}")
        if self.encode not in get_args(Encoding):
            raise UserError(f"encode must be one of {', '.join(get_args(Encoding))}, got {self.encode!r}")
        if self.resolution is None and self.crop != "none":
            raise UserError(f"crop {self.crop} needs a resolution, the side of the images in pixels, for example 256")
        if self.resolution is not None and self.resolution < 1:
            raise UserError(f"resolution must be at least 1 pixel, got {self.resolution}")
        if self.crop == "none" and self.encode == "raw":
            raise UserError("raw pixels are of one size, and crop none keeps that of every image; take another crop, or jpeg")
        if not 1 <= self.quality <= MAX_JPEG_QUALITY:
            raise UserError(f"quality must be between 1 and {MAX_JPEG_QUALITY}, got {self.quality}")
        if self.shard_images < 1:
            raise UserError(f"shard_images must be at least 1, got {self.shard_images}")
        if self.encode == "webp-lossless" and not features.check("webp"):
            raise UserError("this installation of Pillow writes no WebP; take jpeg or raw")

    @property
    def image_size(self) -> int | None:
        """Side of the images that are made; None where they are of many sizes."""
        return None if self.crop == "none" else self.resolution

    def to_json(self) -> dict[str, Any]:
        """What the images depend on; numbers without influence are left out."""
        unused = {"quality"} if self.encode != "jpeg" else set()
        unused |= {"seed"} if self.crop != "random-resized" else set()
        return {name: value for name, value in asdict(self).items() if name not in unused}


def make_image(images: ImageDataset, index: int, settings: ShardSettings) -> bytes:
    """What a shard stores of one image.

    Args:
        images: The source.
        index: In [0, N).
        settings: How it is made.

    Returns:
        The content of an image file; or pixels, uint8 (3, H, W).

    Raises:
        UserError: If the image is truncated or corrupt, or longer than the format allows.
    """
    content = images.read_encoded(index)
    picture = images.load_picture(index) if content is None else decode_image(content, images.source_name(index))
    cropped = crop_picture(picture, index, settings)
    if settings.encode == "raw":
        return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1)).tobytes()
    if content is not None and settings.encode == "jpeg" and cropped.size == picture.size and is_kept(content, settings):
        return content
    return encode_picture(cropped, images.source_name(index), settings)


def encode_picture(picture: Image.Image, name: str, settings: ShardSettings) -> bytes:
    """Encode a picture as an image file.

    Args:
        picture: RGB.
        name: What to call it in an error message.
        settings: Format and quality.

    Raises:
        UserError: If a side is longer than the format allows.
    """
    stream = io.BytesIO()
    try:
        if settings.encode == "jpeg":
            picture.save(stream, "JPEG", quality=settings.quality, subsampling=FULL_COLOUR)
        else:
            picture.save(stream, "WEBP", lossless=True, exact=True, method=WEBP_EFFORT)
    except (OSError, ValueError) as error:
        most = MAX_SIDE[settings.encode]
        raise UserError(
            f"image '{name}' cannot be stored as {settings.encode}, which takes sides up to {most:,} pixels, and it has "
            f"{picture.width}x{picture.height}; leave it out, or give a smaller --resolution"
        ) from error
    return stream.getvalue()


def crop_picture(picture: Image.Image, index: int, settings: ShardSettings) -> Image.Image:
    """Crop a picture; a random crop is a function of the seed and the image's place in the source."""
    size = settings.resolution
    if size is None:
        return picture
    if settings.crop == "none":
        return limit_short_side(picture, size)
    if settings.crop == "random-resized":
        return random_resized_crop(picture, size, keyed_generator(settings.seed, "random resized crop", index))
    return (center_crop if settings.crop == "adm" else short_side_crop)(picture, size)


def is_kept(content: bytes, settings: ShardSettings) -> bool:
    """Whether a JPEG file whose crop is the whole picture can stay as it is: upright, and in colours that every reader knows."""
    if settings.crop == "random-resized":
        return False
    image = open_image(content)
    return image.format == "JPEG" and image.mode in ("RGB", "L") and orientation(image) not in TURNS
