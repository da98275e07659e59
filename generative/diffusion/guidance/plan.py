"""From options of sampling to the guidance that they ask for, checked against the networks that are there: none of them runs."""

from __future__ import annotations

from typing import Any

from generative.core.errors import UserError
from generative.diffusion.formulations.base import Formulation
from generative.diffusion.guidance.classifier import ClassifierGradient
from generative.diffusion.guidance.combined import Guidance
from generative.diffusion.guidance.components import has_classes
from generative.diffusion.guidance.extrapolation import Extrapolation
from generative.diffusion.guidance.projected import ProjectedGuidance
from generative.diffusion.guidance.rule import GuidanceRule
from generative.diffusion.guidance.zero_star import ZeroInit, ZeroStar, check_velocity
from generative.diffusion.options import DiffusionOptions

OPTIONS_OF_RULES = {"apg": ("apg_parallel", "apg_threshold", "apg_momentum"), "zero-star": ("zero_init",)}


def plan_guidance(
    options: DiffusionOptions, denoiser: Any, formulation: Formulation, guide: Any = None, classifier: Any = None
) -> Guidance:
    """Classifier-free guidance, the guide and the classifier, as far as they are asked for.

    Args:
        options: Of the call.
        denoiser: The pipeline's own.
        formulation: What all networks were trained under.
        guide: The weaker network, or None.
        classifier: Of noised samples, or None.

    Raises:
        UserError: If an option is out of range, or it needs a null condition or a network that is not there.
    """
    channels, null_label = denoiser.config.in_channels, denoiser.null_label
    if options.guidance_channels is not None and not 1 <= options.guidance_channels <= channels:
        raise UserError(
            f"guidance_channels must be in 1..{channels}, the channels of this denoiser, got {options.guidance_channels}"
        )
    if options.guidance_scale != 1 and null_label is None:
        raise UserError(
            f"guidance_scale {options.guidance_scale} needs a denoiser with a null condition, and this one has none; use 1"
        )
    shared: dict[str, Any] = {
        "schedule": options.guidance_schedule,
        "exponent": options.guidance_exponent,
        "channels": options.guidance_channels,
        "rule": plan_rule(options, formulation),
    }
    free = Extrapolation(scale=options.guidance_scale, null_label=null_label, interval=options.guidance_interval, **shared)
    away = Extrapolation(
        scale=options.guide_scale,
        null_label=guide_null_label(options, guide),
        weak=guide,
        interval=options.guide_interval,
        prefix="guide",
        **shared,
    )
    return Guidance(
        extrapolations=(free, away),
        classifier=classifier_gradient(options, classifier),
        zero_init=ZeroInit(share=options.zero_init) if options.zero_init else None,
    )


def plan_rule(options: DiffusionOptions, formulation: Formulation) -> GuidanceRule | None:
    """The rule of the extrapolations; None for the plain one.

    Raises:
        UserError: If an option of another rule is given, or one is out of range.
    """
    defaults = type(options)()
    for rule, names in OPTIONS_OF_RULES.items():
        for name in names:
            if rule != options.guidance_rule and getattr(options, name) != getattr(defaults, name):
                raise UserError(f"{name} is an option of guidance_rule {rule}, and guidance_rule is {options.guidance_rule}")
    if options.guidance_rule == "apg":
        return ProjectedGuidance(parallel=options.apg_parallel, threshold=options.apg_threshold, momentum=options.apg_momentum)
    if options.guidance_rule == "zero-star":
        check_velocity(formulation)
        return ZeroStar()
    return None


def guide_null_label(options: DiffusionOptions, guide: Any) -> int | None:
    """Label that the guide is told instead of the class; None where it is told the class.

    Raises:
        UserError: If there is no guide to act, or it has no null condition.
    """
    if options.guide_scale != 1 and guide is None:
        raise UserError(
            f"guide_scale {options.guide_scale} needs a guide, and the pipeline has none; give --guide RUN_OR_FOLDER, or build "
            "the pipeline with guide=..."
        )
    if options.guide_condition == "class" or guide is None or not has_classes(guide.config):
        return None
    null_label: int | None = guide.null_label
    if null_label is None:
        raise UserError("guide_condition 'null' needs a guide with a null condition, and this one has none; use class")
    return null_label


def classifier_gradient(options: DiffusionOptions, classifier: Any) -> ClassifierGradient | None:
    """The gradient of a classifier, None where none is asked for; its options are checked either way.

    Raises:
        UserError: If there is no classifier to act, or an option is out of range.
    """
    if options.classifier_scale != 0 and classifier is None:
        raise UserError(
            f"classifier_scale {options.classifier_scale} needs a noised classifier, and the pipeline has none; give "
            "--classifier RUN_OR_FOLDER, or build the pipeline with classifier=..."
        )
    gradient = ClassifierGradient(classifier=classifier, scale=options.classifier_scale, interval=options.classifier_interval)
    return gradient if options.classifier_scale else None
