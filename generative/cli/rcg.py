"""``generative rcg``: a representation diffusion and the generator that it conditions as one pipeline folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.arguments import CommandParser
from generative.core.errors import UserError

if TYPE_CHECKING:
    from pipelines.mage import MAGEPipeline
    from pipelines.rcg import RCGPipeline

EPILOG = """The runs of `generative train digits/rcg` and its like hold both already; official checkpoints are two files:
  generative convert rdm-mocov3vitb.pth --output pipelines/rdm
  generative convert mage-b.pth --output pipelines/mage
  generative rcg pipelines/rdm pipelines/mage --output pipelines/rcg
  generative sample pipelines/rcg --num-images-per-class 64 --guidance-scale 2 --output samples/
A class-conditional representation diffusion makes the whole class-conditional."""


def run(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    parser = CommandParser("generative rcg", "Put a representation diffusion and a generator into one pipeline folder.", EPILOG)
    what = "a run, a checkpoint or a pipeline folder"
    parser.add_argument("representation", metavar="REPRESENTATION", type=Path, help=f"makes representations: {what}")
    parser.add_argument("generator", metavar="GENERATOR", type=Path, help=f"makes images of them: {what}")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a new folder")
    known = parser.parse_args(arguments)
    if known.output.exists():
        raise UserError(f"output '{known.output}' is already there; choose another folder")
    from generative.core import checkpoint as ckpt

    pipeline = join(known.representation, known.generator)
    ckpt.write_folder(known.output, pipeline.save_pretrained)
    print(f"'{known.output}' makes images of {pipeline.image_size} pixels, sample with `generative sample {known.output}`")
    return 0


def join(representation: Path, generator: Path) -> MAGEPipeline | RCGPipeline:
    """The generator's pipeline with another representation diffusion.

    Args:
        representation: Folder of the representation diffusion.
        generator: Folder of the generator.

    Raises:
        UserError: If the generator takes no representations, or others.
    """
    from pipelines import load_any_pipeline
    from pipelines.representation import RepresentationStage, load_representation

    pipeline: Any = load_any_pipeline(generator)
    if not isinstance(pipeline, RepresentationStage):
        raise UserError(
            f"'{generator}' holds a {type(pipeline).__name__}, whose generator takes no representations; give one that was "
            "trained on them, such as that of `generative train digits/rcg`"
        )
    parts = {name: value for name, value in pipeline.components.items() if name != "training_scheduler"}
    parts |= {"representation": load_representation(representation), "sampling_defaults": pipeline.sampling_defaults}
    joined: MAGEPipeline | RCGPipeline = type(pipeline)(**parts)  # type: ignore[assignment, call-arg] # a subclass of either
    joined.class_names = joined.representation.class_names if joined.representation is not None else None
    return joined
