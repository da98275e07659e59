"""Whether a guide or a classifier fits the denoiser that it guides, read from their configurations: no network runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from generative.core.errors import UserError

SIZES = ("in_channels", "sample_size", "num_classes")


def check_guide(guide: Any, denoiser: Any) -> None:
    """Refuse a guide that is no denoiser of the same data and classes.

    Args:
        guide: The weaker network; one without classes may guide any.
        denoiser: The pipeline's own.

    Raises:
        UserError: If it does not fit.
    """
    config = guide_config(guide, "guide", "denoiser")
    if not hasattr(guide, "null_label"):
        raise UserError(f"the guide is a {type(guide).__name__}, which is no denoiser; give one of the same data and classes")
    check_data(config, denoiser.config, "guide")
    if config.get("low_resolution_size") != denoiser.config.get("low_resolution_size"):
        raise UserError(
            f"the guide takes images of lower resolution of {config.get('low_resolution_size') or 'no'} pixels, the denoiser of "
            f"{denoiser.config.get('low_resolution_size') or 'no'}; give a guide of the same conditions"
        )
    if has_classes(config):
        check_classes(config, denoiser.config, "guide")


def check_classifier(classifier: Any, denoiser: Any) -> None:
    """Refuse a classifier of other data or classes than the denoiser's.

    Args:
        classifier: ``(sample, time) -> logits (B, num_classes)``.
        denoiser: The pipeline's own; one without classes may be guided to any.

    Raises:
        UserError: If it does not fit.
    """
    config = guide_config(classifier, "classifier", "classifier of noised samples")
    if hasattr(classifier, "null_label"):
        raise UserError(f"the classifier is a {type(classifier).__name__}, a denoiser; give a classifier of noised samples")
    check_data(config, denoiser.config, "classifier")
    if has_classes(denoiser.config):
        check_classes(config, denoiser.config, "classifier")


def guide_config(network: Any, role: str, wanted: str) -> Mapping[str, Any]:
    """Configuration of a network that says what data and classes it is for.

    Raises:
        UserError: If it does not say so.
    """
    config: Mapping[str, Any] = getattr(network, "config", {})
    if any(name not in config for name in SIZES):
        raise UserError(f"the {role} is a {type(network).__name__}, which is no {wanted}: its config must say {', '.join(SIZES)}")
    return config


def check_data(config: Mapping[str, Any], denoiser: Mapping[str, Any], role: str) -> None:
    """Refuse a network of other channels or another size."""
    ours, theirs = ((each["in_channels"], each["sample_size"]) for each in (denoiser, config))
    if ours != theirs:
        raise UserError(
            f"the {role} takes {theirs[0]} channels of {theirs[1]}x{theirs[1]}, the denoiser {ours[0]} of {ours[1]}x{ours[1]}; "
            f"give a {role} of the same pixels or latents"
        )


def has_classes(config: Mapping[str, Any]) -> bool:
    """Whether a denoiser looks at class labels.

    One that does not has ``class_conditional`` false and ``num_classes`` 1, or as many as the labelled data have that it was
    trained on; a classifier may guide it to classes of its own.
    """
    return config.get("class_conditional") is not False


def check_classes(config: Mapping[str, Any], denoiser: Mapping[str, Any], role: str) -> None:
    """Refuse a network of other classes."""
    if config["num_classes"] != denoiser["num_classes"]:
        raise UserError(
            f"the {role} knows {config['num_classes']} classes and the denoiser {denoiser['num_classes']}; give a {role} of the "
            "same classes"
        )
