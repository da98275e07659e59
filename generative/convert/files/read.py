"""Read official checkpoint files: torch, safetensors, npz, TensorFlow's and StyleGAN-line snapshots. Nothing in them is run."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from generative.convert.files.check import check_tensors
from generative.convert.files.pieces import index_of, is_pieces_index, read_pieces
from generative.convert.files.snapshot import read_snapshot
from generative.convert.files.tensor_bundle import INDEX_SUFFIX, SHARD_SUFFIX, is_index
from generative.convert.files.tensorflow_objects import read_tensorflow
from generative.core.errors import UserError
from metrics.files.arrays import READ_ERRORS, brief, npz_keys, read_npz

# How BigGAN-PyTorch (G_ema_best0.pth) and PyTorch-StudioGAN (model=G_ema-best-weights-step=80000.pth) name their files.
FILE_NAME = re.compile(r"^(?:model=)?(G_ema|G|D)(?:[-_.].*)?$")
# Under which the training scripts of DiT, SiT, LlamaGen and MAR keep their arguments, which may name paths.
ARGUMENTS, ARGUMENTS_NAME = "args", "argparse.Namespace"
# What official checkpoints hold besides: BigGAN-PyTorch's activations, StudioGAN's best score, the callbacks by class of older
# versions of Lightning.
# All are read as ``Ignored``: the classes themselves are not asked.
IGNORED_NAMES = (
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "pathlib.PosixPath",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "torch.nn.modules.activation.ReLU",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
FORBIDDEN_NAME = re.compile(r"GLOBAL ([\w.]+)")
"""How torch names what a file asks for, within advice to load it all the same."""
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""First pickle of torch.save's legacy format: its magic number, torch/serialization.py."""
# Keys that a state dict may stand under and that do not name a network: StudioGAN's, Lightning's, DeepSpeed's.
ANONYMOUS = ("state_dict", "params", "module")
# What torch's DataParallel and torch.compile put before every name.
WRAPPERS = ("module.", "_orig_mod.")
LIGHTNING_VERSION = "pytorch-lightning_version"
"""Entry that tells a checkpoint of Lightning, whose callbacks hold tensors too; its network is under ``state_dict``."""
MAX_NESTING = 4
"""Dictionaries within dictionaries that are searched for state dicts; DiT's and StudioGAN's have 2 levels."""
MAX_INFLATION = 100
"""Most bytes that a byte of an npz file may stand for: weights hardly compress, and deflate's own limit is 1032."""


class Ignored:
    """Stands for an object of a torch file that means nothing here."""

    def __new__(cls, *arguments: Any) -> Ignored:
        """Take any arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


class ScriptArguments(Ignored):
    """Stands for the arguments of a training script; texts and numbers are kept."""

    plain: dict[str, Any]

    def __new__(cls, *arguments: Any) -> ScriptArguments:
        """Hold no argument yet."""
        made = super().__new__(cls)
        assert isinstance(made, ScriptArguments)
        made.plain = {}
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep what is plain."""
        known = state if isinstance(state, Mapping) else {}
        self.plain = {str(key): value for key, value in known.items() if isinstance(value, (bool, int, float, str, type(None)))}


@dataclass(frozen=True, eq=False)
class NetworkPart:
    """The official tensors of one network.

    Attributes:
        path: File it was in.
        network: What its file or the dictionary around it calls it (``G_ema``, ``D``, ``ema``), None if neither says.
        state: Tensors by official name.
        options: Official options that lie beside the tensors.
        class_name: Official class, where the file says.
        arguments: Of the training script that saved it; a source says which of them it has a use for.
        beside: What else lies in its snapshot, see ``SnapshotNetwork``.
    """

    path: Path
    network: str | None
    state: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    class_name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        """For messages."""
        name = f"{self.network} of '{self.path.name}'" if self.network else f"'{self.path.name}'"
        return f"{name} ({self.class_name})" if self.class_name else name


@dataclass(frozen=True)
class Checkpoint:
    """What some official files hold.

    Attributes:
        parts: The networks.
        options: Official options of all of them, from a file of training state (BigGAN-PyTorch's ``state_dict.pth``).
        notes: What was found and is not used, a sentence each.
    """

    parts: list[NetworkPart]
    options: dict[str, Any]
    notes: list[str]


def read_checkpoints(paths: Sequence[Path]) -> Checkpoint:
    """Read official files.

    Args:
        paths: ``.pth``, ``.pt``, ``.bin``, ``.safetensors``, ``.npz``, ``.pkl`` or TensorFlow's ``.index`` files; their content
            decides, not their name. Shards of an index that is given are read with it, and so are the pieces of an
            ``.index.json`` of the Hugging Face Hub.

    Raises:
        UserError: If a file is absent, damaged, asks for anything but tensors and plain data, or none holds a network.
    """
    parts: list[NetworkPart] = []
    options: dict[str, Any] = {}
    notes: list[str] = []
    for path in without_shards(paths):
        found = read_file(path)
        if isinstance(found, dict):
            arguments = found.get(ARGUMENTS)
            plain = arguments.plain if isinstance(arguments, ScriptArguments) else {}
            networks = [replace(part, arguments=plain) for part in find_networks(path, name_from_file(path), found)]
            if not networks and isinstance(found.get("config"), Mapping):
                options |= {key: value for key, value in found["config"].items() if isinstance(value, int | float | str)}
                notes.append(f"'{path.name}' holds training state and no network; its options are used")
            elif not networks:
                notes.append(f"'{path.name}' holds no network (its entries: {', '.join(map(str, list(found)[:5])) or 'none'})")
            parts += networks
        else:
            parts += found
    if not parts:
        raise UserError(f"no network was found: {'; '.join(notes)}")
    for part in parts:
        check_tensors(str(part), part.state)
    return Checkpoint(parts, options, notes)


def without_shards(paths: Sequence[Path]) -> list[Path]:
    """Files less the shards of checkpoints, which a shell's ``ckpt-1.*`` names beside their index.

    Raises:
        UserError: If a shard is there without its index.
    """
    indices = {path: index_of(path.with_name(SHARD_SUFFIX.sub(INDEX_SUFFIX, path.name))) for path in paths}
    for path, index in indices.items():
        if index != path and index not in paths:
            kind = "file of several" if is_pieces_index(index) else "shard of a TensorFlow checkpoint"
            raise UserError(f"checkpoint '{path}' is a {kind}; give its index, '{index}'")
    return [path for path in paths if indices[path] == path]


def name_from_file(path: Path) -> str | None:
    """What a file's name says of the network in it."""
    match = FILE_NAME.match(path.stem)
    return match[1] if match else None


def read_file(path: Path) -> dict[str, Any] | list[NetworkPart]:
    """Read one file: a dictionary as it was saved, or the networks of a snapshot.

    Raises:
        UserError: If it is absent, damaged or refused.
    """
    if not path.is_file():
        index = path.with_name(path.name + INDEX_SUFFIX)
        wanted = f"'{index}'" if index.is_file() else "the file of the official weights"
        raise UserError(f"checkpoint '{path}' does not exist or is a folder; give {wanted}")
    if is_pieces_index(path):
        return read_pieces(path, read_file)
    try:
        if is_index(path):
            return [NetworkPart(path, name, state) for name, state in read_tensorflow(path)]
        with path.open("rb") as stream:
            start = stream.read(16)
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return dict(load_file(path))
        if zipfile.is_zipfile(path):
            return read_arrays(path) if not holds_torch_zip(path) else read_torch(path)
        if start.startswith(LEGACY_START):
            return read_torch(path)
    except (*READ_ERRORS, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"checkpoint '{path}' can't be read, it is truncated, damaged or no checkpoint: {brief(error)}"
        ) from error
    return [
        NetworkPart(path, name, network.state, network.options, network.class_name, beside=network.beside)
        for name, network in read_snapshot(path).items()
    ]


def holds_torch_zip(path: Path) -> bool:
    """Whether a zip file is torch's.

    Raises:
        UserError: If it is, and its parts are compressed, which torch never writes, or overlap: a small file may fill the memory.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if not any(member.filename.endswith("data.pkl") for member in members):
        return False
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"checkpoint '{path}' is refused: its content is compressed, as torch never writes it")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(f"checkpoint '{path}' is refused: its parts are larger than the file")
    return True


def read_torch(path: Path) -> dict[str, Any]:
    """Read a torch file of either format with ``weights_only=True``.

    Raises:
        UserError: If it asks for anything but tensors and plain data, or is not a dictionary.
    """
    try:
        known: list[Any] = [(ScriptArguments, ARGUMENTS_NAME), *((Ignored, name) for name in IGNORED_NAMES)]
        with torch.serialization.safe_globals(known):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        match = FORBIDDEN_NAME.search(str(error))
        reason = f"it asks for {match[1]}" if match else "it is damaged, or asks for more"
        raise UserError(f"checkpoint '{path}' is refused: {reason}, and only tensors and plain data are read") from error
    if not isinstance(content, Mapping):
        raise UserError(f"checkpoint '{path}' holds a {type(content).__name__}; give a file with a network's state dict")
    return dict(content)


def read_arrays(path: Path) -> dict[str, Any]:
    """Read an npz file of arrays by variable name (a dump of a TensorFlow checkpoint), without pickle.

    Raises:
        UserError: If it would swell beyond reason, or an array is of a type that torch has not.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_INFLATION * path.stat().st_size:
            raise UserError(f"checkpoint '{path}' is refused: its arrays are {MAX_INFLATION} times larger than the file")
    tensors = {}
    for key in npz_keys(path):
        array = read_npz(path, key)
        if array.dtype.kind not in "biuf":
            raise UserError(f"checkpoint '{path}' holds {key} of type {array.dtype}; weights are numbers")
        tensors[key] = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
    return tensors


def find_networks(path: Path, name: str | None, content: Mapping[str, Any], depth: int = 0) -> Iterator[NetworkPart]:
    """Find the state dicts in what a file holds.

    Args:
        path: The file.
        name: What the network is called so far.
        content: A state dict, or a dictionary with state dicts among its values.
        depth: Dictionaries around it.

    Raises:
        UserError: If tensors and other things lie side by side in what else is a state dict.
    """
    if "param_groups" in content or depth > MAX_NESTING:
        return  # an optimizer's state
    if LIGHTNING_VERSION in content and isinstance(content.get("state_dict"), Mapping):
        content = {"state_dict": content["state_dict"]}
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    below = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    networks = [
        part
        for key, value in below.items()
        for part in find_networks(path, name if key in ANONYMOUS else str(key), value, depth + 1)
    ]
    if networks:
        yield from networks
    elif tensors:
        others = [f"{key} ({type(value).__name__})" for key, value in content.items() if key not in tensors]
        if others:
            raise UserError(f"checkpoint '{path}' holds things among its tensors that are none: {', '.join(others[:5])}")
        yield NetworkPart(path, name, strip_prefix(tensors))


def strip_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers of torch put before every name."""
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
