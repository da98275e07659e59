"""What compares classes is checked before any image is read: by name on both sides, the same ones, enough of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from metrics.class_names import check_known_classes, check_same_classes, name_classes
from metrics.scoring.sides import Side
from metrics.suite import build_metric

_LEAST_IMAGES = 2  # Of a class, for a covariance.


def match_classes(names: Sequence[str], reference: Side | None, samples: Sequence[Side], args: argparse.Namespace) -> list[str]:
    """Bring the labels of all sides to one set of names, and check what the scores need of them.

    Args:
        names: From `score_names`.
        reference: The reference, if there is one.
        samples: The sample sets.
        args: The parsed arguments.

    Returns:
        What was taken for what.

    Raises:
        ValueError: If classes differ, or there are too few images of one.
    """
    needs_same = any(build_metric(name).needs_labels for name in names)
    if reference is None or reference.images is None or not (needs_same or args.cas is not None):
        return []
    notes = name_classes([side.images for side in (reference, *samples) if side.images is not None])
    for side in samples:
        if side.images is None or not (reference.images.has_labels and side.images.has_labels):
            continue  # Told by whoever needs them.
        if needs_same:
            check_same_classes(reference.images, side.images, _LEAST_IMAGES)
        if args.cas is not None:
            check_known_classes(side.images, reference.images)
    return notes
