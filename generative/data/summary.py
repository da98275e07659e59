"""What a run found in its data, said at start and kept in the run's folder."""

from __future__ import annotations

from typing import Any

import torch

from generative.core.class_names import list_names
from generative.data.base import ImageDataset
from metrics.sources.listing import describe_left_out


def describe_data(data: ImageDataset) -> dict[str, Any]:
    """What there is to know of a data set, as JSON.

    Returns:
        ``dataset`` (its class), ``fingerprint``, ``images``, ``classes``, ``class_names`` in the order of the labels,
        ``images_per_class``, ``left_out`` (number of files by reason) and ``turned_upright`` (None if not counted).
    """
    return {
        "dataset": type(data).__name__,
        "fingerprint": data.fingerprint,
        "images": len(data),
        "classes": data.num_classes,
        "class_names": data.class_names,
        "images_per_class": torch.bincount(data.labels, minlength=data.num_classes).tolist(),
        "left_out": data.left_out,
        "turned_upright": data.num_turned,
    }


def summarise_data(data: ImageDataset, what: str) -> list[str]:
    """One line on what was found, and one on what was left out or changed, if anything.

    Args:
        data: The images.
        what: What to call them.
    """
    counts = torch.bincount(data.labels, minlength=data.num_classes)
    names = f" ({list_names(data.class_names)})" if data.has_class_names else ""
    low, high = int(counts.min()), int(counts.max())
    spread = "" if data.num_classes == 1 else f", {low} of each" if low == high else f", {low} to {high} of each"
    classes = f"{data.num_classes} class{'' if data.num_classes == 1 else 'es'}"
    lines = [f"{what}: {plural(len(data))} of {classes}{names}{spread}"]
    facts = []
    formats = describe_left_out({reason: count for reason, count in data.left_out.items() if reason.startswith(".")})
    if formats:
        facts.append(f"left out {formats}")
    facts += [f"left out {plural(count)} {reason}" for reason, count in data.left_out.items() if reason[:1] != "." and count]
    if data.num_turned:
        facts.append(f"turned {plural(data.num_turned)} upright by EXIF orientation (fid-score takes pixels as stored)")
    return lines + ([f"{what}: {'; '.join(facts)}"] if facts else [])


def plural(count: int) -> str:
    """A number of images."""
    return "1 image" if count == 1 else f"{count} images"
