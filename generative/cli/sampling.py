"""What the commands that sample have in common: counts, class labels and the device."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from generative.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipelines.base import ImageGenerationPipeline


ALL_CLASSES = "all"


def check_counts(num_images_per_class: int, batch_size: int) -> None:
    """Raise ``UserError`` if a count is below 1."""
    for name, value in (("--num-images-per-class", num_images_per_class), ("--batch-size", batch_size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")


def move_pipeline(pipeline: ImageGenerationPipeline, device: str | None, accelerator: Accelerator) -> None:
    """Move a pipeline to the device named, else to this process's own.

    Raises:
        UserError: If there is no such device.
    """
    import torch

    try:
        pipeline.to(torch.device(device or accelerator.device))
    except (RuntimeError, AssertionError) as error:
        # torch asserts that it was compiled with CUDA.
        raise UserError(f"--device '{device}' cannot be used here: {str(error).splitlines()[0]}") from error


def parse_class_labels(text: str, pipeline: ImageGenerationPipeline, in_order: bool = False) -> list[int]:
    """``all``, or class numbers and names with commas between them; each class once, in class order or as they stand.

    A name that holds a comma is put between double quotes; see ``find_label`` for what a text stands for.

    Raises:
        UserError: If one is no class of the pipeline, is repeated, or it is not clear which is meant.
    """
    names = pipeline.class_names or []
    if text == ALL_CLASSES:
        if ALL_CLASSES in names:
            raise UserError(f"a class is called '{text}': write name={text} for it, or the names of all classes")
        return list(range(pipeline.num_classes))
    parts = next(csv.reader([text], skipinitialspace=True), [])
    if not all(parts) or not parts:
        raise UserError(f"--class-labels takes class numbers or names with commas between them, or `all`, got '{text}'")
    labels = pipeline.check_class_labels(parts).tolist()
    if len(set(labels)) != len(labels):
        raise UserError(f"--class-labels names a class twice in '{text}'; use --num-images-per-class for more images")
    return labels if in_order else sorted(labels)
