"""What the commands that sample have in common: sampling options, counts, class labels and the device."""

from __future__ import annotations

import argparse
import csv
import inspect
from typing import TYPE_CHECKING, Any

from generative.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipelines.base import ImageGenerationPipeline


def interval(text: str) -> tuple[float, float]:
    """Parse LOW,HIGH."""
    low, high = text.split(",")
    return float(low), float(high)


ALL_CLASSES = "all"

# Keyword of the pipeline's call -> how the flag is parsed and explained.
OPTIONS: dict[str, dict[str, Any]] = {
    "guidance_scale": {"type": float, "help": "classifier-free guidance; 1 is none"},
    "guidance_interval": {
        "type": interval,
        "metavar": "LOW,HIGH",
        "help": "guide at these noise levels in [0, 1] only; in token models the share of tokens, scales or steps still to come",
    },
    "guidance_channels": {"type": int, "help": "guide only the first so many channels (DiT's published sampler: 3)"},
    "guidance_schedule": {
        "choices": ("constant", "linear", "power", "cubic", "exp", "cosine", "power_cosine"),
        "help": "how guidance grows over a token model's sequence, scales or steps",
    },
    "guidance_exponent": {"type": float, "help": "power of the schedule power_cosine; above 1 guidance comes later"},
    "num_inference_steps": {"type": int, "help": "steps of a diffusion sampler, or iterations of a masked token model"},
    "num_diffusion_steps": {"type": int, "help": "steps of the head that draws a continuous token (MAR, eMIGM)"},
    "solver": {"choices": ("dpm-solver", "ddpm"), "help": "sampler of that head (eMIGM)"},
    "mask_strategy": {"help": "schedule by which eMIGM's tokens become known: exp, cosine, linear, log, poly-X"},
    "temperature": {"type": float, "help": "divides the logits of a token model"},
    "top_k": {"type": int, "help": "sample among the k likeliest tokens"},
    "top_p": {"type": float, "help": "sample among the likeliest tokens that make up this probability"},
    "more_smooth": {"action": argparse.BooleanOptionalAction, "help": "mix codes by a relaxed draw: smoother images (VAR)"},
    "choice_temperature": {
        "type": float,
        "help": "randomness with which a masked token model chooses what to keep of an iteration; 0 keeps what it is surest of",
    },
    "truncation": {
        "type": float,
        "help": "of a GAN's noise: less is better images and less variety. Noise beyond this many standard deviations is drawn "
        "again, unless the pipeline's truncation_law says otherwise",
    },
}


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


def check_options(pipeline: ImageGenerationPipeline, options: dict[str, Any]) -> None:
    """Refuse a flag that the pipeline's family has no use for.

    Raises:
        UserError: Naming the flag and the ones it takes.
    """
    accepted = [name for name in OPTIONS if name in inspect.signature(pipeline.__call__).parameters]
    for name in options:
        if name not in accepted:
            known = ", ".join("--" + other.replace("_", "-") for other in accepted)
            raise UserError(
                f"{type(pipeline).__name__} has no use for --{name.replace('_', '-')}; it takes {known or 'no sampling options'}"
            )
