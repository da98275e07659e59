"""Read the snapshots of the StyleGAN line (StyleGAN2-ADA, Projected GAN, EDM, EDM2) without running them: tensors and plain data.

Such a snapshot is a pickle of whole networks, ``{"G": ..., "D": ..., "G_ema": ..., "training_set_kwargs": {...}}`` or
``{"ema": ..., "encoder": ..., "loss_fn": ..., "dataset_kwargs": {...}}``. They come as
objects of classes by name, or, where ``torch_utils.persistence`` made them, with the source code of their module, which the
official code executes. Tensors lie in it as the bytes of a ``torch.save`` of their own, pickles within the pickle.

Nothing of this is run or imported. On the ground of ``metrics.files.safe_pickle`` the program is walked first, then every name in
it is answered by an inert stand-in or refused: classes of networks become records of their attributes, source code is text that
is left lying, and tensors are made of checked sizes over bytes that are there.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from generative.convert.files.storage import STORAGE_DTYPES, read_storage
from generative.core.errors import UserError
from metrics.files.safe_pickle import ArrayUnpickler, check_program, plain, refusing

# Packages whose classes a snapshot may name. They are never imported: an object of theirs is a record of its attributes.
NETWORK_PACKAGES = ("torch.nn", "torch.ao.nn", "timm", "pg_modules", "feature_networks", "training", "torch_utils", "dnnlib")
# Instructions that objects and sets need beside those of plain data.
OBJECT_OPCODES = frozenset({"NEWOBJ", "EMPTY_SET", "ADDITEMS", "FROZENSET"})
# Values that torch pickles by name and that mean nothing here.
INERT_NAMES = frozenset(
    {("functools", "partial"), ("torch", "device"), ("torch", "Size"), ("torch", "contiguous_format"), ("torch", "channels_last")}
    | {("torch", str(dtype).removeprefix("torch.")) for dtype in STORAGE_DTYPES.values()}
)
MAX_DEPTH = 64
"""Deepest nesting of modules that is followed; EfficientNet inside a discriminator takes 8."""
MAX_DIMENSIONS = 8
"""Most axes of a tensor; a convolution's weight has 4."""
MAX_EMPTY_AXIS = 1 << 16
"""Longest axis of a tensor without values; attention of fewer than 8 channels has such in BigGAN-PyTorch."""
MAX_TENSORS = 100_000
"""Most tensors, and most modules, of one network; the discriminator of Projected GAN has less than a thousand."""
MAX_NAMES = 10_000
"""Most times that a snapshot may name something. A pickler names each class once; each time takes a class of its own here."""


@dataclass(frozen=True)
class SnapshotNetwork:
    """A network of a snapshot.

    Attributes:
        class_name: Its class in the official code.
        state: What its ``state_dict()`` would be.
        options: Constructor arguments, where the snapshot keeps them, else its attributes that are plain numbers and text.
        beside: What lies beside the networks, by name: plain entries of dictionaries, and plain public attributes of objects
            (EDM2's encoder, its loss) with the name of their class as ``class_name``.
    """

    class_name: str
    state: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, dict[str, Any]] = field(default_factory=dict)


class _Record:
    """Stands for an object of a class that is never imported; keeps what the pickle says its attributes are."""

    __slots__ = ("attributes",)
    class_name = ""

    def __new__(cls, *arguments: Any) -> _Record:
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Dict(dict):
    """Stands for OrderedDict and dnnlib.EasyDict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Attributes of a dict (``_metadata`` of a state dict) mean nothing here."""


class _Storage:
    """Bytes of a tensor and their element type."""

    __slots__ = ("values",)

    def __init__(self, values: Tensor) -> None:
        self.values = values


class _TensorBox:
    """Holds a tensor, so that no instruction ever meets a real one."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _record_class(name: str) -> type[_Record]:
    """A new class for each name: what a pickle might set on one is gone with it."""
    return type("_NamedRecord", (_Record,), {"__slots__": (), "class_name": name})


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        raise pickle.UnpicklingError("a tensor without a shape is refused")
    if not all(type(size) is int and size >= 0 for size in value):
        raise pickle.UnpicklingError("a tensor without a shape is refused")
    return tuple(value)


def _build_tensor(storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> _TensorBox:
    """Stands for ``torch._utils._rebuild_tensor_v2``."""
    if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
        raise pickle.UnpicklingError("a tensor without a storage is refused")
    size, stride = _sizes(size), _sizes(stride)
    num_values = storage.values.numel()
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # A stride of 0 would let a few bytes stand for terabytes, an axis of 0 any other axis.
    is_backed = last < num_values and math.prod(size) <= num_values if math.prod(size) else max(size) <= MAX_EMPTY_AXIS
    if not is_backed:
        raise pickle.UnpicklingError(f"a tensor of shape {size} in a storage of {num_values} values is refused")
    return _TensorBox(storage.values.as_strided(size, stride, offset))


def _build_parameter(box: Any, *unused: Any) -> _TensorBox:
    """Stands for ``torch._utils._rebuild_parameter`` and ``_rebuild_parameter_with_state``."""
    if not isinstance(box, _TensorBox):
        raise pickle.UnpicklingError("a parameter without a tensor is refused")
    return box


def _build_persistent(meta: Any) -> _Record:
    """Stands for ``torch_utils.persistence._reconstruct_persistent_obj``; the code in ``meta["module_src"]`` is not looked at."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError("a persistent object without a class is refused")
    record = _record_class(meta["class_name"])()
    record.__setstate__(meta.get("state"))
    return record


class _SnapshotUnpickler(ArrayUnpickler):
    """Answers the names of a snapshot by stand-ins.

    Args:
        stream: The pickle.
        num_bytes: Its size. All storages together may not be larger: a reference that is repeated could else fill the memory.
    """

    def __init__(self, stream: io.BytesIO, num_bytes: int) -> None:
        super().__init__(stream)
        self.num_bytes_left = num_bytes
        self.num_names_left = MAX_NAMES

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Look a name up: here, nowhere else."""
        self.num_names_left -= 1
        if self.num_names_left < 0:
            raise pickle.UnpicklingError("it names more classes than networks have")
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return lambda data: self.load_storage(data)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _build_tensor(*arguments)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return lambda *arguments: _build_parameter(*arguments)
        if (module, name) == ("torch_utils.persistence", "_reconstruct_persistent_obj"):
            return lambda meta: _build_persistent(meta)
        if (module, name) in (("collections", "OrderedDict"), ("dnnlib.util", "EasyDict")):
            return type("_NamedDict", (_Dict,), {"__slots__": ()})
        if (module, name) in (("builtins", "set"), ("__builtin__", "set")):
            return lambda items=(): set(items)  # How protocol 3 spells a set.
        if (module, name) in INERT_NAMES or is_network_class(module, name):
            return _record_class(f"{module}.{name}")
        try:
            return super().find_class(module, name)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no network needs") from error

    def load_storage(self, data: Any) -> _Storage:
        """Stands for ``torch.storage._load_from_bytes``."""
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("a storage without bytes is refused")
        self.num_bytes_left -= len(data)
        if self.num_bytes_left < 0:
            raise pickle.UnpicklingError("its storages are larger than the file")
        return _Storage(read_storage(data))


def is_network_class(module: str, name: str) -> bool:
    """Whether a name is one of a class in a package of networks."""
    return "." not in name and any(module == package or module.startswith(f"{package}.") for package in NETWORK_PACKAGES)


def is_module(value: Any) -> bool:
    """Whether a record is of a ``torch.nn.Module``."""
    return isinstance(value, _Record) and all(
        isinstance(value.attributes.get(name), dict) for name in ("_parameters", "_buffers", "_modules")
    )


def collect_state(module: Any) -> dict[str, Tensor]:
    """What the ``state_dict()`` of a module would hold.

    Args:
        module: Record for which ``is_module`` is true.

    Raises:
        pickle.UnpicklingError: If modules nest too deeply or in a circle, or a tensor is not one.
    """
    state: dict[str, Tensor] = {}
    pending = [("", module, 0)]
    num_modules = 0
    while pending:
        prefix, record, depth = pending.pop()
        num_modules += 1
        if depth > MAX_DEPTH or max(num_modules, len(state), len(pending)) > MAX_TENSORS:
            raise pickle.UnpicklingError("it nests modules too deeply")
        transient = record.attributes.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers", "_modules"):
            for name, value in record.attributes[kind].items():
                if not isinstance(name, str):
                    raise pickle.UnpicklingError("it names a part of a network by something other than text")
                if value is None or (kind == "_buffers" and name in transient):
                    continue
                if kind == "_modules" and is_module(value):
                    pending.append((f"{prefix}{name}.", value, depth + 1))
                elif kind != "_modules" and isinstance(value, _TensorBox):
                    state[prefix + name] = value.tensor
                else:
                    raise pickle.UnpicklingError(f"'{prefix}{name}' is no {'module' if kind == '_modules' else 'tensor'}")
    return dict(sorted(state.items()))


def plain_options(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments that a persistent object keeps, else public attributes; only those that are plain data."""
    kept = attributes.get("_init_kwargs")
    return plain_entries(kept if isinstance(kept, dict) else attributes)


def plain_entries(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Public attributes that are plain data."""
    entries = {}
    for name, value in attributes.items():
        try:
            if isinstance(name, str) and not name.startswith("_") and name != "training":
                entries[name] = plain(value)
        except pickle.UnpicklingError:
            continue  # a class, a tensor, a function: no option that could be written down
    return entries


def read_beside(entries: Mapping[Any, Any]) -> dict[str, dict[str, Any]]:
    """What lies beside the networks of a snapshot, see ``SnapshotNetwork``."""
    found = {}
    for name, value in entries.items():
        if isinstance(name, str) and isinstance(value, _Record) and not is_module(value):
            found[name] = plain_entries(value.attributes) | {"class_name": type(value).class_name}
        elif isinstance(name, str) and isinstance(value, dict):
            found[name] = plain_entries(value)
    return found


def read_networks(data: bytes, name: str) -> dict[str, SnapshotNetwork]:
    """Read the networks of a snapshot.

    Args:
        data: The pickle.
        name: What to call it in messages.

    Returns:
        Networks by their names in the snapshot (``G``, ``D``, ``G_ema``, ``ema``).

    Raises:
        ValueError: If it is damaged, holds no network, or asks for a name that networks do not need.
    """
    with refusing(name):
        check_program(io.BytesIO(data), OBJECT_OPCODES)
        content = _SnapshotUnpickler(io.BytesIO(data), len(data)).load()
        entries = content if isinstance(content, dict) else {"network": content}
        beside = read_beside(entries)
        networks = {
            key: SnapshotNetwork(type(value).class_name, collect_state(value), plain_options(value.attributes), beside)
            for key, value in entries.items()
            if isinstance(key, str) and is_module(value)
        }
        if not networks:
            raise pickle.UnpicklingError("it holds no network")
        return networks


def read_snapshot(path: Path) -> dict[str, SnapshotNetwork]:
    """Read the networks of a snapshot file; see ``read_networks``.

    Raises:
        UserError: If it cannot be read, is damaged, or is refused.
    """
    try:
        return read_networks(path.read_bytes(), f"'{path}'")
    except OSError as error:
        raise UserError(f"snapshot '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
