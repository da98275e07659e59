"""Pipeline folders of diffusers, of which the network's file and all that lies beside it are converted together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generative.convert.files.pieces import INDEX_SUFFIX
from generative.core.errors import UserError

INDEX = "model_index.json"
# Pipeline of diffusers -> source of its network, component that is the network, one that is the autoencoder.
PIPELINES = {"DiTPipeline": ("dit-pipeline", "transformer", "vae")}
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""Names of a component's weights; in several files, their index has a longer one."""


@dataclass(frozen=True)
class PipelineFolder:
    """What a folder holds.

    Attributes:
        source: Name of the source of its network.
        weights: The network's file, or the index of its files.
        options: Of its config.json, the scheduler's config among them.
        autoencoder: Folder of the autoencoder, if there is one with safetensors; of others --autoencoder takes the place.
        class_names: Names of the classes, the first where there are synonyms; None if the folder keeps none.
    """

    source: str
    weights: Path
    options: dict[str, Any]
    autoencoder: Path | None
    class_names: list[str] | None


def read_pipeline_folder(folder: Path) -> PipelineFolder:
    """Read what a pipeline folder of diffusers says.

    Raises:
        UserError: If it is none, of another pipeline, or incomplete.
    """
    index = read_json(folder / INDEX)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise UserError(f"'{folder}' holds a {kind}; pipelines of diffusers that are converted are {', '.join(PIPELINES)}")
    source, network, autoencoder = PIPELINES[kind]
    weights = find_weights(folder / network, WEIGHTS)
    if weights is None:
        raise UserError(
            f"'{folder / network}' holds none of {', '.join(WEIGHTS)}, nor an index of them ({WEIGHTS[0]}{INDEX_SUFFIX}); get "
            "the whole folder"
        )
    options = read_json(folder / network / "config.json")
    options["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    labels = index.get("id2label")
    names = None
    if isinstance(labels, dict) and sorted(labels, key=int) == [str(number) for number in range(len(labels))]:
        names = [str(labels[str(number)]).partition(",")[0].strip() for number in range(len(labels))]
    has_autoencoder = find_weights(folder / autoencoder, WEIGHTS[:1]) is not None
    return PipelineFolder(source, weights, options, folder / autoencoder if has_autoencoder else None, names)


def find_weights(component: Path, names: Sequence[str]) -> Path | None:
    """The first of some files that a component's folder has, whole or as an index of several; None if it has none."""
    paths = [component / (name + suffix) for name in names for suffix in ("", INDEX_SUFFIX)]
    return next((path for path in paths if path.is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        UserError: If it cannot be read or holds none.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' must hold a JSON object, got a {type(content).__name__}")
    return content
