"""What compares classes is checked before any image is read: by name on both sides, the same ones, enough of each."""

from __future__ import annotations

from collections.abc import Sequence

from metrics.options import ScoreOptions
from metrics.scoring.image_sets import ImageSet
from metrics.scoring.prepare import SampleSet
from metrics.sources.class_names import check_known_classes, check_same_classes, name_classes
from metrics.suite import MetricSuite

_LEAST_IMAGES = 2  # Of a class, for a covariance.


def match_classes(
    suites: Sequence[MetricSuite], reference: ImageSet | None, sets: Sequence[SampleSet], options: ScoreOptions
) -> list[str]:
    """Bring the labels of all sides to one set of names, and check what the scores need of them.

    Args:
        suites: The run's networks with their metrics.
        reference: The reference, if there is one.
        sets: The sample sets; one whose classes are others lacks the metrics that compare them.
        options: What is asked for.

    Returns:
        What was taken for what.

    Raises:
        ValueError: If numbers have no place in the order of names, or a class to be tested is not trained on.
    """
    needing = [metric for suite in suites for metric in suite.metrics if metric.needs_labels]
    if reference is None or reference.images is None or not (needing or options.cas is not None):
        return []
    opened = [(each, each.side.images) for each in sets if each.side is not None and each.side.images is not None]
    notes = name_classes([reference.images, *(images for _, images in opened)])
    for each, images in opened:
        if not (reference.images.has_labels and images.has_labels):
            continue  # Told by whoever needs them.
        if options.cas is not None:
            check_known_classes(images, reference.images)
        try:
            if needing:
                check_same_classes(reference.images, images, _LEAST_IMAGES)
        except ValueError as error:
            each.refuse(needing, str(error))
    return notes
