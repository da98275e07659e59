"""Which curves a sweep of guidance draws: one kind of guidance each, over the same scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.core.errors import UserError

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from pipelines.diffusion import DiffusionImagePipeline

UNGUIDED: dict[str, Any] = {
    "guidance_scale": 1.0,
    "guidance_interval": None,
    "guide_scale": 1.0,
    "guide_interval": None,
    "classifier_scale": 0.0,
    "classifier_interval": None,
}
"""What every curve begins from at scale 1."""
FREE, INTERVAL, CLASSIFIER, GUIDE, OWN_GUIDE = "classifier-free", "interval", "classifier", "autoguidance", "own-guide"


@dataclass(frozen=True)
class Curve:
    """One kind of guidance.

    Attributes:
        name: What it is called.
        option: The option that is its scale.
        options: Others that it sets.
        networks: Components of the pipeline that it needs, by name.
        fingerprint: Of its network; None where it needs none.
    """

    name: str
    option: str
    options: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, ModelMixin] = field(default_factory=dict)
    fingerprint: str | None = None

    def at(self, scale: float) -> dict[str, Any]:
        """Options of sampling at a scale; 1 is no guidance in every curve, so a classifier's is one more than its factor."""
        value = scale - 1 if self.option == "classifier_scale" else scale
        return UNGUIDED | (self.options | {self.option: value} if scale != 1 else {})

    def record(self) -> dict[str, Any]:
        """What its points depend on besides the settings of all, as JSON holds it."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in self.options.items()}
        return {"option": self.option, "options": options, "network": self.fingerprint}


def parse_scales(text: str) -> list[float]:
    """Numbers of 1 or more with commas between them, each once.

    Raises:
        UserError: If one is no such number, or stands twice.
    """
    scales: list[float] = []
    for part in (part.strip() for part in text.split(",")):
        try:
            scale = float(part)
        except ValueError:
            scale = math.nan
        if not 1 <= scale < math.inf:
            raise UserError(f"--scales takes numbers of 1 or more with commas between them, got '{part}'; 1 is no guidance")
        if scale in scales:
            raise UserError(f"--scales names {part} twice; name each scale once")
        scales.append(scale)
    return scales


def parse_guides(texts: Sequence[str]) -> dict[str, Path]:
    """Folders of guides by the names of their curves, from ``NAME=FOLDER`` or ``FOLDER``.

    Raises:
        UserError: If two have one name.
    """
    guides: dict[str, Path] = {}
    for text in texts:
        name, sign, folder = text.partition("=")
        name, folder = (name, folder) if sign and "/" not in name else (GUIDE, text)
        if not name or not folder:
            raise UserError(f"--guide takes RUN_OR_FOLDER or NAME=RUN_OR_FOLDER, got '{text}'")
        if name in guides or name in (FREE, INTERVAL, CLASSIFIER, OWN_GUIDE):
            raise UserError(f"--guide: there are two curves called '{name}'; write NAME=RUN_OR_FOLDER with another name")
        guides[name] = Path(folder)
    return guides


def make_curves(
    pipeline: DiffusionImagePipeline,
    guides: dict[str, Path],
    classifier: Path | None,
    interval: tuple[float, float] | None,
    wanted: Sequence[str] | None,
) -> list[Curve]:
    """The curves that a pipeline and further networks can be drawn in; the networks are loaded and checked.

    Args:
        pipeline: Its own guide and classifier are taken, and left out of it.
        guides: See ``parse_guides``.
        classifier: Of noised samples; None for the pipeline's own, if it has one.
        interval: Of the curve of classifier-free guidance in an interval; None for no such curve.
        wanted: Names; None for all that there can be.

    Raises:
        UserError: If a network does not fit, or there is no curve of a name that is wanted.
    """
    from generative.core.checkpoint import fingerprint_network
    from pipelines.guides import add_classifier, add_guide

    found: list[Curve] = []
    if pipeline.denoiser.null_label is not None:
        found.append(Curve(FREE, "guidance_scale"))
        if interval is not None:
            found.append(Curve(INTERVAL, "guidance_scale", {"guidance_interval": interval}))
    elif interval is not None:
        raise UserError("--interval is of classifier-free guidance, and the denoiser has no null condition; leave it out")
    if pipeline.guide is not None:
        own = fingerprint_network(pipeline.guide)
        found.append(Curve(OWN_GUIDE, "guide_scale", networks={"guide": pipeline.guide}, fingerprint=own))
    if classifier is not None:
        add_classifier(pipeline, classifier)
    if pipeline.classifier is not None:
        own = fingerprint_network(pipeline.classifier)
        found.append(Curve(CLASSIFIER, "classifier_scale", networks={"classifier": pipeline.classifier}, fingerprint=own))
    for name, folder in guides.items():
        fingerprint = add_guide(pipeline, folder)
        found.append(Curve(name, "guide_scale", networks={"guide": pipeline.guide}, fingerprint=fingerprint))
    pipeline.register_modules(guide=None, classifier=None)
    for name in wanted or ():
        if name not in [curve.name for curve in found]:
            known = ", ".join(curve.name for curve in found) or "none"
            raise UserError(f"--curves: there is no '{name}' here; with these networks there are {known}")
    chosen = [curve for curve in found if wanted is None or curve.name in wanted]
    if not chosen:
        raise UserError("nothing guides this pipeline: it has no null condition; give --guide or --classifier")
    return chosen
