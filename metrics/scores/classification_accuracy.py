"""Classification accuracy score (Ravuri and Vinyals, arXiv:1905.10887): a classifier is trained on generated images only, at
the labels asked for, and tested on real ones.

It is "GAN-train" of Shmelkov et al. (arXiv:1807.09499), and falls when the generator drops modes or mixes up classes. With
the two sets swapped (trained on reals, tested on fakes) it is their "GAN-test", which falls when samples do not look like
their class. Neither compares across architectures, sizes or numbers of epochs.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from metrics.sources.class_names import check_known_classes, check_known_names, name_classes

if TYPE_CHECKING:
    from metrics.sources.base import ImageSource

# Training of a ResNet on ImageNet as He et al. do (arXiv:1512.03385, section 3.4), with a cosine schedule for their steps.
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4
_DEFAULT_LR = 0.1
_LR_BATCH_SIZE = 256  # Batch size that the learning rate is for; it is scaled to others (Goyal et al., arXiv:1706.02677).
_CROP_MARGIN = 256 / 224  # Side that images are stored at over the side that is cropped (ibid.).
_TOP_K = 5
_READ_BATCH = 64
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class _LabelledImages:
    """Images of one side, read once.

    Args:
        images: uint8 (N, 3, s, s), on disk.
        labels: (N,) int64.
    """

    images: np.ndarray
    labels: Tensor

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return uint8 images (B, 3, s, s) and labels (B,)."""
        return torch.from_numpy(self.images[indices.numpy()]).to(device), self.labels[indices].to(device)


def classification_accuracy_score(
    train: ImageSource,
    test: ImageSource,
    architecture: str = "resnet50",
    image_size: int = 224,
    epochs: int = 90,
    batch_size: int = 256,
    lr: float = _DEFAULT_LR,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> dict[str, float]:
    """Train a classifier on one labelled set and return its accuracy on another.

    Images are cut to their centre square and stored once, as uint8, in a temporary folder: 3 * (1.14 * image_size)^2 bytes
    each. Training crops and flips at random and uses SGD with momentum and a cosine schedule.

    Args:
        train: Labelled images to train on: samples for CAS (GAN-train), reals for GAN-test. The custom is as many samples as
            the real training set has images, with its labels.
        test: Labelled images to test on: real validation images for CAS, samples for GAN-test.
        architecture: A torchvision classifier, by its name there; it is trained from scratch.
        image_size: Side in pixels that the network takes.
        epochs: Passes over the training set.
        batch_size: Images per step.
        lr: Peak learning rate for 256 images a step; scaled to ``batch_size``.
        seed: Of initial weights, order and crops. On a CPU it fixes the result.
        device: Where to train.
        progress: Whether to show a bar.

    Returns:
        ``cas_top1`` and ``cas_top5``, shares in [0, 1]; with fewer than five classes the latter is 1.

    Raises:
        ValueError: If a set has no labels, a class of the test set is not trained on, or an argument is out of range.
    """
    _check_arguments(train, test, architecture, image_size, epochs, batch_size, lr)
    name_classes([train, test])
    check_known_classes(train, test)
    with tempfile.TemporaryDirectory(prefix="cas-") as folder:
        images, labels = _store(train, Path(folder) / "train", image_size)
        test_images, test_labels = _store(test, Path(folder) / "test", image_size)
        vocabulary = {name: index for index, name in enumerate(sorted(set(labels)))}
        # Once more, now that they are read: a damaged image may have been the only one of its class.
        check_known_names(train.path, labels, test.path, test_labels)
        fit, held_out = (
            _LabelledImages(array, torch.tensor([vocabulary[label] for label in own]))
            for array, own in ((images, labels), (test_images, test_labels))
        )
        place = torch.device(device)
        # The network draws its first weights, and drops units, from the global generator: leave it as it was.
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            torch.manual_seed(seed)
            network = _build(architecture, len(vocabulary)).to(place)
            _train(network, fit, image_size, epochs, batch_size, lr * batch_size / _LR_BATCH_SIZE, seed, place, progress)
            return _accuracy(network, held_out, image_size, batch_size, place)


def check_architecture(architecture: str) -> None:
    """Raise ``ValueError`` unless torchvision has a classifier of this name."""
    from torchvision import models

    if architecture not in models.list_models(module=models):
        raise ValueError(f"architecture {architecture!r} is no torchvision classifier: try resnet50.")


def _check_arguments(
    train: ImageSource, test: ImageSource, architecture: str, image_size: int, epochs: int, batch_size: int, lr: float
) -> None:
    for name, source in (("train", train), ("test", test)):
        if not source.has_labels:
            raise ValueError(f"{name} images at {source.path} have no labels: give a folder per class, or a labelled set.")
    check_architecture(architecture)
    for name, value in (("image_size", image_size), ("epochs", epochs), ("batch_size", batch_size - 1)):
        if value < 1:
            least = 2 if name == "batch_size" else 1
            raise ValueError(f"{name} must be at least {least}, got {value + least - 1}.")
    if not 0.0 < lr < math.inf:
        raise ValueError(f"lr must be positive, got {lr}.")


def _store(source: ImageSource, path: Path, image_size: int) -> tuple[np.ndarray, list[str]]:
    """Read a source once and keep it, resized, in a file: uint8 (N, 3, s, s) and N labels."""
    side = round(image_size * _CROP_MARGIN)
    shape = (max(len(source), 1), 3, side, side)
    _reserve(path, math.prod(shape))
    stored = np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)
    labels: list[str] = []  # By name.
    for batch in source.batches(_READ_BATCH):
        if batch.labels is None:
            raise ValueError(f"images at {source.path} have no labels: give a folder per class, or a labelled set.")
        for image, label in zip(batch.images, source.named(batch.labels), strict=True):
            stored[len(labels)] = _centre_square(image, side).numpy()
            labels.append(label)
    if len(labels) < 2:
        raise ValueError(f"{source.path} holds {len(labels)} readable images: a classifier needs at least 2.")
    return stored[: len(labels)], labels


def _reserve(path: Path, num_bytes: int) -> None:
    """Make a file of so many bytes that the disk has: a page that it lacks would end the process with a bus error."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            else:
                for start in range(0, num_bytes, _CHUNK_BYTES):
                    file.write(bytes(min(_CHUNK_BYTES, num_bytes - start)))
    except OSError as error:
        raise ValueError(
            f"the classifier's images take {num_bytes / 1e9:.2g} GB in {path.parent.parent}, and that failed ({error.strerror}): "
            "set TMPDIR to a folder on a larger disk, or choose a smaller --cas-size."
        ) from error


def _centre_square(image: Tensor, side: int) -> Tensor:
    """Cut uint8 (3, H, W) to its centre square and resize it to (3, side, side), bilinear with antialias."""
    height, width = image.shape[1:]
    size = min(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    square = image[None, :, top : top + size, left : left + size].float()
    resized = F.interpolate(square, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _build(architecture: str, num_classes: int) -> nn.Module:
    from torchvision import models

    # These two would add auxiliary heads.
    options = {"aux_logits": False, "init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(architecture, weights=None, num_classes=num_classes, **options)
    return network


def _train(
    network: nn.Module,
    data: _LabelledImages,
    image_size: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    device: torch.device,
    progress: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    batch_size = min(batch_size, len(data.labels))
    steps = len(data.labels) // batch_size  # What is left over differs by epoch; a batch norm needs whole batches.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    network.train()
    for _ in tqdm(range(epochs), desc="training the classifier", unit="epoch", disable=not progress, leave=False):
        order = torch.randperm(len(data.labels), generator=generator)[: steps * batch_size]
        for indices in order.split(batch_size):
            images, labels = data.batch(indices, device)
            loss = F.cross_entropy(network(_augment(images, image_size, generator)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _augment(images: Tensor, image_size: int, generator: torch.Generator) -> Tensor:
    """Crop (B, 3, s, s) at random to image_size, flip every other one at random, and normalise."""
    margin = images.shape[2] - image_size
    offsets = torch.randint(margin + 1, (len(images), 2), generator=generator).tolist()
    crops = torch.stack(
        [image[:, top : top + image_size, left : left + image_size] for image, (top, left) in zip(images, offsets, strict=True)]
    )
    is_flipped = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return _normalise(torch.where(is_flipped[:, None, None, None], crops.flip(3), crops))


def _normalise(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1.0


def _batches(num_images: int, batch_size: int) -> Iterator[Tensor]:
    yield from torch.arange(num_images).split(batch_size)


@torch.no_grad()
def _accuracy(
    network: nn.Module, data: _LabelledImages, image_size: int, batch_size: int, device: torch.device
) -> dict[str, float]:
    network.eval()
    num_top1 = num_top5 = 0
    for indices in _batches(len(data.labels), batch_size):
        images, labels = data.batch(indices, device)
        start = (images.shape[2] - image_size) // 2
        logits = network(_normalise(images[:, :, start : start + image_size, start : start + image_size]))
        is_hit = logits.topk(min(_TOP_K, logits.shape[1]), dim=1).indices == labels[:, None]
        num_top1 += int(is_hit[:, 0].sum())
        num_top5 += int(is_hit.any(1).sum())
    return {"cas_top1": num_top1 / len(data.labels), "cas_top5": num_top5 / len(data.labels)}
