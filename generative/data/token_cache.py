"""Token ids or latents of a data set, encoded once by ``generative encode`` and read by training at their places in the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.types import Batch
from generative.data.base import ImageDataset, hash_parts
from generative.data.cache_check import check_content, check_sizes, read_sums
from generative.data.cache_files import CACHE_FILE, LABELS_FILE, PREVIEWS_FILE, CacheSpec, ShardReader, map_tensors, read_spec
from generative.data.finish import mirrored
from generative.data.views import CROPS_PER_SIZE, five_crops

MAX_VERIFY_BYTES = 2 * 1024**3
"""A cache up to this size is read and checked whole when it is opened, unless ``verify`` says otherwise."""


class TokenCacheDataset(ImageDataset):
    """Examples of a cache: ``tokens`` (B, L) int64, or ``latents`` (B, C, h, w), and ``class_labels``.

    The view of an image (mirrored, or which crop) is a function of the position in the endless order, as all randomness of
    training data. Mirrored views are given where the trainer's ``horizontal_flip`` is on. Latents of a probabilistic encoder are
    means, with their deviations beside them, in the type that they are stored in: ``FrozenEncoder`` draws from them on the
    training device at every step, with the random numbers that it draws with from images, so that training takes the same
    steps from a cache as from its images.

    Args:
        folder: A folder that ``generative encode`` wrote.
        images: The images that were encoded, for grids and scores of real images; None takes those that the cache keeps.
        verify: Read all files at start and compare their sha256, and the range of ids; None means for caches below
            ``MAX_VERIFY_BYTES``. Missing files and those of another size are found in any case.
        with_images: Give ``images`` beside the latents or ids: the very view, crop and mirroring, that they are the encoding of
            (objectives that align representations look at both, REPA, arXiv 2410.06940). They are decoded at every visit.
        crop_images: For ``with_images`` of ten-crop views: the images at each size that the crops were cut from, which are
            the data set of ``images`` with the ``image_size`` that the error names without this.

    Attributes:
        spec: What the cache holds.
        encoder_fingerprint: Of the tokenizer or autoencoder that made it; the trainer refuses an objective with another.
        preview_indices: (P,) int64, images that the cache keeps.

    Raises:
        UserError: If the folder is no complete cache, a file is damaged, an id is out of range, or ``images`` are others than
            those that were encoded.
    """

    brings: tuple[str, ...] = ("tokens", "latents")

    def __init__(
        self,
        folder: str | Path,
        images: ImageDataset | None = None,
        verify: bool | None = None,
        with_images: bool = False,
        crop_images: Sequence[ImageDataset] | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / CACHE_FILE).is_file():
            raise UserError(
                f"'{folder}' holds no complete cache ({CACHE_FILE}); make one with `generative encode RUN_OR_TOKENIZER --config "
                f"CONFIG --output {folder}`"
            )
        self.spec, self.statistics = read_spec(self.folder / CACHE_FILE)
        self._shards = ShardReader(self.folder, self.spec)
        self._views = self.spec.make_views()
        self._check_files(verify)
        previews = map_tensors(self.folder / PREVIEWS_FILE)
        self.preview_indices = torch.from_numpy(previews["indices"].copy())  # (P,)
        self._previews = previews["images"]  # (P, 3, H, W) uint8, mapped
        self._source = images
        self.image_path = None if images is None else images.image_path
        super().__init__(
            labels=torch.from_numpy(map_tensors(self.folder / LABELS_FILE)["labels"].copy()),
            num_classes=self.spec.num_classes,
            image_size=self.spec.image_size,
            fingerprint=cache_fingerprint(self.spec),
            class_names=self.spec.class_names,
        )
        if images is not None:
            self.left_out, self.num_turned, self.notices = images.left_out, images.num_turned, images.notices
        self.encoder_fingerprint = self.spec.encoder_fingerprint
        self._place_of = {int(index): place for place, index in enumerate(self.preview_indices)}
        if len(self) != self.spec.num_images:
            raise UserError(f"'{self.folder / LABELS_FILE}' holds {len(self)} labels for {self.spec.num_images} images")
        if images is not None and images.fingerprint != self.spec.data_fingerprint:
            raise UserError(
                f"the images given with the cache '{folder}' ({type(images).__name__} {images.fingerprint[:12]}) are not those "
                f"it was made from ({self.spec.data_class} {self.spec.data_fingerprint[:12]}); give the same, or leave images out"
            )
        self._view_sources = self._find_view_sources(crop_images) if with_images else None
        self.brings = (*self.brings, "images") if with_images else self.brings

    def _check_files(self, verify: bool | None) -> None:
        """Every file must be whole; of a cache that is not too large, what was written, and ids in range."""
        for shard in range(self.spec.num_shards):
            self._shards.check(shard)
        sums = read_sums(self.folder)
        check_sizes(self.folder, sums)
        size = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        if not (size <= MAX_VERIFY_BYTES if verify is None else verify):
            return
        if self.spec.num_codes is not None:
            for shard, tensors in enumerate(self._shards):
                check_ids(tensors["tokens"], self.spec.num_codes, f"shard {shard} of the cache '{self.folder}'")
        for _, fault in check_content(self.folder, sums):
            if fault is not None:
                raise UserError(f"{fault}; encode the images anew, or restore it from a copy")

    def _find_view_sources(self, crop_images: Sequence[ImageDataset] | None) -> list[ImageDataset]:
        """The data sets that views are cut from, in the order of ``Views.make``.

        Raises:
            UserError: If they are not there, or others than those that were encoded.
        """
        sizes = list(self.spec.crop_sizes)
        if not sizes:
            if crop_images is not None:
                raise UserError(
                    f"crop_images belong to ten-crop views, and the cache '{self.folder}' holds others; leave them out"
                )
            if len(self.indices_with_images()) != len(self):
                raise UserError(
                    f"with_images needs all images, and the cache '{self.folder}' keeps {len(self._place_of)} of {len(self)}; "
                    "give data.init_args.images, the images that were encoded"
                )
            return [self]
        found = [source.image_size for source in crop_images or ()]
        if found != sizes:
            raise UserError(
                f"with_images of ten-crop views needs crop_images, the images that were encoded with image_size "
                f"{' and '.join(map(str, sizes))}; got {' and '.join(map(str, found)) or 'none'}"
            )
        for source in crop_images or ():
            if not torch.equal(source.labels, self.labels):
                raise UserError(f"crop_images are others than the cache '{self.folder}' was made from: their classes differ")
        return list(crop_images or ())

    def examples(self, indices: Tensor, draws: np.ndarray, flip: bool) -> Batch:
        """Tokens or latents of a view of each image, and perhaps that view itself; see ``ImageDataset.examples``.

        Returns:
            ``tokens`` (B, L) int64; or ``latents`` (B, C, h, w) as stored, with ``latent_std`` alike where those are means. With
            ``with_images`` also ``images`` (B, 3, H, W) uint8 and, with ``flip``, ``mirrored`` (B,) bool. And ``class_labels``.

        Raises:
            UserError: If mirrored views are asked for and the cache has none, or a file cannot be read.
        """
        chosen = self._views.choose(draws, flip)
        rows, views = indices.tolist(), chosen.tolist()
        batch: Batch = {"class_labels": self.labels[indices]}
        if self.spec.kind == "tokens":
            batch["tokens"] = torch.from_numpy(self._shards.read("tokens", rows, views).astype(np.int64))  # (B, L)
        else:
            batch["latents"] = torch.from_numpy(self._shards.read("mean", rows, views))  # (B, C, h, w)
            if self.spec.has_std:
                batch["latent_std"] = torch.from_numpy(self._shards.read("std", rows, views))  # (B, C, h, w)
        if self._view_sources is not None:
            batch["images"] = self._view_images(self._view_sources, rows, views)  # (B, 3, H, W)
            if flip:
                batch["mirrored"] = torch.from_numpy(mirrored(draws))
        return batch

    def _view_images(self, sources: list[ImageDataset], rows: list[int], views: list[int]) -> Tensor:
        """The views themselves, not yet mirrored, (B, 3, H, W) uint8."""
        if not self.spec.crop_sizes:
            return sources[0].images(rows)
        images = []
        for row, view in zip(rows, views, strict=True):
            source, corner = divmod(view // 2, CROPS_PER_SIZE)
            images.append(five_crops(sources[source].image(row)[None], self.image_size)[corner])
        return torch.cat(images)  # (B, 3, H, W)

    def load_image(self, index: int) -> Tensor:
        """One image, (3, H, W) uint8, from the images given or those kept.

        Raises:
            UserError: If there is neither.
        """
        if self._source is not None:
            return self._source.image(index)
        if index not in self._place_of:
            raise UserError(
                f"the cache '{self.folder}' keeps {len(self._place_of)} of its {len(self)} images, and image {index} is not "
                "among them; give data.init_args.images, the images that were encoded"
            )
        return torch.from_numpy(self._previews[self._place_of[index]].copy())  # (3, H, W)

    def indices_with_images(self) -> Tensor:
        """(M,) int64 ascending: the images that ``images`` can give."""
        return torch.arange(len(self)) if self._source is not None else self.preview_indices.sort().values

    def images(self, indices: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Several images, (B, 3, H, W) uint8; see ``load_image``."""
        return super().images(indices) if self._source is None else self._source.images(indices)

    def images_uint8(self) -> Tensor:
        """All images, (N, 3, H, W) uint8; see ``load_image``."""
        return super().images_uint8() if self._source is None else self._source.images_uint8()

    def source_name(self, index: int) -> str:
        """The cache, and the number of an image."""
        return f"image {index} of the cache '{self.folder}'" if self._source is None else self._source.source_name(index)


def cache_fingerprint(spec: CacheSpec) -> str:
    """Hash of everything that decides what a cache holds: its own place among the data sets."""
    return hash_parts("token cache", repr(sorted(spec.to_json().items())))


def check_ids(tokens: np.ndarray, num_codes: int, name: str) -> None:
    """Refuse ids outside [0, num_codes).

    Args:
        tokens: Any shape, integers.
        num_codes: V.
        name: What holds them, for the message.

    Raises:
        UserError: Naming the first id that is out of range.
    """
    # The range first: a mask of all ids would take their memory again.
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= num_codes):
        wrong = tokens[(tokens < 0) | (tokens >= num_codes)]
        raise UserError(
            f"{name} holds the id {int(wrong.flat[0])}, outside 0..{num_codes - 1}, the {num_codes} codes of its tokenizer; "
            "encode the images anew"
        )
