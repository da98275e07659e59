"""Guides and noised classifiers of a diffusion pipeline from runs, checkpoints and folders, checked against what they guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from generative.core.checkpoint import PIPELINE, fingerprint_network
from generative.core.errors import UserError
from generative.core.weights import CONFIG, find_source, load_network
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.samplers.fit import formulation_of
from pipelines.base import component_libraries, load_component, read_model_index
from pipelines.diffusion import DiffusionImagePipeline


def add_guide(pipeline: DiffusionImagePipeline, folder: Path, average: str | None = None, step: int | None = None) -> str:
    """Give a pipeline a guide: the denoiser of a run, at any of its checkpoints and averages, or another pipeline's (its guide).

    Args:
        pipeline: Changed in place; the guide is on its device, in its precision.
        folder: A run, a checkpoint, a pipeline folder or a network's own folder.
        average: Name of an average of the run; None for the one that its pipeline samples from.
        step: Of a run's checkpoint; None for the newest.

    Returns:
        Fingerprint of the guide.

    Raises:
        UserError: If there is no such network, or it is of other data, classes or another formulation.
    """
    network, fingerprint = load_part(folder, guide_name(folder, step), average, step)
    place = pipeline_of(folder, step)
    if place is not None:
        check_formulation(place, pipeline, "guide")
        check_autoencoder(place, pipeline)
    attach(pipeline, "guide", network)
    return fingerprint


def add_classifier(pipeline: DiffusionImagePipeline, folder: Path) -> str:
    """Give a pipeline a noised classifier.

    Args:
        pipeline: Changed in place; the classifier is on its device, in its precision.
        folder: A run, a checkpoint, a pipeline folder or a network's own folder.

    Returns:
        Fingerprint of the classifier.

    Raises:
        UserError: If there is none, or it is of other data, classes or another formulation.
    """
    network, fingerprint = load_part(folder, "classifier")
    place = pipeline_of(folder)
    if place is not None:
        check_formulation(place, pipeline, "classifier")
    attach(pipeline, "classifier", network)
    return fingerprint


def load_part(folder: Path, name: str, average: str | None = None, step: int | None = None) -> tuple[ModelMixin, str]:
    """A network of a folder by its usual name, or by that of an average; see ``load_network``."""
    is_network = (folder / CONFIG).is_file()
    return load_network(folder, None if is_network else average or name, step=step)


def guide_name(folder: Path, step: int | None = None) -> str:
    """Which network of a folder guides: the guide of a pipeline that has one, as self-improvement writes it, or its denoiser."""
    place = pipeline_of(folder, step)
    return "guide" if place is not None and (place / "guide" / CONFIG).is_file() else "denoiser"


def pipeline_of(folder: Path, step: int | None = None) -> Path | None:
    """The pipeline folder that belongs to a network, which says what it was trained under; None where there is none."""
    if (folder / CONFIG).is_file():
        candidates = [folder.parent]
    else:
        source = find_source(folder, step)
        candidates = [source / PIPELINE, source]
    return next((place for place in candidates if (place / "model_index.json").is_file()), None)


def saved_formulation(place: Path) -> Formulation | None:
    """The formulation of a pipeline folder; None where it has none, and no scheduler that stands for one."""
    index = read_model_index(place)
    libraries = component_libraries(index)
    if "formulation" in libraries:
        formulation: Formulation = load_component(place / "formulation", libraries["formulation"], index["formulation"][1])
        return formulation
    name = next((name for name in ("training_scheduler", "scheduler") if libraries.get(name) == "diffusers"), None)
    return None if name is None else formulation_of(load_component(place / name, "diffusers", index[name][1]))


def check_formulation(place: Path, pipeline: DiffusionImagePipeline, role: str) -> None:
    """Refuse a network whose inputs or outputs mean something else than those of the pipeline's denoiser.

    Raises:
        UserError: Naming the first thing in which they differ.
    """
    theirs, ours = saved_formulation(place), pipeline.formulation
    if theirs is None:
        return
    if type(theirs) is not type(ours):
        raise UserError(
            f"the {role} in '{place}' was trained as {type(theirs).__name__} and the denoiser as {type(ours).__name__}; give a "
            f"{role} of the same formulation"
        )
    before, now = (formulation.meaning(predicts=role != "classifier") for formulation in (theirs, ours))
    for name in sorted(before.keys() | now.keys()):
        if plain(before.get(name)) != plain(now.get(name)):
            raise UserError(
                f"the {role} in '{place}' was trained with {name} {before.get(name)} and the denoiser with {now.get(name)}; give "
                f"a {role} of the same formulation"
            )


def plain(value: Any) -> Any:
    """Lists for tuples, as JSON gives them back."""
    return list(value) if isinstance(value, tuple) else value


def check_autoencoder(place: Path, pipeline: DiffusionImagePipeline) -> None:
    """Refuse a guide on latents of another autoencoder, or on pixels where the denoiser is on latents.

    Raises:
        UserError: If they differ.
    """
    has_one, has_ours = "autoencoder" in component_libraries(read_model_index(place)), pipeline.autoencoder is not None
    if not (has_one or has_ours):
        return
    if has_one != has_ours:
        kinds = {True: "latents of an autoencoder", False: "no autoencoder"}
        raise UserError(
            f"the guide in '{place}' has {kinds[has_one]} and the denoiser {kinds[has_ours]}; give a guide of the same latents"
        )
    theirs, _ = load_network(place / "autoencoder")
    if fingerprint_network(in_precision(theirs, pipeline.autoencoder.dtype)) != fingerprint_network(pipeline.autoencoder):
        raise UserError(f"the guide in '{place}' is of another autoencoder's latents; give a guide of the same latents")


def attach(pipeline: DiffusionImagePipeline, name: str, network: ModelMixin) -> None:
    """Put a component into a pipeline, on the device and in the precision of its denoiser."""
    pipeline.register_modules(**{name: in_precision(network, pipeline.denoiser.dtype).to(pipeline.denoiser.device)})


def in_precision(network: ModelMixin, dtype: torch.dtype) -> ModelMixin:
    """A network in a precision; diffusers warns of a change even where there is none."""
    return network if network.dtype == dtype else network.to(dtype)
