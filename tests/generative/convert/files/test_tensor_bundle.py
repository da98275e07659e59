"""TensorFlow's checkpoints: what TensorFlow 2.21 wrote (``tensorflow/``) and what it never would, without TensorFlow."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tensor_bundles import entry, field, header, to_bytes, write_bundle, write_table

from generative.convert.files import crc32c as checksums
from generative.convert.files.crc32c import crc32c
from generative.convert.files.read import read_checkpoints
from generative.convert.files.tensor_bundle import TensorBundle, with_shards
from generative.core.errors import UserError

WRITTEN = Path(__file__).parent / "tensorflow"
STATE = {"net/kernel": torch.arange(6.0).reshape(2, 3), "net/bias": torch.ones(3, dtype=torch.bfloat16), "one": torch.tensor(1.5)}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a copy of what TensorFlow wrote."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "tensorflow"))


def test_checksums_are_castagnolis() -> None:
    # RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    known = {b"123456789": 0xE3069283, b"": 0, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    assert {data: crc32c(data) for data in known} == known


def test_checksums_do_not_depend_on_how_bytes_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 256, 70_001, dtype=np.uint8)
    expected = [crc32c(data[:size]) for size in (511, 512, 513, 5_000, 70_001)]
    monkeypatch.setattr(checksums, "CHUNK_BYTES", 2_048)
    assert [crc32c(data[:size]) for size in (511, 512, 513, 5_000, 70_001)] == expected


def test_objects_as_tensorflow_saves_them() -> None:
    """A network and its average, of every type of numbers; the counter, the text and the graph of objects are no weights."""
    checkpoint = read_checkpoints([WRITTEN / "objects.index"])
    assert [part.network for part in checkpoint.parts] == ["net", "net_ema"]
    for part, sign in zip(checkpoint.parts, (1, -1), strict=True):
        expected = {
            "brain": (sign * torch.arange(6, dtype=torch.float64).reshape(2, 3) / 3).bfloat16(),
            "empty": torch.empty(0, 2),
            "flag": torch.tensor([True, False]),
            "half": (sign * torch.arange(5, dtype=torch.float64) / 3).half(),
            "kernel": sign * torch.arange(12.0).reshape(3, 4) / 7,
            "layers/0": torch.tensor([-(2**40), 3]),
        }
        assert part.state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(part.state[key], value, rtol=0, atol=0)


def test_several_shards_by_names_of_variables() -> None:
    (part,) = read_checkpoints([WRITTEN / "shards.index"]).parts
    assert part.network is None
    expected = {
        "net/bias": torch.arange(3.0) / 11,
        "net/kernel": torch.arange(12.0).reshape(4, 3) / 7,
        "net/long/shared/prefix/one": torch.arange(7, dtype=torch.float64) / 9,
        "net/long/shared/prefix/two": torch.tensor(2.5),
    }
    assert part.state.keys() == expected.keys()  # the counter and the text are left out
    for key, value in expected.items():
        torch.testing.assert_close(part.state[key], value, rtol=0, atol=0)


def test_shards_may_be_named_beside_their_index() -> None:
    index, *shards = [WRITTEN / f"shards.{suffix}" for suffix in ("index", "data-00000-of-00002", "data-00001-of-00002")]
    assert len(read_checkpoints([*shards, index]).parts) == 1
    assert with_shards([index]) == [index, *shards] == with_shards([index, *shards])
    with pytest.raises(UserError, match=r"is a shard of a TensorFlow checkpoint; give its index, '.*shards.index'"):
        read_checkpoints([shards[0]])
    with pytest.raises(UserError, match=r"does not exist or is a folder; give '.*shards.index'"):
        read_checkpoints([WRITTEN / "shards"])


def test_many_tensors_in_many_blocks(tmp_path: Path) -> None:
    state = {f"layer{number}/kernel": torch.full((number % 5, 3), float(number)) for number in range(100)}
    bundle = TensorBundle(write_bundle(tmp_path / "model.ckpt-7", state, num_shards=3))
    assert bundle.entries.keys() == state.keys()
    assert all(torch.equal(bundle.read(key), value) for key, value in state.items())


def test_every_byte_is_under_a_checksum(written: Path) -> None:
    index = written / "shards.index"
    whole = index.read_bytes()
    for place in range(len(whole) - 48):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"it is truncated, damaged or another file|get that file too"):
            TensorBundle(index)
    index.write_bytes(whole)
    shard = written / "shards.data-00000-of-00002"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match=r"the bytes of net/long/shared/prefix/one in 'shards.data-00000-of-00002' don't have"):
        read_checkpoints([index])


def test_what_is_missing_is_named(written: Path) -> None:
    index, shard = written / "shards.index", written / "shards.data-00001-of-00002"
    content = shard.read_bytes()
    shard.write_bytes(content[:20])
    with pytest.raises(UserError, match="needs more of 'shards.data-00001-of-00002' than its 20 bytes: get it again"):
        TensorBundle(index)
    shard.unlink()
    with pytest.raises(UserError, match="needs 'shards.data-00001-of-00002' beside it"):
        TensorBundle(index)
    for size in (0, 30, 200):
        index.write_bytes(index.read_bytes()[:size])
        with pytest.raises(UserError, match="can't be read as the index of a TensorFlow checkpoint: it has no end"):
            read_checkpoints([index])


def test_partitioned_variables_are_refused() -> None:
    with pytest.raises(UserError, match="holds w in slices, which is not read"):
        read_checkpoints([WRITTEN / "sliced.index"])


def test_a_checkpoint_without_a_network(tmp_path: Path) -> None:
    state = {"step/.ATTRIBUTES/VARIABLE_VALUE": torch.tensor(3), "optimizer/lr/.ATTRIBUTES/VARIABLE_VALUE": torch.tensor(0.1)}
    with pytest.raises(UserError, match="holds no network, only counters, an optimizer or texts"):
        read_checkpoints([write_bundle(tmp_path / "c", state)])


NUMBERS = to_bytes(torch.ones(4))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({b"a": b""}, "it has no header"),
        ({b"": b""}, "it does not say in how many shards"),
        ({b"": header(1, endianness=1)}, "its numbers are of another byte order"),
        ({b"": header(1, least_version=9)}, "it is of a later format"),
        ({b"": header(1), b"b": entry(1, (4,), NUMBERS, 0), b"a": entry(1, (4,), NUMBERS, 0)}, "its keys are not in order"),
        ({b"": header(1), b"a": b"\x03"}, "a message has a field of no known kind"),
        ({b"": header(1), b"a": field(1, 1)[:1]}, "an entry goes on past its end"),
        ({b"": header(1), b"a": field(1, b"text")}, "a message has text in the place of a number"),
        ({b"": header(1), b"a": field(2, 7)}, "a message has a number in the place of another message"),
        ({b"": header(1), b"a": b"\xff" * 11}, "a number is longer than 64 bits"),
        ({b"": header(1), b"a" * 2000: b""}, "a key is longer than names are"),
        ({b"": header(1), b"\xff": b""}, "can't be read as the index"),
        ({b"": header(1), b"a": entry(1, (4,), NUMBERS, 0, shard=3)}, "has a in shard 3 of 1"),
        ({b"": header(1), b"a": entry(1, (4,), NUMBERS, 0), b"b": entry(1, (4,), NUMBERS, 8)}, "b lies over another tensor"),
        ({b"": header(1), b"a": entry(1, (2,), NUMBERS, 0)}, r"has 16 bytes for a of shape \(2,\)"),
        ({b"": header(1), b"a": entry(1, (1 << 63,), NUMBERS, 0)}, "a tensor has no shape"),
        ({b"": header(1), b"a": entry(1, (0, 1 << 62), b"", 0)}, "a is empty and of shape"),
        ({b"": header(1), b"a": entry(11, (4,), NUMBERS, 0)}, "holds a of TensorFlow's type 11"),
    ],
)
def test_hostile_and_foreign_indices_are_refused(entries: dict[bytes, bytes], message: str, tmp_path: Path) -> None:
    (tmp_path / "c.data-00000-of-00001").write_bytes(bytes(100))
    (tmp_path / "c.index").write_bytes(write_table(entries))
    with pytest.raises(UserError, match=message):
        read_checkpoints([tmp_path / "c.index"])


def test_compressed_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.index").write_bytes(write_table({b"": header(1)}, compression=1))
    with pytest.raises(UserError, match="a block is compressed, which TensorFlow's are not"):
        TensorBundle(tmp_path / "c.index")


def test_damaged_weights_are_told(tmp_path: Path) -> None:
    state = {"net/kernel": torch.tensor([1.0, torch.nan]), "net/bias": torch.zeros(2)}
    with pytest.raises(UserError, match="holds NaN or infinity in net/kernel"):
        read_checkpoints([write_bundle(tmp_path / "c", state)])
