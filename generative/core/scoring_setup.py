"""What an evaluation scores with: networks and metrics by the names of ``fid-score``, and statistics of real images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from generative.core.errors import UserError

if TYPE_CHECKING:
    from metrics.options import ScoreOptions
    from metrics.scoring.image_sets import ImageSet
    from metrics.suite import MetricSuite


@dataclass(frozen=True)
class ScoringSetup:
    """Names of what scores, checked as ``fid-score`` checks them.

    Args:
        metrics: Names of metrics, aliases included.
        extractor: Network of the metrics whose definition names none.
        weights: File of each network's weights, where it is not the package's or a download.
        input_size: Pixels that ``extractor`` sees; None for its own default.
        resizer: Of the metrics whose definition names none; None for the protocol's.
        protocol: Name of a protocol; None for ``clean``.
    """

    metrics: Sequence[str]
    extractor: str
    weights: Mapping[str, Path]
    input_size: int | None
    resizer: str | None
    protocol: str | None

    def names(self) -> list[str]:
        """Names of the metrics as ``fid-score`` has them, each once.

        Raises:
            ValueError: If there is no such metric.
        """
        from metrics import registry

        return list(dict.fromkeys(registry.canonical_metric(name) for name in self.metrics))

    def networks(self) -> list[str]:
        """The networks that the metrics look through, each once; metrics that are not known are left out."""
        from metrics import registry

        names = [registry.METRIC_ALIASES.get(name, name) for name in self.metrics]
        scores = [registry.SCORES[name] for name in names if name in registry.SCORES]
        return list(dict.fromkeys(score.extractor or self.extractor for score in scores))

    def check(self) -> None:
        """Refuse a misspelt name, which no file would mend.

        Raises:
            ValueError: Naming it.
        """
        from metrics import registry

        if ".py:" not in self.extractor:
            registry.resolve("extractor", registry.EXTRACTORS, self.extractor)
        self.names()
        if self.resizer is not None:
            registry.resolve("resizer", registry.RESIZERS, self.resizer)
        if self.protocol is not None and self.protocol not in registry.PROTOCOLS:
            raise ValueError(f"protocol {self.protocol!r} is not known: choose from {', '.join(registry.PROTOCOLS)}.")

    def build(self, device: str) -> list[MetricSuite]:
        """Load the networks, and make a suite of metrics for each.

        Raises:
            ValueError: If a name is not known, or weights are not those expected.
            FileNotFoundError: If weights are missing.
        """
        from metrics.scoring.plan import plan_suites

        self.check()
        names = self.names()
        return plan_suites(names, self._options(names, device), resizer=self.resizer) if names else []

    def _options(self, names: Sequence[str], device: str) -> ScoreOptions:
        from metrics.options import ScoreOptions

        return ScoreOptions(
            paths=("evaluation",),
            has_reference=True,
            metrics=tuple(names),
            protocol=self.protocol,
            extractor=self.extractor,
            input_size=self.input_size,
            weights=tuple(f"{name}={path}" for name, path in self.weights.items()),
            device=device,
        )

    @property
    def same_size_for(self) -> str | None:
        """Name of the protocol, if it scores images of one size only."""
        from metrics import registry

        return self.protocol if self.protocol is not None and registry.PROTOCOLS[self.protocol].same_size else None


def open_reference(path: Path, suites: Sequence[MetricSuite]) -> ImageSet:
    """Open a statistics file in the place of real images.

    Args:
        path: As ``fid-score --save-stats`` writes it, or of another tool.
        suites: What is to be scored.

    Raises:
        FileNotFoundError: If there is none.
        UserError: If it holds images only.
        ValueError: If it is damaged, was made under another protocol or by other weights, or lacks what a metric needs; in the
            words of ``fid-score``.
    """
    from metrics.scoring.image_sets import OpenOptions, open_image_set
    from metrics.scoring.prepare import refusals

    if not path.exists():
        raise FileNotFoundError(f"there is no reference {path}: make it with `fid-score --save-stats IMAGES {path}`.")
    reference: ImageSet = open_image_set(path, OpenOptions())
    if reference.statistics is None:
        raise UserError(
            f"evaluation: the reference '{path}' holds images and no statistics; give held-out images as data, or make "
            f"statistics of them with `fid-score --save-stats {path} STATS.npz`"
        )
    labelled = [metric.name for suite in suites for metric in suite.metrics if metric.needs_real and metric.needs_labels]
    if labelled:
        raise UserError(f"evaluation: metric {labelled[0]} needs real images by class; give held-out images as data instead")
    for reason in refusals(suites, reference, real=True).values():
        raise ValueError(reason)
    return reference


def file_sha256(path: Path) -> str:
    """sha256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
