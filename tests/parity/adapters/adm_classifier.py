"""How the outputs of adm_classifier parity files follow from their inputs, through the code that guides."""

from __future__ import annotations

import torch.nn.functional as F
from outputs import Given, Table
from torch import Tensor

from generative.convert.diffusion.adm_classifier import CONSTRUCTOR, ADMClassifierSource
from generative.core.sampling import SampleState
from generative.diffusion.denoiser import Condition, DenoiserOutput
from generative.diffusion.guidance.classifier import ClassifierGradient

SOURCE = "adm_classifier"


def outputs(given: Given) -> Table:
    """The table of outputs."""
    model, inputs, config = given.model, given.inputs, {**given.config, **given.sampling}
    trained = ADMClassifierSource().formulation(config)
    scale = CONSTRUCTOR.values(config)["classifier_scale"]

    def logits() -> Tensor:
        return model(inputs["x"], trained.network_time(inputs["t"]))

    def gradient() -> Tensor:
        guidance = ClassifierGradient(classifier=model, scale=scale)
        unguided = DenoiserOutput(inputs["x"])
        guided = guidance.wrap(lambda state, time: unguided, Condition(inputs["y"]), trained)
        found = guided(SampleState(inputs["x"]), inputs["t"]).gradient
        return inputs["x"] * 0 if found is None else found

    return {
        "logits": logits,
        "cond_grad": gradient,
        "train_cross_entropy": lambda: F.cross_entropy(logits(), inputs["y"], reduction="none"),
    }
