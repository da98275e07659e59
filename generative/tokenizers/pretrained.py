"""Trained tokenizers and autoencoders by folder: what a configuration names, and ``generative encode`` and ``reconstruct`` load.

In YAML, a function stands where a class would, and gives the network that it returns::

    tokenizer: {class_path: generative.tokenizers.pretrained.load_tokenizer, init_args: {folder: runs/cifar10-vq}}
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from diffusers import ModelMixin

import generative.tokenizers
from generative.core.errors import UserError
from generative.core.hub import local_folder
from generative.core.weights import read_network
from generative.tokenizers.base import ImageTokenizer
from generative.tokenizers.latents import AUTOENCODERS, set_latent_scaling

CONFIG = "config.json"
PIPELINE_INDEX = "model_index.json"
PLACES = (
    "the run of a tokenizer or an autoencoder (runs/NAME), a pipeline folder that has one, or a folder with its config.json "
    "and safetensors"
)


def load_tokenizer(folder: Path) -> ImageTokenizer:
    """Load a tokenizer: images to discrete ids.

    Args:
        folder: A run folder (its ``pipeline/`` is taken), a pipeline folder that has a tokenizer among its components, or the
            network's own folder, with config.json and safetensors.

    Returns:
        The tokenizer, on the CPU in float32, frozen and in eval mode.

    Raises:
        UserError: If the folder holds none, or a continuous autoencoder, or is damaged.
    """
    network = load_encoder(folder)
    if not isinstance(network, ImageTokenizer):
        raise UserError(
            f"'{folder}' holds a continuous autoencoder ({type(network).__name__}), whose latents are no tokens; give the folder "
            "of a tokenizer, or use load_autoencoder where continuous latents are wanted"
        )
    return network


def load_autoencoder(
    folder: Path,
    scaling_factor: float | None = None,
    latents_mean: Sequence[float] | None = None,
    latents_std: Sequence[float] | None = None,
    image_range: Sequence[float] | None = None,
) -> ModelMixin:
    """Load a continuous autoencoder: images to latents, see ``generative.tokenizers.latents``.

    Args:
        folder: As ``load_tokenizer``; a pipeline of diffusers that has a ``vae`` will do too.
        scaling_factor: Where latents are to be scaled otherwise than the folder says: as in ``set_latent_scaling``, with the
            three arguments behind it. None leaves all as it is.
        latents_mean: Of each channel.
        latents_std: Of each channel.
        image_range: Least and largest value of its images.

    Returns:
        An ``AutoencoderKL`` (or a subclass) or ``AutoencoderDC``, on the CPU in float32, frozen and in eval mode.

    Raises:
        UserError: If the folder holds none, or a tokenizer, or is damaged, or numbers are not one per channel.
    """
    network = load_encoder(folder)
    if isinstance(network, ImageTokenizer):
        raise UserError(
            f"'{folder}' holds a tokenizer ({type(network).__name__}), which has no continuous latents; give the folder of an "
            "autoencoder, or use load_tokenizer where tokens are wanted"
        )
    others = {"latents_mean": latents_mean, "latents_std": latents_std, "image_range": image_range}
    if scaling_factor is not None:
        set_latent_scaling(network, scaling_factor, latents_mean, latents_std, image_range)
    elif stray := [name for name, value in others.items() if value is not None]:
        raise UserError(f"{stray[0]} needs a scaling_factor beside it; give one, 1 for none")
    return network


def load_encoder(folder: Path) -> ModelMixin:
    """Load whichever of the two a folder holds; see ``load_tokenizer`` and ``load_autoencoder``."""
    path = _network_folder(local_folder(folder))
    network_class = _encoder_class(_read_json(path / CONFIG))
    if network_class is None:
        found = _read_json(path / CONFIG).get("_class_name", "network without a class name")
        raise UserError(f"'{path}' holds a {found}, which is neither a tokenizer nor an autoencoder; give {PLACES}")
    return read_network(path, network_class)


def _network_folder(folder: Path) -> Path:
    """The folder with the config.json of a folder's tokenizer or autoencoder."""
    for place in (folder / "pipeline", folder):
        if (place / PIPELINE_INDEX).is_file():
            index = _read_json(place / PIPELINE_INDEX)
            # A component that was left out is recorded as [null, null].
            names = [name for name, entry in index.items() if isinstance(entry, list) and entry and entry[0] is not None]
            for path in [place / name for name in names]:
                if (path / CONFIG).is_file() and _encoder_class(_read_json(path / CONFIG)) is not None:
                    return path
            raise UserError(
                f"'{folder}' holds a {index.get('_class_name', 'pipeline')} with {', '.join(names) or 'no components'}, none of "
                f"them a tokenizer or an autoencoder; give {PLACES}"
            )
    if (folder / CONFIG).is_file():
        return folder
    if not folder.exists():
        raise UserError(f"'{folder}' does not exist; give {PLACES}")
    raise UserError(f"'{folder}' holds neither a tokenizer nor an autoencoder; give {PLACES}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is damaged: it must hold a JSON object")
    return content


def _encoder_class(config: dict[str, Any]) -> type[ModelMixin] | None:
    """The class that a config.json names, if it is an autoencoder of diffusers or a network of this package."""
    name = config.get("_class_name")
    if not isinstance(name, str) or not name.isidentifier():
        return None
    for known in AUTOENCODERS:
        if name == known.__name__:
            return known
    for info in iter_modules(generative.tokenizers.__path__):
        # An objective is built on networks and is none.
        if info.name.endswith("objective"):
            continue
        module = import_module(f"{generative.tokenizers.__name__}.{info.name}")
        found = vars(module).get(name)
        is_encoder = inspect.isclass(found) and issubclass(found, (ImageTokenizer, *AUTOENCODERS))
        if is_encoder and found.__module__ == module.__name__ and not inspect.isabstract(found):
            return found
    return None
