"""Held-out images take the labels of the training data: classes are matched by their names, wherever both have them."""

from __future__ import annotations

import torch

from generative.core.class_names import list_names
from generative.core.errors import UserError
from generative.data.base import ImageDataset


def match_classes(held_out: ImageDataset, training: ImageDataset, what: str) -> list[str]:
    """Give held-out images the labels that the training data have for classes of the same names.

    Data that name no classes are matched by number, and only to as many classes.

    Args:
        held_out: Changed in place: labels, number and names of classes.
        training: The data that the generator is trained on.
        what: What to call the held-out images, for example ``evaluation data``.

    Returns:
        What the user should know, one sentence each: classes without images, classes matched by number.

    Raises:
        UserError: If the held-out images are of a class that the training data have not, or it is not clear of which.
    """
    notices = []
    if held_out.class_names != training.class_names:
        present = [int(label) for label in held_out.labels.unique()]
        unknown = [held_out.class_names[label] for label in present if held_out.class_names[label] not in training.class_names]
        if not unknown:
            renumber(held_out, training, what)
        elif held_out.has_class_names and training.has_class_names:
            raise UserError(
                f"the {what} have classes that the training data have not: {list_names(unknown)}; they have "
                f"{list_names(held_out.class_names)}, the training data {list_names(training.class_names)}; name them alike"
            )
        elif held_out.num_classes != training.num_classes:
            raise UserError(
                f"the {what} have {held_out.num_classes} classes and the training data {training.num_classes}, and without names "
                "in both they cannot be matched; give data of the same classes"
            )
        else:
            notices.append(
                f"classes of the {what} are matched to those of the training data by number, as one of them has no names"
            )
            held_out.renumber_classes(range(training.num_classes), training.class_names)
    counts = torch.bincount(held_out.labels, minlength=training.num_classes)
    missing = [training.class_names[label] for label in (counts == 0).nonzero().flatten().tolist()]
    if missing:
        notices.append(
            f"the {what} have no images of {len(missing)} of the {training.num_classes} classes: {list_names(missing)}"
        )
    return notices


def renumber(held_out: ImageDataset, training: ImageDataset, what: str) -> None:
    """Renumber classes by name, all of those with images being known."""
    doubled = sorted({name for name in held_out.class_names if training.class_names.count(name) > 1})
    if doubled:
        raise UserError(
            f"several classes of the training data are called {list_names(doubled)}, so that those of the {what} cannot be told "
            "apart; give every class a name of its own"
        )
    label_of = {name: label for label, name in enumerate(training.class_names)}
    # A class without images may be one that the training data have not: its label is never used.
    held_out.renumber_classes([label_of.get(name, -1) for name in held_out.class_names], training.class_names)
