"""`fid-score --train-extractor TRAIN [TEST] OUT.safetensors`: a feature network of one's own data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metrics.distributed import Processes
from metrics.scoring.sides import OpenOptions, open_images

_TRAINABLE = "resnet9"


def train_from_arguments(args: argparse.Namespace, processes: Processes) -> str:
    """Train the extractor that the arguments name on labelled images.

    Args:
        args: The parsed arguments; two paths (training images, output) or three (test images between them).
        processes: Must be one.

    Returns:
        A line that says what was written.

    Raises:
        FileExistsError: If the output exists.
        ValueError: If the extractor cannot be trained, the output is no .safetensors, or a set has no labels.
    """
    from metrics.extractor_training import train_extractor

    if args.extractor != _TRAINABLE:
        raise ValueError(f"--train-extractor trains {_TRAINABLE}, got {args.extractor}: add --extractor {_TRAINABLE}.")
    if processes.count > 1:
        raise ValueError(f"--train-extractor runs in one process, got {processes.count}: start it without torchrun.")
    output = Path(args.path[-1])
    if output.suffix != ".safetensors":
        raise ValueError(f"--train-extractor writes a .safetensors file, got the output {output}: name it {output}.safetensors.")
    if output.exists():
        raise FileExistsError(f"output file {output} exists: remove it or choose another name.")
    train, test = _open_labelled(args.path[:-1], args)
    facts = train_extractor(
        train,
        test,
        output,
        image_size=args.input_size,
        epochs=args.train_epochs,
        seed=args.seed or 0,
        device=args.device,
        progress=not args.quiet,
    )
    accuracy = f", accuracy {facts['accuracy']:.4f} on {facts['tested_on']}" if "accuracy" in facts else ""
    classes = f"{len(facts['classes'])} classes at {facts['input_size']} px"
    return f"wrote {output}: {_TRAINABLE} of {classes}, trained {facts['epochs']} epochs on {facts['trained_on']}{accuracy}"


def _open_labelled(paths: Sequence[str], args: argparse.Namespace) -> list[Any]:
    """Open training and test images; None for a test set that is not given."""
    sources: list[Any] = []
    for path in paths:
        source = open_images(Path(path), OpenOptions(None, args.seed, args.batch_size, args.device, args.skip_corrupt))
        if not source.has_labels:
            raise ValueError(f"--train-extractor needs class labels, and {source.lack_of_labels()}")
        sources.append(source)
    return [*sources, None][:2]
