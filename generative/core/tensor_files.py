"""Tensors of a checkpoint as files: one each where one process writes, in pieces with an index where several do.

Whoever wrote them, files hold whole tensors, so a run goes on from them with any number of processes. Pieces and index are those
of the Hugging Face Hub, which diffusers and transformers read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from generative.core import checkpoint as ckpt
from generative.core.tensor_parts import whole


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file to be.

    Attributes:
        path: Within the checkpoint.
        tensors: By key; perhaps cut over processes.
        metadata: Of the file.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """What one process writes of some files.

    Attributes:
        pieces: Its files, on the host.
        indexes: Content of the index files by path; the first writer's.
    """

    pieces: list[TensorFile]
    indexes: dict[Path, str]

    def write(self, folder: Path) -> None:
        """Write it into a checkpoint's folder."""
        for piece in self.pieces:
            path = folder / piece.path
            path.parent.mkdir(parents=True, exist_ok=True)
            ckpt.save_file(dict(piece.tensors), path, metadata=dict(piece.metadata) or None)
        for name, content in self.indexes.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)


def assign(files: Sequence[TensorFile], num_writers: int) -> list[dict[str, int]]:
    """Who writes which tensor, by file: each goes to the process with the fewest bytes so far."""
    loads = [0] * num_writers
    assigned: list[dict[str, int]] = []
    for file in files:
        writers = {}
        for key, tensor in file.tensors.items():
            writers[key] = loads.index(min(loads))
            loads[writers[key]] += tensor.numel() * tensor.element_size()
        assigned.append(writers)
    return assigned


def take_share(files: Sequence[TensorFile], writer: int, num_writers: int, copied: bool) -> Share:
    """Copy to the host what one process writes; of tensors that are cut, all processes must take theirs together.

    Args:
        files: The same, in the same order, on every process.
        writer: This process, in [0, num_writers).
        num_writers: Processes that write.
        copied: Whether training goes on before the share is written: then it shares no memory with what is trained.
    """
    pieces, indexes = [], {}
    for file, writers in zip(files, assign(files, num_writers), strict=True):
        names = piece_names(file.path, sorted(set(writers.values())))
        mine: dict[str, Tensor] = {}
        for key, tensor in file.tensors.items():
            value = whole(tensor)
            if writers[key] == writer:
                host = value.detach().cpu().contiguous()
                mine[key] = host.clone() if copied and host.data_ptr() == tensor.data_ptr() else host
        if mine or (writer == 0 and not file.tensors):
            pieces.append(TensorFile(names.get(writer, file.path), mine, file.metadata))
        if writer == 0 and len(names) > 1:
            size = sum(tensor.numel() * tensor.element_size() for tensor in file.tensors.values())
            content = {"metadata": {"total_size": size}, "weight_map": {key: names[w].name for key, w in writers.items()}}
            indexes[ckpt.index_path(file.path)] = json.dumps(content, indent=2) + "\n"
    return Share(pieces, indexes)


def piece_names(path: Path, writers: Sequence[int]) -> dict[int, Path]:
    """Path of each writer's piece of a file; its own name where there is one piece."""
    if len(writers) == 1:
        return {writers[0]: path}
    count = len(writers)
    return {w: path.with_name(f"{path.stem}-{k:05d}-of-{count:05d}{path.suffix}") for k, w in enumerate(writers, start=1)}
