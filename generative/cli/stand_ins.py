"""What stands in a configuration for frozen networks whose files are not there, so that its costs can be told without them."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generative.cli.config_files import find_config, list_configs, list_overlays
from generative.cli.layers import merge_layers, read_layers
from generative.core.errors import UserError
from generative.tokenizers.representation import RepresentationEncoder

LOADERS = "generative.tokenizers.pretrained."
STABLE_DIFFUSION_WIDTHS = (128, 256, 512, 512)
# What a tokenizer and the network over its ids must have in common.
SHARED_KEYS = ("num_codes", "patch_nums", "num_bits", "code_dim", "code_depth")
_BASE = re.compile(r"\bover ([\w-]+/[\w-]+)")  # what the comment of an overlay says it comes over

Node = dict[str, Any]
"""A part of a configuration: ``class_path`` and ``init_args``."""


class UnknownEncoder(RepresentationEncoder):
    """Takes the place of a representation encoder whose weights are not there: the right shape, no content and no cost.

    Args:
        extractor: Its name.
        dim: Numbers of a representation.
    """

    def __init__(self, extractor: str, dim: int) -> None:
        torch.nn.Module.__init__(self)
        self.dim, self.extractor = dim, extractor
        self.config = {"extractor": extractor, "weights_sha256": None, "feature": None, "input_size": None, "dim": dim}

    def forward(self, images: Tensor) -> Tensor:
        """(B, D) of images (B, 3, H, W)."""
        return images.new_zeros(len(images), self.dim)


def fill_in(objective: Node, image_size: int) -> list[str]:
    """Put stand-ins into an objective's part of a configuration, wherever it names a file or folder that is not there.

    Args:
        objective: The part, changed in place.
        image_size: Of the data, in pixels.

    Returns:
        What was done, one sentence each.

    Raises:
        UserError: If nothing can stand for something.
    """
    notes = []
    network = peer_network(objective)
    for owner, key, node in list(parts(objective)):
        make = STAND_INS.get(node["class_path"])
        if make is not None and (found := make(node.get("init_args") or {}, network, image_size)) is not None:
            owner[key], note = found
            notes.append(note)
    return notes


def parts(node: Any) -> Iterator[tuple[Any, Any, Node]]:
    """Every part with a class that stands anywhere in another: what holds it, under which key, and itself."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            yield node, key, value
        yield from parts(value)


def peer_network(objective: Node) -> Node:
    """Constructor arguments of the network that is trained: the first part of an objective that is none of a frozen one."""
    for value in (objective.get("init_args") or {}).values():
        if isinstance(value, dict) and isinstance(value.get("class_path"), str) and value["class_path"] not in STAND_INS:
            return value.get("init_args") or {}
    return {}


# ---------------------------------------------------------------------- runs that are not there yet


@cache
def shipped_runs() -> dict[str, tuple[Path, ...]]:
    """Folders that shipped configurations train in -> the files of each."""
    found: dict[str, tuple[Path, ...]] = {}
    for path in list_configs().values():
        found[output_dir(path)] = (path,)
    for path in list_overlays().values():
        if named := _BASE.search(path.read_text(encoding="utf-8")):
            found[output_dir(path)] = (find_config(named[1]), path)
    return found


def output_dir(path: Path) -> str:
    """The folder that a configuration trains in, as it stands there."""
    return str((read_layers([path])[0].content.get("trainer") or {}).get("output_dir", ""))


def shipped_objective(folder: str) -> Node | None:
    """The objective of the shipped configuration that trains in a folder; None if none does."""
    files = shipped_runs().get(str(Path(folder)))
    return None if files is None else copy.deepcopy(merge_layers(read_layers(files))["objective"])


def is_there(place: Any) -> bool:
    """Whether a file or folder exists."""
    return place is not None and Path(place).expanduser().exists()


# ---------------------------------------------------------------------- one function a kind of frozen network

Found = tuple[Node, str] | None


def stand_in_tokenizer(arguments: Node, network: Node, image_size: int) -> Found:
    """The tokenizer of the shipped configuration that trains it, or of the one that fits the network over it best."""
    folder = str(arguments.get("folder"))
    if is_there(folder):
        return None
    exact = shipped_objective(folder)
    if exact is not None and "tokenizer" in exact["init_args"]:
        return exact["init_args"]["tokenizer"], f"tokenizer '{folder}' is not there: taken from the configuration that trains it"
    best: tuple[tuple[int, bool, float], Node, str] | None = None
    for name, path in list_configs().items():
        content = merge_layers(read_layers([path]))
        node = (content["objective"].get("init_args") or {}).get("tokenizer")
        if not isinstance(node, dict) or str(node.get("class_path", LOADERS)).startswith(LOADERS):
            continue
        options = node.get("init_args") or {}
        shared = [key for key in SHARED_KEYS if key in options and key in network]
        own_size = options.get("image_size") == image_size  # one of other images has another stride
        likeness = SequenceMatcher(None, folder, str((content.get("trainer") or {}).get("output_dir"))).ratio()
        score = (len(shared), own_size, likeness)
        if best is None or score > best[0]:
            changed = {key: network[key] for key in shared} | ({"image_size": image_size} if "image_size" in options else {})
            best = score, {**node, "init_args": {**options, **changed}}, name
    assert best is not None
    return best[1], f"tokenizer '{folder}' is not there: its costs are those of {best[2]}'s"


def stand_in_autoencoder(arguments: Node, network: Node, image_size: int) -> Found:
    """The autoencoder of the shipped configuration that trains it, or one as Stable Diffusion's with the network's latents."""
    folder = str(arguments.get("folder"))
    if is_there(folder):
        return None
    exact = shipped_objective(folder)
    if exact is not None and "tokenizer" in exact["init_args"]:
        return exact["init_args"][
            "tokenizer"
        ], f"autoencoder '{folder}' is not there: taken from the configuration that trains it"
    size = network.get("sample_size")
    levels = 1 + round(math.log2(image_size / size)) if isinstance(size, int) and size else len(STABLE_DIFFUSION_WIDTHS)
    widths = [*STABLE_DIFFUSION_WIDTHS, *[STABLE_DIFFUSION_WIDTHS[-1]] * levels][:levels]
    node = {
        "class_path": "generative.tokenizers.kl.KLAutoencoder",  # diffusers' own has types of one level
        "init_args": {
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": widths,
            "layers_per_block": 2,
            "latent_channels": network.get("in_channels", 4),
            "sample_size": image_size,
        },
    }
    stride = 2 ** (levels - 1)
    return (
        node,
        f"autoencoder '{folder}' is not there: its costs are those of one as Stable Diffusion's, {stride} pixels a latent",
    )


def stand_in_teacher(arguments: Node, network: Node, image_size: int) -> Found:
    """The diffusion that the shipped configuration of the folder trains.

    Raises:
        UserError: If there is no such configuration: what is distilled is as large as its teacher.
    """
    folder = str(arguments.get("folder"))
    if is_there(folder):
        return None
    exact = (shipped_objective(folder) or {}).get("init_args", {})
    if "denoiser" not in exact or "formulation" not in exact:
        raise UserError(
            f"teacher '{folder}' is not there and no shipped configuration trains it; what it is distilled into is as large, so "
            "its costs cannot be told: give an existing one with --objective.teacher.folder"
        )
    node = {
        "class_path": "generative.diffusion.objectives.teacher.Teacher",
        "init_args": {"network": exact["denoiser"], "formulation": exact["formulation"]},
    }
    return node, f"teacher '{folder}' is not there: taken from the configuration that trains it"


def stand_in_encoder(arguments: Node, network: Node, image_size: int) -> Found:
    """One of the width that the network takes."""
    if is_there(arguments.get("weights")):
        return None
    dim = network.get("representation_dim") or network.get("in_channels")
    extractor = arguments.get("extractor")
    node = {"class_path": f"{__name__}.UnknownEncoder", "init_args": {"extractor": extractor, "dim": dim}}
    return node, f"the weights of representation encoder '{extractor}' are not there: its costs are left out"


STAND_INS: Mapping[str, Callable[[Node, Node, int], Found]] = {
    f"{LOADERS}load_tokenizer": stand_in_tokenizer,
    f"{LOADERS}load_autoencoder": stand_in_autoencoder,
    "generative.diffusion.objectives.teacher.load_teacher": stand_in_teacher,
    "generative.tokenizers.representation.RepresentationEncoder": stand_in_encoder,
}
