"""``generative cascade``: a diffusion pipeline and an upsampler of its images as one pipeline folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.core.errors import UserError

if TYPE_CHECKING:
    from generative.cli.guides import GuideFlags
    from pipelines.base import ImageGenerationPipeline

EPILOG = """The folder is sampled, scored and loaded like any other; options of the upsampler are called --upsampler-...:
  generative cascade runs/imagenet-adm_64 runs/imagenet-adm_upsampler_64_256 --output pipelines/adm-64-256
  generative sample pipelines/adm-64-256 --num-inference-steps 250 --upsampler-num-inference-steps 27 --output samples/
One command without such a folder: generative sample BASE --upsampler UPSAMPLER"""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative cascade", "Put a base and an upsampler into one pipeline folder.", EPILOG)
    what = "a run, a checkpoint or a pipeline folder"
    parser.add_argument("base", metavar="BASE", type=Path, help=f"makes the small images: {what} of a diffusion model")
    parser.add_argument("upsampler", metavar="UPSAMPLER", type=Path, help=f"takes images of that size: {what} of an upsampler")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a new folder")
    known = parser.parse_args(arguments)
    if known.output.exists():
        raise UserError(f"output '{known.output}' is already there; choose another folder")
    from generative.core import checkpoint as ckpt
    from pipelines import load_pipeline

    pipeline, _ = attach_upsampler(load_pipeline(known.base), known.upsampler)
    ckpt.write_folder(known.output, pipeline.save_pretrained)
    print(f"'{known.output}' makes images of {pipeline.image_size} pixels, sample with `generative sample {known.output}`")
    return 0


def attach_upsampler(pipeline: ImageGenerationPipeline, folder: Path | None) -> tuple[ImageGenerationPipeline, dict[str, Any]]:
    """Put an upsampler behind a pipeline.

    Args:
        pipeline: Makes the small images.
        folder: A run, a checkpoint or a pipeline folder of the upsampler; None for none.

    Returns:
        The cascade, or the pipeline itself; and the upsampler's fingerprint, for what is written beside samples.

    Raises:
        UserError: If there is no upsampler, or the two do not meet.
    """
    if folder is None:
        return pipeline, {}
    from generative.core.checkpoint import fingerprint_folder
    from pipelines import find_pipeline_folder, load_any_pipeline
    from pipelines.cascade import CascadePipeline, check_stages

    upsampler: Any = load_any_pipeline(folder)
    base: Any = pipeline
    check_stages(base, upsampler)
    return CascadePipeline(base, upsampler), {"upsampler": fingerprint_folder(find_pipeline_folder(folder))}


def stage_of(
    pipeline: ImageGenerationPipeline, options: Mapping[str, Any], guides: GuideFlags
) -> tuple[ImageGenerationPipeline, GuideFlags, dict[str, Any]]:
    """What networks that guide are attached to, with its own options: a cascade's base, any other pipeline itself."""
    stage: Any = getattr(pipeline, "base", pipeline)
    return stage, guides, {name: value for name, value in options.items() if name in stage.options_class.names()}
