"""The points of a sweep of guidance: scored one after the other, kept after each, chosen by one set of images for another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.guidance_curves import Curve

if TYPE_CHECKING:
    from accelerate import Accelerator

    from generative.cli.sweep_scorers import ReferenceScorer
    from pipelines.diffusion import DiffusionImagePipeline


def with_networks(
    pipeline: DiffusionImagePipeline, curve: Curve, base: Mapping[str, Any], scale: float
) -> DiffusionImagePipeline:
    """The pipeline, in place, with the networks that a curve needs at a scale and its options as defaults."""
    networks = curve.networks if scale != 1 else {}
    pipeline.register_modules(
        **{name: networks[name].to(pipeline.device) if name in networks else None for name in ("guide", "classifier")}
    )
    pipeline.register_to_config(sampling_defaults={**base, **curve.at(scale)})
    return pipeline


class Study:
    """The points of a sweep, scored one after the other and kept after each.

    Args:
        pipeline: The pipeline, on its device.
        base: Options of all points.
        scorers: Of the roles ``scoring`` and perhaps ``selection``.
        found: Content of the file, changed in place.
        output: Its folder.
        accelerator: Its processes share the work.
    """

    def __init__(
        self,
        pipeline: DiffusionImagePipeline,
        base: Mapping[str, Any],
        scorers: Mapping[str, ReferenceScorer],
        found: dict[str, Any],
        output: Path,
        accelerator: Accelerator,
    ) -> None:
        self.pipeline, self.base, self.scorers = pipeline, base, scorers
        self.found, self.output, self.accelerator = found, output, accelerator

    def draw(self, curves: list[Curve], scales: list[float]) -> None:
        """Score all scales of all curves, by the images that choose where there are such; then the chosen ones."""
        from generative.report.guidance import choose

        role = "selection" if "selection" in self.scorers else "scoring"
        for curve in curves:
            for scale in scales:
                self.point(curve, scale, role)
        if role == "selection":
            for curve in curves:
                chosen = choose(self.found, curve.name)
                if chosen is not None:
                    self.point(curve, chosen["scale"], "scoring")
        self.write(with_picture=True)

    def point(self, curve: Curve, scale: float, role: str) -> None:
        """Score a point, unless it is there; without guidance all curves share one."""
        points = self.found["points"]
        same = [point for point in points if (point["scale"], point["role"]) == (scale, role)]
        if any(point["curve"] == curve.name for point in same):
            return
        if scale == 1 and same:
            points.append({**same[0], "curve": curve.name})
            return
        pipeline = with_networks(self.pipeline, curve, self.base, scale)
        record = self.scorers[role].score(pipeline, f"{curve.name}-{scale:g}", self.accelerator)
        points.append({"curve": curve.name, "scale": scale, "role": role, "scores": record["scores"], "notes": record["notes"]})
        self.found.update({name: record[name] for name in ("reference", "protocol", "extractor")})
        self.write()
        if self.accelerator.is_main_process:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in record["scores"].items())
            print(f"{curve.name} {scale:g} ({role}): {scores}", flush=True)

    def write(self, with_picture: bool = False) -> None:
        """Write what there is; the picture at the end only, since it takes longer than the rest."""
        from generative.report.guidance import PICTURE_FILE, write_files, write_picture

        if self.accelerator.is_main_process:
            write_files(self.found, self.output)
            if with_picture:
                write_picture(self.found, self.output / PICTURE_FILE)
