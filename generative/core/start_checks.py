"""Checks before a run starts: what only the first sample or score, after hours perhaps, would show to be impossible."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from generative.core.class_names import list_names
from generative.core.errors import UserError
from generative.core.evaluation import Evaluator
from generative.core.objective import Objective
from generative.core.trainer_config import TrainerConfig
from generative.data.base import ImageDataset

OWN_SETTINGS = ("output_dir", "num_workers", "num_threads", "progress", "trackers")
"""Settings of a trainer in which the processes of a job may differ."""


def describe_start(
    objective: Objective,
    dataset: ImageDataset,
    evaluator: Evaluator | None,
    config: TrainerConfig,
    seed: int,
    frozen: Mapping[str, str],
) -> dict[str, Any]:
    """What all processes of a job must have been given alike, by name, for ``rendezvous.check_agreement``.

    Args:
        objective: Of this process, its networks not yet placed.
        dataset: Of this process.
        evaluator: Of this process.
        config: Of this process.
        seed: Of this process.
        frozen: Fingerprints of its frozen parts.
    """
    held_out = None if evaluator is None else evaluator.held_out
    sets = {"data": dataset} | ({} if held_out is None else {"evaluation data": held_out})
    facts: dict[str, Any] = {
        name: f"of {len(images)} images in {images.num_classes} classes (fingerprint {images.fingerprint[:12]})"
        for name, images in sets.items()
    }
    facts["seed"] = seed
    for field in fields(config):
        if field.name not in OWN_SETTINGS:
            value = getattr(config, field.name)
            is_plain = value is None or isinstance(value, (bool, int, float, str))
            facts[f"trainer.{field.name}"] = value if is_plain else f"{type(value).__name__} {vars(value)}"
    for name, network in objective.networks.items():
        tensors = [(key, str(value.dtype), tuple(value.shape)) for key, value in network.state_dict().items()]
        count = sum(p.numel() for p in network.parameters())
        digest = hashlib.sha256(repr(tensors).encode()).hexdigest()[:12]
        facts[f"network '{name}'"] = f"{type(network).__name__} of {count:,} parameters (shapes {digest})"
    facts |= {f"frozen part '{name}'": fingerprint[:12] for name, fingerprint in frozen.items()}
    return facts


def check_fit(objective: Objective, dataset: ImageDataset) -> None:
    """Refuse data that the objective's networks cannot take.

    Raises:
        UserError: If the data has other classes than the configuration says, a class without images, or images of another size.
    """
    if objective.uses_labels:
        check_classes(objective.num_classes, dataset)
    if dataset.image_size != objective.image_size:
        raise UserError(
            f"the data has images of {dataset.image_size} pixels, the networks make {objective.image_size}; "
            "set image_size of the data"
        )
    if dataset.encoder_fingerprint is not None and dataset.encoder_fingerprint != objective.encoder_fingerprint():
        raise UserError(
            f"the cache of the data was made with the tokenizer or autoencoder {dataset.encoder_fingerprint[:12]}, the "
            f"configuration has {(objective.encoder_fingerprint() or 'none')[:12]} (sha256 of config and weights); encode the "
            "images with the one that is configured, or configure the one that encoded them"
        )
    cached = dataset.representation_fingerprint
    if cached is not None and cached != objective.representation_fingerprint():
        raise UserError(
            f"the representations of the data were made with the encoder {cached[:12]}, the configuration has "
            f"{(objective.representation_fingerprint() or 'none')[:12]} (sha256 of name, weights and size); give both the same"
        )


def check_classes(num_classes: int, dataset: ImageDataset) -> None:
    """Refuse data that would leave classes of the networks untrained: they would be sampled and scored like the others.

    Raises:
        UserError: If the data has more or fewer classes than the networks, or a class without images.
    """
    if dataset.num_classes != num_classes:
        raise UserError(
            f"the data has {dataset.num_classes} classes and num_classes of the networks is {num_classes}; leave num_classes out "
            "of the configuration, or set it to `data`, and it follows the data"
        )
    empty = (torch.bincount(dataset.labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"the data has no images of {len(empty)} of its {num_classes} classes: "
            f"{list_names([dataset.class_names[label] for label in empty])}; remove these classes from the data, or add images"
        )


def check_sampling(objective: Objective, evaluator: Evaluator | None = None) -> None:
    """Refuse options of samples, and scores, that only the first sample, after hours perhaps, would show to be impossible.

    Raises:
        UserError: If the pipeline of the networks cannot be, or refuses the objective's ``sampling_defaults``; or if they guide
            from a null condition that is not trained; or if the evaluator is of another kind of pipelines.
    """
    options = objective.sampling_defaults()
    pipeline = objective.pipeline(objective.networks)
    pipeline.check_options(**options)
    if evaluator is not None:
        evaluator.check_pipeline(pipeline)
        try:
            if evaluator.sampling:
                pipeline.check_options(**{**options, **evaluator.sampling})
        except UserError as error:
            raise UserError(f"evaluation.sampling: {error}") from error
    for chosen in (options, {} if evaluator is None else evaluator.sampling):
        scale = chosen.get("guidance_scale", 1)
        if objective.label_dropout == 0 and any(each != 1 for each in (scale if isinstance(scale, Sequence) else [scale])):
            raise UserError(
                f"guidance_scale {scale} guides from the null condition, which label_dropout 0 never trains; set guidance_scale "
                "to 1, or label_dropout above 0 (0.1 is usual)"
            )


def check_scoring_network(objective: Objective, evaluator: Evaluator | None) -> None:
    """Refuse scores by a network that the training itself looks through: they would flatter the generator.

    Raises:
        UserError: If a network of the evaluation is one of the objective's ``loss_extractors``.
    """
    seen = [name for name in (() if evaluator is None else evaluator.networks()) if name in objective.loss_extractors]
    if seen:
        raise UserError(
            f"evaluation extractor '{seen[0]}' is the network that the discriminator or a loss looks through, so its "
            "scores would flatter the generator; choose another extractor"
        )
