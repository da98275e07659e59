"""Checkpoints: named folders of config.json + safetensors and JSON, written whole or not at all, nothing executable in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from generative.core.errors import RunError, UserError
from generative.core.full_disk import explain_full
from generative.core.images import IMAGE_RANGE_KEY
from generative.core.sharding import network_class
from generative.core.tensor_parts import fill_network, is_like, part_like

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
NAME = re.compile(r"checkpoint-(\d{8,})")
PIPELINE = "pipeline"
"""Folder of the pipeline: of the newest averages in a run, of a step's in its checkpoint."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_METADATA = {"format": "pt"}
BUFFERS = "buffers.safetensors"

# Keys of config.json that describe the software and not the network.
PRIVATE_CONFIG_KEYS = ("_class_name", "_diffusers_version", "_name_or_path")


def checkpoint_path(run: Path, step: int) -> Path:
    """Folder of a run's checkpoint at a step."""
    return run / f"checkpoint-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Step of a checkpoint, from its folder's name."""
    return int(checkpoint.name.split("-")[1])


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first (a folder exists under its name only once it is complete)."""
    if not run.is_dir():
        return []
    return sorted((p for p in run.iterdir() if p.is_dir() and NAME.fullmatch(p.name)), key=step_of)


def resolve_checkpoint(run: Path, resume: str) -> Path | None:
    """Find the checkpoint to resume from.

    Args:
        run: Folder of the run.
        resume: ``latest`` (there must be one), ``auto`` (the newest if there is one) or the path of a checkpoint folder.

    Raises:
        UserError: If there is no such checkpoint, or it is not complete.
    """
    if resume in ("latest", "auto"):
        found = list_checkpoints(run)
        if not found and resume == "latest":
            raise UserError(f"'{run}' holds no complete checkpoint to resume from; leave --resume out to start anew")
        path = found[-1] if found else None
    else:
        path = Path(resume)
        if not path.is_dir():
            raise UserError(f"checkpoint '{path}' does not exist; --resume takes latest, auto or a checkpoint folder")
        # The two would mix: the newest ones are kept, and --resume latest would go on from what was abandoned.
        later = list_checkpoints(run)
        if path.resolve().parent == run.resolve():  # one of the run's own, by step or kept under another name
            step = step_of(path) if NAME.fullmatch(path.name) else read_state(path)["step"]
            later = [other for other in later if step_of(other) > step]
        if later:
            raise UserError(
                f"'{run}' holds '{later[0].name}' beyond '{path}'; move it and later ones away, "
                "or choose another --trainer.output_dir"
            )
    if path is not None:
        verify_manifest(path)
    return path


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted write left behind; a folder that was being replaced gets its old content back."""
    for path in folder.glob(".*.previous.partial"):
        target = path.with_name(path.name.removeprefix(".").removesuffix(".previous.partial"))
        if not target.exists():
            path.rename(target)
    for path in folder.glob(".*.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder whole or not at all.

    It is filled under a temporary name, listed in a manifest, flushed to disk and renamed; a previous folder of the same name is
    replaced at the end. A kill at any moment leaves the old folder, the new one, or none, and never a half-written one.

    Args:
        target: The folder to create.
        fill: Writes the content into the folder it is given.

    Raises:
        UserError: If the place cannot be written to.
        RunError: If the disk is full.
    """
    partial = partial_path(target)
    with removed_on_failure(target, partial):
        start_folder(partial)
        fill(partial)
        finish_folder(target, partial)


def partial_path(target: Path) -> Path:
    """Where a folder is written before it is renamed."""
    return target.with_name(f".{target.name}.partial")


def start_folder(partial: Path) -> None:
    """Make an empty folder to write into."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def finish_folder(target: Path, partial: Path) -> None:
    """Give a folder that is written its manifest and its name; a previous one of that name is replaced."""
    for path in [*write_manifest(partial), partial / MANIFEST, *(p for p in partial.rglob("*") if p.is_dir()), partial]:
        flush_to_disk(path)
    if target.exists():
        previous = target.with_name(f".{target.name}.previous.partial")
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
        try:
            partial.rename(target)
        except OSError:
            previous.rename(target)
            raise
        shutil.rmtree(previous)
    else:
        partial.rename(target)
    flush_to_disk(target.parent)


@contextmanager
def removed_on_failure(target: Path, partial: Path | None) -> Iterator[None]:
    """Inside, a folder is written; what stands in the way is told in a sentence, and what was written is deleted.

    Args:
        target: The folder, for messages.
        partial: What to delete; None to leave that to another process.

    Raises:
        UserError: If the place cannot be written to.
        RunError: If the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError, RunError) as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, RunError):  # of another process, which told it in a sentence
            raise
        if (full := explain_full(error, target, "nothing half-written remains")) is not None:
            raise full from error
        if isinstance(error, PermissionError):
            raise UserError(f"'{target}' cannot be written: {error.strerror}; choose a folder you may write to") from error
        raise


def write_manifest(folder: Path) -> list[Path]:
    """List the files of a folder with their sizes in its manifest; returns them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
    (folder / MANIFEST).write_text(json.dumps({"files": sizes}, indent=1) + "\n")
    return files


def flush_to_disk(path: Path) -> None:
    """Make a file's or folder's content survive a power cut (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify_manifest(folder: Path) -> None:
    """Check that every file of a folder is there with its full size.

    Raises:
        UserError: If a file is missing or cut short.
    """
    try:
        files: list[tuple[str, int]] = list(json.loads((folder / MANIFEST).read_text())["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{folder}' is not a complete checkpoint: its {MANIFEST} is missing or damaged") from error
    for name, size in files:
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"'{folder}' is damaged: '{name}' is missing or cut short; resume from an older checkpoint")


def fingerprint_folder(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files, 16 hexadecimal digits: which weights made a sample."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint_network(network: nn.Module) -> str:
    """sha256 of a network's class, config (where it has one) and weights, 64 hexadecimal digits: which network it is.

    Caches of ids or latents carry that of their tokenizer or autoencoder, and checkpoints those of their run's frozen parts.
    """
    everything = getattr(network, "config", {})
    config = {key: value for key, value in everything.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(network).__name__, config], sort_keys=True).encode())
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        digest.update(b"latents scaled by channel")  # caches written while these were ignored hold other latents
    if everything.get(IMAGE_RANGE_KEY):
        digest.update(f"images in {list(everything[IMAGE_RANGE_KEY])}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def prune_checkpoints(run: Path, keep_last: int) -> None:
    """Delete all but the newest checkpoints; each is renamed first, so that a half-deleted one is never taken for complete."""
    for path in list_checkpoints(run)[:-keep_last]:
        doomed = path.with_name(f".{path.name}.partial")
        path.rename(doomed)
        shutil.rmtree(doomed)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """States of an optimizer: tensors, keyed ``parameter name/state name``, and what is not a tensor, by parameter name.

    Args:
        optimizer: The optimizer.
        names: Parameter name by ``id(parameter)``.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:  # in the same order on every process, as states themselves need not be
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{names[id(parameter)]}/{key}"] = value
                else:
                    scalars.setdefault(names[id(parameter)], {})[key] = value
    return tensors, scalars


def save_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[int, str], path: Path) -> dict[str, Any]:
    """Write an optimizer's tensors to a safetensors file; returns its scalars, see ``optimizer_tensors``."""
    tensors, scalars = optimizer_tensors(optimizer, names)
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
    return scalars


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], path: Path, scalars: dict[str, dict[str, Any]]
) -> None:
    """Read what ``save_optimizer`` wrote; learning rates and other settings stay those of the optimizer."""
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in scalars.items()}
    for key, value in read_tensors(path).items():
        name, _, field = key.rpartition("/")
        states.setdefault(name, {})[field] = value
    content = optimizer.state_dict()
    parameters = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    ordered = list(parameters)
    unknown = set(states) - set(ordered)
    if unknown:
        raise UserError(f"'{path}' holds the state of '{min(unknown)}', which this configuration does not train")
    content["state"] = {
        index: {
            field: part_like(value, parameters[name]) if is_like(value, parameters[name]) else value
            for field, value in states[name].items()
        }
        for index, name in enumerate(ordered)
        if name in states
    }
    optimizer.load_state_dict(content)


def index_path(path: Path) -> Path:
    """Where it is told which pieces a safetensors file was written in."""
    return path.with_name(f"{path.name}.index.json")


def piece_paths(path: Path) -> list[Path]:
    """The file itself, or the pieces of it that several processes wrote.

    Raises:
        UserError: If the index is damaged.
    """
    index = index_path(path)
    if path.is_file() or not index.is_file():
        return [path]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"'{index}' is damaged; it must say which file holds which tensor") from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"'{index}' is damaged; it must name files beside it")
    return [path.with_name(name) for name in names]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or the pieces it was written in.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return {key: value for piece in piece_paths(path) for key, value in load_file(piece).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}' is missing or damaged: {error}") from error


def read_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's state.json.

    Raises:
        UserError: If it is missing, damaged or of a newer format.
    """
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{folder}' holds no readable state.json; resume from another checkpoint") from error
    if not isinstance(state, dict) or not isinstance(state.get("step"), int) or state["step"] < 0:
        raise UserError(f"'{folder / 'state.json'}' is damaged; resume from another checkpoint")
    if state.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"'{folder}' has format version {state.get('format_version')}, this version of triptych reads {FORMAT_VERSION}"
        )
    return state


def save_network(network: ConfigMixin, folder: Path) -> None:
    """Write a network as diffusers does (config.json + safetensors), in plain memory layout whatever the trainer uses."""
    folder.mkdir(parents=True)
    network.save_config(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata=WEIGHTS_METADATA)


def load_network(network: ConfigMixin, folder: Path) -> None:
    """Load weights and buffers into a network whose configuration must be the folder's.

    Raises:
        UserError: If the folder holds another network or other sizes, or is damaged.
    """
    try:
        saved: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"'{folder}' holds no readable config.json") from error
    if not isinstance(saved, dict) or "_class_name" not in saved:
        raise UserError(f"'{folder / 'config.json'}' is damaged; resume from another checkpoint")
    kind = network_class(network).__name__
    if saved["_class_name"] != kind:
        raise UserError(f"'{folder}' holds a {saved['_class_name']}, the configuration asks for a {kind}")
    # Through JSON, as tuples become lists there.
    config = json.loads(network.to_json_string())
    for key in sorted(set(saved) | set(config)):
        if key not in PRIVATE_CONFIG_KEYS and saved.get(key) != config.get(key):
            raise UserError(
                f"'{folder}' was trained with {key}={saved.get(key)}, the configuration says {config.get(key)}; "
                "use the run's own config.yaml or another output folder"
            )
    tensors = read_tensors(folder / WEIGHTS)
    expected = network.state_dict()
    wrong = sorted(set(tensors) ^ set(expected)) or [k for k in tensors if tensors[k].shape != expected[k].shape]
    if wrong:
        raise UserError(f"'{folder}' does not fit the network: '{wrong[0]}' is missing, unknown or of another shape")
    fill_network(network, tensors)


def save_buffers(buffers: Mapping[str, Tensor], folder: Path) -> None:
    """Write an objective's buffers into a checkpoint's folder; no file where there are none."""
    if buffers:
        save_file({name: value.detach().cpu().contiguous() for name, value in buffers.items()}, folder / BUFFERS)


def load_buffers(buffers: Mapping[str, Tensor], folder: Path) -> None:
    """Load what ``save_buffers`` wrote, in place.

    A checkpoint of an older version keeps the same tensors as one more network: they are found by their names.

    Raises:
        UserError: If a buffer is missing, unknown, or of another shape.
    """
    if not buffers:
        return
    path = folder / BUFFERS
    if not path.is_file():
        networks = sorted((folder / "networks").glob(f"*/{WEIGHTS}"))
        path = next((other for other in networks if buffers.keys() <= read_tensors(other).keys()), path)
        if not path.is_file():
            raise UserError(
                f"'{path}' is missing: the run began without '{next(iter(buffers))}', which this configuration remembers from "
                "step to step, or the file is lost; go on with the configuration of before, or start anew with --init-from"
            )
    tensors = {name: value for name, value in read_tensors(path).items() if name != "_extra_state"}
    wrong = sorted(set(tensors) ^ set(buffers)) or [name for name in buffers if tensors[name].shape != buffers[name].shape]
    if wrong:
        raise UserError(f"'{path}' does not fit this configuration: buffer '{wrong[0]}' is missing, unknown or of another shape")
    for name, buffer in buffers.items():
        buffer.copy_(tensors[name])
