"""Classes of several image sets by one set of names: numbers become names where one set knows their order.

A folder names its classes; samples, runs and npz files have numbers, and some say which name each number is
(``ImageSource.class_names``). Comparing "3" with "cat" would find no class in common, or the wrong one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from metrics.sources.base import ImageSource

_NUM_NAMED = 10  # Classes that a message lists before it counts the rest.


def name_classes(sources: Sequence[ImageSource]) -> list[str]:
    """Let sets whose labels are numbers take the names of another set's classes, in place.

    The order of the names is the one that a set states, else that of another set's class folders, sorted, as training numbers
    them. Of the latter there must be exactly as many as numbers: a folder that lacks a class would shift all behind it.

    Args:
        sources: The sets that will be compared; those without labels are left alone.

    Returns:
        What was taken for what, one sentence for each set that was changed.

    Raises:
        ValueError: If numbers have no place in the order.
    """
    labelled = [source for source in sources if source.has_labels and source.labels is not None]
    owner = next((source for source in labelled if source.class_names is not None), None)
    if owner is not None:
        order = list(owner.class_names or [])
    else:
        owner = next((source for source in labelled if not source.has_class_numbers and not _are_digits(source)), None)
        order = sorted(set(owner.labels or [])) if owner is not None else []
    notes = []
    for source in labelled:
        if owner is None or source.class_names is not None or not _takes_names(source, order):
            continue
        _check_places(source, owner, order)
        source.class_names = order
        first = ", ".join(f"{number} {name}" for number, name in enumerate(order[:3]))
        notes.append(
            f"class numbers of {source.path} are taken as places among the classes of {owner.path}"
            f"{'' if owner.has_class_numbers else ', sorted'} ({first}{', ...' if order[3:] else ''})."
        )
    return notes


def _are_digits(source: ImageSource) -> bool:
    return all(label.isdigit() for label in set(source.labels or []))


def _takes_names(source: ImageSource, order: Sequence[str]) -> bool:
    """Return whether a set's labels are numbers; digits in folders' names are, unless the other names are digits, too."""
    return source.has_class_numbers or (_are_digits(source) and not all(name.isdigit() for name in order))


def _check_places(source: ImageSource, owner: ImageSource, order: Sequence[str]) -> None:
    numbers = sorted({int(label) if label.isdigit() else -1 for label in source.labels or []})
    is_stated = owner.class_names is not None
    if numbers[0] < 0 or numbers[-1] >= len(order) or (not is_stated and len(numbers) != len(order)):
        raise ValueError(
            f"{source.path} has {len(numbers)} classes by number ({numbers[0]} to {numbers[-1]}), and {owner.path} has "
            f"{len(order)} by name ({_listed(order)}): which is which is not clear, give both sets all classes or the same names."
        )


def count_classes(source: ImageSource) -> Counter[str] | None:
    """Return class name -> number of images, without reading any; None where labels are known only while reading."""
    return None if source.labels is None else Counter(source.named(source.labels))


def check_same_classes(reference: ImageSource, samples: ImageSource, least: int) -> None:
    """Raise unless two sets have the same classes, each with enough images.

    Raises:
        ValueError: With both counts and the names that differ.
    """
    real, fake = count_classes(reference), count_classes(samples)
    if real is None or fake is None:
        return
    if real.keys() != fake.keys():
        raise ValueError(f"{class_difference(reference.path, real, samples.path, fake)}: compare sets of the same classes.")
    for source, counts in ((reference, real), (samples, fake)):
        few = sorted(name for name, count in counts.items() if count < least)
        if few:
            raise ValueError(
                f"class-wise scores need at least {least} images of every class, and {source.path} has fewer of {_listed(few)}."
            )


def check_known_classes(train: ImageSource, test: ImageSource) -> None:
    """Raise if a set to test on has a class that the set to train on lacks, as far as that is known without reading.

    Raises:
        ValueError: With both counts and the names that differ.
    """
    known, tested = count_classes(train), count_classes(test)
    if known is not None:
        check_known_names(train.path, known, test.path, known if tested is None else tested)


def check_known_names(train: Path, known: Collection[str], test: Path, tested: Collection[str]) -> None:
    """Raise if there is a class to test on that is not trained on, or but one class.

    Raises:
        ValueError: With both counts and the names that differ.
    """
    if not set(tested) <= set(known):
        raise ValueError(
            f"test images have a class that no training image has ({class_difference(train, set(known), test, set(tested))}): "
            "label both sets by the same names."
        )
    if len(set(known)) < 2:
        raise ValueError(f"training images must show at least 2 classes, got {len(set(known))} in {train}.")


def class_difference(first: Path, classes: Collection[str], second: Path, others: Collection[str]) -> str:
    """Return in words how the classes of two sets differ: both counts, and the names that only one of them has."""
    parts = [
        f"{_listed(sorted(set(own) - set(other)))} only in {path}"
        for path, own, other in ((first, classes, others), (second, others, classes))
        if set(own) - set(other)
    ]
    return f"{first} has {len(classes)} classes and {second} {len(others)}, {' and '.join(parts)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more
