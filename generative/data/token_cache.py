"""Token ids or latents of a data set, encoded once by ``generative encode`` and read by training from memory-mapped files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.types import Batch
from generative.data.base import ImageDataset, hash_parts
from generative.data.cache_files import CACHE_FILE, LABELS_FILE, PREVIEWS_FILE, CacheSpec, ShardReader, map_tensors, read_spec

MAX_VERIFY_BYTES = 2 * 1024**3
"""Ids of a cache up to this size are all read and checked when it is opened, unless ``verify`` says otherwise."""


class TokenCacheDataset(ImageDataset):
    """Examples of a cache: ``tokens`` (B, L) int64, or ``latents`` (B, C, h, w) float32, and ``class_labels``.

    The view of an image (mirrored, or which crop) and the noise of a probabilistic encoder's latents are functions of the
    position in the endless order, as all randomness of training data. Mirrored views are given where the trainer's
    ``horizontal_flip`` is on.

    Args:
        folder: A folder that ``generative encode`` wrote.
        images: The images that were encoded, for grids and scores of real images; None takes those that the cache keeps.
        verify: Read all ids at start and check their range; None means for caches below ``MAX_VERIFY_BYTES``.

    Attributes:
        spec: What the cache holds.
        encoder_fingerprint: Of the tokenizer or autoencoder that made it; the trainer refuses an objective with another.
        preview_indices: (P,) int64, images that the cache keeps.

    Raises:
        UserError: If the folder is no complete cache, a file is damaged, an id is out of range, or ``images`` are others than
            those that were encoded.
    """

    def __init__(self, folder: str | Path, images: ImageDataset | None = None, verify: bool | None = None) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / CACHE_FILE).is_file():
            raise UserError(
                f"'{folder}' holds no complete cache ({CACHE_FILE}); make one with `generative encode RUN_OR_TOKENIZER --config "
                f"CONFIG --output {folder}`"
            )
        self.spec, self.statistics = read_spec(self.folder / CACHE_FILE)
        self._shards = ShardReader(self.folder, self.spec)
        self._views = self.spec.make_views()
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
        self._check_shards(verify)

    def _check_shards(self, verify: bool | None) -> None:
        """Every shard must be whole; ids must be in range."""
        for shard, tensors in enumerate(self._shards):
            if self.spec.num_codes is None:
                continue
            if verify or (verify is None and tensors["tokens"].nbytes * self.spec.num_shards <= MAX_VERIFY_BYTES):
                check_ids(tensors["tokens"], self.spec.num_codes, f"shard {shard} of the cache '{self.folder}'")

    def examples(self, indices: Tensor, draws: np.ndarray, flip: bool) -> Batch:
        """Tokens or latents of a view of each image; see ``ImageDataset.examples``.

        Raises:
            UserError: If mirrored views are asked for and the cache has none.
        """
        rows, views = indices.tolist(), self._views.choose(draws, flip).tolist()
        labels = self.labels[indices]
        if self.spec.kind == "tokens":
            tokens = torch.from_numpy(self._shards.read("tokens", rows, views).astype(np.int64))  # (B, L)
            return {"tokens": tokens, "class_labels": labels}
        latents = torch.from_numpy(self._shards.read("mean", rows, views).astype(np.float32))  # (B, C, h, w)
        if self.spec.has_std:
            std = torch.from_numpy(self._shards.read("std", rows, views).astype(np.float32))  # (B, C, h, w)
            latents += std * position_noise(draws, self.spec.shape)
        return {"latents": latents, "class_labels": labels}

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


def position_noise(draws: np.ndarray, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers of each position, a function of its random word alone.

    Args:
        draws: (B,) uint64 random words.
        shape: Of one example.

    Returns:
        (B, *shape) float32.
    """
    # Without the top bit, which torch's seeds do not take: it says which view is taken, the noise may be the same.
    generators = [torch.Generator().manual_seed(int(word) & (2**63 - 1)) for word in draws]
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])  # (B, *shape)
