"""Flags that bring networks of other runs to guide a diffusion pipeline: a weaker denoiser, a classifier of noised samples."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.base import ImageGenerationPipeline


@dataclass(frozen=True)
class GuideFlags:
    """What the flags say, as ``add_guide_flags`` names them."""

    guide: Path | None = None
    guide_average: str | None = None
    guide_step: int | None = None
    classifier: Path | None = None

    @property
    def is_empty(self) -> bool:
        """Whether none was given."""
        return self == GuideFlags()


def add_guide_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags, in a group of their own."""
    group = parser.add_argument_group("networks that guide (diffusion)")
    group.add_argument(
        "--guide",
        type=Path,
        metavar="RUN_OR_FOLDER",
        help="a weaker denoiser to guide away from, by --guide-scale: a run, a checkpoint or a pipeline of the same data and "
        "formulation (autoguidance: a smaller or less trained one; SIMS: one trained on its own samples)",
    )
    group.add_argument("--guide-average", metavar="NAME", help="which average of the guide's run (default: the one that samples)")
    group.add_argument("--guide-step", type=int, metavar="N", help="which checkpoint of the guide's run (default: the newest)")
    group.add_argument(
        "--classifier",
        type=Path,
        metavar="RUN_OR_FOLDER",
        help="a classifier of noised samples of the same data and formulation, whose gradient leads to the class, by "
        "--classifier-scale",
    )


def take_guide_flags(given: dict[str, Any]) -> GuideFlags:
    """Take the flags out of parsed arguments.

    Args:
        given: ``vars`` of the namespace, changed in place.

    Raises:
        UserError: If one describes a guide, and there is none.
    """
    flags = GuideFlags(**{name: given.pop(name) for name in ("guide", "guide_average", "guide_step", "classifier")})
    for name in ("guide_average", "guide_step"):
        if flags.guide is None and getattr(flags, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} says which network of a run is the guide; add --guide RUN")
    return flags


def attach_guides(pipeline: ImageGenerationPipeline, flags: GuideFlags, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give a pipeline the networks that the flags name.

    Args:
        pipeline: Changed in place.
        flags: From ``take_guide_flags``.
        options: Of sampling, as given.

    Returns:
        Fingerprints of the networks by their role, for what is written beside samples.

    Raises:
        UserError: If the pipeline is of another family, a network does not fit, or the scale that makes it act is missing.
    """
    if flags.is_empty:
        return {}
    from pipelines.diffusion import DiffusionImagePipeline
    from pipelines.guides import add_classifier, add_guide

    if not isinstance(pipeline, DiffusionImagePipeline):
        name = "--guide" if flags.guide else "--classifier"
        raise UserError(f"{type(pipeline).__name__} has no use for {name}, which guides a diffusion")
    chosen, found = pipeline.merge_options(options), {}
    if flags.guide is not None:
        if chosen.guide_scale == 1:
            raise UserError("--guide does nothing at guide_scale 1; give --guide-scale, for example 2")
        found["guide"] = add_guide(pipeline, flags.guide, flags.guide_average, flags.guide_step)
    if flags.classifier is not None:
        if chosen.classifier_scale == 0:
            raise UserError("--classifier does nothing at classifier_scale 0; give --classifier-scale, for example 1")
        found["classifier"] = add_classifier(pipeline, flags.classifier)
    return found
