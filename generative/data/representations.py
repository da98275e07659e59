"""Representations of a data set's images, encoded once and given beside its examples (RCG, arXiv 2312.03701)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from generative.core.errors import UserError
from generative.core.images import images_to_float
from generative.core.logging import progress_interval
from generative.core.types import Batch
from generative.data.base import ImageDataset, hash_parts
from generative.data.random_crop import RandomCropDataset
from generative.data.token_cache import TokenCacheDataset
from generative.data.wrapped import WrappedDataset
from generative.tokenizers.representation import RepresentationEncoder
from metrics.files.whole import whole_file

KEY = "representations"
MADE_FROM = "made_from"
"""Key of the file's metadata: fingerprints of images and encoder, and whether there are mirrored views."""


class RepresentationDataset(WrappedDataset):
    """The examples of another data set, with ``representations`` (B, D) float32 of what is seen of the image, mirrored or not.

    They are kept in memory, and in a file where one is named: made where it is missing, and refused where it is of other images
    or of another encoder.

    Args:
        images: The data set; a cache of tokens or latents too, whose views are plain or mirrored, if it has its images.
        encoder: Encodes the images; the objective's must be the same.
        file: A .safetensors file; None keeps them in memory only.
        flip: Whether mirrored images are encoded too, for ``trainer.horizontal_flip``.
        batch_size: Images encoded at a time.
        device: Where they are encoded; None takes CUDA where there is one.

    Raises:
        UserError: If the data set draws crops, gives no images, or the file is another's or damaged.
    """

    brings: tuple[str, ...] = ("representations",)

    def __init__(
        self,
        images: ImageDataset,
        encoder: RepresentationEncoder,
        file: Path | None = None,
        flip: bool = False,
        batch_size: int = 250,
        device: str | None = None,
    ) -> None:
        if isinstance(images, RandomCropDataset):
            raise UserError("RandomCropDataset gives another crop at every visit, which cannot be encoded once; leave it out")
        if isinstance(images, TokenCacheDataset) and images.spec.crop_sizes:
            raise UserError("the cache holds crops, whose representations are not those of its images; encode with --views flip")
        if len(images.indices_with_images()) != len(images):
            raise UserError("the cache keeps only some of its images; give all of them in its init_args.images")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        super().__init__(images, hash_parts("representations", images.fingerprint, encoder.fingerprint, flip))
        self.encoder_fingerprint = images.encoder_fingerprint
        self.representation_fingerprint = encoder.fingerprint
        self.representations = self._load(encoder, None if file is None else Path(file), 2 if flip else 1, batch_size, device)

    def _load(self, encoder: RepresentationEncoder, file: Path | None, views: int, batch_size: int, device: str | None) -> Tensor:
        """Representations (N, views, D) float32, from the file where there is one."""
        shape = (len(self), views, encoder.dim)
        if file is not None and file.is_file():
            return read_representations(file, self.fingerprint, shape)
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        vectors = encode_all(self.source, encoder.to(chosen), views, batch_size)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(file) as opened:
                opened.write(save({KEY: vectors}, metadata={MADE_FROM: self.fingerprint}))
        return vectors

    def examples(self, indices: Tensor, draws: np.ndarray, flip: bool) -> Batch:
        """Examples of the wrapped data set, and their representations; see ``ImageDataset.examples``.

        Raises:
            UserError: If mirrored images are asked for and were not encoded.
        """
        mirrored = torch.from_numpy((draws >> np.uint64(63)).astype(np.int64)) if flip else torch.zeros_like(indices)
        if flip and self.representations.shape[1] < 2:
            raise UserError(
                "trainer.horizontal_flip is on, but only images as they are were encoded; set flip of the RepresentationDataset "
                "to true, or trainer.horizontal_flip to false"
            )
        batch = self.source.examples(indices, draws, flip)
        batch["representations"] = self.representations[indices, mirrored]  # (B, D)
        return batch


def encode_all(images: ImageDataset, encoder: RepresentationEncoder, views: int, batch_size: int) -> Tensor:
    """Representations (N, views, D) float32 of all images as they are and, of two views, mirrored; behind a progress bar."""
    from tqdm.auto import tqdm

    device = encoder.network.device
    parts = []
    starts = range(0, len(images), batch_size)
    bar = tqdm(
        starts, desc=f"encoding with {encoder.extractor}", mininterval=progress_interval(), disable=not sys.stderr.isatty()
    )
    for start in bar:
        batch = images_to_float(images.images(range(start, min(start + batch_size, len(images))))).to(device)
        seen = [batch, batch.flip(-1)][:views]
        parts.append(torch.stack([encoder(each) for each in seen], dim=1).cpu())  # (b, views, D)
    return torch.cat(parts)


def read_representations(file: Path, fingerprint: str, shape: tuple[int, int, int]) -> Tensor:
    """Read a file of representations.

    Args:
        file: That ``RepresentationDataset`` wrote.
        fingerprint: Of images and encoder that it must be made from.
        shape: (N, views, D) that it must have.

    Raises:
        UserError: If it is damaged, or made from others.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            made_from = (opened.metadata() or {}).get(MADE_FROM)
            vectors: Tensor = opened.get_tensor(KEY)
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{file}' is damaged or holds no representations; delete it, and it is made anew") from error
    if made_from != fingerprint or tuple(vectors.shape) != shape:
        raise UserError(
            f"'{file}' holds representations of other images or by another encoder than are configured; delete it, and it is "
            "made anew, or name another file"
        )
    return vectors
