"""A model's own samples as training data: written shard by shard, read from memory-mapped files.

A folder holds ``samples.json`` (a ``GeneratedSpec``) and ``shard-00000.safetensors``, ...: ``images`` (n, 3, H, W) uint8 of a
model of pixels; of a model of latents ``latents`` (n, C, h, w), as its network makes them, with ``previews`` (p, 3, H, W)
uint8, images of some, whose numbers within the shard are ``preview_rows`` (p,).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from generative.core.errors import UserError
from generative.core.generation import SampleRequest, balanced_requests
from generative.core.types import Batch
from generative.data.base import ImageDataset, hash_parts
from generative.data.cache_files import map_tensors, shard_name

SPEC_FILE = "samples.json"
SHARD_SAMPLES = 512
"""Samples to a shard: what a kill costs a process at most, and the unit that processes share."""
PREVIEW_CLASSES, PREVIEWS_PER_CLASS = 10, 16
"""Of models of latents the images of so many samples of the first classes are kept, for grids."""


@dataclass(frozen=True)
class GeneratedSpec:
    """What a folder of samples holds, and what made it: two folders with equal ones are the same.

    Attributes:
        kind: ``images`` or ``latents``.
        num_samples: N, in class order, as many of every class (``balanced_requests``).
        num_classes: Number of classes.
        class_names: Their names; empty where they are not known.
        image_size: Side of the images, in pixels.
        encoder_fingerprint: Of the autoencoder whose latents they are; None for images.
        origin: What decides the samples: the model, its options, the seed.
        shard_samples: Samples to a shard.
    """

    kind: Literal["images", "latents"]
    num_samples: int
    num_classes: int
    class_names: tuple[str, ...]
    image_size: int
    encoder_fingerprint: str | None
    origin: dict[str, Any]
    shard_samples: int

    @property
    def num_shards(self) -> int:
        """Number of shard files."""
        return -(-self.num_samples // self.shard_samples)

    def samples_of(self, shard: int) -> range:
        """Numbers of the samples in a shard."""
        return range(shard * self.shard_samples, min((shard + 1) * self.shard_samples, self.num_samples))

    def requests(self) -> list[SampleRequest]:
        """Class of each sample, and its number within the class."""
        return balanced_requests(self.num_samples, self.num_classes)

    def to_json(self) -> dict[str, Any]:
        """As JSON reads it back (tuples become lists)."""
        result: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return result


def read_spec(folder: Path) -> GeneratedSpec:
    """Read a folder's ``samples.json``.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        content = json.loads((folder / SPEC_FILE).read_text())
        return GeneratedSpec(**{**content, "class_names": tuple(content["class_names"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{folder}' holds no samples that can be read ({SPEC_FILE}: {' '.join(str(error).split())})") from error


def missing_shards(folder: Path, spec: GeneratedSpec) -> list[int]:
    """Shards that are still to be written; a file is there under its name only once it is whole."""
    return [shard for shard in range(spec.num_shards) if not (folder / shard_name(shard)).is_file()]


def has_preview(request: SampleRequest) -> bool:
    """Whether the image of a sample that is kept as latents is kept too."""
    return request.class_label < PREVIEW_CLASSES and request.index < PREVIEWS_PER_CLASS


class GeneratedDataset(ImageDataset):
    """Samples that ``generative selfimprove`` made: images, or ``latents`` (B, C, h, w) float32 of a model of latents.

    Args:
        folder: The samples.

    Attributes:
        spec: What the folder holds.

    Raises:
        UserError: If the folder holds no samples, or not all of them.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.spec = read_spec(self.folder)
        missing = missing_shards(self.folder, self.spec)
        if missing:
            raise UserError(
                f"'{folder}' lacks {len(missing)} of its {self.spec.num_shards} shards; repeat the command that makes the samples"
            )
        self._shards: dict[int, dict[str, np.ndarray]] = {}
        requests = self.spec.requests()
        self._previews = [index for index, request in enumerate(requests) if has_preview(request)]
        super().__init__(
            labels=torch.tensor([request.class_label for request in requests]),
            num_classes=self.spec.num_classes,
            image_size=self.spec.image_size,
            fingerprint=hash_parts("generated samples", repr(sorted(self.spec.to_json().items()))),
            class_names=self.spec.class_names,
        )
        self.encoder_fingerprint = self.spec.encoder_fingerprint

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is started afresh maps the files itself: a pickled map would be a copy of its whole content.
        return {**self.__dict__, "_shards": {}}

    def shard(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        """The mapped tensors of the shard of a sample, and its row there."""
        number, row = divmod(index, self.spec.shard_samples)
        if number not in self._shards:
            self._shards[number] = map_tensors(self.folder / shard_name(number))
        return self._shards[number], row

    def rows(self, name: str, indices: Tensor) -> Tensor:
        """Rows of a tensor by number of the sample, a copy."""
        found = [self.shard(int(index)) for index in indices]
        return torch.from_numpy(np.stack([tensors[name][row] for tensors, row in found]))

    def examples(self, indices: Tensor, draws: np.ndarray, flip: bool) -> Batch:
        """Training examples, see ``ImageDataset.examples``.

        Raises:
            UserError: If mirrored latents are asked for.
        """
        if self.spec.kind == "images":
            return super().examples(indices, draws, flip)
        if flip:
            raise UserError("latents cannot be mirrored; set trainer.horizontal_flip false: a model's samples need it no more")
        return {"latents": self.rows("latents", indices).float(), "class_labels": self.labels[indices]}

    def indices_with_images(self) -> Tensor:
        """(M,) int64 ascending: all samples, of latents those whose images are kept."""
        return torch.arange(len(self)) if self.spec.kind == "images" else torch.tensor(self._previews)

    def load_image(self, index: int) -> Tensor:
        """One sample as an image, (3, H, W) uint8.

        Raises:
            UserError: If it is kept as latents only.
        """
        tensors, row = self.shard(index)
        if self.spec.kind == "images":
            return torch.from_numpy(tensors["images"][row].copy())
        place = np.flatnonzero(tensors.get("preview_rows", np.zeros(0)) == row)
        if not len(place):
            raise UserError(f"{self.source_name(index)} is kept as latents, without an image")
        return torch.from_numpy(tensors["previews"][place[0]].copy())

    def source_name(self, index: int) -> str:
        """The folder, and the number of a sample."""
        return f"sample {index} of '{self.folder}'"
