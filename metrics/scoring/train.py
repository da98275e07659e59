"""``fid-score --train-extractor TRAIN [TEST] OUT.safetensors``: a feature network of one's own data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metrics.distributed import Processes
from metrics.options import ScoreOptions
from metrics.scoring.image_sets import OpenOptions, open_images
from metrics.sources import is_generator
from metrics.sources.class_names import name_classes


def train_from_options(options: ScoreOptions, processes: Processes) -> str:
    """Train the extractor that the options name on labelled images.

    Args:
        options: What is asked for; two paths (training images, output) or three (test images between them).
        processes: Must be one.

    Returns:
        A line that says what was written.

    Raises:
        FileExistsError: If the output exists.
        ValueError: If the extractor cannot be trained, the output is no .safetensors, or a set has no labels.
    """
    from metrics.extractors.training import TRAINABLE, train_extractor

    if options.extractor != TRAINABLE:
        raise ValueError(f"--train-extractor trains {TRAINABLE}, got {options.extractor}: add --extractor {TRAINABLE}.")
    if processes.count > 1:
        raise ValueError(f"--train-extractor runs in one process, got {processes.count}: start it without torchrun.")
    output = Path(options.paths[-1])
    _check_output(output)
    train, test = _open_labelled(options.paths[:-1], options)
    notes = train.notes if test is None else [*train.notes, *test.notes, *name_classes([train, test])]
    facts = train_extractor(
        train,
        test,
        output,
        image_size=options.input_size,
        epochs=options.train_epochs,
        seed=options.seed or 0,
        device=options.device,
        progress=not options.quiet,
    )
    classes = f"{len(facts['classes'])} classes at {facts['input_size']} px"
    message = (
        f"wrote {output}: {TRAINABLE} of {classes}, trained {facts['epochs']} epochs on {facts['trained_on']}{_accuracy(facts)}"
    )
    return "\n".join([*(f"note: {note}" for note in notes), message])


def _accuracy(facts: Mapping[str, Any]) -> str:
    """Return what to say of the accuracy, and that it is none where guessing gives as much."""
    if "accuracy" in facts:
        text = f", accuracy {facts['accuracy']:.4f} on {facts['tested_on']}"
    elif facts["is_chance"]:
        text = f", accuracy {facts['training_accuracy']:.4f} on these"
    else:
        return ", accuracy not measured: name test images between the two paths"
    if not facts["is_chance"]:
        return text
    return (
        f"{text}; NOTE: this is chance (naming the most frequent class gives {facts['chance']:.4f}), so its features tell "
        "classes apart no better than an untrained one's: train longer (--train-epochs) or on more images before scoring on it"
    )


def _check_output(output: Path) -> None:
    """Raise if the weights could not be written in the end."""
    if output.suffix != ".safetensors":
        raise ValueError(f"--train-extractor writes a .safetensors file, got the output {output}: name it {output}.safetensors.")
    if output.exists():
        raise FileExistsError(f"output file {output} exists: remove it or choose another name.")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"output file {output} can't be written: {parent} is no folder that this user may write to.")


def _open_labelled(paths: Sequence[str], options: ScoreOptions) -> list[Any]:
    """Open training and test images; None for a test set that is not given."""
    if options.num_samples is not None and not any(is_generator(Path(path)) for path in paths):
        raise ValueError("--num-samples applies to saved pipelines only, and no path is one.")
    sources: list[Any] = []
    for path in paths:
        source = open_images(Path(path), OpenOptions.of(options))
        if not source.has_labels:
            raise ValueError(f"--train-extractor needs class labels, and {source.lack_of_labels()}")
        sources.append(source)
    return [*sources, None][:2]
