"""StyleGAN-line snapshots: every tensor comes through as ``state_dict()`` has it, and nothing in the pickle runs."""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from generative.convert.files import snapshot
from generative.convert.files.snapshot import read_networks, read_snapshot
from generative.convert.files.storage import LEGACY_MAGIC, read_storage
from generative.core.errors import UserError


def reconstruct(meta: dict[str, Any]) -> None:
    """What the official code runs; here it may only be named."""
    raise AssertionError(f"{meta['class_name']} was reconstructed")


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, type], type]:
    """Gives a class of ours the name and the module of an official one, by which it is pickled."""

    def pose_as(module: str, name: str, item: Any) -> Any:
        names = module.split(".")
        for index in range(len(names)):
            part = ".".join(names[: index + 1])
            if part not in sys.modules:
                monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        monkeypatch.setattr(sys.modules[module], name, item, raising=False)
        item.__module__, item.__qualname__, item.__name__ = module, name, name
        return item

    return pose_as


class Plain(nn.Module):
    """Spectral norm, batch norm, a table, tensors of many types, and parts that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.z_dim, self.img_resolution, self.kind = 4, 128, "lite"
        self.conv = nn.utils.spectral_norm(nn.ConvTranspose2d(4, 6, 3))
        self.norm = nn.BatchNorm2d(6)
        self.stages = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.GLU(1), nn.ModuleDict({"a": nn.Linear(2, 2)}))
        self.embed = nn.Embedding(5, 4)
        self.transposed = nn.Parameter(torch.randn(3, 5).t())
        self.register_parameter("absent", None)
        self.register_buffer("halves", torch.randn(3).half())
        self.register_buffer("brain", torch.randn(3).bfloat16())
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("view", torch.arange(10)[2:9:3])
        self.register_buffer("scratch", torch.randn(2), persistent=False)
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.options = OrderedDict(a=1)


class Persistent(nn.Module):
    """Pickled as ``torch_utils.persistence`` pickles: with the source of its module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._init_args, self._init_kwargs = args, kwargs
        self.fc = nn.Linear(3, 2)
        self.source = ""

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": "Generator", "state": state}
        return reconstruct, (meta,), None


def same(ours: dict[str, Tensor], network: nn.Module) -> bool:
    theirs = network.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in ours
    )


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_tensor_of_a_network_by_its_official_name(official: Any, tmp_path: Path, protocol: int) -> None:
    generator_class = official("pg_modules.networks_fastgan", "Generator", type("Generator", (Plain,), {}))
    generator, average = generator_class(), generator_class()
    with torch.no_grad():  # as in training: the normalised weight, which no state dict holds, now lies beside the parameters
        generator.conv(torch.randn(1, 4, 2, 2))
    options = official("dnnlib.util", "EasyDict", type("EasyDict", (dict,), {}))(path="data.zip", resolution=128)
    content = {
        "G": generator.requires_grad_(False),
        "D": None,
        "G_ema": average.eval(),
        "training_set_kwargs": options,
        "progress": {"cur_nimg": torch.LongTensor([7]), "best_fid": np.float64(3.5)},
    }
    path = tmp_path / "network-snapshot.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    networks = read_snapshot(path)
    assert list(networks) == ["G", "G_ema"]
    assert networks["G"].class_name == "pg_modules.networks_fastgan.Generator"
    assert same(networks["G"].state, generator) and same(networks["G_ema"].state, average)
    assert networks["G"].options == {"z_dim": 4, "img_resolution": 128, "kind": "lite", "options": {"a": 1}}


def test_persistent_classes_keep_their_arguments_and_their_source_is_not_run(official: Any, tmp_path: Path) -> None:
    official("torch_utils.persistence", "_reconstruct_persistent_obj", reconstruct)
    network = official("training.networks", "Generator", Persistent)(
        z_dim=512, mapping_kwargs={"num_layers": 2}, dtype=torch.float32
    )
    canary = tmp_path / "ran"
    network.source = f"open({str(canary)!r}, 'w').close()"
    found = read_networks(pickle.dumps({"G_ema": network}), "x")["G_ema"]
    assert found.class_name == "Generator" and found.options == {"z_dim": 512, "mapping_kwargs": {"num_layers": 2}}
    assert same(found.state, network)
    assert not canary.exists()


def test_tensors_of_the_result_can_be_written(official: Any) -> None:
    network = official("pg_modules.blocks", "Block", type("Block", (Plain,), {}))()
    state = read_networks(pickle.dumps({"G": network}), "x")["G"].state
    before = network.norm.weight.detach().clone()
    state["norm.weight"].zero_()
    torch.testing.assert_close(network.norm.weight.detach(), before)


def storage_bytes(tensor: Tensor) -> bytes:
    stream = io.BytesIO()
    storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
    torch.save(storage, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


class Calls:
    """Pickled as a call of any function, which need not be one that pickle finds by name."""

    def __init__(self, function: str, *arguments: Any) -> None:
        self.module, self.name = function.rsplit(":", 1) if ":" in function else function.rsplit(".", 1)
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return Name(self.module, self.name), self.arguments


class Name:
    """Pickled as a bare name by the pickler below."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        raise AssertionError


class NamePickler(pickle._Pickler):  # the Python one: its table of types can be added to
    dispatch = dict(pickle._Pickler.dispatch)

    def save_name(self, item: Name) -> None:
        self.write(f"c{item.module}\n{item.name}\n".encode())

    dispatch[Name] = save_name


def hostile(content: Any) -> bytes:
    stream = io.BytesIO()
    NamePickler(stream, 2).dump(content)
    return stream.getvalue()


def module_record(**parts: Any) -> Calls:
    """What unpickles into a network with these parts, through a persistent object."""
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, **parts}
    return Calls("torch_utils.persistence._reconstruct_persistent_obj", {"class_name": "G", "state": state})


def tensor_record(data: bytes, offset: Any, size: Any, stride: Any) -> Calls:
    storage = Calls("torch.storage._load_from_bytes", data)
    return Calls("torch._utils._rebuild_tensor_v2", storage, offset, size, stride, False, OrderedDict())


def test_the_attacks_are_spelled_right() -> None:
    """A record like those below comes through: the refusals are not for a slip in how they are written."""
    data = storage_bytes(torch.arange(6, dtype=torch.uint8))
    content = {"G": module_record(_parameters={"w": tensor_record(data, 1, (2, 2), (3, 1))})}
    state = read_networks(hostile(content), "x")["G"].state
    assert state["w"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    "function", ["posix.mkdir", "os.mkdir", "os.system", "builtins.eval", "builtins.exec", "builtins.getattr"]
)
@pytest.mark.parametrize("where", ["top", "state", "parameters", "storage"])
def test_no_function_runs(tmp_path: Path, function: str, where: str) -> None:
    canary = tmp_path / "ran"
    text = {"mkdir": str(canary), "system": f"mkdir {canary}"}.get(
        function.split(".")[1], f"__import__('os').mkdir({str(canary)!r})"
    )
    attack = Calls(function, text)
    if where == "storage":
        data = pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + hostile(attack)
        attack = tensor_record(data, 0, (1,), (1,))
    content = {
        "top": {"G": module_record(), "D": attack},
        "state": {"G": module_record(anything=attack)},
        "parameters": {"G": module_record(_parameters={"w": attack})},
        "storage": {"G": module_record(_parameters={"w": attack})},
    }[where]
    data = hostile(content)
    with pytest.raises(ValueError, match=rf"pickle x is refused or damaged: it asks for {function}, "):
        read_networks(data, "x")
    assert not canary.exists()


def test_the_attack_would_work(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    pickle.loads(hostile({"G": Calls("os.mkdir", str(canary))}))
    assert canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"Ptest\n.",  # persistent id outside a storage
        b"\x80\x02ctorch.storage\n_load_from_bytes\nQ.",
        b"\x82\x01.",  # extension registry
        b"\x80\x04\x8c\x08torch.nn\x8c\x14functional.sys.exit\x93.",  # a way out of an allowed package
        b"ctorch.hub\nload\n(S'evil'\ntR.",
        b"ctorch\nload\n(S'evil'\ntR.",
        b"ctorch.serialization\nload\n(S'evil'\ntR.",
        b"cbuiltins\n__import__\n(S'os'\ntR.",
        b"csubprocess\nPopen\n(S'true'\ntR.",
        b"cdill._dill\n_create_code\n(S'true'\ntR.",
        b"ctypes\nFunctionType\n)R.",
        b"\x80\x02ctorch.nn\nModule\n}U\x0c__setstate__K\x01sb.",  # BUILD on a class
        b"\x80\x02ctorch.storage\n_load_from_bytes\n}U\x08__code__K\x01sb.",  # BUILD on a function
        b"]r\xff\xff\xff\x7f.",  # a memo of 16 GB
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # an integer of 2 GB that is not there
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00.",  # 1 TB of bytes that are not there
        b"\x80\x04]\x94h\x00a.",
        b"",
        b"hello",
    ],
)
def test_other_ways_to_do_harm_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^pickle x is (refused|truncated) or damaged.*use an unmodified copy\.$"):
        read_networks(content, "x")


def refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_networks(hostile(content), "x")


def test_tensors_must_have_the_memory_they_claim() -> None:
    data = storage_bytes(torch.zeros(16, dtype=torch.uint8))
    for size, stride, offset in (
        ((10**6, 10**6), (0, 0), 0),  # terabytes out of one byte
        ((17,), (1,), 0),
        ((4,), (5,), 1),
        ((16,), (1,), 1),
        ((2**62, 0), (1, 1), 0),
    ):
        refused({"G": module_record(_parameters={"w": tensor_record(data, offset, size, stride)})}, "a tensor of shape")
    for size, stride in (((-1,), (1,)), ((True,), (1,)), ("4", (1,)), ((1,) * 100, (1,) * 100), ((4,), (1.0,))):
        refused({"G": module_record(_parameters={"w": tensor_record(data, 0, size, stride)})}, "without a shape")
    empty = {"G": module_record(_parameters={"w": tensor_record(data, 0, (0, 4), (4, 1))})}
    assert read_networks(hostile(empty), "x")["G"].state["w"].shape == (0, 4)
    refused({"G": module_record(_parameters={"w": tensor_record(data, 0, (4, 4), (1,))})}, "damaged")
    refused({"G": module_record(_parameters={"w": tensor_record(data, -1, (4,), (1,))})}, "without a storage")


def test_storages_must_hold_what_they_announce() -> None:
    good = storage_bytes(torch.arange(4, dtype=torch.float32))
    assert read_storage(good).view(torch.float32).tolist() == [0, 1, 2, 3]
    for data, message in (
        (good[:-1], "has 15 bytes"),
        (good + b"x", "has 17 bytes"),
        (
            good.replace(b"little_endian\x94\x88", b"little_endian\x94\x89").replace(b"endianq\x02\x88", b"endianq\x02\x89"),
            "byte order",
        ),
        (pickle.dumps(5, 2) + good, "legacy format"),
    ):
        with pytest.raises(pickle.UnpicklingError, match=message):
            read_storage(data)
    huge = good.replace(b"K\x04N", b"\x8a\x06\x00\x00\x00\x00\x00\x01N")  # 2^40 values
    assert huge != good
    with pytest.raises(pickle.UnpicklingError, match="has 16 bytes"):
        read_storage(huge)


def test_a_storage_that_is_repeated_does_not_fill_the_memory() -> None:
    data = storage_bytes(torch.zeros(10**6, dtype=torch.uint8))
    tensors = {f"w{i}": tensor_record(data, 0, (1,), (1,)) for i in range(200)}  # the bytes are in the pickle once
    pickled = hostile({"G": module_record(_parameters=tensors)})
    assert len(pickled) < 2 * 10**6
    with pytest.raises(ValueError, match="its storages are larger than the file"):
        read_networks(pickled, "x")


def test_a_name_that_is_repeated_does_not_fill_the_memory() -> None:
    def names(count: int) -> bytes:
        return pickle.PROTO + b"\x04" + b"ctorch.nn\nLinear\n0" * count + b"N."

    with pytest.raises(ValueError, match="it holds no network"):  # every name was answered
        read_networks(names(snapshot.MAX_NAMES), "x")
    with pytest.raises(ValueError, match="it names more classes than networks have"):
        read_networks(names(snapshot.MAX_NAMES + 1), "x")


def test_networks_that_never_end_are_refused() -> None:
    deep = module_record()
    for _ in range(70):
        deep = module_record(_modules={"a": deep})
    refused({"G": deep}, "nests modules too deeply")
    wide = module_record()
    for _ in range(40):  # 2^40 modules out of 40
        wide = module_record(_modules={"a": wide, "b": wide})
    refused({"G": wide}, "nests modules too deeply")
    refused({"G": module_record(_modules={3: module_record()})}, "by something other than text")


def test_what_is_no_network_is_refused() -> None:
    refused({"G": 1}, "holds no network")
    refused([1, 2], "holds no network")
    refused({"G": module_record(_parameters={"w": 3})}, "'w' is no tensor")
    refused({"G": module_record(_modules={"w": {}})}, "'w' is no module")
    refused({"G": module_record(_parameters={"w": Calls("torch._utils._rebuild_parameter", 5, False, {})})}, "without a tensor")


def test_nothing_set_on_a_stand_in_outlasts_its_file() -> None:
    before = dict(vars(snapshot._Record))
    refused({"G": Calls("torch.nn.Linear", 1)}, "holds no network")
    assert dict(vars(snapshot._Record)) == before


def test_a_damaged_snapshot_never_gives_a_traceback(official: Any) -> None:
    network = official("pg_modules.blocks", "Block", type("Block", (Plain,), {}))()
    data = pickle.dumps({"G": network})
    draws = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(draws.randrange(1, 4)):
            damaged[draws.randrange(len(data))] = draws.randrange(256)
        for content in (bytes(damaged), data[: draws.randrange(len(data))]):
            try:
                read_networks(content, "x")
            except ValueError as error:
                assert str(error).startswith("pickle x is ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_snapshot(tmp_path / "absent.pkl")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": os.sep}))
    with pytest.raises(UserError, match="it holds no network"):
        read_snapshot(tmp_path / "x.pkl")


class Companion:
    """An object beside the networks, pickled as ``torch_utils.persistence`` pickles."""

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": "raise", "class_name": "Encoder", "state": dict(self.__dict__)}
        return reconstruct, (meta,), None


def test_what_lies_beside_a_network_is_plain_data(official: Any, tmp_path: Path) -> None:
    official("torch_utils.persistence", "_reconstruct_persistent_obj", reconstruct)
    options = official("dnnlib.util", "EasyDict", type("EasyDict", (dict,), {}))
    companion = Companion()
    companion.scale, companion._init_kwargs, companion._vae = np.float32([0.5, 0.25]), {}, None
    companion.batch_size, companion.network = 8, nn.Linear(1, 1)
    network = official("training.networks", "Generator", Persistent)(label_dim=3).half()
    content = options(ema=network, encoder=companion, dataset_kwargs=options(path="x.zip", use_labels=True), step=7)
    found = read_networks(pickle.dumps(content), "x")["ema"]
    assert same(found.state, network) and found.state["fc.weight"].dtype == torch.float16
    assert found.beside.keys() == {"encoder", "dataset_kwargs"}
    assert found.beside["dataset_kwargs"] == {"path": "x.zip", "use_labels": True}
    encoder = found.beside["encoder"]
    assert encoder.pop("scale").tolist() == [0.5, 0.25] and encoder == {"class_name": "Encoder", "batch_size": 8}


def test_no_function_runs_beside_a_network(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    record = Calls(
        "torch_utils.persistence._reconstruct_persistent_obj", {"class_name": "E", "state": {"a": Calls("os.mkdir", str(canary))}}
    )
    with pytest.raises(ValueError, match="it asks for os.mkdir, "):
        read_networks(hostile({"ema": module_record(), "encoder": record}), "x")
    assert not canary.exists()
