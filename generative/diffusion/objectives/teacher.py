"""Teachers of distillation: a trained denoiser with what it was trained under, by folder."""

from __future__ import annotations

from pathlib import Path

from diffusers import ModelMixin

from generative.core.errors import UserError
from generative.core.weights import load_network
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.samplers.one_step import OneStepSampler

PLACES = "give a run of an EDM, one of its checkpoints, or a pipeline folder (of `generative convert` too)"


class Teacher:
    """A denoiser that is distilled, and what its inputs and outputs mean.

    Args:
        network: ``(sample, time, class_labels) -> DenoiserOutput``, trained; it is frozen here.
        formulation: What it was trained under.
        autoencoder: Decodes what it makes; None if it works on pixels.
        source: Where it is from, for messages.
    """

    def __init__(
        self, network: ModelMixin, formulation: Formulation, autoencoder: ModelMixin | None = None, source: str = "teacher"
    ) -> None:
        self.network = network.requires_grad_(False).eval()
        self.formulation = formulation
        self.autoencoder = autoencoder
        self.source = source


def load_teacher(folder: Path, average: str | None = None, step: int | None = None) -> Teacher:
    """Load a diffusion model with its formulation.

    Args:
        folder: A run, a checkpoint or a pipeline folder, such as `generative convert` makes of an official file.
        average: Name of an average of the run; None for the one that its pipeline samples from.
        step: Of the run's checkpoint; None for the newest.

    Raises:
        UserError: If there is none, it is damaged, or is itself a one-step generator.
    """
    from pipelines.base import component_libraries, read_model_index
    from pipelines.guides import pipeline_of, saved_formulation

    folder = Path(folder)
    place = pipeline_of(folder, step)
    index = {} if place is None else read_model_index(place)
    if index.get("scheduler", [None, None])[1] == OneStepSampler.__name__:
        raise UserError(f"teacher '{folder}' is a one-step generator, which predicts at one noise level only; {PLACES}")
    formulation = None if place is None else saved_formulation(place)
    if place is None or formulation is None or "denoiser" not in index:
        raise UserError(f"teacher '{folder}' holds no pipeline of a diffusion that says what it was trained under; {PLACES}")
    network, _ = load_network(folder, average or "denoiser", step=step)
    has_autoencoder = "autoencoder" in component_libraries(index)
    return Teacher(network, formulation, load_network(place / "autoencoder")[0] if has_autoencoder else None, source=str(folder))


def load_generator(folder: Path) -> ModelMixin:
    """Load a one-step generator that training goes on from (SiD before SiDA: "SiD2A" in arXiv 2410.14919).

    Args:
        folder: Of a run of SiD, one of its checkpoints, or a pipeline folder.

    Returns:
        The network that its pipeline samples from.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    return load_network(Path(folder), "denoiser")[0]
