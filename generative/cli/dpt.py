"""``generative dpt``: a conditional generator and a classifier from a few labels a class (arXiv 2302.10586)."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.cli.layers import SECTIONS
from generative.cli.overrides import split_overrides
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.cli.dpt_stages import DualPseudoTraining

EPILOG = """Three stages (dual pseudo training), each of which goes on where it was stopped when the command is repeated:
  1. a linear classifier on frozen features of the labelled images labels all the others               DIR/features, DIR/labels
  2. a generator is trained on all images under these labels, as CONFIG says                           DIR/training
  3. it makes images of each class, and the classifier is fitted again on them and the labelled ones   DIR/samples
Accuracies on the held-out images of CONFIG's evaluation are in DIR/dpt.json, and in `generative report DIR/training`:
  generative dpt digits/dit --labels-per-class 2 --output runs/digits-dpt-2
  generative dpt digits/dit --labels-per-class all --output runs/digits-dpt-all
CONFIG's data have all labels; only those of the chosen images are looked at, the others to say how many pseudo-labels are right.
Values of CONFIG are overridden as in `generative train`. The paper's features are those of a ViT of MSN, from its file:
  generative dpt CONFIG --extractor msn-vit-b-16 --weights vitb16_600ep.pth.tar
Any other extractor of `fid-score` will do, --extractor dinov2-vit-l-14 for instance."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative dpt", "Train a generator and a classifier on a few labels a class.", EPILOG)
    parser.add_argument("config", metavar="CONFIG", help="a training configuration with an evaluation on held-out images")
    parser.add_argument("--labels-per-class", default="2", metavar="K", help="labels looked at, or `all` (default 2)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: the run's folder of CONFIG, with -dpt behind it")
    parser.add_argument("--extractor", default="efficientnet-lite0", metavar="NAME", help="frozen network (efficientnet-lite0)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="its weights (default: the packaged or published ones)")
    parser.add_argument("--input-size", type=int, metavar="N", help="side of its images (default: its own)")
    parser.add_argument("--pseudo-images", type=int, default=128, metavar="N", help="of each class (default 128)")
    parser.add_argument("--label-seed", type=int, default=0, metavar="SEED", help="of the choice of labels (default 0)")
    parser.add_argument("--sample-seed", type=int, default=0, metavar="SEED", help="of the pseudo-images (default 0)")
    parser.add_argument("--batch-size", type=int, default=50, metavar="N", help="pseudo-images at a time (default 50)")
    own, overrides = split_overrides(arguments, SECTIONS)
    given = parser.parse_args(own)
    for name in ("pseudo_images", "batch_size"):
        if getattr(given, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(given, name)}")
    given.labels_per_class = labels_per_class(given.labels_per_class)
    return plan(given, overrides).run()


def labels_per_class(text: str) -> int | None:
    """A number of labels, None for all.

    Raises:
        UserError: If it leaves a class without one.
    """
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"--labels-per-class must be at least 1, or `all`, got {text}: every class needs a label")
    return int(text)


def plan(given: argparse.Namespace, overrides: list[str]) -> DualPseudoTraining:
    """Read the configuration and its data, and check that they will do, before any network runs.

    Raises:
        UserError: If there are no held-out images, a class has too few images, or DIR holds something else.
    """
    from generative.cli.config import build_config, parse_train_config
    from generative.cli.config_files import find_config
    from generative.cli.dpt_probe import choose_labelled
    from generative.cli.dpt_stages import DualPseudoTraining
    from generative.core.evaluation import Evaluator

    path = find_config(given.config)
    parser, config = parse_train_config(path, overrides)
    if config.get("evaluation") is None:
        raise UserError(f"'{given.config}' has no `evaluation`, whose held-out images the classifiers are tested on; add one")
    data: Any = json.loads(json.dumps(config.data.as_dict(), default=str))
    output = given.output or Path(f"{config.trainer.output_dir}-dpt")
    steps = math.ceil(config.trainer.total_images / config.trainer.batch_size)
    del config["objective"]  # built when it is trained
    built = build_config(parser, config)
    if not isinstance(built.evaluation, Evaluator):
        raise UserError(f"the evaluation of '{given.config}' has no held-out images of classes; give another")
    built.evaluation.match_classes(built.data)
    labelled = choose_labelled(built.data.labels, built.data.num_classes, given.labels_per_class, given.label_seed)
    return DualPseudoTraining(
        config=path,
        overrides=tuple(overrides),
        data_section=data,
        data=built.data,
        held_out=built.evaluation.data,
        labelled=labelled,
        output=output,
        steps=steps,
        asked={
            "config": given.config,
            "labels_per_class": "all" if given.labels_per_class is None else given.labels_per_class,
            "label_seed": given.label_seed,
            "extractor": given.extractor,
            "weights": None if given.weights is None else str(given.weights),
            "input_size": given.input_size,
            "pseudo_images": given.pseudo_images,
            "sample_seed": given.sample_seed,
        },
        batch_size=given.batch_size,
    )
