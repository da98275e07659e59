"""How the outputs of sid_dhariwal parity files follow from their inputs: a teacher of SiD on ADM's U-Net."""

from __future__ import annotations

from edm_outputs import denoise
from outputs import Given, Table

from generative.convert.diffusion.edm import formulation
from generative.layers.embeddings import timestep_embedding

SOURCE = "edm"


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs, trained = given.model, given.inputs, formulation(given.config)
    sample, sigma = inputs["x"], inputs["sigma"]
    labels, augment_labels = inputs.get("class_labels"), inputs.get("augment_labels")
    return {
        "denoised": lambda: denoise(model, trained, sample, sigma, labels, augment_labels),
        "denoised_no_labels": lambda: denoise(model, trained, sample, sigma, None, augment_labels),
        "denoised_no_augment": lambda: denoise(model, trained, sample, sigma, labels),
        "noise_embedding": lambda: timestep_embedding(trained.network_time(sigma), model.config.model_channels),
    }
