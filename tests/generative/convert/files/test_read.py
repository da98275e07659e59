"""Official files: what each layout's authors save is found, and nothing in a file runs."""

from __future__ import annotations

import argparse
import copy
import os
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from generative.convert.files.read import NetworkPart, read_checkpoints
from generative.core.errors import UserError

STATE = {"linear.weight": torch.arange(6.0).reshape(2, 3), "bn.num_batches_tracked": torch.tensor(3)}


def same(part: NetworkPart, state: dict[str, Tensor] = STATE) -> bool:
    return part.state.keys() == state.keys() and all(torch.equal(part.state[key], state[key]) for key in state)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_state_dict_of_either_format(tmp_path: Path, new_format: bool) -> None:
    """As BigGAN-PyTorch saves its networks; the file's name says which one it is."""
    for name in ("G.pth", "G_ema_best0.pth", "D_copy1.pth", "weights.bin", "Generator.pt"):
        torch.save(OrderedDict(STATE), tmp_path / name, _use_new_zipfile_serialization=new_format)
    paths = sorted(tmp_path.iterdir())
    parts = read_checkpoints(paths).parts
    found = {part.path.name: part.network for part in parts}
    assert found == {"G.pth": "G", "G_ema_best0.pth": "G_ema", "D_copy1.pth": "D", "weights.bin": None, "Generator.pt": None}
    assert all(same(part) for part in parts)


def test_modules_as_torch_saves_them_keep_their_names(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.save(network.state_dict(), tmp_path / "G.pth")  # an OrderedDict with an attribute
    torch.save(nn.DataParallel(network).state_dict(), tmp_path / "D.pth")
    for part in read_checkpoints([tmp_path / "G.pth", tmp_path / "D.pth"]).parts:
        assert same(part, network.state_dict())


def test_studiogan_wraps_its_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "model=G-best-weights-step=80000.pth"
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()
    content = {"state_dict": STATE, "optimizer": optimizer, "seed": 7, "best_fid": np.float64(3.5), "aa_p": None}
    torch.save(content, path)
    (part,) = read_checkpoints([path]).parts
    assert part.network == "G" and same(part)


def test_dit_training_checkpoints_hold_two_networks(tmp_path: Path) -> None:
    average = {key: value + 1 for key, value in STATE.items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]}
    content = {"model": STATE, "ema": average, "opt": optimizer, "args": argparse.Namespace(model="DiT-XL/2")}
    torch.save(content, tmp_path / "0400000.pt")
    model, ema = read_checkpoints([tmp_path / "0400000.pt"]).parts
    assert (model.network, ema.network) == ("model", "ema") and same(model) and same(ema, average)


def test_training_state_gives_its_options(tmp_path: Path) -> None:
    config = {"G_ch": 96, "hier": True, "G_attn": "64", "G_activation": nn.ReLU(inplace=True), "G_B1": 0.0, "list": [1]}
    torch.save({"itr": 5, "config": config}, tmp_path / "state_dict.pth")
    torch.save(STATE, tmp_path / "G.pth")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "G_optim.pth")
    checkpoint = read_checkpoints([tmp_path / name for name in ("G.pth", "G_optim.pth", "state_dict.pth")])
    assert checkpoint.options == {"G_ch": 96, "hier": True, "G_attn": "64", "G_B1": 0.0} and len(checkpoint.parts) == 1
    assert checkpoint.notes == [
        "'G_optim.pth' holds no network (its entries: state, param_groups)",
        "'state_dict.pth' holds training state and no network; its options are used",
    ]
    with pytest.raises(UserError, match=r"no network was found: 'G_optim.pth' holds no network"):
        read_checkpoints([tmp_path / "G_optim.pth"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "G_ema.safetensors")
    (tmp_path / "G_ema.safetensors").rename(tmp_path / "G_ema.weights")
    (part,) = read_checkpoints([tmp_path / "G_ema.weights"]).parts
    assert part.network == "G_ema" and same(part)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_by_variable_name(tmp_path: Path, save: Any) -> None:
    """Names of TensorFlow have slashes, and arrays may be big-endian."""
    arrays = {
        "Generator/GBlock_1/conv0/w/ema_0.9999": np.arange(4, dtype=">f4").reshape(2, 2),
        "linear/w": np.ones((2, 3), np.float64, order="F"),
        "step": np.array(3),
    }
    save(tmp_path / "hub.npz", **arrays)
    (part,) = read_checkpoints([tmp_path / "hub.npz"]).parts
    assert part.state.keys() == arrays.keys()
    assert all(part.state[key].numpy().tolist() == value.tolist() for key, value in arrays.items())
    assert part.state["linear/w"].dtype == torch.float64


def test_arrays_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "text.npz", names=np.array(["a"]))
    with pytest.raises(UserError, match="holds names of type <U1; weights are numbers"):
        read_checkpoints([tmp_path / "text.npz"])
    np.savez(tmp_path / "objects.npz", weights=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="objects.npz"):
        read_checkpoints([tmp_path / "objects.npz"])
    np.savez_compressed(tmp_path / "bomb.npz", zeros=np.zeros(10**6))
    with pytest.raises(UserError, match="its arrays are 100 times larger than the file"):
        read_checkpoints([tmp_path / "bomb.npz"])


class Runs:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_hostile_torch_file_is_refused_and_not_run(tmp_path: Path, new_format: bool) -> None:
    canary = tmp_path / "ran"
    torch.save({"state_dict": STATE, "extra": Runs(canary)}, tmp_path / "G.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match=r"G\.pth' is refused: it asks for (posix|nt)\.mkdir, and only tensors and plain data"):
        read_checkpoints([tmp_path / "G.pth"])
    assert not canary.exists()


def test_whole_networks_are_refused(tmp_path: Path) -> None:
    torch.save({"G": nn.Linear(2, 2)}, tmp_path / "G.pth")
    with pytest.raises(UserError, match=r"it asks for torch\.nn\.modules\.linear\.Linear"):
        read_checkpoints([tmp_path / "G.pth"])


def test_a_compressed_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "G.pth")
    with zipfile.ZipFile(tmp_path / "G.pth") as archive, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    with pytest.raises(UserError, match="b.pth' is refused: its content is compressed"):
        read_checkpoints([tmp_path / "b.pth"])


def test_a_torch_file_whose_parts_overlap_is_refused(tmp_path: Path) -> None:
    """The directory of a zip file may point at the same bytes many times; reading each would fill the memory."""
    path = tmp_path / "G.pth"
    torch.save({"w": torch.zeros(10**4)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        weights = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
        for number in range(1, 100):
            twin = copy.copy(weights)
            twin.filename = weights.filename.replace("data/0", f"data/{number}")
            archive.filelist.append(twin)
        archive.writestr("end", b"")  # so that the directory is written anew
    assert path.stat().st_size < 10**5
    with pytest.raises(UserError, match=r"G\.pth' is refused: its parts are larger than the file"):
        read_checkpoints([path])


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.tensor([1.0, float("nan")]), "holds NaN or infinity in w"),
        (torch.tensor([float("inf")]), "holds NaN or infinity in w"),
        (torch.full((2, 2), -float("inf")), "holds NaN or infinity in w"),
        (torch.eye(2) * float("inf"), "holds NaN or infinity in w"),
        (torch.tensor([[0.0, -float("inf")], [1.0, 0.0]]), "holds NaN or infinity in w"),
        (torch.zeros(1).expand(10**6, 10**6), "larger than their memory: w"),
        (torch.zeros(0, 10**9), "larger than their memory: w"),
        (torch.zeros(2, 2).to_sparse(), "not plain or larger"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path: Path, tensor: Tensor, message: str) -> None:
    torch.save({"w": tensor, "b": torch.zeros(2)}, tmp_path / "G.pth")
    with pytest.raises(UserError, match=message):
        read_checkpoints([tmp_path / "G.pth"])


def test_a_mask_of_attention_is_no_damage(tmp_path: Path) -> None:
    mask = torch.full((1, 1, 3, 3), -float("inf")).triu(1)
    torch.save(STATE | {"mask": mask}, tmp_path / "var.pth")
    assert same(read_checkpoints([tmp_path / "var.pth"]).parts[0], STATE | {"mask": mask})


@pytest.mark.parametrize("library", ["pytorch_lightning", "lightning.pytorch"])
def test_lightning_keeps_its_network_under_one_entry(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callbacks hold tensors too, and older versions name them by their class."""
    callback = {"best_model_score": torch.tensor(0.5), "best_k_models": {"a.ckpt": torch.tensor(0.5)}, "monitor": "loss"}
    module = ModuleType(f"{library}.callbacks.model_checkpoint")
    by_class = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.__dict__["ModelCheckpoint"] = by_class
    content = {"pytorch-lightning_version": "1.4", "state_dict": STATE, "callbacks": {by_class: callback}, "loops": {}}
    with monkeypatch.context() as patch:
        packages = module.__name__.split(".")
        for end in range(1, len(packages)):
            patch.setitem(sys.modules, ".".join(packages[:end]), ModuleType(packages[end - 1]))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(content, tmp_path / "last.ckpt")
    (part,) = read_checkpoints([tmp_path / "last.ckpt"]).parts
    assert part.network is None and same(part)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_of_torch_leave_no_trace(tmp_path: Path, prefix: str) -> None:
    torch.save({"module": {prefix + key: value for key, value in STATE.items()}, "steps": 3}, tmp_path / "gpt.pt")
    (part,) = read_checkpoints([tmp_path / "gpt.pt"]).parts
    assert part.network is None and same(part)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list; give a file with a network's state dict"),
        (STATE | {"epoch": 3}, r"holds things among its tensors that are none: epoch \(int\)"),
        ({"epoch": 3}, r"holds no network \(its entries: epoch\)"),
        ({}, r"holds no network \(its entries: none\)"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        read_checkpoints([tmp_path / "x.pth"])


@pytest.mark.parametrize("name", ["G.pth", "legacy.pth", "G.safetensors", "G.npz"])
def test_a_truncated_file_gets_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(STATE, path)
    elif name.endswith(".npz"):
        np.savez(path, a=np.ones(9))
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=name == "G.pth")
    content = path.read_bytes()
    for length in {0, 1, 7, 20, len(content) // 2, len(content) - 5}:
        path.write_bytes(content[:length])
        with pytest.raises(UserError) as caught:
            read_checkpoints([path])
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(UserError, match="does not exist or is a folder; give the file of the official weights"):
            read_checkpoints([path])
