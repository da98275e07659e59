from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from metrics.extractors import build_extractor
from metrics.files.weights import WeightsFile, cache_dir, load_tensors, resolve_weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published(tmp_path: Path) -> WeightsFile:
    """A "server": a file URL."""
    source = tmp_path / "server.pth"
    torch.save({"w": torch.arange(4.0)}, source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return WeightsFile("net.pth", source.as_uri(), digest[:8], 1)


def test_downloads_once_and_verifies(cache: Path, published: WeightsFile, tmp_path: Path) -> None:
    path, digest = resolve_weights(published, None)
    assert path == cache / "net.pth"
    assert digest.startswith(published.sha256) and len(digest) == 64
    assert torch.equal(load_tensors(path)["w"], torch.arange(4.0))
    (tmp_path / "server.pth").unlink()
    assert resolve_weights(published, None) == (path, digest)
    assert [file.name for file in cache.iterdir()] == ["net.pth"]


def test_corrupt_download_leaves_nothing(cache: Path, published: WeightsFile, tmp_path: Path) -> None:
    (tmp_path / "server.pth").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="download of .* is corrupt"):
        resolve_weights(published, None)
    assert list(cache.iterdir()) == []


def test_corrupt_cache_is_told(cache: Path, published: WeightsFile) -> None:
    path, _ = resolve_weights(published, None)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"cached weights .*net\.pth are corrupt .*delete the file"):
        resolve_weights(published, None)


def test_offline_says_which_file_from_where_to_put_where(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(FileNotFoundError) as caught:
        build_extractor("inception-v3")
    message = str(caught.value)
    assert "pt_inception-2015-12-05-6726825d.pth" in message
    assert "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/" in message
    assert str(cache / "pt_inception-2015-12-05-6726825d.pth") in message
    assert "--weights PATH" in message
    with pytest.raises(FileNotFoundError, match=r"ViT-L-14-336px\.pt"):
        build_extractor("clip-vit-l-14-336")
    assert list(cache.iterdir()) == []


def test_named_file(tmp_path: Path, published: WeightsFile) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        resolve_weights(published, tmp_path / "absent.pth")
    promised = tmp_path / "net-00000000.pth"
    torch.save({}, promised)
    with pytest.raises(ValueError, match="corrupt: its name promises a sha256 that starts with 00000000"):
        resolve_weights(published, promised)


def test_nothing_in_a_weight_file_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="can't be read"):
        load_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 broken zip", b"\x80\x02}"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} (can't be read|does not hold a state dict)"):
        load_tensors(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2), "count": torch.tensor(0), "b.weight": torch.tensor([0.0, value])}, path)
    with pytest.raises(ValueError, match="NaN or infinity in b.weight: it is damaged"):
        load_tensors(path)


def test_not_a_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="does not hold a state dict"):
        load_tensors(tmp_path / "list.pth")


def test_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIPTYCH_CACHE", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "triptych"
