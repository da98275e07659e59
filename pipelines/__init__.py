"""Pipelines make class-conditional images: ``DiffusionImagePipeline.from_pretrained(folder)(class_labels=[3, 5])``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from generative.core.options import SamplingOptions
    from pipelines.autoregressive import AutoregressiveImagePipeline
    from pipelines.base import ImageGenerationPipeline, ImagePipeline
    from pipelines.cascade import CascadePipeline
    from pipelines.classifier import NoisedClassifierPipeline
    from pipelines.diffusion import DiffusionImagePipeline
    from pipelines.emigm import EMIGMPipeline
    from pipelines.gan import GANImagePipeline
    from pipelines.mage import MAGEPipeline
    from pipelines.magvit2 import MAGVIT2Pipeline
    from pipelines.mar import MARPipeline
    from pipelines.maskgit import MaskGITPipeline
    from pipelines.rcg import RCGPipeline
    from pipelines.reconstruction import ImageReconstructionPipeline
    from pipelines.representation import RepresentationPipeline
    from pipelines.resgen import ResGenPipeline
    from pipelines.upsampler import UpsamplerPipeline
    from pipelines.var import VARPipeline

__all__ = [
    "AutoregressiveImagePipeline",
    "CascadePipeline",
    "DiffusionImagePipeline",
    "EMIGMPipeline",
    "GANImagePipeline",
    "ImageReconstructionPipeline",
    "MAGEPipeline",
    "MAGVIT2Pipeline",
    "MARPipeline",
    "MaskGITPipeline",
    "NoisedClassifierPipeline",
    "RCGPipeline",
    "RepresentationPipeline",
    "ResGenPipeline",
    "UpsamplerPipeline",
    "VARPipeline",
    "load_any_pipeline",
    "load_pipeline",
    "options_classes",
]

# A new pipeline is one file and one line here: model_index.json names the class, and this is where it lives.
PIPELINES = {
    "AutoregressiveImagePipeline": "pipelines.autoregressive",
    "CascadePipeline": "pipelines.cascade",
    "DiffusionImagePipeline": "pipelines.diffusion",
    "EMIGMPipeline": "pipelines.emigm",
    "GANImagePipeline": "pipelines.gan",
    "ImageReconstructionPipeline": "pipelines.reconstruction",
    "MAGEPipeline": "pipelines.mage",
    "MAGVIT2Pipeline": "pipelines.magvit2",
    "MARPipeline": "pipelines.mar",
    "MaskGITPipeline": "pipelines.maskgit",
    "NoisedClassifierPipeline": "pipelines.classifier",
    "RCGPipeline": "pipelines.rcg",
    "RepresentationPipeline": "pipelines.representation",
    "ResGenPipeline": "pipelines.resgen",
    "UpsamplerPipeline": "pipelines.upsampler",
    "VARPipeline": "pipelines.var",
}
# The options of those that sample, where no torch is needed to read them: the flags of ``generative sample``.
OPTIONS = {
    "DiffusionImagePipeline": "generative.diffusion.options.DiffusionOptions",
    "CascadePipeline": "generative.diffusion.options.CascadeOptions",
    "GANImagePipeline": "generative.gan.options.GANOptions",
    "AutoregressiveImagePipeline": "generative.autoregressive.options.NextTokenOptions",
    "MAGVIT2Pipeline": "generative.autoregressive.options.SubTokenOptions",
    "VARPipeline": "generative.autoregressive.options.VAROptions",
    "MaskGITPipeline": "generative.autoregressive.options.MaskGITOptions",
    "MAGEPipeline": "generative.autoregressive.options.MAGEOptions",
    "RCGPipeline": "generative.diffusion.options.RCGOptions",
    "ResGenPipeline": "generative.autoregressive.options.ResGenOptions",
    "MARPipeline": "generative.autoregressive.options.MAROptions",
    "EMIGMPipeline": "generative.autoregressive.options.EMIGMOptions",
}


def __getattr__(name: str) -> Any:
    """Import a pipeline class when it is first asked for: importing the package costs nothing."""
    if name in PIPELINES:
        return getattr(import_module(PIPELINES[name]), name)
    raise AttributeError(f"module 'pipelines' has no attribute '{name}'")


def options_classes() -> dict[str, type[SamplingOptions]]:
    """Options of sampling by the name of the pipeline that takes them, read without torch."""
    found = {}
    for name, path in OPTIONS.items():
        module, _, options = path.rpartition(".")
        found[name] = getattr(import_module(module), options)
    return found


def load_pipeline(folder: str | Path, average: str | None = None, revision: str | None = None) -> ImageGenerationPipeline:
    """Load a pipeline that generates images, of any family.

    Args:
        folder: A run folder or one of its checkpoints (their ``pipeline/`` is taken), a pipeline folder, or ``user/repo`` of the
            hub where no folder has that name; of a repository, safetensors and JSON are fetched and nothing else.
        average: Another average of a run or checkpoint in the place of the one that samples, by its name in the checkpoint's
            ``ema/``, such as ``denoiser-std-0.1``.
        revision: Branch, tag or commit of a repository; None for its main branch.

    Returns:
        The pipeline, on the CPU in float32.

    Raises:
        UserError: If there is no pipeline or no such average, it is damaged, its class is not one of ours, or it does something
            else.
    """
    from generative.core.errors import UserError
    from generative.core.hub import local_folder
    from pipelines.base import ImageGenerationPipeline

    source = local_folder(folder, revision)
    pipeline = load_any_pipeline(source) if average is None else load_with_average(source, average)
    if not isinstance(pipeline, ImageGenerationPipeline):
        raise UserError(f"'{folder}' holds a {type(pipeline).__name__}, which {pipeline.purpose}; {pipeline.advice}")
    return pipeline


def load_with_average(folder: Path, average: str) -> ImagePipeline:
    """A checkpoint's pipeline in which a network is another of its averages, see ``load_pipeline``."""
    from generative.core.errors import UserError
    from generative.core.weights import find_network, find_source, network_class, read_network, stored_networks

    checkpoint = find_source(folder)
    averages = stored_networks((checkpoint / "ema").glob("*"))
    if average not in averages:
        there = ", ".join(averages) or "none; give a run or a checkpoint"
        raise UserError(f"'{checkpoint}' holds no average '{average}'; it has {there}")
    pipeline = load_any_pipeline(checkpoint)
    trained = stored_networks((checkpoint / "networks").glob("*"))
    network = max((name for name in trained if f"{average}-".startswith(f"{name}-")), key=len, default=average)
    if network not in pipeline.components:
        raise UserError(f"average '{average}' is of '{network}', which is no part of the pipeline that samples")
    stored = find_network(checkpoint, average)
    pipeline.register_modules(**{network: read_network(stored.folder, network_class(stored))})
    return pipeline


def load_any_pipeline(folder: str | Path) -> ImagePipeline:
    """Load a pipeline of any kind, that of a tokenizer or a classifier too; see ``load_pipeline``."""
    from generative.core.errors import UserError
    from pipelines.base import read_model_index

    path = find_pipeline_folder(Path(folder))
    name = read_model_index(path)["_class_name"]
    if name not in PIPELINES:
        raise UserError(f"'{path}' holds a {name}; this project loads {', '.join(PIPELINES)}")
    pipeline: ImagePipeline = getattr(import_module(PIPELINES[name]), name).from_pretrained(path)
    return pipeline


def find_pipeline_folder(folder: Path) -> Path:
    """The pipeline folder of a run or a checkpoint, or the folder itself; of ``user/repo``, that of the hub's cache.

    Raises:
        UserError: If there is neither.
    """
    from generative.core.errors import UserError
    from generative.core.hub import local_folder

    folder = local_folder(folder)
    for path in (folder / "pipeline", folder):
        if (path / "model_index.json").is_file():
            return path
    if not folder.exists():
        raise UserError(f"'{folder}' does not exist; give a run folder (runs/NAME), a checkpoint in it, or a pipeline folder")
    if (folder / "state.json").is_file():
        raise UserError(
            f"'{folder}' is a checkpoint of an older version, which kept no pipeline in it; give its run's folder, or go on with "
            "the run (generative train RUN --resume latest): checkpoints written from now on have one"
        )
    raise UserError(f"'{folder}' holds no pipeline (model_index.json); train to a first checkpoint, or give a pipeline folder")
