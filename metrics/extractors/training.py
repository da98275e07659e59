"""Train a classifier on a labelled set, to compare features that fit it (``fid-score --train-extractor``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from metrics.extractors.resnet9 import MIN_INPUT_SIZE, ResNet9Network, normalise, save_resnet9
from metrics.sources.class_names import check_known_classes, check_known_names, name_classes

if TYPE_CHECKING:
    from metrics.sources.base import ImageSource

#: Name of the extractor that can be trained.
TRAINABLE = "resnet9"

# SGD with Nesterov momentum, one rise and fall of the rate, crops from images padded by an eighth, flips: what is usual on
# CIFAR-10 (He et al., arXiv:1512.03385, section 4.2; schedule of Smith, arXiv:1708.07120).
_PEAK_LR = 0.1
_BATCH_SIZE = 128  # The peak rate is for it; it is scaled to others (Goyal et al., arXiv:1706.02677).
_MIN_BATCH_SIZE = 16
_MIN_STEPS_PER_EPOCH = 16  # A few hundred images would otherwise see ten steps in ten epochs, and nothing would be learnt.
_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4
_WARMUP_SHARE = 0.25
_PADDING_SHARE = 0.125
_READ_BATCH = 256
_CHANCE_DEVIATIONS = 3.0  # Of a count of hits by chance: up to so many above it, an accuracy shows nothing.


def train_extractor(
    train: ImageSource,
    test: ImageSource | None,
    output: Path,
    image_size: int | None = None,
    epochs: int = 10,
    width: int = 32,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Train the nine-layer residual classifier on labelled images and write its weights.

    Args:
        train: Labelled images, all of one size.
        test: Labelled images to measure its accuracy on; None for none.
        output: A .safetensors file to write.
        image_size: Side of the images; None takes that of the first. Others are resized (bilinear with antialias).
        epochs: Passes over the training set.
        width: Channels of the first layer.
        seed: Of initial weights, order and crops. On a CPU it fixes the result at a given number of threads.
        device: Where to train; on a CPU the network runs under bfloat16 autocast.
        progress: Whether to show a bar.

    Returns:
        What the file's metadata record: classes, input size, epochs, and of the test set (else of the training set, as
        ``training_accuracy``) the accuracy and that of naming the most frequent class, ``chance``.

    Raises:
        ValueError: If a set has no labels, a class of the test set is not trained on, or there is one class only; the test set
            is read before anything is trained.
    """
    for name, value in (("epochs", epochs), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if test is not None:
        name_classes([train, test])
        check_known_classes(train, test)
    images, names = _read(train, image_size)
    if images.shape[2] < MIN_INPUT_SIZE:
        raise ValueError(
            f"input size of {TRAINABLE} must be at least {MIN_INPUT_SIZE} px, got {images.shape[2]}: name a larger one."
        )
    test_images, test_names = (images, names) if test is None else _read(test, images.shape[2])
    check_known_names(train.path, names, (test or train).path, test_names)
    classes = sorted(set(names), key=lambda name: (len(name), name))  # "2" before "10"
    index = {name: number for number, name in enumerate(classes)}
    labels, test_labels = (torch.tensor([index[name] for name in own]) for own in (names, test_names))
    place = torch.device(device)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        network = ResNet9Network(len(classes), width).to(place).to(memory_format=torch.channels_last)
        _fit(network, images, labels, epochs, torch.Generator().manual_seed(seed), place, progress)
    hits, chance = accuracy(network, test_images, test_labels, place), float(test_labels.bincount().max()) / len(test_labels)
    facts: dict[str, Any] = {
        "input_size": images.shape[2],
        "classes": classes,
        "trained_on": f"{train.path.name}, {len(images)} images",
        "epochs": epochs,
        "seed": seed,
        "accuracy" if test is not None else "training_accuracy": hits,
        "chance": chance,
    }
    if test is not None:
        facts["tested_on"] = f"{test.path.name}, {len(test_images)} images"
    save_resnet9(output, network.to("cpu").to(memory_format=torch.contiguous_format).eval(), facts)
    return {**facts, "is_chance": _is_chance(hits, chance, len(test_labels))}


def _is_chance(share: float, chance: float, count: int) -> bool:
    """Return whether a share of hits may be one of guesses."""
    return share <= chance + _CHANCE_DEVIATIONS * math.sqrt(chance * (1 - chance) / count)


def _read(source: ImageSource, image_size: int | None) -> tuple[Tensor, list[str]]:
    """Read a labelled set: uint8 (N, 3, s, s) and N class names."""
    images: list[Tensor] = []
    names: list[str] = []
    for batch in source.batches(_READ_BATCH):
        if batch.labels is None:
            raise ValueError(f"images at {source.path} have no labels: give a folder per class, or a labelled set.")
        for image in batch.images:
            size = image_size or image.shape[1]
            image_size = size
            if image.shape[1:] != (size, size):
                resized = F.interpolate(image[None].float(), size=(size, size), mode="bilinear", antialias=True)
                image = resized[0].round().clamp(0, 255).to(torch.uint8)
            images.append(image)
        names += source.named(batch.labels)
    if not images:
        raise ValueError(f"{source.path} holds no readable image.")
    return torch.stack(images), names


def _fit(
    network: ResNet9Network,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    generator: torch.Generator,
    device: torch.device,
    progress: bool,
) -> None:
    batch_size = min(_BATCH_SIZE, max(_MIN_BATCH_SIZE, len(labels) // _MIN_STEPS_PER_EPOCH), len(labels))
    peak_lr = _PEAK_LR * batch_size / _BATCH_SIZE
    optimizer = torch.optim.SGD(network.parameters(), lr=peak_lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY, nesterov=True)
    steps = len(labels) // batch_size  # What is left over differs by epoch; a batch norm needs whole batches.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_lr, epochs * steps, pct_start=_WARMUP_SHARE)
    network.train()
    with tqdm(total=epochs * steps, desc="training the extractor", unit="step", disable=not progress, leave=False) as bar:
        for _ in range(epochs):
            for indices in torch.randperm(len(labels), generator=generator)[: steps * batch_size].split(batch_size):
                batch = augment(images[indices], generator).to(device, memory_format=torch.channels_last)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cpu"):
                    logits = network(batch)
                loss = F.cross_entropy(logits.float(), labels[indices].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to an eighth of the side, filling with grey, and flip every other image.

    Args:
        images: uint8 (B, 3, s, s).
        generator: On the CPU.

    Returns:
        float32 (B, 3, s, s) in [-1, 1].
    """
    side = images.shape[2]
    margin = max(1, round(side * _PADDING_SHARE))
    padded = F.pad(normalise(images), (margin,) * 4)  # (B, 3, s + 2m, s + 2m)
    offsets = torch.randint(2 * margin + 1, (2, len(images), 1), generator=generator)
    place = torch.arange(side)
    rows, columns = place + offsets[0], place + offsets[1]  # (B, s)
    flipped = torch.rand((len(images), 1), generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    batch = torch.arange(len(images))[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(network: ResNet9Network, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Return the share of uint8 images (N, 3, s, s) whose label (N,) the network finds; leaves it in evaluation mode."""
    network.eval()
    hits = 0
    for indices in torch.arange(len(labels)).split(_READ_BATCH):
        logits = network(normalise(images[indices]).to(device, memory_format=torch.channels_last))
        hits += int((logits.argmax(1).cpu() == labels[indices]).sum())
    return hits / len(labels)
